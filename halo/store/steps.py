"""A step as the statements of its one transaction, each with the guard that it must pass.

The statements travel together and their guards are looked at before COMMIT is sent: one that matched no row raises `StepOvertaken`, and
nothing is kept. Every effect but `Send` becomes statements here; nothing is decided, that was done in `halo/rules.py`. Read next:
`halo/store/sessions.py`, which commits them.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import assert_never

import msgspec
from psycopg.types.json import Jsonb

from halo.effects import (
    CloseSearch,
    ConsumePayment,
    Effect,
    FailPayment,
    FailUnusedPayments,
    MoveExtensionDeadline,
    OpenExtension,
    OpenSearch,
    PushIfAbsent,
    RecordFailure,
    RefundTimeLeft,
    ResolveExtension,
    Send,
    Step,
    WinOffer,
)
from halo.errors import StepOvertaken
from halo.outbox import PUSH_PATIENCE_MS
from halo.push import receipt
from halo.session import Extension, Party, Session, SessionStatus
from halo.store import payments, refunds, reroutes
from halo.store.connection import Values
from halo.store.postgres import Transaction
from halo.store.queries import Query, load_queries
from halo.store.values import Value
from halo.trace import current_traceparent

SQL = load_queries("steps")


@dataclass(frozen=True, slots=True)
class Write:
    """One statement of a step; with `guard`, it must touch exactly one row, and the guard says of what."""

    query: Query
    values: Values
    guard: str | None = None


async def write_step(
    tx: Transaction,
    before: Session,
    decided: Step,
    owner: str,
    present: frozenset[Party],
    decide_again: Callable[[], Step] | None = None,
) -> Step:
    """Write `decided`, which was decided on `before`, as `owner`; parties in `present` have a socket on this chat.

    Returns what was written: a takeover is decided again, if it can be, once its locks are held.

    Raises:
        StepOvertaken: the row is no longer `before`, or a payment was bound or spent elsewhere.
        OfferResolved, MitraDeactivated, CapacityExceeded: the mitra who accepted cannot have the session.
    """
    decided = await _move_search(tx, before, decided, owner, decide_again)
    after = decided.session
    moved = _columns(after) | {
        "at": decided.at,
        "from_status": before.status.value,
        "from_version": before.version,
        "owner": owner,
    }
    writes = [
        Write(SQL["step_session"], moved, "session"),
        _timeline(decided, before.status),
        *_effects(decided, owner, present),
        *[Write(*row, "refund") for row in await refunds.share_out(tx, decided)],
    ]
    if after.status is SessionStatus.ENDED or after.mitra_id != before.mitra_id:
        mitra_ids = sorted(
            {before.mitra_id, after.mitra_id}
        )  # in one order everywhere, or two steps could wait for each other
        writes += [Write(SQL["change_capacity"], {"mitra_id": mitra_id, "at": decided.at}) for mitra_id in mitra_ids]
    await _run(tx, writes)
    return decided


async def insert_session(tx: Transaction, opened: Step, owner: str) -> None:
    """Write a session that `halo.rules.open_session` has opened, in the caller's transaction; the caller moves the capacity.

    Its people hear of it in the lobby, so every push of it waits until that is known to have failed.

    Raises:
        StepOvertaken: its payment is not confirmed any more.
    """
    row = _columns(opened.session) | {"at": opened.at, "owner": owner}
    await _run(
        tx, [Write(SQL["insert_session"], row), _timeline(opened, None), *_effects(opened, owner, frozenset(Party))]
    )


async def write_credits(tx: Transaction, owed: Sequence[Step], owner: str) -> None:
    """Write many credits of downtime, all decided at the same moment.

    Raises:
        StepOvertaken: one of the rows is no longer what its credit was decided on; none is written.
    """
    sessions = [credit.session for credit in owed]
    values: dict[str, Value] = {
        "owner": owner,
        "at": owed[0].at,
        "event": owed[0].event,
        "cause": owed[0].cause,
        "session_ids": [session.session_id for session in sessions],
        "epochs": [session.epoch for session in sessions],
        "versions": [session.version for session in sessions],
        "running_since": [session.running_since for session in sessions],
        "expires_at": [session.expires_at for session in sessions],
        "deadline_at": [session.deadline_at for session in sessions],
        "statuses": [session.status.value for session in sessions],
        "evidences": [msgspec.json.encode(dict(credit.evidence)).decode() for credit in owed],
    }
    moved, *_ = await tx.execute_all(
        [(SQL["credit_sessions"], values), (SQL["credit_timelines"], values), (SQL["credit_extensions"], values)]
    )
    if moved.touched != len(sessions):
        raise StepOvertaken("session")


async def _move_search(
    tx: Transaction, before: Session, decided: Step, owner: str, decide_again: Callable[[], Step] | None
) -> Step:
    """What the step does to the session's search for another mitra; first of all, for these locks come before the session's row."""
    for effect in decided.effects:
        match effect:
            case OpenSearch():
                await reroutes.open_search(tx, effect.pairing_id, decided.session, owner, decided.at)
            case WinOffer():
                await reroutes.lock_offer(tx, effect, before)
                # Her clock starts now, under the locks, and not before the wait for them: that would be the customer's time.
                won = decided if decide_again is None else decide_again()
                await reroutes.win_offer(tx, effect, before, won.at)
                return won
            case CloseSearch():
                await reroutes.close_search(tx, before, effect.cause, decided.at)
            case _:
                pass
    return decided


async def _run(tx: Transaction, writes: list[Write]) -> None:
    results = await tx.execute_all([(write.query, write.values) for write in writes])
    for write, result in zip(writes, results, strict=True):
        if write.guard is not None and result.touched != 1:
            raise StepOvertaken(write.guard)


def _timeline(decided: Step, from_status: SessionStatus | None) -> Write:
    after = decided.session
    row: dict[str, Value] = {
        "session_id": after.session_id,
        "version": after.version,
        "epoch": after.epoch,
        "at": decided.at,
        "event": decided.event,
        "from_status": from_status.value if from_status else None,
        "status": after.status.value,
        "cause": decided.cause,
        "evidence": Jsonb(dict(decided.evidence)),
    }
    return Write(SQL["insert_timeline"], row)


def _effects(decided: Step, owner: str, present: frozenset[Party]) -> Iterator[Write]:
    for effect in decided.effects:
        if isinstance(effect, PushIfAbsent):
            yield _push(effect, decided, owner if effect.party in present else None)
        else:
            yield from _effect(effect, decided)


def _push(effect: PushIfAbsent, decided: Step, told_by: str | None) -> Write:
    """`told_by` is the node that tells the party by a frame as well: then the push waits for its pong, and may be spared."""
    after, at = decided.session, decided.at
    values: dict[str, Value] = {
        "user_id": after.mitra_id if effect.party is Party.MITRA else after.customer_id,
        "session_id": after.session_id,
        "template": effect.template,
        "payload": Jsonb({"session_id": after.session_id}),
        "collapse_key": effect.collapse_key,
        "at": at,
        "due_at": at + (PUSH_PATIENCE_MS if told_by is not None else 0),
        "expires_at": effect.expires_at,
        "receipt": receipt(effect.collapse_key, after.version) if told_by is not None else None,
        "told_by": told_by,
        "traceparent": current_traceparent(),
    }
    return Write(SQL["insert_push"], values)


def _effect(effect: Effect, decided: Step) -> Iterator[Write]:
    after, at = decided.session, decided.at
    match effect:
        case Send():
            pass  # said by the actor, after the commit
        case OpenSearch() | WinOffer() | CloseSearch():
            pass  # written by `_move_search`
        case ConsumePayment():
            yield Write(
                *payments.consumption(effect.payment_request_id, after.session_id, effect.type.value, at), "payment"
            )
        case FailPayment():
            failing = payments.failure(
                effect.payment_request_id, effect.cause.value, at, session_id=after.session_id, expected=effect.expected
            )
            yield Write(*failing, "payment" if effect.expected is not None else None)
        case FailUnusedPayments():
            yield Write(*payments.failure_of_unused(effect.session_id, at))
        case RefundTimeLeft():
            pass  # written by `refunds.share_out`
        case OpenExtension():
            yield Write(SQL["open_extension"], _extension_columns(effect.extension), "payment")
        case ResolveExtension():
            resolved: dict[str, Value] = {
                "extension_id": effect.extension_id,
                "session_id": after.session_id,
                "status": effect.status.value,
                "decided_by": effect.decided_by.value,
                "at": at,
            }
            yield Write(SQL["resolve_extension"], resolved, "extension")
            yield Write(SQL["cancel_pushes"], {"collapse_key": f"extension:{effect.extension_id}"})
        case MoveExtensionDeadline():
            yield Write(
                SQL["move_extension_deadline"], {"extension_id": effect.extension_id, "deadline_at": effect.deadline_at}
            )
        case RecordFailure():
            failure: dict[str, Value] = {
                "cause": effect.cause.value,
                "session_id": after.session_id,
                "extension_id": effect.extension_id,
                "customer_id": after.customer_id,
                "mitra_id": after.mitra_id,
                "evidence": Jsonb(dict(decided.evidence)),
                "at": at,
            }
            yield Write(SQL["insert_failure"], failure)
        case PushIfAbsent():
            pass  # written by `_push`
        case _:
            assert_never(effect)


def _columns(session: Session) -> dict[str, Value]:
    return {
        "session_id": session.session_id,
        "customer_id": session.customer_id,
        "mitra_id": session.mitra_id,
        "former_mitra_ids": list(session.former_mitra_ids),
        "payment_request_id": session.payment_request_id,
        "topic_sensitivity": session.topic_sensitivity,
        "status": session.status.value,
        "end_reason": session.end_reason.value if session.end_reason else None,
        "duration_minutes": session.duration_minutes,
        "minute_ms": session.minute_ms,
        "price": session.price,
        "currency": session.currency,
        "paid_amount": session.paid_amount,
        "started_at": session.started_at,
        "running_since": session.running_since,
        "expires_at": session.expires_at,
        "deadline_at": session.deadline_at,
        "paid_ms": session.paid_ms,
        "served_ms": session.served_ms,
        "refunded_ms": session.refunded_ms,
        "forfeited_ms": session.forfeited_ms,
        "remaining_ms": session.remaining_ms,
        "grace_left_ms": session.grace_left_ms,
        "extensions_accepted": session.extensions_accepted,
        "epoch": session.epoch,
        "version": session.version,
    }


def _extension_columns(extension: Extension) -> dict[str, Value]:
    return {
        "extension_id": extension.extension_id,
        "session_id": extension.session_id,
        "payment_request_id": extension.payment_request_id,
        "duration_minutes": extension.duration_minutes,
        "price": extension.price,
        "currency": extension.currency,
        "requested_at": extension.requested_at,
        "deadline_at": extension.deadline_at,
        "timeout_seconds": extension.timeout_seconds,
        "default_action_on_timeout": extension.default_action_on_timeout.value,
        "refusal_outcome": extension.refusal_outcome.value,
        "config_version": extension.config_version,
    }
