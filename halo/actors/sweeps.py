"""The three sweeps, each a daemon: what the mirror knows of who is there goes to Postgres, what Postgres knows to the mirror.

*auto_offline* sets offline who is online in the mirror and was not heard of lately; *heartbeat_mirror* writes the heartbeats into
Postgres; *reseed* builds the mirror anew and counts what it had got wrong. Any number of nodes may run them at once. None may
take an absence of Valkey for an absence of people (A3), nor move a heartbeat back (A4). Read next: `halo/sweep.py`, the judging.
"""

import time
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from typing import Final, NoReturn, Protocol

import structlog
import trio

from halo.availability import is_fresh, newest
from halo.clock import Clock, Moment
from halo.errors import StoreUnavailable
from halo.sweep import FIRST_RUN, MirrorUnavailable, SweepName, SweepReport, Swept, form_opinion, is_warm

log = structlog.get_logger(__name__)

OFFLINE_AT_ONCE: Final = 500
"""Set offline in one statement and taken from the mirror in one script: some milliseconds of locks, one of Valkey's."""


class Online(Protocol):
    """Everybody who is online in the mirror, in pages; iterating raises MirrorUnavailable."""

    @property
    def built_at(self) -> Moment | None: ...

    def __aiter__(self) -> AsyncIterator[Mapping[str, Moment | None]]: ...


class SweptMirror(Protocol):
    """What the sweeps ask of the mirror. What asks Valkey raises MirrorUnavailable."""

    @property
    def standing(self) -> tuple[int, int] | None: ...

    def pages_online(self) -> Online: ...

    def heard_at(self, mitra_id: str) -> Moment | None: ...

    def take_unmirrored(self) -> dict[str, Moment]: ...

    def give_back(self, pings: Mapping[str, Moment]) -> None: ...

    async def swept_offline(self, seen: Mapping[str, Moment]) -> Mapping[str, Moment]: ...

    async def went_online_all(self, heard: Mapping[str, Moment]) -> None: ...

    async def reseed(self) -> tuple[int, Mapping[str, int]]: ...


class SetOffline(Protocol):
    """Who is offline in Postgres now, and of those whom this run has set so, the version of what is said of them."""

    @property
    def offline(self) -> Sequence[str]: ...

    @property
    def presence_versions(self) -> Mapping[str, int]: ...


class SweptRows(Protocol):
    """The rows of mitras in Postgres. All raise StoreUnavailable."""

    async def set_offline(self, seen: Mapping[str, Moment]) -> SetOffline: ...

    async def set_online_again(self, presence_versions: Mapping[str, int]) -> list[str]: ...

    async def record_heartbeats(self, beats: Mapping[str, Moment]) -> int: ...


class Broom(Protocol):
    """One run of a sweep. Raises MirrorUnavailable, StoreUnavailable."""

    async def run(self) -> Swept: ...


class Sweep:
    """A broom, its interval, and the report of its last run.

    Error handling: stores that are away are an error of that run; whatever else is raised is in the report, and its
    supervisor's. What a run holds when it is cancelled or crashes is the broom's to give back.
    """

    def __init__(self, name: SweepName, broom: Broom, interval_seconds: float, clock: Clock) -> None:
        self._broom = broom
        self._clock = clock
        self.report = SweepReport(name=name, interval_seconds=interval_seconds)

    async def serve(self) -> NoReturn:
        """Every `interval_seconds`, for ever; the first time after `FIRST_RUN` of one."""
        pause_seconds = FIRST_RUN[self.report.name] * self.report.interval_seconds
        while True:
            await trio.sleep(pause_seconds)
            await self.run()
            pause_seconds = self.report.interval_seconds

    async def run(self) -> Swept:
        """Once. Stores that are away are told in what is returned."""
        began = time.monotonic()
        swept = Swept(rows=0, error="The run crashed or was cancelled.")
        try:
            swept = await self._broom.run()
        except (MirrorUnavailable, StoreUnavailable) as fault:
            swept = Swept(rows=0, error=f"{type(fault).__name__}: {fault}")
        finally:
            self._note(swept, round((time.monotonic() - began) * 1000))
        return swept

    def _note(self, swept: Swept, duration_ms: int) -> None:
        report = self.report
        self.report = replace(
            report,
            runs=report.runs + 1,
            failures=report.failures + (swept.error is not None),
            last_run_at=self._clock.now(),
            duration_ms=duration_ms,
            rows=swept.rows,
            error=swept.error,
            waits_for=swept.waits_for,
            found=swept.found,
        )
        if swept.error is not None:
            log.warning("sweep_failed", sweep=report.name, error=swept.error)
        elif swept.waits_for is not None or swept.rows:
            log.info("swept", sweep=report.name, rows=swept.rows, waits_for=swept.waits_for, **swept.found)


