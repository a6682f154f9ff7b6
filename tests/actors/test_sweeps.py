"""The sweeps over a mirror and rows made of dictionaries, in virtual time; `tests/store/test_sweeps.py` has the real stores."""

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise

import pytest
import trio
from trio.testing import MockClock

from halo.actors.supervisor import RestartBudget, keep
from halo.actors.sweeps import AutoOffline, HeartbeatMirror, Reseed, Sweep
from halo.clock import Moment
from halo.errors import StoreUnavailable
from halo.sweep import MirrorUnavailable, SweepName, Swept
from tests.actors.fakes import Broken

BEGIN: Moment = 1_795_464_900_000
STALE_MS = 90_000
EVERY_SECONDS = 30.0


class VirtualClock:
    """The wall clock follows Trio's."""

    def now(self) -> Moment:
        return BEGIN + round(trio.current_time() * 1000)


@dataclass
class World:
    """What Valkey and Postgres hold."""

    clock: VirtualClock = field(default_factory=VirtualClock)
    beats: dict[str, Moment | None] = field(default_factory=dict)
    """Online in the mirror."""
    standing: tuple[int, int] | None = (1, 1)
    built_at: Moment = BEGIN - 10 * STALE_MS
    pings: dict[str, Moment] = field(default_factory=dict)
    online: set[str] = field(default_factory=set)
    """In Postgres."""
    known: dict[str, Moment] = field(default_factory=dict)
    """Heartbeats in Postgres."""
    valkey_away = postgres_away = False
    statements: int = 0
    presence: dict[str, int] = field(default_factory=dict)
    """In Postgres: how often it was said whether she is there."""
    meanwhile: Callable[[], None] | None = None
    """Happens between Postgres' commit and the mirror."""
    before_taking_back: Callable[[], None] | None = None
    """Happens between the mirror and Postgres' second commit."""
    drift: dict[str, int] = field(default_factory=dict)

    # ---- the mirror

    def heard_at(self, mitra_id: str) -> Moment | None:
        return self.pings.get(mitra_id)

    def take_unmirrored(self) -> dict[str, Moment]:
        pings, self.pings = self.pings, {}
        return pings

    def give_back(self, pings: Mapping[str, Moment]) -> None:
        self.pings = {**pings, **self.pings}

    def pages_online(self) -> "Pages":
        return Pages(self)

    async def swept_offline(self, seen: Mapping[str, Moment]) -> Mapping[str, Moment]:
        await self._reach_valkey()
        if self.meanwhile is not None:
            self.meanwhile()
        heard = {mitra_id: self.beats.get(mitra_id) or 0 for mitra_id in seen}
        stay = {mitra_id: beat for mitra_id, beat in heard.items() if beat > seen[mitra_id]}
        for mitra_id in seen.keys() - stay.keys():
            self.beats.pop(mitra_id, None)
        if self.before_taking_back is not None:
            self.before_taking_back()
        return stay

    async def went_online_all(self, heard: Mapping[str, Moment]) -> None:
        self.beats |= heard

    async def reseed(self) -> tuple[int, Mapping[str, int]]:
        await self._reach_valkey()
        return len(self.online), self.drift

    async def _reach_valkey(self) -> None:
        await trio.lowlevel.checkpoint()
        if self.valkey_away:
            raise MirrorUnavailable("Valkey is away")

    # ---- the rows

    async def set_offline(self, seen: Mapping[str, Moment]) -> "Done":
        await self._reach_postgres()
        changed = {m for m, at in seen.items() if m in self.online and self.known.get(m, 0) <= at}
        for mitra_id in changed:
            self.say(mitra_id, online=False)
        return Done([m for m in seen if m not in self.online], {m: self.presence[m] for m in changed})

    async def set_online_again(self, presence_versions: Mapping[str, int]) -> list[str]:
        await self._reach_postgres()
        back = [m for m, version in presence_versions.items() if self.presence[m] == version]
        for mitra_id in back:
            self.say(mitra_id, online=True)
        return back

    async def record_heartbeats(self, beats: Mapping[str, Moment]) -> int:
        await self._reach_postgres()
        moved = {mitra_id: at for mitra_id, at in beats.items() if at > self.known.get(mitra_id, 0)}
        self.known |= moved
        return len(moved)

    async def _reach_postgres(self) -> None:
        self.statements += 1
        await trio.lowlevel.checkpoint()
        if self.postgres_away:
            raise StoreUnavailable

    # ---- people

    def say(self, mitra_id: str, *, online: bool) -> None:
        (self.online.add if online else self.online.discard)(mitra_id)
        self.presence[mitra_id] = self.presence.get(mitra_id, 0) + 1

    def come(self, *mitra_ids: str, ago_ms: int = 0) -> None:
        for mitra_id in mitra_ids:
            self.online.add(mitra_id)
            self.beats[mitra_id] = self.known[mitra_id] = self.clock.now() - ago_ms


