"""What a node sees of its sessions every two seconds, on a clock that jumps: who is silent, since when, and whose search has failed."""

from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from halo.actors.commands import MitraSilent, Sighting
from halo.actors.reroutes import ASKED_AT_ONCE, BLIND_SECONDS, LOOK_SECONDS, ReroutePorts, Reroutes
from halo.availability import Source, Verdict
from halo.config import LiveConfig
from halo.errors import StoreUnavailable
from halo.events import Reachability
from halo.session import FailureCause, SessionStatus
from tests.actors.fakes import Chat, House, TrioClock, open_house

ACTIVE, REROUTING = SessionStatus.ACTIVE, SessionStatus.REROUTING


@dataclass(frozen=True, slots=True)
class Failed:
    session_id: str
    pairing_id: str
    cause: FailureCause


@dataclass
class World:
    """Valkey, the sockets and the searches, as a test wants them; and everything that was asked."""

    house: House
    config: LiveConfig
    reachable: set[str] = field(default_factory=set)
    connected: set[str] = field(default_factory=set)
    standing: tuple[int, int] | None = (1, 1)
    source: Source = "mirror"
    away: bool = False
    asked: list[str] = field(default_factory=list)
    looked_for: list[list[str]] = field(default_factory=list)
    at_once: int = 0
    asking: int = 0

    async def reachability(self, mitra_id: str) -> Verdict:
        self.asked.append(mitra_id)
        self.asking += 1
        self.at_once = max(self.at_once, self.asking)
        await trio.lowlevel.checkpoint()
        self.asking -= 1
        if self.away:
            raise StoreUnavailable
        there = mitra_id in self.reachable
        return Verdict(
            online=there,
            heartbeat_age_ms=0,
            heartbeat_fresh=there,
            source=self.source,
        )

    def is_connected(self, user_id: str) -> bool:
        return user_id in self.connected

    async def list_failed(self, session_ids: Collection[str]) -> Sequence[Failed]:
        self.looked_for.append(list(session_ids))
        await trio.lowlevel.checkpoint()
        if self.away:
            raise StoreUnavailable
        return [
            Failed(row.rerouted_session_id, row.pairing_id, FailureCause(row.cause))
            for row in self.house.database.tables.searches.values()
            if row.cause is not None and row.rerouted_session_id in session_ids
        ]

    # ---- the facts that the session gathers itself

    def sees(self, mitra_id: str) -> Reachability:
        there = mitra_id in self.reachable
        return Reachability(
            online=there,
            heartbeat_age_ms=None,
            heartbeat_fresh=there,
            connected=mitra_id in self.connected,
            socket_answered_age_ms=None,
            source=self.source,
        )


@asynccontextmanager
async def open_world(**settings: Any) -> AsyncIterator[World]:
    """A house whose daemon looks; it began at 0 s, so it looks at every even second."""
    async with open_house(**({"reroute_after_seconds": 30} | settings)) as house, trio.open_nursery() as nursery:
        world = World(house, house.facts.live_config)

        async def reachability(mitra_id: str) -> Reachability:
            await trio.lowlevel.checkpoint()
            return world.sees(mitra_id)

        house.facts.reachability = reachability  # type: ignore[method-assign]  # the same world, asked once more
        ports = ReroutePorts(
            clock=TrioClock(),
            mirror=world,
            is_connected=world.is_connected,
            searches=world,
            config=lambda: world.config,
        )
        nursery.start_soon(Reroutes(house.registry, ports).serve)
        yield world
        nursery.cancel_scope.cancel()


async def until(moment: float) -> None:
    await trio.sleep_until(moment)
    await wait_all_tasks_blocked()


def lost_at(chat: Chat) -> list[float]:
    return chat.customer.when("session_rerouting")


async def test_a_silent_mitra_is_lost_exactly_when_her_time_is_over(autojump_clock: MockClock) -> None:
    async with open_world() as world:
        chat = await world.house.opens()
        await until(100)
        assert lost_at(chat) == [32.0]  # seen silent first at 2 s, and thirty seconds later still
        (entry,) = [e for e in world.house.database.tables.timeline.values() if e.event == "mitra_lost"]
        assert entry.cause == "mitra_silent"


