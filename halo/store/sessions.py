"""Sessions in Postgres: read, owned, and moved by one transaction a step.

What a step writes is in `halo/store/steps.py`; here it is committed, once, whatever becomes of the connection. It must never decide
anything: that was done in `halo/rules.py`. Read next: `halo/store/journal.py`, the way of messages.
"""

import uuid
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from psycopg.errors import ForeignKeyViolation, IntegrityError, UniqueViolation

from halo.clock import Moment
from halo.config import RefusalOutcome, TimeoutAction
from halo.effects import Step
from halo.errors import StepOvertaken
from halo.session import EndReason, Extension, ExtensionStatus, Party, Session, SessionStatus
from halo.store.nodes import LOCK_CLASS
from halo.store.postgres import Postgres
from halo.store.queries import load_queries
from halo.store.steps import write_credits, write_step

SQL = load_queries("sessions")


@dataclass(frozen=True, slots=True)
class Stored:
    """A session as it stands in Postgres, with the last `seq` of its messages."""

    session: Session
    last_seq: int


@dataclass(frozen=True, slots=True)
class TakenUp:
    """A session that this node now owns, and the moment until which somebody kept its clock."""

    stored: Stored
    last_kept_at: Moment


@dataclass(frozen=True, slots=True)
class StoredMessage:
    seq: int
    sender: str
    """As it is stored: `customer`, `mitra`, or which of several mitras (`halo.session.sender_of` tells the party)."""
    id: str
    body: str
    at: Moment


@dataclass(frozen=True, slots=True)
class Capacity:
    """How many living sessions a mitra has; `version` orders writes to the mirror."""

    mitra_id: str
    count: int
    version: int


class Sessions:
    """The rows of sessions, extensions and messages, as written by the node `owner`."""

    def __init__(self, db: Postgres, owner: str) -> None:
        self._db = db
        self.owner = owner

    async def commit(self, before: Session, decided: Step, operation_id: str, present: frozenset[Party]) -> None:
        """Write `decided`, which was decided on `before`; parties in `present` have a socket on this chat.

        Raises:
            StepOvertaken: the row is no longer `before`, or a payment was bound or spent elsewhere; nothing was written.
            OfferResolved, MitraDeactivated, CapacityExceeded: the mitra who accepted cannot have the session; nothing was written.
            StoreUnavailable: Postgres does not answer; whether it was written will be known after a reload.
        """
        try:
            await self._db.transact(lambda tx: write_step(tx, before, decided, self.owner, present), operation_id)
        except UniqueViolation as taken:  # session_extensions_one_payment, …_one_pending: somebody else was first
            raise StepOvertaken(taken.diag.constraint_name) from taken
        except IntegrityError as broken:  # statements travel together: a later one trips before the guard is seen
            stored = await self.load(before.session_id)
            if stored is not None and (stored.session.epoch, stored.session.version) == (before.epoch, before.version):
                raise
            raise StepOvertaken(broken.diag.constraint_name) from broken

    async def commit_credits(self, owed: Sequence[Step]) -> None:
        """Write credits of downtime that were decided at the same moment, all or none; none is spoken of.

        Raises:
            StepOvertaken, StoreUnavailable
        """
        try:
            await self._db.transact(lambda tx: write_credits(tx, owed, self.owner), str(uuid.uuid4()))
        except (UniqueViolation, ForeignKeyViolation) as taken:
            # A step of the timeline is there already, or its session is not.
            raise StepOvertaken(taken.diag.constraint_name) from taken

    async def load(self, session_id: str) -> Stored | None:
        """The session whoever owns it, or None."""
        found = await self.list_by_id([session_id])
        return found[0] if found else None

    async def list_by_id(self, session_ids: Sequence[str]) -> list[Stored]:
        rows = await self._db.fetch_all(SQL["list_sessions"], {"session_ids": list(session_ids)})
        return [_stored(row) for row in rows]

    async def take_up(self, limit: int) -> list[TakenUp]:
        """Own up to `limit` living sessions that no living node owns, those due soonest first; each gets a new epoch."""
        rows = await self._db.fetch_all(SQL["take_up"], {"owner": self.owner, "lock_class": LOCK_CLASS, "limit": limit})
        last_kept_at = {row.session_id: row.last_kept_at for row in rows}
        return [
            TakenUp(stored, last_kept_at[stored.session.session_id])
            for stored in await self.list_by_id(list(last_kept_at))
        ]

    async def list_strays(self, kept: Collection[str]) -> list[TakenUp]:
        """Living sessions of this node that are not in `kept`: the answer to the commit that made them ours was lost on its way."""
        own = await self._db.fetch_one(SQL["count_own"], {"owner": self.owner})
        if own is None or own.count <= len(kept):  # nearly always: nothing more is read
            return []
        rows = await self._db.fetch_all(SQL["list_own"], {"owner": self.owner})
        strays = {row.session_id: row for row in rows if row.session_id not in kept}
        return [
            TakenUp(stored, strays[stored.session.session_id].last_kept_at)
            for stored in await self.list_by_id(list(strays))
            if stored.session.epoch == strays[stored.session.session_id].epoch  # else another node has it by now
        ]

    async def list_living_of(self, user_id: str) -> list[str]:
        return [row.session_id for row in await self._db.fetch_all(SQL["list_living_of"], {"user_id": user_id})]

    async def list_without_active_mitra(self) -> dict[str, str]:
        """Living sessions of this node that are with a mitra who was deactivated, and who that is."""
        rows = await self._db.fetch_all(SQL["list_without_active_mitra"], {"owner": self.owner})
        return {row.session_id: row.mitra_id for row in rows}

    async def find_extension(self, session_id: str, extension_id: str) -> Extension | None:
        row = await self._db.fetch_one(SQL["load_extension"], {"session_id": session_id, "extension_id": extension_id})
        return None if row is None else _extension(row, prefix="", session_id=session_id)

    async def list_messages(self, session_id: str, after_seq: int, limit: int) -> list[StoredMessage]:
        """At most `limit` messages with `seq > after_seq`, in order."""
        rows = await self._db.fetch_all(
            SQL["list_messages"], {"session_id": session_id, "after_seq": after_seq, "limit": limit}
        )
        return [StoredMessage(row.seq, row.sender, row.id, row.body, row.at) for row in rows]

    async def list_message_ids(self, session_id: str, after_seq: int, limit: int) -> list[tuple[int, str, str]]:
        """`(seq, sender, id)` of at most `limit` messages, in order; bodies stay where they are."""
        rows = await self._db.fetch_all(
            SQL["list_message_ids"], {"session_id": session_id, "after_seq": after_seq, "limit": limit}
        )
        return [(row.seq, row.sender, row.id) for row in rows]

    async def find_message(self, session_id: str, sender: str, client_id: str) -> StoredMessage | None:
        row = await self._db.fetch_one(
            SQL["find_message"], {"session_id": session_id, "sender": sender, "id": client_id}
        )
        return None if row is None else StoredMessage(row.seq, sender, client_id, row.body, row.at)

    async def load_capacity(self, mitra_id: str) -> Capacity:
        """The count and its version, from one snapshot (spec 3)."""
        row = await self._db.fetch_one(SQL["load_capacity"], {"mitra_id": mitra_id})
        return Capacity(mitra_id, row.count if row else 0, row.version if row else 0)

    async def list_timeline(self, session_id: str) -> list[Any]:
        return await self._db.fetch_all(SQL["list_timeline"], {"session_id": session_id})


