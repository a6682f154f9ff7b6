"""The mirror's twin: the same questions answered by Postgres, for the time in which Valkey is away or cannot be
trusted.

Single-flight: one query at a time, and whoever asks meanwhile shares the next. It must never cache: a mitra
deactivated a moment ago must not get in. It is paced instead, so Postgres sees at most `1 / PACE_SECONDS` of these
queries a second whatever the number of callers. Read next: `halo/store/mirror.py`, `halo/store/sql/queries/mirror.sql`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import trio

from halo.availability import Presence
from halo.clock import Moment
from halo.errors import StoreUnavailable
from halo.store.queries import Query, load_queries
from halo.store.values import Value

PACE_SECONDS = 0.02
"""At most 50 fallback queries a second; a caller waits 20 ms more, well inside the budget of a call."""
NO_MITRA, LAST_MITRA = "00000000-0000-0000-0000-000000000000", "ffffffff-ffff-ffff-ffff-ffffffffffff"
"""Where the first page begins, and where the last one ends."""
PAGE = 2_000
"""A page costs Postgres some 4 ms, this node 2 and Valkey 6: no long statement, no stall of the event loop."""
BEAT_WIDTH, ID_WIDTH = 24, 36
"""Characters of a moment as `rfc3339` writes it, and of an id."""
NO_BEAT = "-" * BEAT_WIDTH
"""In the place of the heartbeat of one who should have none."""

SQL = load_queries("mirror", "presences", "mitras_packed", "pages_touched", "mitras_named")


class Rows(Protocol):
    """The part of `halo.store.postgres.Postgres` that is needed here."""

    async def fetch_all(self, query: Query, values: Mapping[str, Value] = ...) -> Sequence[Any]: ...


@dataclass(frozen=True, slots=True)
class MitraRow:
    """All that the mirror says of one mitra, from one snapshot."""

    mitra_id: str
    active: bool
    online: bool
    heartbeat_at: Moment | None
    capacity: int
    capacity_version: int
    has_room: bool
    idle_since: Moment


@dataclass(frozen=True, slots=True)
class PackedPage:
    """All that the mirror says of some mitras, from one snapshot, as the texts in which it goes to Valkey."""

    after: str
    last: str
    """The page holds every mitra behind `after` up to this one."""
    beats: str
    """`BEAT_WIDTH` characters for each: her last heartbeat, blanks where none is known, `NO_BEAT` where none should be."""
    states: str
    """A line for each: id, letter, living sessions, version, idle since. The letters: `w` online and with room, `f` online
    and full, `o` offline, `d` deactivated."""


class _Ticket:
    __slots__ = ("failed", "mitra_id", "presence")

    def __init__(self, mitra_id: str) -> None:
        self.mitra_id = mitra_id
        self.presence: Presence | None = None
        self.failed = False


UNKNOWN = Presence(active=True, online=False, heartbeat_at=None)
"""A mitra that Postgres does not know is not online."""


class MirrorTwin:
    """Answers from Postgres."""

    def __init__(self, postgres: Rows) -> None:
        self._postgres = postgres
        self._waiting: dict[_Ticket, None] = {}
        self._flight = trio.Lock()
        self._next_at = 0.0
        self.queries = 0
        """How many fallback queries Postgres was sent."""

    async def load_presence(self, mitra_id: str) -> Presence:
        """What Postgres knows of this mitra now; `UNKNOWN` for one that it does not have.

        Raises:
            StoreUnavailable
        """
        ticket = _Ticket(mitra_id)
        self._waiting[ticket] = None
        try:
            async with self._flight:
                if ticket.presence is None and not ticket.failed:
                    await trio.sleep_until(self._next_at)
                    await self._fly()
        finally:
            self._waiting.pop(ticket, None)
        if ticket.presence is None:
            raise StoreUnavailable
        return ticket.presence

    async def _fly(self) -> None:
        """Ask for all who wait. When the one who asks is cancelled the others still wait, and the next of them asks
        again."""
        riders = list(self._waiting)
        self._next_at = trio.current_time() + PACE_SECONDS
        self.queries += 1
        try:
            rows = await self._postgres.fetch_all(
                SQL["presences"], {"mitra_ids": list({rider.mitra_id for rider in riders})}
            )
        except StoreUnavailable:
            # For all at once: each asking by itself would queue behind a dead server.
            for rider in riders:
                rider.failed = True
                self._waiting.pop(rider, None)
            raise
        found = {
            mitra_id: Presence(active=active, online=online, heartbeat_at=beat)
            for mitra_id, active, online, beat in rows
        }
        for rider in riders:
            rider.presence = found.get(rider.mitra_id, UNKNOWN)
            self._waiting.pop(rider, None)

    async def find_page_after(self, mitra_id: str) -> PackedPage | None:
        """The next page of all mitras by id, at most `PAGE`; None at the end. Begin with `NO_MITRA`.

        Raises:
            StoreUnavailable
        """
        return await self._find_page(mitra_id, LAST_MITRA, PAGE)

    async def find_page_between(self, after: str, upto: str) -> PackedPage | None:
        """Everybody behind `after` up to `upto` included, however many they are by now; None when there is nobody.

        Raises:
            StoreUnavailable
        """
        return await self._find_page(after, upto, None)

    async def list_touched(self, begins: Sequence[str], since: str | None) -> tuple[str, list[int]]:
        """The places in `begins` of the pages that may have changed since the call that gave `since` (none without one), and
        the `since` of this call.

        Raises:
            StoreUnavailable
        """
        (row,) = await self._postgres.fetch_all(SQL["pages_touched"], {"begins": list(begins), "since": since})
        now, pages = row
        return now, sorted(page - 1 for page in pages)

    async def _find_page(self, after: str, upto: str, page: int | None) -> PackedPage | None:
        (row,) = await self._postgres.fetch_all(SQL["mitras_packed"], {"after": after, "upto": upto, "page": page})
        mitras, last, beats, states = row
        return PackedPage(after, last, beats, states) if mitras else None

    async def list_mitras_named(self, mitra_ids: Sequence[str]) -> list[MitraRow]:
        """These mitras in one snapshot, without those that Postgres does not know.

        Raises:
            StoreUnavailable
        """
        rows = await self._postgres.fetch_all(SQL["mitras_named"], {"mitra_ids": list(mitra_ids)})
        return [MitraRow(*row) for row in rows]