class AutoOffline:
    """Online in the mirror and not heard of for too long: offline in Postgres, then in the mirror (S28, S29)."""

    def __init__(self, mirror: SweptMirror, rows: SweptRows, clock: Clock, stale_after_ms: int) -> None:
        self._mirror = mirror
        self._rows = rows
        self._clock = clock
        self._stale_after_ms = stale_after_ms
        self._standing: tuple[int, int] | None = None
        self._standing_since = 0.0
        self._doubted: frozenset[str] = frozenset()

    async def run(self) -> Swept:
        doubted, self._doubted = self._doubted, frozenset()  # a run that is given up is nobody's second opinion
        standing = self._mirror.standing
        if standing != self._standing:
            self._standing, self._standing_since = standing, trio.current_time()
            doubted = frozenset()
        if standing is None:
            raise MirrorUnavailable("Valkey is away, or the mirror is not built.")
        if (trio.current_time() - self._standing_since) * 1000 <= self._stale_after_ms:
            return Swept(rows=0, waits_for="warm_up")
        online, stale, built_at = await self._look()
        if self._mirror.standing != standing:
            raise MirrorUnavailable("Trust in the mirror was lost while it was read.")
        if not is_warm(built_at, self._clock.now(), self._stale_after_ms):
            return Swept(rows=0, waits_for="warm_up")
        opinion = form_opinion(stale, online, doubted)
        found = {"online": online, "stale": len(stale)}
        rows = await self._set_offline({mitra_id: stale[mitra_id] for mitra_id in sorted(opinion.offline)})
        self._doubted = opinion.doubted
        return Swept(rows=rows, waits_for="second_opinion" if opinion.doubted else None, found=found)

    async def _look(self) -> tuple[int, dict[str, Moment], Moment]:
        """How many are online, who of them is stale with the moment to judge by, and since when the mirror stands."""
        now = self._clock.now()
        online = set[str]()
        stale: dict[str, Moment] = {}
        pages = self._mirror.pages_online()
        async for page in pages:
            online.update(page)
            for mitra_id, beat in page.items():
                heard = newest(beat, self._mirror.heard_at(mitra_id))
                if not is_fresh(heard, now, self._stale_after_ms):
                    stale[mitra_id] = now - self._stale_after_ms if heard is None else heard
        assert pages.built_at is not None  # a page was read, if only an empty one
        return len(online), stale, pages.built_at

    async def _set_offline(self, stale: Mapping[str, Moment]) -> int:
        """How many went offline. A ping that comes meanwhile wins: the mirror keeps her, and Postgres takes it back.

        The mirror is told again at the end: a reseed in between has put her out, for it believes Postgres.
        """
        count, rest = 0, iter(stale.items())
        while part := dict(islice(rest, OFFLINE_AT_ONCE)):
            with trio.CancelScope(shield=True):  # a few statements; half way between the stores is no place to end
                done = await self._rows.set_offline(part)
                heard = await self._mirror.swept_offline({mitra_id: part[mitra_id] for mitra_id in done.offline})
                versions = done.presence_versions
                mine = {mitra_id: versions[mitra_id] for mitra_id in heard if mitra_id in versions}
                back = await self._rows.set_online_again(mine) if mine else []
                if back:
                    await self._mirror.went_online_all({mitra_id: heard[mitra_id] for mitra_id in back})
                count += len(versions) - len(back)
            await trio.lowlevel.checkpoint()
        return count


class HeartbeatMirror:
    """Every heartbeat that Valkey holds of those online, and what this node heard itself, into Postgres (S30)."""

    def __init__(self, mirror: SweptMirror, rows: SweptRows) -> None:
        self._mirror = mirror
        self._rows = rows

    async def run(self) -> Swept:
        kept = self._mirror.take_unmirrored()
        written = False
        try:
            beats, error = dict(kept), None
            try:
                async for page in self._mirror.pages_online():
                    for mitra_id, beat in page.items():
                        if beat is not None and beat > beats.get(mitra_id, 0):
                            beats[mitra_id] = beat
            except MirrorUnavailable as fault:  # what this node heard itself is written all the same
                error = f"{type(fault).__name__}: {fault}"
            rows = await self._rows.record_heartbeats(beats)
            written = True
        finally:
            if not written:
                self._mirror.give_back(kept)
        return Swept(rows=rows, error=error, found={"heartbeats": len(beats)})


class Reseed:
    """The mirror built anew; what it had got wrong is the drift (S31)."""

    def __init__(self, mirror: SweptMirror) -> None:
        self._mirror = mirror

    async def run(self) -> Swept:
        rows, drift = await self._mirror.reseed()
        return Swept(rows=rows, found=drift)
