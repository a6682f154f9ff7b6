"""The watchdog: once a minute it asks whether what must hold does hold, raises an alarm by name where not, and mends what may be mended.

Beside what the rows tell it watches what only this node knows: how late the event loop wakes a task, the clock, parked actors, mailboxes,
timers. Every node goes its own rounds: they only read, through windows, so that many cost little and each node's page tells; repairs
are done once, whoever comes first. It must never stand in the way of people's work, decide what a rule decides, or mend money.
Read next: `halo/watch.py`, the table of what is watched; `halo/store/watchdog.py`, the questions.
"""

import time
from collections.abc import Iterable, Sequence
from typing import Final, NoReturn

import structlog
import trio

from halo.actors.mailbox import CAPACITY
from halo.actors.repairs import Repairs, WatchPorts
from halo.actors.session import SessionActor
from halo.clock import Moment
from halo.errors import StoreUnavailable
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
"""A capacity on its way to the mirror is there by then."""
LAG_ALARM_SECONDS: Final = 1.0
SKEW_ALARM_MS: Final = 2_000
LATE_ALARM_MS: Final = 5_000
DISTRUST_ALARM_SECONDS: Final = 60.0
MAILBOX_ALARM: Final = CAPACITY * 3 // 4


class Watchdog:
    """See the module.

    Error handling: what the store's absence keeps from being asked is an error in the report, and its alarm stays as it was.
    """

    def __init__(self, report: WatchReport, ports: WatchPorts) -> None:
        self.report = report
        self._ports = ports
        self._clean_at: dict[str, Moment] = {}
        """By watch, the last round that found nothing. While something is broken the window stays open from there, or an alarm
        would be over only because its subject has grown old."""
        self._repairs = Repairs(report, ports)
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
        found = await self._ask_rows(now)
        found |= await self._ask_mirror()
        found |= self._ask_node(now)
        for name, subjects in found.items():
            self._note(name, subjects, now)
        for name in [name for name, subjects in found.items() if subjects]:
            await self._repairs.mend(WATCHES[name], self.report.alarms[name].subjects)
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

    async def _ask_rows(self, now: Moment) -> dict[str, Sequence[str]]:
        """By watch what it found; one that could not be asked is left out, and the others are asked all the same."""
        found: dict[str, Sequence[str]] = {}
        waiting = [watch.name for watch in reversed(tuple(WATCHES.values())) if watch.source in {"invariant", "queue"}]
        while waiting:
            asking = None
            try:
                async with self._ports.rows.look() as look:
                    while waiting:
                        asking = waiting.pop()
                        found[asking] = await look.ask(asking, since=self._since(asking, now), now=now)
                        await trio.sleep(PAUSE_SECONDS)
            except StoreUnavailable:
                if asking is None:  # not even a connection
                    self.report.failed(waiting[-1])
                    log.warning("watchdog_could_not_ask", asked=len(found), left=len(waiting))
                    break
                self.report.failed(asking)
                log.warning("watchdog_question_failed", alarm=asking)
        return found

    def _since(self, name: str, now: Moment) -> Moment:
        return self._clean_at.get(name, now - FIRST_WINDOW_MS + OVERLAP_MS) - OVERLAP_MS

    async def _ask_mirror(self) -> dict[str, Sequence[str]]:
        name = "mirror_capacities_agree"
        try:
            wrong = await self._ports.rows.list_wrong_capacities()
            before = self.report.alarms.get(name)
            wrong = list(dict.fromkeys([*wrong, *(before.subjects if before is not None else ())]))
            if wrong:
                await trio.sleep(SECOND_LOOK_SECONDS)
                wrong = list(await self._ports.rows.list_wrong_among(wrong))
        except StoreUnavailable:
            self.report.failed(name)
            return {}
        return {name: wrong}

    def _ask_node(self, now: Moment) -> dict[str, Sequence[str]]:
        ports = self._ports
        actors = list(ports.sessions)
        awake = [actor for actor in actors if actor.retired is None]
        late = [actor for actor in awake if self._is_late(actor, now)] if ports.keeps_clocks() else []
        distrusted = self._distrusted_at
        return {
            "event_loop_runs": ["event loop"] if self.report.lag.take_longest() > LAG_ALARM_SECONDS else [],
            "clock_agrees": ["clock"] if abs(ports.skew_ms()) > SKEW_ALARM_MS else [],
            "mirror_is_believed": ["valkey"]
            if distrusted is not None and trio.current_time() - distrusted > DISTRUST_ALARM_SECONDS
            else [],
            "actors_run": _ids(actor for actor in actors if actor.is_parked),
            "mailboxes_drain": _ids(actor for actor in awake if len(actor.mailbox) >= MAILBOX_ALARM),
            "timers_are_on_time": _ids(late),
        }

    @staticmethod
    def _is_late(actor: SessionActor, now: Moment) -> bool:
        deadline_at = actor.session.deadline_at
        return deadline_at is not None and deadline_at < now - LATE_ALARM_MS


def _ids(actors: Iterable[SessionActor]) -> list[str]:
    return [actor.session.session_id for actor in actors]
