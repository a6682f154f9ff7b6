"""Sessions in Postgres: read, owned, and moved by one transaction a step.

What a step writes is in `halo/store/steps.py`; here it is committed, once, whatever becomes of the connection. It must never decide
anything: that was done in `halo/rules.py`. Read next: `halo/store/journal.py`, the way of messages.
"""

import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import trio
from psycopg.errors import ForeignKeyViolation, IntegrityError, UniqueViolation

from halo.clock import Moment
from halo.effects import Step
from halo.errors import NotFound, StepOvertaken, StoreUnavailable
from halo.session import Extension, Party, Session
from halo.store.nodes import LOCK_CLASS
from halo.store.postgres import Postgres
from halo.store.queries import load_queries
from halo.store.reading_room import ReadingRoom
from halo.store.session_rows import read_extension, read_session
from halo.store.steps import write_credits, write_step
from halo.store.values import Value

SQL = load_queries("sessions")

APPENDS_SECONDS: Final = 5.0
"""How long taking up waits for appends under way; their nodes give them up after as long, and the next round waits anew."""
APPENDS_POLL_SECONDS: Final = 0.005
"""An append takes about a millisecond."""
HISTORY_ROWS_MAX: Final = 1_000
"""Messages in one answer, five pages of a socket: 2.4 ms of the event loop at 120 characters, 10 ms and 4 MB at their longest."""
ID_ROWS_MAX: Final = 4_000
"""Ids in one answer: 6 ms of the event loop, and some eighty sessions of a usual length."""


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
class Differences:
    """Between the actors of a node and its rows."""

    strays: list[TakenUp]
    """Ours, with nobody who keeps them at this epoch: the answer to the commit that made them ours was lost on its way."""
    lost: dict[str, int]
    """Kept at an epoch at which they are not ours any more, or over."""


@dataclass(frozen=True, slots=True)
class StoredMessage:
    seq: int
    sender: str
    """As it is stored: `customer`, `mitra`, or which of several mitras (`halo.session.sender_of` tells the party)."""
    id: str
    body: str
    at: Moment


@dataclass(frozen=True, slots=True)
class Page:
    """Messages in their order, and the last `seq` that there was when they were read."""

    messages: list[StoredMessage]
    last_seq: int


