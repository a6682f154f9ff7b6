"""A run from its first person to its record: people are made, workers told, the server hit, everything heard, asked again and judged.

It must never leave anything behind: sessions are ended, mitras go offline, processes end with the block, also when somebody presses Ctrl-C.
Read next: `halo/load/company.py`, `halo/load/crew.py`, `halo/load/verdict.py`.
"""

import platform
import secrets
import time
from collections.abc import Sequence
from typing import Final, Protocol

import trio

from halo import __version__
from halo.clock import SystemClock, rfc3339
from halo.load.company import Company, open_company
from halo.load.cost import cpu_seconds
from halo.load.crew import Crew, open_crew
from halo.load.judging import checks_of, unit_of
from halo.load.orders import Away, Cut, Doing, Go, Moved, Report, Second, Settled, Stop, Told
from halo.load.plan import SCENARIOS, Plan
from halo.load.record import FORMAT, Record, Tally, cost_of
from halo.load.target import Target
from halo.load.verdict import Verdict, harness_bounds

LEAD_SECONDS: Final = 0.5
"""From the word to the beginning: every process has heard it by then."""


class View(Protocol):
    """Who watches."""

    def doing(self, what: str, done: int = 0, of: int = 0) -> None: ...

    def began(self, plan: Plan) -> None: ...

    def second(self, at: float, tally: Tally) -> None: ...

    def event(self, at: float, what: str) -> None: ...


class Conductor:
    """One run."""

    def __init__(self, plan: Plan, target: Target, view: View, *, beside_others: bool = False) -> None:
        self.plan = plan
        self.target = target
        self.view = view
        self.stop = trio.Event()
        """Set by whoever wants the run to come to its end now."""
        self._beside_others = beside_others
        self._recipe = SCENARIOS[plan.scenario]
        self._tally = Tally()
        self._events: list[tuple[float, str]] = []
        self._start = 0.0
        self._server_cpu: float | None = None
        self._company: Company | None = None

    async def run(self) -> Record:
        """Play it.

        Raises:
            TargetRefused, PeopleFailed, WorkerLost, CallRefused: it could not be played.
        """
        began_at = rfc3339(SystemClock().now())
        async with open_company(
            self.plan, self.target, self.view.doing, beside_others=self._beside_others
        ) as self._company:
            async with open_crew(self._company.shares(f"load{secrets.token_hex(3)}")) as crew:
                tolds = await self._perform(crew)
        asked, violations = await self._ask_invariants()
        return self._record(began_at, tolds, asked, violations)

    @property
    def is_playing(self) -> bool:
        """Whether something is being measured, so that an early end has something to report."""
        return self._start > 0

    # ---- meanwhile

    async def _perform(self, crew: Crew) -> list[Told]:
        ready = trio.Event()

        def take(report: Report) -> None:
            match report:
                case Second():
                    self._tally.add_second(report)
                    self.view.second(time.monotonic() - self._start, self._tally)
                case Doing(what=what, done=done, of=of):
                    self.view.doing(what, done, of)
                case Settled():
                    if all(one.is_settled for one in crew.workers):
                        self._note_cpu(+1)  # what checking costs the server is not the run's
                case Told():
                    self._tally.add_told(report)
                case _:
                    if all(one.is_ready for one in crew.workers):
                        ready.set()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._direct, crew, ready)
            await crew.hear(take)
            nursery.cancel_scope.cancel()
        return [worker.told for worker in crew.workers if worker.told is not None]

    async def _direct(self, crew: Crew, ready: trio.Event) -> None:
        await ready.wait()
        self._start = time.monotonic() + LEAD_SECONDS
        self._note_cpu(-1)
        self.view.began(self.plan)
        await crew.say(Go(self._start))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._watch_stop, crew)
            if self.plan.scenario == "reconnect-storm":
                await trio.sleep(max(0.0, self._start + self.plan.seconds / 2 - time.monotonic()))
                await self._hit(crew)

    async def _watch_stop(self, crew: Crew) -> None:
        await self.stop.wait()
        self._happened("ended early")
        await crew.say(Stop())

    async def _hit(self, crew: Crew) -> None:
        if self.target.kill is None or self.target.restart is None:
            self._happened("every socket cut")
            await crew.say(Cut())
            return
        self._note_cpu(+1)
        await crew.say(Away())
        self._happened("kill -9")
        await self.target.kill()
        self.target = await self.target.restart()
        if self._company is not None:
            self._company.move(self.target)
        self._note_cpu(-1)
        self._happened("ready again")
        await crew.say(Moved(self.target.ws, self.target.api))

    def _happened(self, what: str) -> None:
        at = time.monotonic() - self._start
        self._events.append((round(at, 3), what))
        self.view.event(at, what)

    def _note_cpu(self, sign: int) -> None:
        if self.target.server_pid is not None:
            self._server_cpu = (self._server_cpu or 0.0) + sign * cpu_seconds(self.target.server_pid)

    # ---- after

    async def _ask_invariants(self) -> tuple[int, list[str]]:
        if self.target.find_violations is None:
            return 0, []
        self.view.doing("asking the database for its invariants")
        return await self.target.find_violations()

    def _record(self, began_at: str, tolds: Sequence[Told], asked: int, violations: list[str]) -> Record:
        counts = dict(sorted(self._tally.counts.items()))
        is_whole = bool(tolds) and all(told.is_whole for told in tolds) and not self.stop.is_set()
        unit = unit_of(self.plan)
        units = counts.get(unit, 0)
        cost = cost_of(tolds, self._tally.latest, units, None if not is_whole else self._server_cpu)
        figures = self._tally.figures()
        main = figures.get(self._recipe.figure)
        seconds = min(self.plan.seconds, max((told.wall_seconds for told in tolds), default=0.0)) or 1.0
        verdict = Verdict(
            checks=tuple(checks_of(self.plan, counts, self._tally.findings, asked=asked, violations=violations)),
            is_whole=is_whole,
            harness_bound=harness_bounds(
                int(max(cost.lateness_p99_ms, cost.send_p99_ms) * 1000),
                int(main.percentiles_ms["99"] * 1000) if main else 0,
                cost.busiest_process,
            ),
        )
        return Record(
            format=FORMAT,
            halo=__version__,
            began_at=began_at,
            machine=f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
            target=f"{self.target.api} (started for this run)" if self.target.is_own else self.target.api,
            plan=self.plan,
            figure=self._recipe.figure,
            counted=unit,
            counts=counts,
            per_second=round(units / seconds, 2),
            figures=figures,
            slices=self._tally.slices(),
            events=tuple(self._events),
            cost=cost,
            verdict=verdict,
        )
