"""The watchdog's rounds over real actors and rows made of dictionaries, in virtual time; `tests/store/test_watchdog.py` has Postgres."""

import logging
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from halo.actors.commands import Said
from halo.actors.repairs import WatchPorts
from halo.actors.supervisor import RestartBudget
from halo.actors.watchdog import FIRST_WINDOW_MS, MAILBOX_ALARM, OVERLAP_MS, Watchdog
from halo.clock import Moment
from halo.errors import ActorFault, StoreUnavailable
from halo.session import SessionStatus
from halo.watch import WATCHES, Repair, WatchReport
from tests.actors.fakes import Broken, Chat, Fault, House, open_house

BROKEN = Fault(before=Broken)
ONCE = RestartBudget(restarts=0)
S4 = "s4_everybody_has_an_owner"


@dataclass
class FakeRows:
    """What the stores would find, and what they were asked."""

    broken: dict[str, list[str]] = field(default_factory=dict)
    """By watch."""
    too_dear: set[str] = field(default_factory=set)
    away: bool = False
    asked: dict[str, Moment] = field(default_factory=dict)
    """By watch: since when."""
    wrong: list[str] = field(default_factory=list)
    refreshed: list[str] = field(default_factory=list)
    mendable: dict[Repair, list[str]] = field(default_factory=dict)
    mends_fail: bool = False
    trail: list[tuple[str, str]] = field(default_factory=list)

    @asynccontextmanager
    async def look(self) -> AsyncIterator["FakeRows"]:
        await trio.lowlevel.checkpoint()
        if self.away:
            raise StoreUnavailable
        yield self

    async def ask(self, name: str, *, since: Moment, now: Moment) -> Sequence[str]:
        await trio.lowlevel.checkpoint()
        self.asked[name] = since
        if name in self.too_dear:
            raise StoreUnavailable
        return self.broken.get(name, [])

    async def list_wrong_capacities(self) -> Sequence[str]:
        if self.away:
            raise StoreUnavailable
        return list(self.wrong)

    async def list_wrong_among(self, mitra_ids: Sequence[str]) -> Sequence[str]:
        return [mitra_id for mitra_id in mitra_ids if mitra_id in self.wrong]

    async def refresh_capacities(self, mitra_ids: Sequence[str]) -> None:
        self.refreshed += mitra_ids
        self.wrong = []

    async def mend(self, repair: Repair, subject: str) -> bool:
        if self.mends_fail:
            raise StoreUnavailable
        if subject not in self.mendable.get(repair, []):
            return False
        self.mendable[repair].remove(subject)
        self.trail.append((repair.value, subject))
        return True

    async def record(self, repair: Repair, subject: str, details: Mapping[str, Any]) -> None:
        self.trail.append((repair.value, subject))


@dataclass
class Watched:
    """A house and its watchdog."""

    house: House
    dog: Watchdog
    rows: FakeRows
    skew_ms: int = 0
    trusted: bool = True
    searches: int = 0

    @property
    def report(self) -> WatchReport:
        return self.dog.report

    @property
    def alarms(self) -> set[str]:
        return set(self.report.alarms)

    async def take_up(self) -> tuple[int, int]:
        return await self.house.registry.restore(), self.searches


@asynccontextmanager
async def open_watched(budget: RestartBudget | None = None, every_seconds: float = 60.0) -> AsyncIterator[Watched]:
    async with open_house(budget=budget) as house:
        rows = FakeRows()
        report = WatchReport(every_seconds)
        watched: Watched

        async def take_up() -> tuple[int, int]:
            return await watched.take_up()

        ports = WatchPorts(
            clock=house.clock,
            rows=rows,
            sessions=house.registry,
            take_up=take_up,
            skew_ms=lambda: watched.skew_ms,
            keeps_clocks=house.lease.keeps_clocks,
            mirror_trusted=lambda: watched.trusted,
        )
        watched = Watched(house, Watchdog(report, ports), rows)
        yield watched


