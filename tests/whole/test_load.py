"""`halo load` against a real halo by URL, with real worker processes: every scenario, and what ends a run."""

import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from halo.load.conductor import Conductor
from halo.load.crew import WorkerLost
from halo.load.plan import Plan, plan_of
from halo.load.record import Record, Tally
from halo.load.target import Keys, Target, TargetRefused
from halo.load.verdict import Outcome
from halo.store.invariants import find_violations
from tests.whole.house import SECRETS, WEBHOOK_SECRET, House, open_house


@pytest.fixture
async def house(database_url: str, valkey_url: str) -> AsyncIterator[House]:
    async with open_house(database_url, valkey_url, HALO_SANDBOX="0") as house:
        yield house


def target_of(house: House, ask: Callable[[], Awaitable[tuple[int, list[str]]]] | None = None) -> Target:
    async def ask_invariants() -> tuple[int, list[str]]:
        return await find_violations(house.db)

    keys = Keys(SECRETS["HALO_SERVER_KEY"], WEBHOOK_SECRET)
    return Target(
        ws=house.ready["ws"], api=house.ready["api"], keys=keys, is_own=False, find_violations=ask or ask_invariants
    )


class Onlooker:
    """Watches a run, and may do something at its first second."""

    def __init__(self, at_first_second: Callable[[], None] = lambda: None) -> None:
        self.events: list[str] = []
        self.done: list[str] = []
        self.at_first_second = at_first_second

    def doing(self, what: str, done: int = 0, of: int = 0) -> None:
        self.done.append(what)

    def began(self, plan: Plan) -> None:
        pass

    def second(self, at: float, tally: Tally) -> None:
        self.at_first_second()

    def event(self, at: float, what: str) -> None:
        self.events.append(what)


async def run(house: House, scenario: str, **wishes: Any) -> Record:
    return await Conductor(plan_of(scenario, wishes), target_of(house), Onlooker()).run()


def failures(record: Record) -> list[str]:
    return [
        f"{check.name}: {check.fact} {check.examples}"
        for check in record.verdict.checks
        if check.outcome is Outcome.FAILED
    ]


async def living(house: House) -> int:
    rows = await house.db.fetch_all("SELECT count(*)::int AS n FROM chat_sessions WHERE status <> 'ended'")
    return int(rows[0].n)


async def test_two_processes_talk_in_the_closed_loop_and_leave_nobody_behind(house: House) -> None:
    record = await run(house, "steady", pairs=3, seconds=1.0, processes=2)
    assert failures(record) == []
    assert record.counts["said"] == record.counts["acks"] == record.counts["stored"] == record.counts["deliveries"] > 6
    assert record.figures["ack"].count == record.counts["acks"]
    assert record.verdict.is_whole
    assert record.cost.harness_cpu_seconds > 0
    assert await living(house) == 0
    assert not await house.db.fetch_all("SELECT mitra_id FROM mitras WHERE is_online")


async def test_a_day_passes_in_two_seconds(house: House) -> None:
    record = await run(house, "day", pairs=2, seconds=2.0, rate=100.0)
    assert failures(record) == []
    assert record.counts["acks"] > 10


async def test_a_storm_of_connections_is_timed_from_its_intention(house: House) -> None:
    record = await run(house, "connect-storm", pairs=5, seconds=1.0, rate=20.0)
    assert failures(record) == []
    assert record.figures["connect"].count == 10


async def test_whoever_is_cut_off_comes_back_and_misses_nothing(house: House) -> None:
    watch = Onlooker()
    plan = plan_of("reconnect-storm", {"pairs": 3, "seconds": 2.0, "rate": 60.0})
    record = await Conductor(plan, target_of(house), watch).run()
    assert failures(record) == []
    assert watch.events == ["every socket cut"]
    assert record.figures["resume"].count == 6


async def test_a_rush_for_mitras_finds_one_for_everybody(house: House) -> None:
    record = await run(house, "pairing-rush", pairs=4, seconds=20.0, window=0.0, processes=2)
    assert failures(record) == []
    assert record.counts["matches"] == record.counts["matches_kept"] == 4


async def test_a_rush_for_more_time_sells_it_once_to_each(house: House) -> None:
    record = await run(house, "extension-rush", pairs=3, seconds=20.0)
    assert failures(record) == []
    assert record.counts["extensions"] == record.counts["extensions_kept"] == 3