@pytest.mark.parametrize("sign", ["reachable", "connected"])
async def test_a_sign_of_life_in_the_last_instant_gives_her_all_her_time_again(
    autojump_clock: MockClock, sign: str
) -> None:
    async with open_world() as world:
        chat = await world.house.opens()
        signs = {"reachable": world.reachable, "connected": world.connected}[sign]
        await until(31)
        signs.add(chat.mitra_id)
        await until(33)
        signs.clear()
        await until(100)
        assert lost_at(chat) == [64.0]


async def test_one_who_comes_back_between_the_look_and_the_session_is_kept(autojump_clock: MockClock) -> None:
    async with open_world() as world:
        chat = await world.house.opens()
        back = world.house.facts.reachability

        async def came_back(mitra_id: str) -> Reachability:
            world.reachable.add(mitra_id)
            return await back(mitra_id)

        world.house.facts.reachability = came_back  # type: ignore[method-assign]  # she returns in this very instant
        await until(100)
        assert lost_at(chat) == []


async def test_one_who_comes_and_goes_is_never_lost(autojump_clock: MockClock) -> None:
    async with open_world() as world:
        chat = await world.house.opens()
        for turn in range(20):
            await until(1 + turn * 20)
            world.reachable ^= {chat.mitra_id}
        assert lost_at(chat) == []


async def test_while_valkey_is_away_nobody_is_silent_and_afterwards_all_time_is_given_again(
    autojump_clock: MockClock,
) -> None:
    async with open_world() as world:
        chat = await world.house.opens()
        await until(25)
        world.standing, world.source = None, "postgres"
        await until(125)
        assert lost_at(chat) == []
        world.standing, world.source = (2, 1), "mirror"
        await until(200)
        assert lost_at(chat) == [156.0]


@pytest.mark.parametrize("doubt", ["another generation", "postgres answered", "nobody answered"])
async def test_one_doubt_is_enough_to_forget_what_was_seen(autojump_clock: MockClock, doubt: str) -> None:
    async with open_world() as world:
        chat = await world.house.opens()
        await until(25)
        match doubt:
            case "another generation":
                world.standing = (2, 1)
            case "postgres answered":
                world.source = "postgres"
            case _:
                world.away = True
        await until(27)
        world.source, world.away = "mirror", False
        await until(100)
        again = 26 if doubt == "another generation" else 28
        assert lost_at(chat) == [again + 30.0]


async def test_trust_that_is_lost_while_the_mirror_is_asked_spoils_the_look(autojump_clock: MockClock) -> None:
    async with open_world() as world:
        chat = await world.house.opens()
        await until(31)
        reachability = world.reachability

        async def doubtful(mitra_id: str) -> Verdict:
            world.standing = (1, 2)
            return await reachability(mitra_id)

        world.reachability = doubtful  # type: ignore[method-assign]  # Valkey fails in the middle of it
        await until(33)
        world.reachability = reachability  # type: ignore[method-assign]
        await until(100)
        assert lost_at(chat) == [64.0]


async def test_who_has_not_looked_has_not_seen_silence(autojump_clock: MockClock) -> None:
    async with open_world() as world:
        chat = await world.house.opens()
        await until(5)
        hung = world.reachability

        async def hangs(mitra_id: str) -> Verdict:
            await trio.sleep(BLIND_SECONDS + 40)
            return await hung(mitra_id)

        world.reachability = hangs  # type: ignore[method-assign]  # the look takes most of a minute
        await until(7)
        world.reachability = hung  # type: ignore[method-assign]
        await until(120)
        assert lost_at(chat) == [58.0 + 30]


async def test_a_change_of_the_configuration_works_at_once(autojump_clock: MockClock) -> None:
    async with open_world(reroute_after_seconds=300) as world:
        chat = await world.house.opens()
        await until(51)
        world.config = LiveConfig(reroute_after_seconds=40)
        await until(53)
        assert lost_at(chat) == [52.0]


async def test_all_sessions_of_a_silent_mitra_are_handed_on_and_nobody_elses(autojump_clock: MockClock) -> None:
    async with open_world() as world:
        one, two, other = [await world.house.opens() for _ in range(3)]
        world.house.database.move_on(two.session_id, mitra_id=one.mitra_id)
        await two.actor.recover()
        world.connected.add(other.mitra_id)
        await until(40)
        assert [lost_at(chat) for chat in (one, two, other)] == [[32.0], [32.0], []]
        assert other.mitra_id not in world.asked  # her socket is known here, and nobody else need be asked
        assert world.asked.count(one.mitra_id) == 16  # once a look, for both