@asynccontextmanager
async def on_guard(watched: Watched) -> AsyncIterator[None]:
    """Its daemon runs."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(watched.dog.serve)
        yield
        nursery.cancel_scope.cancel()


def raised(records: list[logging.LogRecord]) -> list[str]:
    return [record.msg["alarm"] for record in records if record.msg["event"] == "alarm_raised"]  # type: ignore[index]


async def test_it_goes_a_round_every_interval_and_asks_of_everything(autojump_clock: MockClock) -> None:
    async with open_watched() as watched, on_guard(watched):
        await trio.sleep(59)
        assert watched.report.rounds == 0
        await trio.sleep(130)
        assert watched.report.rounds == 3
        assert set(watched.rows.asked) == {
            name for name, watch in WATCHES.items() if watch.source in {"invariant", "queue"}
        }
        assert watched.alarms == set()
        assert watched.report.last_round_at is not None
        assert dict(watched.report.lag.buckets())["+Inf"] > 1000


async def test_an_alarm_is_logged_once_as_an_error_and_once_when_it_is_over(
    autojump_clock: MockClock, claims_errors: list[logging.LogRecord], caplog: pytest.LogCaptureFixture
) -> None:
    async with open_watched() as watched:
        watched.rows.broken["t1_time_adds_up"] = ["some-session"]
        for _ in range(3):
            await watched.dog.run()
        assert raised(claims_errors) == ["t1_time_adds_up"]
        assert watched.report.alarms["t1_time_adds_up"].subjects == ("some-session",)
        watched.rows.broken.clear()
        await watched.dog.run()
        await watched.dog.run()
    cleared = [record for record in caplog.records if "alarm_cleared" in str(record.msg)]
    assert len(cleared) == 1
    assert cleared[0].levelno == logging.INFO
    assert watched.alarms == set()


async def test_the_window_goes_on_while_all_is_well_and_stays_open_while_something_is_broken(
    autojump_clock: MockClock, claims_errors: list[logging.LogRecord]
) -> None:
    async with open_watched() as watched:
        name, began = "c2_seq_is_dense", watched.house.clock.now()
        watched.rows.broken[name] = ["a"]
        await watched.dog.run()
        assert watched.rows.asked[name] == began - FIRST_WINDOW_MS
        await trio.sleep(3600)
        again = watched.house.clock.now()
        await watched.dog.run()
        assert watched.rows.asked[name] == again - FIRST_WINDOW_MS
        assert watched.rows.asked["t1_time_adds_up"] == began - OVERLAP_MS
        watched.rows.broken.clear()
        clean = watched.house.clock.now()
        await watched.dog.run()
        await watched.dog.run()
        assert watched.rows.asked[name] == clean - OVERLAP_MS


async def test_a_question_that_cannot_be_asked_leaves_its_alarm_as_it_is_and_the_others_are_asked(
    autojump_clock: MockClock, claims_errors: list[logging.LogRecord]
) -> None:
    async with open_watched() as watched:
        watched.rows.broken = {"m4_amounts_agree": ["a"]}
        await watched.dog.run()
        watched.rows.asked.clear()
        watched.rows.broken.clear()
        watched.rows.too_dear = {"m4_amounts_agree"}
        await watched.dog.run()
        assert watched.alarms == {"m4_amounts_agree"}
        assert watched.report.errors == {"m4_amounts_agree": 1}
        assert len(watched.rows.asked) == len([w for w in WATCHES.values() if w.source in {"invariant", "queue"}])


async def test_while_the_store_is_away_a_round_ends_and_the_next_one_comes(autojump_clock: MockClock) -> None:
    async with open_watched() as watched, on_guard(watched):
        watched.rows.away = True
        await trio.sleep(130)
        assert watched.report.rounds == 2
        assert watched.rows.asked == {}
        assert watched.alarms == set()
        assert sum(watched.report.errors.values()) == 4  # one question and the mirror, twice
        watched.rows.away = False
        await trio.sleep(65)
        assert watched.rows.asked


# ---- what only the node knows


async def test_a_pause_of_the_event_loop_is_an_alarm_of_the_round_in_which_it_was(
    autojump_clock: MockClock, claims_errors: list[logging.LogRecord]
) -> None:
    async with open_watched() as watched, on_guard(watched):
        await trio.sleep(30.05)
        autojump_clock.jump(1.5)  # as if somebody had computed for so long
        await trio.sleep(32)
        assert watched.alarms == {"event_loop_runs"}
        await trio.sleep(60)
        assert watched.alarms == set()
        buckets = dict(watched.report.lag.buckets())
        assert buckets["+Inf"] - buckets["1.0"] == 1


async def test_a_clock_that_is_off_is_an_alarm(
    autojump_clock: MockClock, claims_errors: list[logging.LogRecord]
) -> None:
    async with open_watched() as watched:
        for watched.skew_ms, expected in ((2_000, set()), (-2_001, {"clock_agrees"}), (0, set())):
            await watched.dog.run()
            assert watched.alarms == expected


async def test_a_mirror_that_is_not_believed_is_an_alarm_after_a_minute(
    autojump_clock: MockClock, claims_errors: list[logging.LogRecord]
) -> None:
    async with open_watched(every_seconds=10) as watched, on_guard(watched):
        watched.trusted = False
        await trio.sleep(55)
        assert watched.alarms == set()
        await trio.sleep(25)
        assert watched.alarms == {"mirror_is_believed"}
        watched.trusted = True
        await trio.sleep(15)
        assert watched.alarms == set()


async def test_a_mailbox_that_fills_is_an_alarm(
    autojump_clock: MockClock, claims_errors: list[logging.LogRecord]
) -> None:
    async with open_watched() as watched:
        chat = await watched.house.opens()
        for number in range(MAILBOX_ALARM):
            chat.actor.mailbox.put(Said(chat.customer, f"m{number}", "body"))
        found = watched.dog._ask_node(watched.house.clock.now())
        assert found["mailboxes_drain"] == [chat.session_id]
        await trio.sleep(1)
        assert watched.dog._ask_node(watched.house.clock.now())["mailboxes_drain"] == []


async def sleeps_past_its_deadline(watched: Watched) -> Chat:
    """An actor whose alarm was lost, by a fault that nobody knows of."""
    chat = await watched.house.opens(minutes=1)
    await trio.sleep(1)
    actor = chat.actor
    actor._alarm._move(None)
    await trio.sleep(66)
    assert chat.row.status is SessionStatus.ACTIVE
    return chat


async def test_an_actor_that_slept_past_its_deadline_is_nudged_and_it_is_on_record(
    autojump_clock: MockClock, claims_errors: list[logging.LogRecord]
) -> None:
    async with open_watched() as watched:
        chat = await sleeps_past_its_deadline(watched)
        await watched.dog.run()
        assert raised(claims_errors) == ["timers_are_on_time"]
        await trio.sleep(1)
        assert chat.row.status is SessionStatus.CLOSING
        assert watched.rows.trail == [("nudge", chat.session_id)]
        await watched.dog.run()
        assert watched.alarms == set()
        assert watched.report.repaired == {Repair.NUDGE: 1}


async def test_while_no_clock_is_kept_nobody_is_late(autojump_clock: MockClock) -> None:
    async with open_watched() as watched:
        await sleeps_past_its_deadline(watched)
        watched.house.lease.kept = False
        await watched.dog.run()
        assert watched.alarms == set()


async def test_the_rows_find_a_late_session_by_its_extension_too(
    autojump_clock: MockClock, claims_errors: list[logging.LogRecord]
) -> None:
    async with open_watched() as watched:
        chat = await watched.house.opens()
        asked = await chat.asks()
        watched.rows.broken["m7_nothing_left_undecided"] = [asked.extension_id, "somebody-else's"]
        await watched.dog.run()
        assert watched.rows.trail == [("nudge", asked.extension_id)]


async def parked(watched: Watched) -> Chat:
    chat = await watched.house.opens()
    watched.house.node.fails("commit", BROKEN)
    with pytest.raises(ActorFault):
        await chat.asks()
    await trio.sleep(0.1)
    assert chat.actor.is_parked
    return chat


async def test_a_parked_actor_gets_one_more_attempt_with_the_time_that_it_stood_still_credited(
    autojump_clock: MockClock, claims_errors: list[logging.LogRecord]
) -> None:
    async with open_watched(ONCE) as watched, on_guard(watched):
        chat = await parked(watched)
        before = chat.row.deadline_at
        await trio.sleep(65)
        assert watched.alarms == {"actors_run"}
        assert watched.rows.trail == []
        await trio.sleep(200)
        assert watched.rows.trail == [("revive", chat.session_id)]
        assert watched.alarms == set()
        assert not chat.actor.is_parked
        assert chat.history[-1] == "downtime_credited"
        assert before is not None
        assert chat.row.deadline_at is not None
        assert 180_000 <= chat.row.deadline_at - before <= 245_000
        chat.listens()
        assert (await chat.asks()).status == "pending"


async def test_who_is_parked_again_is_left_for_a_person(
    autojump_clock: MockClock, claims_errors: list[logging.LogRecord]
) -> None:
    async with open_watched(ONCE) as watched, on_guard(watched):
        chat = await parked(watched)
        watched.house.node.fails("commit", BROKEN, BROKEN, BROKEN)
        await trio.sleep(900)
        assert chat.actor.is_parked
        assert watched.rows.trail == [("revive", chat.session_id)]
        assert watched.alarms == {"actors_run"}


async def test_who_was_taken_by_another_node_while_parked_is_let_go_and_its_sockets_sent_there(
    autojump_clock: MockClock, claims_errors: list[logging.LogRecord]
) -> None:
    async with open_watched(ONCE) as watched:
        chat = await parked(watched)
        watched.house.database.move_on(chat.session_id, epoch=chat.row.epoch + 1)
        assert not await watched.house.registry.revive(chat.session_id)
        assert watched.house.registry.find(chat.session_id) is None
        assert chat.customer.closed == [4000]


async def test_whose_row_cannot_be_read_stays_parked_and_is_tried_again(
    autojump_clock: MockClock, claims_errors: list[logging.LogRecord]
) -> None:
    async with open_watched(ONCE) as watched, on_guard(watched):
        chat = await parked(watched)
        watched.house.node.fails("load", Fault(before=StoreUnavailable))
        await trio.sleep(200)
        assert chat.actor.is_parked
        assert watched.report.errors == {"actors_run": 1}
        await trio.sleep(65)
        assert not chat.actor.is_parked


async def test_an_actor_that_runs_is_not_revived(autojump_clock: MockClock) -> None:
    async with open_watched() as watched:
        chat = await watched.house.opens()
        before = chat.actor
        assert not await watched.house.registry.revive(chat.session_id)
        assert not await watched.house.registry.revive("nobody's")
        assert watched.house.registry.find(chat.session_id) is before


# ---- repairs


async def test_a_session_without_an_owner_is_taken_up_and_it_is_on_record(
    autojump_clock: MockClock, claims_errors: list[logging.LogRecord]
) -> None:
    async with open_watched() as watched:
        opened = watched.house.commits_opening()
        session_id = opened.session.session_id
        watched.rows.broken[S4] = [session_id, "elsewhere"]
        assert watched.house.registry.find(session_id) is None
        await watched.dog.run()
        assert watched.house.registry.find(session_id) is not None
        assert watched.rows.trail == [("take_up", session_id)]


async def test_searches_are_restored_and_on_record_only_if_there_were_any(
    autojump_clock: MockClock, claims_errors: list[logging.LogRecord]
) -> None:
    async with open_watched() as watched:
        watched.rows.broken["search_has_a_keeper"] = ["search"]
        await watched.dog.run()
        assert watched.rows.trail == []
        watched.searches = 1
        await watched.dog.run()
        assert watched.rows.trail == [("restore_searches", "search")]


async def test_row_repairs_are_tried_on_every_subject_and_counted_where_they_fit(
    autojump_clock: MockClock, claims_errors: list[logging.LogRecord]
) -> None:
    async with open_watched() as watched:
        watched.rows.broken["m6_refused_means_refunded"] = ["a", "b", "c"]
        watched.rows.mendable = {Repair.ADD_REFUND: ["a", "c"]}
        await watched.dog.run()
        await watched.dog.run()
        assert watched.rows.trail == [("add_refund", "a"), ("add_refund", "c")]
        assert watched.report.repaired == {Repair.ADD_REFUND: 2}


async def test_a_repair_that_fails_is_an_error_of_the_round_and_is_tried_again_by_the_next(
    autojump_clock: MockClock, claims_errors: list[logging.LogRecord]
) -> None:
    async with open_watched() as watched:
        watched.rows.broken["m6_refused_means_refunded"] = ["a"]
        watched.rows.mendable = {Repair.ADD_REFUND: ["a"]}
        watched.rows.mends_fail = True
        await watched.dog.run()
        assert watched.report.errors == {"m6_refused_means_refunded": 1}
        watched.rows.mends_fail = False
        await watched.dog.run()
        assert watched.rows.trail == [("add_refund", "a")]


async def test_what_must_not_be_mended_is_not(
    autojump_clock: MockClock, claims_errors: list[logging.LogRecord]
) -> None:
    async with open_watched() as watched:
        unmended = [name for name, watch in WATCHES.items() if not watch.repairs and watch.source == "invariant"]
        watched.rows.broken = {name: ["a"] for name in unmended}
        watched.rows.mendable = {repair: ["a"] for repair in Repair}
        await watched.dog.run()
        assert watched.alarms == set(unmended)
        assert watched.rows.trail == []


async def test_a_capacity_is_written_anew_only_if_it_is_still_wrong_at_a_second_look(
    autojump_clock: MockClock, claims_errors: list[logging.LogRecord]
) -> None:
    async with open_watched() as watched:
        watched.rows.wrong = ["on-its-way"]

        async def arrive() -> None:
            await trio.sleep(2)
            watched.rows.wrong.remove("on-its-way")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(arrive)
            await watched.dog.run()
        assert (watched.alarms, watched.rows.refreshed) == (set(), [])
        watched.rows.wrong = ["wrong"]
        await watched.dog.run()
        assert watched.alarms == {"mirror_capacities_agree"}
        assert watched.rows.refreshed == ["wrong"]
        assert watched.rows.trail == [("refresh_capacity", "wrong")]
        await watched.dog.run()
        assert watched.alarms == set()