@dataclass(frozen=True, slots=True)
class _Excerpt:
    """Messages that somebody wants to read: at most `limit` with `seq > after_seq`."""

    reader_id: str
    """Empty for the session's own actor, who is asked nothing."""
    session_id: str
    after_seq: int
    limit: int


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
        self._histories = ReadingRoom(self._list_histories, HISTORY_ROWS_MAX)
        self._ids = ReadingRoom(self._list_ids, ID_ROWS_MAX)

    async def commit(
        self,
        before: Session,
        decided: Step,
        operation_id: str,
        present: frozenset[Party],
        decide_again: Callable[[], Step] | None = None,
    ) -> Step:
        """Write `decided`, which was decided on `before`; parties in `present` have a socket on this chat.

        Returns the step as it was written: `decide_again` makes the same decision at the present moment, and is asked under the locks of a
        takeover, whose clock must not start before the wait for them.

        Raises:
            StepOvertaken: the row is no longer `before`, or a payment was bound or spent elsewhere; nothing was written.
            OfferResolved, MitraDeactivated, CapacityExceeded: the mitra who accepted cannot have the session; nothing was written.
            StoreUnavailable: Postgres does not answer; whether it was written will be known after a reload.
        """
        try:
            return await self._db.transact(
                lambda tx: write_step(tx, before, decided, self.owner, present, decide_again), operation_id
            )
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
        return [Stored(read_session(row), row.last_seq) for row in rows]

    async def take_up(self, limit: int) -> list[TakenUp]:
        """Own up to `limit` living sessions that no living node owns, those due soonest first; each gets a new epoch.

        Raises:
            StoreUnavailable: some may be ours by now; `compare` finds them.
        """
        rows = await self._db.fetch_all(SQL["take_up"], {"owner": self.owner, "lock_class": LOCK_CLASS, "limit": limit})
        return await self._taken(rows)

    async def compare(self, kept: Mapping[str, int]) -> Differences:
        """What of `kept`, sessions with their epochs, is not ours and living, and what is ours and not in it; all in one snapshot.

        Raises:
            StoreUnavailable
        """
        values: dict[str, Value] = {"owner": self.owner, "session_ids": list(kept), "epochs": list(kept.values())}
        rows = await self._db.fetch_all(SQL["compare"], values)
        strays = await self._taken([row for row in rows if row.is_own])
        return Differences(strays, {row.session_id: row.epoch for row in rows if not row.is_own})

    async def _taken(self, rows: Sequence[Any]) -> list[TakenUp]:
        """As they stand once nobody writes messages in them at an older epoch any more."""
        if not rows:  # nearly always
            return []
        taken = {row.session_id: row for row in rows}
        await self._wait_for_appends()
        return [
            TakenUp(stored, taken[stored.session.session_id].last_kept_at)
            for stored in await self.list_by_id(list(taken))
            if stored.session.epoch == taken[stored.session.session_id].epoch  # else another node has it by now
        ]

    async def _wait_for_appends(self) -> None:
        """Until every append is over that may still have seen the epoch before: what it acknowledges counts for `last_seq`.

        The journal locks no row of a session, for that would write one tuple more for nearly every message; so who takes up waits instead.
        """
        writers = await self._list_writers()
        with trio.move_on_after(APPENDS_SECONDS) as patience:
            while writers:
                await trio.sleep(APPENDS_POLL_SECONDS)
                writers &= await self._list_writers()
        if patience.cancelled_caught:
            raise StoreUnavailable("An append is under way, and does not end.")

    async def _list_writers(self) -> set[str]:
        return {row.writer for row in await self._db.fetch_all(SQL["list_writers"])}

    async def list_living_of(self, user_id: str) -> list[str]:
        return [row.session_id for row in await self._db.fetch_all(SQL["list_living_of"], {"user_id": user_id})]

    async def list_without_active_mitra(self) -> dict[str, str]:
        """Living sessions of this node that are with a mitra who was deactivated, and who that is."""
        rows = await self._db.fetch_all(SQL["list_without_active_mitra"], {"owner": self.owner})
        return {row.session_id: row.mitra_id for row in rows}

    async def find_extension(self, session_id: str, extension_id: str) -> Extension | None:
        row = await self._db.fetch_one(SQL["load_extension"], {"session_id": session_id, "extension_id": extension_id})
        return None if row is None else read_extension(row, prefix="", session_id=session_id)

    async def list_messages(self, session_id: str, after_seq: int, limit: int) -> list[StoredMessage]:
        """At most `limit` messages with `seq > after_seq`, in order."""
        rows = await self._db.fetch_all(
            SQL["list_messages"], {"session_id": session_id, "after_seq": after_seq, "limit": limit}
        )
        return [StoredMessage(row.seq, row.sender, row.id, row.body, row.at) for row in rows]

    async def list_messages_to(self, reader_id: str, session_id: str, after_seq: int, limit: int) -> Page:
        """The same for a participant, who is still one in the snapshot that is read (X1).

        Raises:
            NotFound: there is no such session, or `reader_id` takes no part in it.
        """
        rows = await self._histories.read(_Excerpt(reader_id, session_id, after_seq, limit))
        if not rows:
            raise NotFound
        said = [StoredMessage(row.seq, row.sender, row.id, row.body, row.at) for row in rows if row.seq is not None]
        return Page(said, rows[0].last_seq)

    async def list_message_ids(self, session_id: str, after_seq: int, limit: int) -> list[tuple[int, str, str]]:
        """`(seq, sender, id)` of at most `limit` messages, in order; bodies stay where they are."""
        rows = await self._ids.read(_Excerpt("", session_id, after_seq, limit))
        return [(row.seq, row.sender, row.id) for row in rows]

    async def _list_histories(self, wanted: Sequence[_Excerpt]) -> Sequence[Any]:
        readers: dict[str, Value] = {"reader_ids": [one.reader_id for one in wanted]}
        return await self._db.fetch_for_many(SQL["list_messages_to"], readers | _columns(wanted))

    async def _list_ids(self, wanted: Sequence[_Excerpt]) -> Sequence[Any]:
        return await self._db.fetch_for_many(SQL["list_message_ids"], _columns(wanted))

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


def _columns(wanted: Sequence[_Excerpt]) -> dict[str, Value]:
    return {
        "session_ids": [one.session_id for one in wanted],
        "after_seqs": [one.after_seq for one in wanted],
        "limits": [one.limit for one in wanted],
    }