async def test_a_pending_extension_is_no_sign_of_life_and_the_session_is_handed_on_behind_it(
    autojump_clock: MockClock,
) -> None:
    async with open_world(extension_timeout_seconds=26) as world:
        chat = await world.house.opens()
        await until(15)
        await chat.asks()
        await until(60)
        assert chat.customer.when("extension_response") == [41.0]
        assert lost_at(chat) == [42.0]


@pytest.mark.parametrize("status", ["on hold", "closing"])
async def test_only_a_running_session_is_handed_on(autojump_clock: MockClock, status: str) -> None:
    async with open_world(closure_grace_seconds=600, payment_hold_seconds=600) as world:
        minutes = 1 if status == "closing" else 10
        chat = await world.house.opens(minutes=minutes, confirmed=status == "closing")
        world.connected.add(chat.mitra_id)
        await until(61)
        world.connected.clear()
        await until(200)
        assert lost_at(chat) == []


async def test_a_search_that_failed_ends_its_session_at_the_next_look(autojump_clock: MockClock) -> None:
    async with open_world() as world:
        chat = await world.house.opens()
        world.connected.add(chat.mitra_id)
        await until(3)
        assert world.looked_for == []  # nothing is asked while nobody waits
        await chat.transfers()
        await until(7)
        world.house.database.fail_search(
            world.house.database.search(chat.session_id).pairing_id, FailureCause.NO_MITRA_AVAILABLE
        )
        await until(9)
        assert chat.customer.when("session_ended") == [8.0]
        assert world.looked_for == [[chat.session_id]] * 3


async def test_a_store_that_is_away_is_waited_out(autojump_clock: MockClock) -> None:
    async with open_world() as world:
        chat = await world.house.opens()
        world.connected.add(chat.mitra_id)
        await chat.transfers()
        pairing_id = world.house.database.search(chat.session_id).pairing_id
        world.house.database.fail_search(pairing_id, FailureCause.TIMED_OUT)
        world.away = True
        await until(11)
        assert chat.row.status is REROUTING
        world.away = False
        await until(13)
        assert chat.customer.when("session_ended") == [12.0]


async def test_what_the_session_could_not_do_is_told_again(autojump_clock: MockClock) -> None:
    async with open_world() as world:
        chat = await world.house.opens()
        world.house.lease.kept = False  # Postgres was away, and no clock may be settled
        await until(41)
        assert lost_at(chat) == []
        world.house.lease.kept = True
        await until(60)
        assert len(lost_at(chat)) == 1


# ---- ten thousand


@dataclass
class Stub:
    """As much of an actor as the look sees."""

    session: "StubSession"


@dataclass
class StubSession:
    session_id: str
    mitra_id: str
    status: SessionStatus = ACTIVE


@dataclass
class StubSessions:
    stubs: list[Stub]
    seen: list[tuple[str, Sighting]] = field(default_factory=list)

    def __iter__(self) -> "AsyncIterator[Stub]":
        return iter(self.stubs)  # type: ignore[return-value]

    def saw(self, session_id: str, sighting: Sighting) -> None:
        self.seen.append((session_id, sighting))


class Turns(trio.abc.Instrument):
    """How many tasks ran in the fullest turn of the loop."""

    def __init__(self) -> None:
        self.fullest = 0
        self._now = 0

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self._now += 1
        self.fullest = max(self.fullest, self._now)

    def before_io_wait(self, timeout: float) -> None:
        self._now = 0


async def test_ten_thousand_silent_mitras_are_asked_about_in_small_parts(autojump_clock: MockClock) -> None:
    async with open_house() as house:
        world = World(house, LiveConfig(reroute_after_seconds=5))
        sessions = StubSessions([Stub(StubSession(f"session {n}", f"mitra {n}")) for n in range(10_000)])
        ports = ReroutePorts(
            clock=TrioClock(), mirror=world, is_connected=lambda _: False, searches=world, config=lambda: world.config
        )
        turns = Turns()
        trio.lowlevel.add_instrument(turns)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(Reroutes(sessions, ports).serve)  # type: ignore[arg-type]  # stubs of actors
            await until(LOOK_SECONDS * 4.5)
            nursery.cancel_scope.cancel()
        trio.lowlevel.remove_instrument(turns)
        assert len(sessions.seen) == 10_000
        assert all(isinstance(sighting, MitraSilent) for _, sighting in sessions.seen)
        assert len(world.asked) == 40_000
        assert world.at_once <= ASKED_AT_ONCE
        assert turns.fullest <= ASKED_AT_ONCE + 5