@dataclass
class Done:
    offline: list[str]
    presence_versions: dict[str, int]


class Pages:
    """Two mitras a page; Valkey may go away between two."""

    def __init__(self, world: World) -> None:
        self.built_at: Moment | None = None
        self._world = world
        self._left = list(world.beats.items())

    def __aiter__(self) -> "Pages":
        return self

    async def __anext__(self) -> Mapping[str, Moment | None]:
        await self._world._reach_valkey()
        self.built_at = self._world.built_at
        if not self._left:
            raise StopAsyncIteration
        page, self._left = self._left[:2], self._left[2:]
        return dict(page)


def auto_offline(world: World) -> Sweep:
    return Sweep("auto_offline", AutoOffline(world, world, world.clock, STALE_MS), EVERY_SECONDS, world.clock)


async def warmed(world: World) -> Sweep:
    """A sweep that has seen the mirror stand for a whole freshness period."""
    sweep = auto_offline(world)
    assert (await sweep.run()).waits_for == "warm_up"
    await trio.sleep(STALE_MS / 1000 + 0.1)
    return sweep


def names(count: int, first: int = 0) -> list[str]:
    return [f"m{n:03}" for n in range(first, first + count)]


@pytest.fixture
def world() -> World:
    return World()


# ---- auto-offline


async def test_who_was_not_heard_of_for_longer_than_the_freshness_goes_offline_in_both_stores(
    autojump_clock: MockClock, world: World
) -> None:
    sweep = await warmed(world)
    world.come("fresh", ago_ms=STALE_MS)
    world.come("stale", ago_ms=STALE_MS + 1)
    swept = await sweep.run()
    assert (swept.rows, swept.error, dict(swept.found)) == (1, None, {"online": 2, "stale": 1})
    assert (world.online, set(world.beats)) == ({"fresh"}, {"fresh"})


async def test_who_is_online_in_postgres_alone_is_never_set_offline(autojump_clock: MockClock, world: World) -> None:
    """S29: it asks the mirror who is online, and Postgres nothing."""
    sweep = await warmed(world)
    world.online = {"lost by the mirror"}
    assert (await sweep.run()).rows == 0
    assert (world.online, world.statements) == ({"lost by the mirror"}, 0)


async def test_who_has_no_heartbeat_in_the_mirror_goes_offline_unless_postgres_knows_a_fresh_one(
    autojump_clock: MockClock, world: World
) -> None:
    sweep = await warmed(world)
    world.come("evicted", ago_ms=1_000)
    world.come("silent", ago_ms=STALE_MS + 1)
    world.beats |= {"evicted": None, "silent": None}
    await sweep.run()
    assert world.online == {"evicted"}


async def test_a_heartbeat_that_reached_postgres_or_this_node_on_another_way_wins(
    autojump_clock: MockClock, world: World
) -> None:
    sweep = await warmed(world)
    world.come("by postgres", "by this node", ago_ms=STALE_MS + 1)
    world.known["by postgres"] += 1
    world.pings["by this node"] = world.clock.now()
    assert (await sweep.run()).rows == 0
    assert world.online == {"by postgres", "by this node"}


async def test_a_ping_between_the_look_and_the_mirror_wins_and_postgres_takes_it_back(
    autojump_clock: MockClock, world: World
) -> None:
    sweep = await warmed(world)
    world.come("pinging", "silent", ago_ms=STALE_MS + 1)
    world.meanwhile = lambda: world.beats.update(pinging=world.clock.now())
    assert (await sweep.run()).rows == 1
    assert (world.online, set(world.beats)) == ({"pinging"}, {"pinging"})


