"""The rows of the outbox, for those who deliver them: claimed for a while, written down, revived by an operator.

A claim is a lease: the node that dies with it loses nothing, and what it had sent without writing it down is sent once more. A late
answer changes nothing (`attempts` is the fence). It must never give a row to two senders at once, and never write a token where it was
not. Read next: `halo/outbox.py`, `halo/actors/outbox.py`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final
from uuid import uuid4

from halo.clock import Clock, Moment
from halo.errors import InvalidState, NotFound
from halo.outbox import Claim, DeadLetter, Device, OutboxKind, OutboxStatus, Outcome, Refund
from halo.store.postgres import Postgres, Transaction
from halo.store.queries import load_queries
from halo.store.values import Value
from halo.trace import current_trace_id

SQL: Final = load_queries(
    "outbox", "find_next_due", "claim", "record", "drop_tokens", "count_waiting", "list_dead", "find_status", "replay"
)

LEASE_MS: Final = 60_000
"""Three times what a delivery may take: only a node that is dead, or cut off from Postgres, is overtaken."""
OTHERS_GRACE_MS: Final = 5_000
"""So long a row that another node has told to a socket is left to that node; the clocks of two nodes may differ by 2 s."""


@dataclass(frozen=True, slots=True)
class Waiting:
    """How many rows of one kind and status there are."""

    kind: OutboxKind
    status: OutboxStatus
    count: int
    oldest_due_at: Moment | None


class Outbox:
    """The rows of the outbox, as seen by the node `node_id`. Every method raises `StoreUnavailable`."""

    def __init__(self, db: Postgres, node_id: str, clock: Clock) -> None:
        self._db = db
        self._node_id = node_id
        self._clock = clock

    async def find_next_due(self, kind: OutboxKind) -> Moment | None:
        """When the next row of this kind is due, if there is any that this node may take."""
        row = await self._db.fetch_one(SQL["find_next_due"], self._whose(kind))
        return None if row is None else int(row.due_at)

    async def claim(self, kind: OutboxKind, limit: int) -> list[Claim]:
        """Up to `limit` rows that are due, the oldest first; they are this node's for `LEASE_MS`."""
        values = self._whose(kind) | {"limit": limit, "claimed_until": self._clock.now() + LEASE_MS}
        return [self._claim(row) for row in await self._db.fetch_all(SQL["claim"], values)]

    async def record(self, outcomes: Sequence[Outcome]) -> set[str]:
        """Write down what became of claims, all in one transaction; the ids of those that a step holds just now, to be told again.

        It waits for no lock of a step: two that wait for each other would cost a session a second.
        """
        if dropped := [token for outcome in outcomes for token in outcome.dropped]:
            await self._db.execute(SQL["drop_tokens"], {"tokens": dropped})
        values: dict[str, Value] = {
            "now": self._clock.now(),
            "outbox_ids": [outcome.outbox_id for outcome in outcomes],
            "attempts": [outcome.attempts for outcome in outcomes],
            "statuses": [outcome.status.value for outcome in outcomes],
            "due_ats": [outcome.due_at for outcome in outcomes],
            "errors": [outcome.error for outcome in outcomes],
            "reached": ["{" + ",".join(outcome.reached) + "}" for outcome in outcomes],
        }
        return {row.outbox_id for row in await self._db.fetch_all(SQL["record"], values)}

    async def count_waiting(self) -> list[Waiting]:
        """What is due and what is dead, of the whole cluster."""
        return [
            Waiting(OutboxKind(row.kind), OutboxStatus(row.status), row.count, row.oldest_due_at)
            for row in await self._db.fetch_all(SQL["count_waiting"])
        ]

    async def list_dead(
        self, limit: int = 50, cursor: str | None = None, kind: OutboxKind | None = None
    ) -> list[DeadLetter]:
        """Dead letters, refunds before pushes, the newest of each first, from after the one that `cursor` names; of one kind or of all."""
        values: dict[str, Value] = {"limit": limit, "cursor": cursor, "kind": None if kind is None else kind.value}
        rows = await self._db.fetch_all(SQL["list_dead"], values)
        return [
            DeadLetter(
                outbox_id=row.outbox_id,
                kind=OutboxKind(row.kind),
                user_id=row.user_id,
                session_id=row.session_id,
                template=row.template,
                attempts=row.attempts,
                last_error=row.last_error,
                created_at=row.created_at,
                finished_at=row.finished_at,
            )
            for row in rows
        ]

    async def replay(self, outbox_id: str, operator: str) -> None:
        """Try a dead letter again, as if for the first time, and write down who wanted it.

        Raises:
            NotFound
            InvalidState: it is not dead, or its time is over.
        """
        values: dict[str, Value] = {
            "outbox_id": outbox_id,
            "operator": operator,
            "at": self._clock.now(),
            "trace_id": current_trace_id(),
        }

        async def write(tx: Transaction) -> None:
            if await tx.execute(SQL["replay"], values) == 1:
                return
            row = await tx.fetch_one(SQL["find_status"], values)
            if row is None:
                raise NotFound("There is no such row in the outbox.")
            if row.status == OutboxStatus.DEAD:
                raise InvalidState("Its time is over; nobody wants it any more.")
            raise InvalidState(f"It is {row.status}; only a dead letter can be replayed.")

        await self._db.transact(write, str(uuid4()))

    def _whose(self, kind: OutboxKind) -> dict[str, Value]:
        now = self._clock.now()
        return {"kind": kind.value, "now": now, "node_id": self._node_id, "others_before": now - OTHERS_GRACE_MS}

    def _claim(self, row: Any) -> Claim:
        return Claim(
            outbox_id=row.outbox_id,
            kind=OutboxKind(row.kind),
            user_id=row.user_id,
            template=row.template,
            payload=row.payload,
            collapse_key=row.collapse_key,
            is_expired=row.status == OutboxStatus.EXPIRED,
            receipt=row.receipt if row.told_by == self._node_id else None,
            attempts=row.attempts,
            tries=row.attempts - row.attempts_forgiven,
            first_attempt_at=row.first_attempt_at,
            expires_at=row.expires_at,
            session_id=row.about_session_id,
            traceparent=row.traceparent,
            devices=_devices(row.devices),
            reached=frozenset(row.reached),
            refund=None if row.refund_id is None else _refund(row),
        )


def _devices(found: Sequence[Sequence[str]]) -> tuple[Device, ...]:
    """One for each token: somebody who signed in twice on one phone has one phone, in the language of the last time."""
    by_token = {token: Device(auth_session_id, token, locale) for auth_session_id, token, locale in found}
    return tuple(by_token.values())


def _refund(row: Any) -> Refund:
    return Refund(
        refund_id=row.refund_id,
        payment_request_id=row.payment_request_id,
        provider_ref=row.provider_ref,
        session_id=row.session_id,
        kind=row.refund_kind,
        cause=row.cause,
        amount=row.amount,
        currency=row.currency,
        created_at=row.refund_created_at,
    )
