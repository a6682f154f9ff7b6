"""The watchdog: once a minute it asks whether what must hold does hold, raises an alarm by name where not, and mends what may be mended.

Beside what the rows tell it watches what only this node knows: how late the event loop wakes a task, the clock, parked actors, mailboxes,
timers. Every node goes its own rounds: they only read, through windows, so that many cost little and each node's page tells; repairs
are done once, whoever comes first. It must never stand in the way of people's work, decide what a rule decides, or mend money; nor may
one question or repair that fails keep the others from being made (`halo/actors/attempts.py`). Read next: `halo/watch.py`, the table of what is watched; `halo/store/watchdog.py`, the questions.
"""

import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Final, NoReturn

import structlog
import trio

from halo.actors.attempts import Attempt, Attempts
from halo.actors.mailbox import CAPACITY
from halo.actors.repairs import Look, Repairs, WatchPorts
from halo.actors.session import SessionActor
from halo.clock import Moment
from halo.watch import WATCHES, WatchReport

log = structlog.get_logger(__name__)

TICK_SECONDS: Final = 0.1
"""Ten wakes a second see every pause that people could feel, and cost nothing."""
PAUSE_SECONDS: Final = 0.05
"""Between two questions to Postgres: what people ask for meanwhile goes first."""
FIRST_WINDOW_MS: Final = 2 * 24 * 3600 * 1000
"""What the first round after a start looks back over; `halo doctor --full` asks of everything."""
OVERLAP_MS: Final = 5 * 60 * 1000
"""Each look goes back so far behind the last that found nothing: a row is stamped some seconds before it can be seen."""
SECOND_LOOK_SECONDS: Final = 1.0
"""What is on its way to the mirror is there by then."""
LAG_ALARM_SECONDS: Final = 1.0
SKEW_ALARM_MS: Final = 2_000
LATE_ALARM_MS: Final = 5_000
DISTRUST_ALARM_SECONDS: Final = 60.0
MAILBOX_ALARM: Final = CAPACITY * 3 // 4


