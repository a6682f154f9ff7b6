"""The watchdog's repairs: what is mended in the rows is mended there in one transaction, what an actor has to do goes through its mailbox.

Each is on record as the watchdog's among the operators' actions; which watch has which stands in `halo/watch.py`. It must never do what
a rule or a take-up does by other means than theirs, and leaves alone whatever a repair does not fit. Read next: `halo/store/watchdog.py`,
the repairs that are rows.
"""

from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any, Final, Protocol

import structlog

from halo.actors.commands import Due
from halo.actors.session import SessionActor
from halo.clock import Clock, Moment
from halo.errors import StoreUnavailable
from halo.session import SessionStatus
from halo.watch import Repair, Watch, WatchReport

log = structlog.get_logger(__name__)

PARKED_MS: Final = 3 * 60 * 1000
"""Before a parked actor gets its one more attempt: a fault that was in something that passes has passed."""

_ON_ROWS: Final = frozenset(
    {Repair.FAIL_PAYMENT, Repair.ADD_REFUND, Repair.CANCEL_EXTENSION, Repair.REOPEN_SEARCH, Repair.CLOSE_SEARCH}
)


class Look(Protocol):
    """Questions to Postgres, one after the other. Raises StoreUnavailable; then the look is over."""

    async def ask(self, name: str, *, since: Moment, now: Moment) -> Sequence[str]: ...


class WatchedRows(Protocol):
    """The stores. All raise StoreUnavailable."""

    def look(self) -> AbstractAsyncContextManager[Look]: ...

    async def list_wrong_capacities(self) -> Sequence[str]: ...

    async def list_wrong_among(self, mitra_ids: Sequence[str]) -> Sequence[str]: ...

    async def refresh_capacities(self, mitra_ids: Sequence[str]) -> None: ...

    async def mend(self, repair: Repair, subject: str) -> bool: ...

    async def record(self, repair: Repair, subject: str, details: Mapping[str, Any]) -> None: ...


class WatchedSessions(Protocol):
    """The registry."""

    def __iter__(self) -> Iterator[SessionActor]: ...

    def find(self, session_id: str) -> SessionActor | None: ...

    def parked_at(self, session_id: str) -> Moment | None: ...

    async def revive(self, session_id: str) -> bool: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class WatchPorts:
    """What the watchdog is given."""

    clock: Clock
    rows: WatchedRows
    sessions: WatchedSessions
    take_up: Callable[[], Awaitable[tuple[int, int]]]
    """Sessions and searches that nobody keeps; how many of each were taken. Raises StoreUnavailable."""
    skew_ms: Callable[[], int]
    keeps_clocks: Callable[[], bool]
    mirror_trusted: Callable[[], bool]


class Repairs:
    """See the module. What the store's absence keeps from being mended is an error in the report, and tried again by the next round."""

    def __init__(self, report: WatchReport, ports: WatchPorts) -> None:
        self._report = report
        self._ports = ports
        self._revived: set[str] = set()

    async def mend(self, watch: Watch, subjects: Sequence[str]) -> None:
        """Every repair of the watch, on every subject; each leaves alone what it does not fit."""
        try:
            for repair in watch.repairs:
                mended = await self._repair(repair, subjects)
                self._report.mended(repair, len(mended))
                if mended:
                    log.warning("watchdog_repaired", alarm=watch.name, repair=repair.value, subjects=mended)
        except StoreUnavailable:  # what was begun is undone; the next round tries again
            self._report.failed(watch.name)
            log.warning("watchdog_repair_failed", alarm=watch.name)

    async def _repair(self, repair: Repair, subjects: Sequence[str]) -> list[str]:
        """Those of `subjects` that were mended, each of them on record."""
        ports = self._ports
        if repair in _ON_ROWS:
            return [subject for subject in subjects if await ports.rows.mend(repair, subject)]
        mended: list[str] = []
        match repair:
            case Repair.TAKE_UP:
                known = {subject for subject in subjects if ports.sessions.find(subject) is not None}
                await ports.take_up()
                mended = [each for each in subjects if each not in known and ports.sessions.find(each) is not None]
            case Repair.RESTORE_SEARCHES:
                _, searches = await ports.take_up()
                mended = list(subjects) if searches else []
            case Repair.NUDGE:
                mended = [subject for subject in subjects if self._nudge(subject)]
            case Repair.REVIVE:
                mended = [subject for subject in subjects if await self._revive(subject)]
            case Repair.REFRESH_CAPACITY:
                await ports.rows.refresh_capacities(subjects)
                mended = list(subjects)
            case _:
                raise AssertionError(f"{repair} is done on rows")
        for subject in mended:
            await ports.rows.record(repair, subject, {})
        return mended

    def _nudge(self, subject: str) -> bool:
        """Wake the actor of this session, or of the session whose pending extension this is, so that it looks at what is due."""
        actor = self._ports.sessions.find(subject) or next(
            (each for each in self._ports.sessions if _extension_of(each) == subject), None
        )
        if actor is None or actor.retired is not None or actor.session.status is SessionStatus.ENDED:
            return False
        actor.mailbox.put(Due(), urgent=True)
        return True

    async def _revive(self, session_id: str) -> bool:
        """Once: who is parked again wants a person, and each attempt that fails fills the log."""
        parked_at = self._ports.sessions.parked_at(session_id)
        if parked_at is None or session_id in self._revived or self._ports.clock.now() - parked_at < PARKED_MS:
            return False
        revived = await self._ports.sessions.revive(session_id)
        self._revived.add(session_id)
        return revived


def _extension_of(actor: SessionActor) -> str | None:
    pending = actor.session.extension
    return None if pending is None else pending.extension_id
