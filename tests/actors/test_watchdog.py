"""The watchdog's rounds over real actors and rows made of dictionaries, in virtual time; `tests/store/test_watchdog.py` has Postgres."""

import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from halo.actors.commands import Said
from halo.actors.registry import Registry
from halo.actors.repairs import CRASHES_AT_MOST, WatchPorts
from halo.actors.supervisor import RestartBudget
from halo.actors.watchdog import FIRST_WINDOW_MS, MAILBOX_ALARM, OVERLAP_MS, Watchdog
from halo.clock import Moment
from halo.errors import ActorFault, StoreUnavailable
from halo.session import SessionStatus
from halo.watch import SUBJECTS_AT_MOST, WATCHES, LagHistogram, Repair, WatchReport
from tests.actors.fakes import Broken, Chat, Fault, House, open_house

BROKEN = Fault(before=Broken)
ONCE = RestartBudget(restarts=0)
S4 = "s4_everybody_has_an_owner"
S2 = "s2_one_pending_extension"


class Unforeseen(Exception):
    """What nobody has thought of."""


@dataclass
class FakeMirror:
    """What Valkey would say otherwise than Postgres."""

    wrong: list[str] = field(default_factory=list)
    """Capacities."""
    astray: list[str] = field(default_factory=list)
    """Who is online."""
    refreshed: list[str] = field(default_factory=list)
    reseeds: int = 0
    away: bool = False
    crashes: bool = False

    async def list_wrong_capacities(self) -> Sequence[str]:
        if self.away:
            raise StoreUnavailable
        return list(self.wrong)

    async def list_wrong_among(self, mitra_ids: Sequence[str]) -> Sequence[str]:
        return [mitra_id for mitra_id in mitra_ids if mitra_id in self.wrong]

    async def refresh_capacities(self, mitra_ids: Sequence[str]) -> None:
        self.refreshed += mitra_ids
        self.wrong = []

    async def list_wrong_standings(self) -> Sequence[str]:
        if self.crashes:
            raise Unforeseen
        if self.away:
            raise StoreUnavailable
        return list(self.astray)

    async def list_wrong_standings_among(self, mitra_ids: Sequence[str]) -> Sequence[str]:
        return [mitra_id for mitra_id in mitra_ids if mitra_id in self.astray]

    async def reseed(self) -> None:
        self.reseeds += 1
        self.astray = []


@dataclass
class FakeRows:
    """What the stores would find, and what they were asked."""

    broken: dict[str, list[str]] = field(default_factory=dict)
    """By watch."""
    too_dear: set[str] = field(default_factory=set)
    crashing: set[str] = field(default_factory=set)
    """Questions by their watch, or repairs by their subject, that end in an error which nobody foresaw."""
    away: bool = False
    asked: dict[str, Moment] = field(default_factory=dict)
    """By watch: since when."""
    asked_after: dict[str, str] = field(default_factory=dict)
    mirror: FakeMirror = field(default_factory=FakeMirror)
    mendable: dict[Repair, list[str]] = field(default_factory=dict)
    mends_fail: bool = False
    tried: list[str] = field(default_factory=list)
    trail: list[tuple[str, str]] = field(default_factory=list)
    becauses: set[str] = field(default_factory=set)

    @asynccontextmanager
    async def look(self) -> AsyncIterator["FakeRows"]:
        await trio.lowlevel.checkpoint()
        if self.away:
            raise StoreUnavailable
        if "look" in self.crashing:
            raise Unforeseen
        yield self

    async def ask(self, name: str, *, since: Moment, now: Moment, after: str) -> Sequence[str]:
        await trio.lowlevel.checkpoint()
        self.asked[name] = since
        self.asked_after[name] = after
        if name in self.too_dear:
            raise StoreUnavailable
        if name in self.crashing:
            raise Unforeseen
        return self.broken.get(name, [])

    async def mend(self, repair: Repair, subject: str, because: str) -> bool:
        self.tried.append(subject)
        if self.mends_fail:
            raise StoreUnavailable
        if subject in self.crashing:
            raise Unforeseen
        if subject not in self.mendable.get(repair, []):
            return False
        self.mendable[repair].remove(subject)
        await self.record(repair, subject, because)
        return True

    async def record(self, repair: Repair, subject: str, because: str) -> None:
        self.trail.append((repair.value, subject))
        self.becauses.add(because)


@dataclass
class Watched:
    """A house and its watchdog."""

    house: House
    dog: Watchdog
    rows: FakeRows
    skew_ms: int = 0
    trusted: bool = True
    unreadable: tuple[str, ...] = ()
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
            unreadable_config=lambda: watched.unreadable,
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
        watched.rows.away = watched.rows.mirror.away = True
        await trio.sleep(130)
        assert watched.report.rounds == 2
        assert watched.rows.asked == {}
        assert watched.alarms == set()
        assert sum(watched.report.errors.values()) == 6  # one question and two to the mirror, twice
        watched.rows.away = watched.rows.mirror.away = False
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


