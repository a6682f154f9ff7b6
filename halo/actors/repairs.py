"""The watchdog's repairs: what is mended in the rows is mended there in one transaction, what an actor has to do goes through its mailbox.

Each is on record as the watchdog's among the operators' actions, with the watch that found it and the session that it belongs to; which
watch has which stands in `halo/watch.py`. It must never do what a rule or a take-up does by other means than theirs, and leaves alone
whatever a repair does not fit. Read next: `halo/store/watchdog.py`, the repairs that are rows.
"""

from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from functools import partial
from typing import Final, Protocol

import structlog

from halo.actors.attempts import Attempt, Attempts
from halo.actors.commands import Due
from halo.actors.session import SessionActor
from halo.clock import Clock, Moment
from halo.errors import StoreUnavailable
from halo.session import SessionStatus
from halo.watch import Repair, Watch, WatchReport, next_batch

log = structlog.get_logger(__name__)

PARKED_MS: Final = 3 * 60 * 1000
"""Before a parked actor gets its one more attempt: a fault that was in something that passes has passed."""

CRASHES_AT_MOST: Final = 3
"""Of one watch's repairs in a round: enough for the log to tell whether it is one subject or the repair. The next round goes on behind."""

_ON_ROWS: Final = frozenset(
    {Repair.FAIL_PAYMENT, Repair.ADD_REFUND, Repair.CANCEL_EXTENSION, Repair.REOPEN_SEARCH, Repair.CLOSE_SEARCH}
)
_TOGETHER: Final = frozenset({Repair.TAKE_UP, Repair.RESTORE_SEARCHES, Repair.REFRESH_CAPACITY, Repair.RESEED_MIRROR})
"""One deed for all subjects; the others are done one by one, so that one that crashes keeps none of the others."""


class Look(Protocol):
    """Questions to Postgres, one after the other. Raises StoreUnavailable; then the look is over."""

    async def ask(self, name: str, *, since: Moment, now: Moment, after: str) -> Sequence[str]: ...


class WatchedMirror(Protocol):
    """The mirror beside Postgres. All raise StoreUnavailable."""

    async def list_wrong_capacities(self) -> Sequence[str]: ...

    async def list_wrong_among(self, mitra_ids: Sequence[str]) -> Sequence[str]: ...

    async def refresh_capacities(self, mitra_ids: Sequence[str]) -> None: ...

    async def list_wrong_standings(self) -> Sequence[str]: ...

    async def list_wrong_standings_among(self, mitra_ids: Sequence[str]) -> Sequence[str]: ...

    async def reseed(self) -> None: ...


class WatchedRows(Protocol):
    """The stores. All raise StoreUnavailable."""

    @property
    def mirror(self) -> WatchedMirror: ...

    def look(self) -> AbstractAsyncContextManager[Look]: ...

    async def mend(self, repair: Repair, subject: str, because: str) -> bool: ...

    async def record(self, repair: Repair, subject: str, because: str) -> None: ...


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
    unreadable_config: Callable[[], Sequence[str]]
    """Stored keys of the live configuration that mean nothing to this version."""


class Repairs:
    """See the module.

    Error handling: what the store's absence keeps from being mended is an error in the report, and tried again by a later round; what
    crashes is left, and the other subjects and repairs have their turn.
    """

    def __init__(self, report: WatchReport, ports: WatchPorts, attempts: Attempts) -> None:
        self._report = report
        self._ports = ports
        self._attempts = attempts
        self._revived: set[str] = set()
        self._last: dict[str, str] = {}
        """By watch, the last subject that had its turn."""

    def last(self, name: str) -> str:
        """The last subject of this watch that had its turn; "" before the first."""
        return self._last.get(name, "")

    async def mend(self, watch: Watch, subjects: Sequence[str]) -> None:
        """Every repair of the watch, on the subjects whose turn it is; each leaves alone what it does not fit."""
        batch = next_batch(subjects, self.last(watch.name))
        if not (batch and watch.repairs):
            return
        self._last[watch.name] = batch[-1]  # before the first is tried: one that crashes must not be the first again
        crashes, outcome = 0, Attempt.DONE
        for repair in watch.repairs:
            mended: list[str] = []
            for part in [batch] if repair in _TOGETHER else [(subject,) for subject in batch]:
                run = partial(self._repair, watch, repair, part, mended)
                outcome = await self._attempts.make("repair", watch.name, run)
                crashes += outcome is Attempt.CRASHED
                if outcome is Attempt.AWAY or crashes >= CRASHES_AT_MOST:
                    break
            self._report.mended(repair, len(mended))
            if mended:
                log.warning("watchdog_repaired", alarm=watch.name, repair=repair.value, subjects=mended)
            if outcome is Attempt.AWAY or crashes >= CRASHES_AT_MOST:
                return

    async def _repair(self, watch: Watch, repair: Repair, subjects: Sequence[str], mended: list[str]) -> None:
        """Adds those of `subjects` to `mended` that were, each of them on record."""
        ports = self._ports
        if repair in _ON_ROWS:
            mended += [subject for subject in subjects if await ports.rows.mend(repair, subject, watch.name)]
            return
        match repair:
            case Repair.TAKE_UP:
                known = {subject for subject in subjects if ports.sessions.find(subject) is not None}
                await ports.take_up()
                done = [each for each in subjects if each not in known and ports.sessions.find(each) is not None]
            case Repair.RESTORE_SEARCHES:
                _, searches = await ports.take_up()
                done = list(subjects) if searches else []
            case Repair.NUDGE:
                done = [subject for subject in subjects if self._nudge(subject)]
            case Repair.REVIVE:
                done = [subject for subject in subjects if await self._revive(subject)]
            case Repair.REFRESH_CAPACITY:
                await ports.rows.mirror.refresh_capacities(subjects)
                done = list(subjects)
            case Repair.RESEED_MIRROR:
                await ports.rows.mirror.reseed()
                done = list(subjects)
            case _:
                raise AssertionError(f"{repair} is done on rows")
        mended += done
        for subject in done:
            await ports.rows.record(repair, subject, watch.name)

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
        self._revived.add(session_id)  # before it is tried: an attempt that crashes was the one that it gets
        try:
            return await self._ports.sessions.revive(session_id)
        except StoreUnavailable:  # its row could not be read, so nothing was tried
            self._revived.discard(session_id)
            raise


def _extension_of(actor: SessionActor) -> str | None:
    pending = actor.session.extension
    return None if pending is None else pending.extension_id