async def test_who_went_offline_by_herself_is_taken_from_the_mirror_and_not_brought_back(
    autojump_clock: MockClock, world: World
) -> None:
    sweep = await warmed(world)
    world.come("gone", ago_ms=STALE_MS + 1)
    world.online.clear()
    world.meanwhile = lambda: world.beats.update(gone=world.clock.now())
    assert (await sweep.run()).rows == 0
    assert world.online == set()


async def test_who_goes_offline_by_herself_before_it_is_taken_back_stays_offline(
    autojump_clock: MockClock, world: World
) -> None:
    sweep = await warmed(world)
    world.come("gone", "back", ago_ms=STALE_MS + 1)
    world.meanwhile = lambda: world.beats.update(gone=world.clock.now(), back=world.clock.now())

    def goes() -> None:
        world.say("gone", online=False)
        del world.beats["gone"]

    world.before_taking_back = goes
    assert (await sweep.run()).rows == 1
    assert (world.online, set(world.beats)) == ({"back"}, {"back"})


async def test_a_reseed_in_between_does_not_cost_her_the_mirror(autojump_clock: MockClock, world: World) -> None:
    """It has believed Postgres, who called her offline; the mirror gets her back with the ping that was taken, no other moment (A4)."""
    sweep = await warmed(world)
    world.come("pinging", ago_ms=STALE_MS + 1)
    pinged_at = world.clock.now() - 1
    world.meanwhile = lambda: world.beats.update(pinging=pinged_at)
    world.before_taking_back = world.beats.clear
    assert (await sweep.run()).rows == 0
    assert (world.online, world.beats) == ({"pinging"}, {"pinging": pinged_at})


async def test_a_mirror_that_is_not_trusted_sets_nobody_offline_and_has_to_warm_up_again(
    autojump_clock: MockClock, world: World
) -> None:
    sweep = await warmed(world)
    world.come("stale", ago_ms=STALE_MS + 1)
    world.standing = None
    assert (await sweep.run()).error is not None
    world.standing = (2, 1)
    assert (await sweep.run()).waits_for == "warm_up"
    await trio.sleep(STALE_MS / 1000)
    assert (await sweep.run()).waits_for == "warm_up"  # exactly one period is not more than one
    assert world.online == {"stale"}
    await trio.sleep(0.001)
    assert (await sweep.run()).rows == 1


async def test_trust_that_was_lost_and_found_between_two_runs_means_a_warm_up(
    autojump_clock: MockClock, world: World
) -> None:
    sweep = await warmed(world)
    world.come("stale", ago_ms=STALE_MS + 1)
    world.standing = (1, 2)
    assert ((await sweep.run()).waits_for, world.online) == ("warm_up", {"stale"})


async def test_a_mirror_that_another_node_has_just_built_from_nothing_means_a_warm_up(
    autojump_clock: MockClock, world: World
) -> None:
    """Flushed and seeded again before this node noticed anything: the heartbeats in it are as old as Postgres' are."""
    sweep = await warmed(world)
    world.come("stale", ago_ms=STALE_MS + 1)
    world.built_at = world.clock.now() - STALE_MS
    assert ((await sweep.run()).waits_for, world.online) == ("warm_up", {"stale"})
    world.built_at -= 1
    assert (await sweep.run()).rows == 1


@pytest.mark.parametrize("page", [0, 1, 3])
async def test_an_error_of_valkey_anywhere_gives_up_the_whole_run(
    autojump_clock: MockClock, world: World, page: int
) -> None:
    sweep = await warmed(world)
    world.come(*names(8), ago_ms=STALE_MS + 1)
    reach, pages = world._reach_valkey, 0

    async def fail_at_a_page() -> None:
        nonlocal pages
        world.valkey_away = pages == page
        pages += 1
        await reach()

    world._reach_valkey = fail_at_a_page  # type: ignore[method-assign]
    swept = await sweep.run()
    assert (swept.rows, swept.error) == (0, "MirrorUnavailable: Valkey is away")
    assert (len(world.online), world.statements) == (8, 0)