async def test_a_configuration_that_cannot_be_read_is_an_alarm_that_names_its_keys(
    autojump_clock: MockClock, claims_errors: list[logging.LogRecord]
) -> None:
    async with open_watched() as watched:
        watched.unreadable = ("extension_default_action_on_timeout",)
        await watched.dog.run()
        assert watched.alarms == {"configuration_is_readable"}
        assert watched.report.alarms["configuration_is_readable"].subjects == watched.unreadable
        watched.unreadable = ()
        await watched.dog.run()
        assert watched.alarms == set()


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
        ask = watched.dog._questions_to_node(watched.house.clock.now())["mailboxes_drain"]
        assert ask() == [chat.session_id]
        await trio.sleep(1)
        assert ask() == []


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
        watched.rows.mirror.wrong = ["on-its-way"]

        async def arrive() -> None:
            await trio.sleep(2)
            watched.rows.mirror.wrong.remove("on-its-way")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(arrive)
            await watched.dog.run()
        assert (watched.alarms, watched.rows.mirror.refreshed) == (set(), [])
        watched.rows.mirror.wrong = ["wrong"]
        await watched.dog.run()
        assert watched.alarms == {"mirror_capacities_agree"}
        assert watched.rows.mirror.refreshed == ["wrong"]
        assert watched.rows.trail == [("refresh_capacity", "wrong")]
        await watched.dog.run()
        assert watched.alarms == set()


async def test_who_is_mirrored_online_wrongly_counts_only_if_it_is_still_so_at_a_second_look(
    autojump_clock: MockClock, claims_errors: list[logging.LogRecord]
) -> None:
    async with open_watched() as watched:
        mirror, found = watched.rows.mirror, dict[str, Sequence[str]]()
        mirror.astray = ["on-her-way"]

        async def arrive() -> None:
            await trio.sleep(0.9)
            mirror.astray.remove("on-her-way")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(arrive)
            await wait_all_tasks_blocked()
            await watched.dog._ask_mirror(found)
        assert found["mirror_online_agrees"] == []
        mirror.astray = ["gone", "unknown"]
        await watched.dog.run()
        assert watched.alarms == {"mirror_online_agrees"}
        assert mirror.reseeds == 1
        assert watched.rows.trail == [("reseed_mirror", "gone"), ("reseed_mirror", "unknown")]
        await watched.dog.run()
        assert (watched.alarms, mirror.reseeds) == (set(), 1)


# ---- every subject has its turn


def names(count: int) -> list[str]:
    return [f"{number:03}" for number in range(count)]


async def test_of_a_flood_all_are_mended_in_the_end_though_the_first_ones_cannot_be(
    autojump_clock: MockClock, claims_errors: list[logging.LogRecord]
) -> None:
    async with open_watched() as watched:
        subjects = names(2 * SUBJECTS_AT_MOST + 5)
        watched.rows.broken["m6_refused_means_refunded"] = subjects
        watched.rows.mendable = {Repair.ADD_REFUND: subjects[SUBJECTS_AT_MOST:]}
        for rounds in (1, 2, 3):
            await watched.dog.run()
            assert len(watched.rows.tried) == rounds * SUBJECTS_AT_MOST
        assert watched.rows.mendable == {Repair.ADD_REFUND: []}
        assert watched.report.repaired == {Repair.ADD_REFUND: SUBJECTS_AT_MOST + 5}
        assert watched.rows.becauses == {"m6_refused_means_refunded"}


async def test_the_question_goes_on_behind_the_last_subject_that_had_its_turn(
    autojump_clock: MockClock, claims_errors: list[logging.LogRecord]
) -> None:
    """For what is named at once is bounded as well."""
    async with open_watched() as watched:
        watched.rows.broken["m6_refused_means_refunded"] = names(SUBJECTS_AT_MOST + 1)
        await watched.dog.run()
        assert watched.rows.asked_after["m6_refused_means_refunded"] == ""
        await watched.dog.run()
        assert watched.rows.asked_after["m6_refused_means_refunded"] == f"{SUBJECTS_AT_MOST - 1:03}"


# ---- faults of the watchdog's own


def crashed(records: list[logging.LogRecord]) -> list[str]:
    return [record.msg["actor"] for record in records if record.msg["event"] == "actor_parked"]  # type: ignore[index]