def _extension(row: Any, *, prefix: str, session_id: str) -> Extension:
    def column(name: str) -> Any:
        return getattr(row, prefix + name)

    return Extension(
        extension_id=column("extension_id"),
        session_id=session_id,
        payment_request_id=column("payment_request_id"),
        status=ExtensionStatus.PENDING if prefix else ExtensionStatus(row.status),
        duration_minutes=column("duration_minutes"),
        price=column("price"),
        currency=column("currency"),
        requested_at=column("requested_at"),
        deadline_at=column("deadline_at"),
        timeout_seconds=column("timeout_seconds"),
        default_action_on_timeout=TimeoutAction(column("default_action_on_timeout")),
        refusal_outcome=RefusalOutcome(column("refusal_outcome")),
        config_version=column("config_version"),
    )


def _stored(row: Any) -> Stored:
    session = Session(
        session_id=row.session_id,
        customer_id=row.customer_id,
        mitra_id=row.mitra_id,
        former_mitra_ids=tuple(row.former_mitra_ids),
        payment_request_id=row.payment_request_id,
        topic_sensitivity=row.topic_sensitivity,
        status=SessionStatus(row.status),
        end_reason=EndReason(row.end_reason) if row.end_reason else None,
        duration_minutes=row.duration_minutes,
        minute_ms=row.minute_ms,
        price=row.price,
        currency=row.currency,
        paid_amount=row.paid_amount,
        started_at=row.started_at,
        running_since=row.running_since,
        expires_at=row.expires_at,
        deadline_at=row.deadline_at,
        paid_ms=row.paid_ms,
        served_ms=row.served_ms,
        refunded_ms=row.refunded_ms,
        forfeited_ms=row.forfeited_ms,
        remaining_ms=row.remaining_ms,
        grace_left_ms=row.grace_left_ms,
        extension=_extension(row, prefix="e_", session_id=row.session_id) if row.e_extension_id else None,
        extensions_accepted=row.extensions_accepted,
        epoch=row.epoch,
        version=row.version,
    )
    return Stored(session, row.last_seq)