class Watchdog:
    """See the module.

    Error handling: what could not be asked is an error in the report, and its alarm stays as it was. Beyond the store's absence that is
    an alarm itself, `watchdog_works`.
    """

    def __init__(self, report: WatchReport, ports: WatchPorts) -> None:
        self.report = report
        self._ports = ports
        self._clean_at: dict[str, Moment] = {}
        """By watch, the last round that found nothing. While something is broken the window stays open from there, or an alarm
        would be over only because its subject has grown old."""
        self._attempts = Attempts(report)
        self._repairs = Repairs(report, ports, self._attempts)
        self._distrusted_at: float | None = None

    async def serve(self) -> NoReturn:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._measure_lag, name="pulse of the watchdog")
            while True:
                await trio.sleep(self.report.interval_seconds)
                await self.run()
        raise AssertionError("the loop does not end")

    async def run(self) -> None:
        """One round: look, raise and clear, mend. What it mends is looked at again by the next."""
        began, now = time.monotonic(), self._ports.clock.now()
        found: dict[str, Sequence[str]] = {}
        await self._ask_rows(found, now)
        await self._ask_mirror(found)
        await self._ask_node(found, now)
        for name, subjects in found.items():
            self._note(name, subjects, now)
        for name in [name for name, subjects in found.items() if subjects]:
            await self._repairs.mend(WATCHES[name], found[name])
        self._note("watchdog_works", self._attempts.take_crashed(), now)
        self.report.rounds += 1
        self.report.last_round_at = self._ports.clock.now()
        self.report.duration_ms = round((time.monotonic() - began) * 1000)

    def _note(self, name: str, subjects: Sequence[str], now: Moment) -> None:
        if not subjects:
            self._clean_at[name] = now
        before = self.report.alarms.get(name)
        turned = self.report.note(name, subjects, now)
        if turned == "raised":
            alarm = self.report.alarms[name]
            log.error(
                "alarm_raised",
                alarm=name,
                violations=alarm.violations,
                subjects=alarm.subjects,
                meaning=alarm.sentence,
            )
        elif turned == "cleared" and before is not None:
            log.info("alarm_cleared", alarm=name, lasted_ms=now - before.since)

    # ---- looking

    async def _measure_lag(self) -> NoReturn:
        while True:
            due = trio.current_time() + TICK_SECONDS
            await trio.sleep_until(due)
            self.report.lag.observe(max(0.0, trio.current_time() - due))
            if self._ports.mirror_trusted():
                self._distrusted_at = None
            elif self._distrusted_at is None:
                self._distrusted_at = trio.current_time()

    async def _ask_rows(self, found: dict[str, Sequence[str]], now: Moment) -> None:
        """By watch what it found; one that could not be asked is left out, and the others are asked all the same."""
        waiting = [watch.name for watch in reversed(tuple(WATCHES.values())) if watch.source in {"invariant", "queue"}]
        while waiting:
            left = len(waiting)
            outcome = await self._attempts.make("look", waiting[-1], partial(self._look, waiting, found, now))
            if outcome is not Attempt.DONE and len(waiting) == left:  # not even a connection
                log.warning("watchdog_could_not_ask", asked=len(found), left=left)
                return

    async def _look(self, waiting: list[str], found: dict[str, Sequence[str]], now: Moment) -> None:
        """Ask what is `waiting`, from its end, until nothing is left or one question has failed: then its connection is not used again."""
        async with self._ports.rows.look() as look:
            while waiting:
                name = waiting.pop()
                if (
                    await self._attempts.make("question", name, partial(self._ask, look, name, found, now))
                    is not Attempt.DONE
                ):
                    return
                await trio.sleep(PAUSE_SECONDS)

    async def _ask(self, look: Look, name: str, found: dict[str, Sequence[str]], now: Moment) -> None:
        found[name] = await look.ask(name, since=self._since(name, now), now=now, after=self._repairs.last(name))

    def _since(self, name: str, now: Moment) -> Moment:
        return self._clean_at.get(name, now - FIRST_WINDOW_MS + OVERLAP_MS) - OVERLAP_MS

    async def _ask_mirror(self, found: dict[str, Sequence[str]]) -> None:
        mirror = self._ports.rows.mirror
        questions = {
            "mirror_online_agrees": (mirror.list_wrong_standings, mirror.list_wrong_standings_among),
            "mirror_capacities_agree": (mirror.list_wrong_capacities, mirror.list_wrong_among),
        }
        for name, (first, second) in questions.items():
            await self._attempts.make("question", name, partial(self._look_twice, name, first, second, found))

    async def _look_twice(
        self,
        name: str,
        first: Callable[[], Awaitable[Sequence[str]]],
        second: Callable[[Sequence[str]], Awaitable[Sequence[str]]],
        found: dict[str, Sequence[str]],
    ) -> None:
        before = self.report.alarms.get(name)
        wrong = list(dict.fromkeys([*await first(), *(before.subjects if before is not None else ())]))
        if wrong:
            await trio.sleep(SECOND_LOOK_SECONDS)
            wrong = list(await second(wrong))
        found[name] = wrong

    async def _ask_node(self, found: dict[str, Sequence[str]], now: Moment) -> None:
        for name, ask in self._questions_to_node(now).items():

            async def answer(name: str = name, ask: Callable[[], Sequence[str]] = ask) -> None:
                found[name] = ask()

            await self._attempts.make("question", name, answer)

    def _questions_to_node(self, now: Moment) -> Mapping[str, Callable[[], Sequence[str]]]:
        ports = self._ports

        def late() -> list[str]:
            return _ids(actor for actor in self._awake() if self._is_late(actor, now)) if ports.keeps_clocks() else []

        return {
            "event_loop_runs": lambda: ["event loop"] if self.report.lag.take_longest() > LAG_ALARM_SECONDS else [],
            "clock_agrees": lambda: ["clock"] if abs(ports.skew_ms()) > SKEW_ALARM_MS else [],
            "mirror_is_believed": lambda: ["valkey"] if self._distrusted_for() > DISTRUST_ALARM_SECONDS else [],
            "configuration_is_readable": ports.unreadable_config,
            "actors_run": lambda: _ids(actor for actor in ports.sessions if actor.is_parked),
            "mailboxes_drain": lambda: _ids(actor for actor in self._awake() if len(actor.mailbox) >= MAILBOX_ALARM),
            "timers_are_on_time": late,
        }

    def _awake(self) -> Iterable[SessionActor]:
        return (actor for actor in self._ports.sessions if actor.retired is None)

    def _distrusted_for(self) -> float:
        """Seconds."""
        return 0.0 if self._distrusted_at is None else trio.current_time() - self._distrusted_at

    @staticmethod
    def _is_late(actor: SessionActor, now: Moment) -> bool:
        deadline_at = actor.session.deadline_at
        return deadline_at is not None and deadline_at < now - LATE_ALARM_MS


def _ids(actors: Iterable[SessionActor]) -> list[str]:
    return [actor.session.session_id for actor in actors]