async def test_a_question_that_crashes_is_told_by_name_and_all_others_are_asked_and_mended(
    autojump_clock: MockClock, claims_errors: list[logging.LogRecord]
) -> None:
    async with open_watched() as watched:
        watched.rows.crashing = {"m1_charged_at_most_once"}
        watched.rows.broken["m6_refused_means_refunded"] = ["a"]
        watched.rows.mendable = {Repair.ADD_REFUND: ["a"]}
        await watched.dog.run()
        assert crashed(claims_errors) == ["watchdog question m1_charged_at_most_once"]
        assert set(watched.rows.asked) == {
            name for name, watch in WATCHES.items() if watch.source in {"invariant", "queue"}
        }
        assert watched.rows.trail == [("add_refund", "a")]
        assert watched.alarms == {"m6_refused_means_refunded", "watchdog_works"}
        assert watched.report.alarms["watchdog_works"].subjects == ("m1_charged_at_most_once",)
        assert watched.report.errors == {"m1_charged_at_most_once": 1}
        assert (watched.report.rounds, watched.report.last_round_at) == (1, watched.house.clock.now())
        watched.rows.crashing.clear()
        watched.rows.broken.clear()
        await watched.dog.run()
        assert watched.alarms == set()


async def test_a_look_that_cannot_be_begun_for_a_fault_of_its_own_leaves_the_other_questions(
    autojump_clock: MockClock, claims_errors: list[logging.LogRecord]
) -> None:
    async with open_watched() as watched:
        watched.rows.crashing = {"look"}
        watched.skew_ms = 3_000
        await watched.dog.run()
        assert watched.rows.asked == {}
        assert watched.alarms == {"clock_agrees", "watchdog_works"}
        assert watched.report.rounds == 1


async def test_a_question_to_the_mirror_or_the_node_that_crashes_holds_up_no_other(
    autojump_clock: MockClock, claims_errors: list[logging.LogRecord], monkeypatch: pytest.MonkeyPatch
) -> None:
    def crash(report: LagHistogram) -> float:
        raise Unforeseen

    async with open_watched() as watched:
        monkeypatch.setattr(LagHistogram, "take_longest", crash)
        watched.rows.mirror.crashes = True
        watched.rows.mirror.wrong = ["wrong"]
        watched.skew_ms = 3_000
        await watched.dog.run()
        assert watched.alarms == {"mirror_capacities_agree", "clock_agrees", "watchdog_works"}
        assert watched.report.alarms["watchdog_works"].subjects == ("event_loop_runs", "mirror_online_agrees")


async def test_a_repair_that_crashes_on_one_subject_is_told_and_the_others_are_mended(
    autojump_clock: MockClock, claims_errors: list[logging.LogRecord]
) -> None:
    async with open_watched() as watched:
        watched.rows.broken = {"m6_refused_means_refunded": ["a", "b", "c"], S2: ["s"]}
        watched.rows.mendable = {Repair.ADD_REFUND: ["a", "b", "c"], Repair.CANCEL_EXTENSION: ["s"]}
        watched.rows.crashing = {"b"}
        await watched.dog.run()
        assert set(watched.rows.trail) == {("add_refund", "a"), ("add_refund", "c"), ("cancel_extension", "s")}
        assert crashed(claims_errors) == ["watchdog repair m6_refused_means_refunded"]
        assert watched.report.repaired == {Repair.ADD_REFUND: 2, Repair.CANCEL_EXTENSION: 1}
        assert watched.report.alarms["watchdog_works"].subjects == ("m6_refused_means_refunded",)


async def test_a_repair_that_crashes_again_and_again_is_left_for_the_round_and_begins_behind_in_the_next(
    autojump_clock: MockClock, claims_errors: list[logging.LogRecord]
) -> None:
    async with open_watched() as watched:
        subjects = names(SUBJECTS_AT_MOST + 1)
        watched.rows.broken["m6_refused_means_refunded"] = subjects
        watched.rows.mendable = {Repair.ADD_REFUND: subjects[-1:]}
        watched.rows.crashing = set(subjects[:-1])
        await watched.dog.run()
        assert watched.rows.tried == subjects[:CRASHES_AT_MOST]
        await watched.dog.run()
        assert watched.rows.trail == [("add_refund", subjects[-1])]


async def test_a_revival_that_crashes_was_the_one_attempt(
    autojump_clock: MockClock, claims_errors: list[logging.LogRecord], monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[str] = []

    async def crash(registry: Registry, session_id: str) -> bool:
        tried.append(session_id)
        raise Unforeseen

    async with open_watched(ONCE) as watched, on_guard(watched):
        chat = await parked(watched)
        monkeypatch.setattr(Registry, "revive", crash)
        await trio.sleep(600)
        assert tried == [chat.session_id]
        assert watched.report.rounds == 9
        assert watched.alarms == {"actors_run"}