async def test_trust_lost_during_the_look_gives_up_the_run(autojump_clock: MockClock, world: World) -> None:
    sweep = await warmed(world)
    world.come("stale", ago_ms=STALE_MS + 1)
    reach = world._reach_valkey

    async def doubt() -> None:
        await reach()
        world.standing = (1, 2)

    world._reach_valkey = doubt  # type: ignore[method-assign]
    assert (await sweep.run()).error is not None
    assert (world.online, world.statements) == ({"stale"}, 0)


async def test_many_at_once_wait_for_the_next_run_to_agree(autojump_clock: MockClock, world: World) -> None:
    sweep = await warmed(world)
    world.come(*names(11), ago_ms=STALE_MS + 1)
    first = await sweep.run()
    assert (first.rows, first.waits_for, len(world.online)) == (0, "second_opinion", 11)
    world.beats["m000"] = world.clock.now() + 30_000  # one was only late
    await trio.sleep(EVERY_SECONDS)
    assert ((await sweep.run()).rows, world.online) == (10, {"m000"})


async def test_a_run_that_was_given_up_is_no_first_opinion_for_the_next(
    autojump_clock: MockClock, world: World
) -> None:
    sweep = await warmed(world)
    world.come(*names(11), ago_ms=STALE_MS + 1)
    assert (await sweep.run()).waits_for == "second_opinion"
    world.valkey_away = True
    assert (await sweep.run()).error is not None
    world.valkey_away = False
    assert (await sweep.run()).waits_for == "second_opinion"
    assert len(world.online) == 11


async def test_two_nodes_that_sweep_at_once_come_to_the_same_end(autojump_clock: MockClock, world: World) -> None:
    nodes = [await warmed(world), await warmed(world)]
    world.come(*names(9), ago_ms=STALE_MS + 1)
    world.come("fresh")
    async with trio.open_nursery() as nursery:
        for node in nodes:
            nursery.start_soon(node.run)
    assert sum(node.report.rows for node in nodes) == 9
    assert (world.online, set(world.beats)) == ({"fresh"}, {"fresh"})
    assert [(await node.run()).rows for node in nodes] == [0, 0]


async def test_without_postgres_nobody_goes_offline_anywhere(autojump_clock: MockClock, world: World) -> None:
    sweep = await warmed(world)
    world.come("stale", ago_ms=STALE_MS + 1)
    world.postgres_away = True
    assert (await sweep.run()).error is not None
    assert set(world.beats) == {"stale"}


# ---- heartbeat mirror


def heartbeat_mirror(world: World) -> Sweep:
    return Sweep("heartbeat_mirror", HeartbeatMirror(world, world), 60.0, world.clock)


async def test_what_valkey_holds_and_what_this_node_heard_is_one_statement(
    autojump_clock: MockClock, world: World
) -> None:
    world.beats = {"a": BEGIN + 1, "b": BEGIN + 2, "c": None}
    world.pings = {"a": BEGIN, "b": BEGIN + 3, "d": BEGIN + 4}
    swept = await heartbeat_mirror(world).run()
    assert (swept.rows, swept.error, world.statements) == (3, None, 1)
    assert world.known == {"a": BEGIN + 1, "b": BEGIN + 3, "d": BEGIN + 4}
    assert world.pings == {}


async def test_with_valkey_gone_what_this_node_heard_is_written_and_the_report_says_so(
    autojump_clock: MockClock, world: World
) -> None:
    world.pings, world.valkey_away = {"a": BEGIN}, True
    swept = await heartbeat_mirror(world).run()
    assert (swept.rows, swept.error, world.known) == (1, "MirrorUnavailable: Valkey is away", {"a": BEGIN})


async def test_what_met_an_absent_postgres_is_kept_and_the_newest_wins(autojump_clock: MockClock, world: World) -> None:
    sweep = heartbeat_mirror(world)
    world.pings, world.postgres_away = {"a": BEGIN + 5, "b": BEGIN + 5}, True
    assert (await sweep.run()).error is not None
    world.pings |= {"a": BEGIN + 9}
    world.postgres_away = False
    await sweep.run()
    assert world.known == {"a": BEGIN + 9, "b": BEGIN + 5}