async def test_somebody_who_does_not_read_costs_nobody_a_message(house: House) -> None:
    record = await run(house, "slow-readers", pairs=2, seconds=2.0, rate=100.0, slow=0.5)
    assert failures(record) == []
    assert record.counts["slow"] == 1
    assert record.figures["resume"].count >= 1


async def test_hearts_beat_and_are_answered(house: House) -> None:
    record = await run(house, "heartbeats", mitras=6, seconds=1.0, interval=0.2, processes=2)
    assert failures(record) == []
    assert record.counts["beats"] == record.counts["heartbeats"] == 30
    assert record.counts["looked_at"] == record.counts["online"] == 6


async def test_an_invariant_that_is_broken_fails_the_run(house: House) -> None:
    async def spoil_and_ask() -> tuple[int, list[str]]:
        await house.db.execute("UPDATE chat_sessions SET paid_amount = paid_amount + 1")
        return await find_violations(house.db)

    plan = plan_of("steady", {"pairs": 1, "seconds": 1.0, "rate": 10.0})
    record = await Conductor(plan, target_of(house, spoil_and_ask), Onlooker()).run()
    assert record.verdict.status == 1
    assert [failure.split(":")[0] for failure in failures(record)] == ["the invariants hold in the database"]


async def test_an_early_end_still_checks_and_reports_what_was_played(house: House) -> None:
    watch = Onlooker()
    conductor = Conductor(
        plan_of("steady", {"pairs": 1, "seconds": 600.0 - 120, "rate": 20.0}), target_of(house), watch
    )
    watch.at_first_second = conductor.stop.set
    record = await conductor.run()
    assert failures(record) == []
    assert (record.verdict.is_whole, record.verdict.status) == (False, 130)
    assert record.counts["stored"] == record.counts["acks"] > 0
    assert record.plan.seconds == 480.0
    assert await living(house) == 0


async def test_a_worker_that_dies_ends_the_run_and_the_sessions_are_ended_all_the_same(house: House) -> None:
    mine = os.getpid()

    def kill_worker() -> None:
        [worker] = [pid for pid in children_of(mine) if "halo.load.worker" in command_of(pid)]
        os.kill(worker, signal.SIGKILL)

    conductor = Conductor(
        plan_of("steady", {"pairs": 1, "seconds": 60.0, "rate": 20.0}), target_of(house), Onlooker(kill_worker)
    )
    with pytest.RaisesGroup(WorkerLost, flatten_subgroups=True):
        await conductor.run()
    assert await living(house) == 0


async def test_where_others_are_online_nothing_begins_unless_it_is_said(house: House) -> None:
    mitra = await house.admit("mitra")
    await house.go_online(mitra)
    plan = plan_of("heartbeats", {"mitras": 1, "seconds": 1.0})
    with pytest.RaisesGroup(
        pytest.RaisesExc(TargetRefused, match="1 mitras are online there who are none of ours"), flatten_subgroups=True
    ):
        await Conductor(plan, target_of(house), Onlooker()).run()
    record = await Conductor(plan, target_of(house), Onlooker(), beside_others=True).run()
    assert failures(record) == []


async def test_websockets_that_are_not_there_are_told(house: House) -> None:
    target = replace(target_of(house), ws="ws://127.0.0.1:9")
    with pytest.RaisesGroup(
        pytest.RaisesExc(TargetRefused, match="WebSockets cannot be opened at ws://127.0.0.1:9"), flatten_subgroups=True
    ):
        await Conductor(plan_of("steady", {"pairs": 1}), target, Onlooker()).run()


async def test_tokens_that_would_not_last_are_told(house: House) -> None:
    with pytest.RaisesGroup(
        pytest.RaisesExc(TargetRefused, match="Access tokens live 600 s there"), flatten_subgroups=True
    ):
        await run(house, "steady", pairs=1, seconds=590.0)


def children_of(pid: int) -> list[int]:
    """Of whichever of its threads has started them."""
    threads = Path(f"/proc/{pid}/task").iterdir()
    return [int(child) for thread in threads for child in (thread / "children").read_text("ascii").split()]


def command_of(pid: int) -> str:
    return Path(f"/proc/{pid}/cmdline").read_text("utf-8")