async def test_a_cancelled_cycle_gives_back_what_it_took(autojump_clock: MockClock, world: World) -> None:
    world.pings = {"a": BEGIN}
    with trio.CancelScope() as scope:
        scope.cancel()
        await heartbeat_mirror(world).run()
    assert world.pings == {"a": BEGIN}


async def test_a_second_node_moves_nothing(autojump_clock: MockClock, world: World) -> None:
    world.come("a", "b")
    world.known.clear()
    assert [(await heartbeat_mirror(world).run()).rows for _ in range(2)] == [2, 0]


# ---- all of them


async def test_a_reseed_reports_the_drift_that_it_found(autojump_clock: MockClock, world: World) -> None:
    world.drift = {"online": 2, "heartbeats": 0}
    sweep = Sweep("reseed", Reseed(world), 300.0, world.clock)
    await sweep.run()
    assert (sweep.report.found, sweep.report.error) == (world.drift, None)
    world.valkey_away = True
    await sweep.run()
    assert sweep.report.error == "MirrorUnavailable: Valkey is away"


@asynccontextmanager
async def kept(sweep: Sweep) -> AsyncIterator[None]:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(partial(keep, sweep.serve, sweep.report.name, RestartBudget()))
        yield
        nursery.cancel_scope.cancel()


async def test_no_two_sweeps_of_a_node_run_within_ten_seconds_of_each_other(
    autojump_clock: MockClock, world: World
) -> None:
    """As long as the specification's intervals are kept: they read and write the same mitras."""

    class Noting:
        async def run(self) -> Swept:
            ran.append(trio.current_time())
            return Swept(rows=0)

    ran: list[float] = []
    intervals: dict[SweepName, float] = {"auto_offline": 30.0, "heartbeat_mirror": 60.0, "reseed": 300.0}
    async with trio.open_nursery() as nursery:
        for name, seconds in intervals.items():
            nursery.start_soon(Sweep(name, Noting(), seconds, world.clock).serve)
        await trio.sleep(1_000.5)
        nursery.cancel_scope.cancel()
    assert len(ran) == 33 + 16 + 3
    assert min(after - before for before, after in pairwise(ran)) > 9.9


async def test_the_report_tells_when_it_ran_what_it_wrote_and_what_failed(
    autojump_clock: MockClock, world: World
) -> None:
    sweep = heartbeat_mirror(world)
    async with kept(sweep):
        await trio.sleep(49)
        assert (sweep.report.runs, sweep.report.last_run_at) == (0, None)
        world.pings = {"a": BEGIN}
        await trio.sleep(2)
        assert (sweep.report.runs, sweep.report.rows, sweep.report.error) == (1, 1, None)
        assert sweep.report.last_run_at == BEGIN + 50_000
        world.postgres_away = True
        world.pings = {"a": BEGIN + 1}
        await trio.sleep(60)
        assert (sweep.report.runs, sweep.report.failures) == (2, 1)
        assert str(sweep.report.error) != "None"
        world.postgres_away = False
        await trio.sleep(60)
        assert (sweep.report.runs, sweep.report.failures, sweep.report.error) == (3, 1, None)


class Crashing:
    def __init__(self, times: int) -> None:
        self.left = times

    async def run(self) -> Swept:
        await trio.lowlevel.checkpoint()
        if self.left:
            self.left -= 1
            raise Broken
        return Swept(rows=7)


async def test_a_sweep_that_crashes_says_so_and_is_run_again_by_its_supervisor(
    autojump_clock: MockClock, world: World, claims_errors: list[object]
) -> None:
    sweep = Sweep("reseed", Crashing(2), 10.0, world.clock)
    async with kept(sweep):
        await trio.sleep(24)
        assert (sweep.report.runs, sweep.report.failures) == (2, 2)
        assert str(sweep.report.error) != "None"
        await trio.sleep(10)
        assert (sweep.report.runs, sweep.report.rows, sweep.report.error) == (3, 7, None)
    assert len(claims_errors) == 2
