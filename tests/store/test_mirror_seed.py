"""What a seed does to those who read the mirror while it runs: nothing, at no moment, whichever node writes or seeds."""

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from random import Random
from types import MappingProxyType
from typing import Any

import pytest
import trio

from halo.errors import MitraDeactivated, MitraOffline
from halo.store.mirror import Mirror
from halo.store.mirror_keys import Keys
from halo.store.queries import Query
from halo.store.valkey import Valkey, ValkeyUnavailable, open_valkey
from halo.store.valkey_wire import Command, Reply
from tests.store.test_mirror import NOW, STALE_MS, A, B, C, FixedClock, Row, Truth, mitra

KEYS = Keys()
D = mitra(4)


class Moments:
    """Every moment at which a seed waits for a store is one at which something else may happen, before it goes on."""

    def __init__(self, truth: Truth, valkey: Valkey) -> None:
        self.count = 0
        self.happens: Callable[[int], Awaitable[None]] | None = None
        """Called with the number of each moment, from 0."""
        self._truth = truth
        self._turn = trio.Lock()
        self._call = valkey.call
        valkey.call = self._call_valkey  # type: ignore[method-assign]

    async def fetch_all(self, query: Query, values: Mapping[str, Any] = MappingProxyType({})) -> Sequence[Any]:
        """Postgres has answered, and what it said grows old on its way."""
        rows = await self._truth.fetch_all(query, values)
        await self._pass()
        return rows

    async def _call_valkey(self, *commands: Command) -> Sequence[Reply]:
        await self._pass()
        return await self._call(*commands)

    async def _pass(self) -> None:
        if self.happens is None or self._turn.statistics().owner is trio.lowlevel.current_task():
            return  # it happens just now, and asks the stores itself
        async with self._turn:
            number, self.count = self.count, self.count + 1
            await self.happens(number)


@dataclass
class House:
    truth: Truth
    moments: Moments
    valkey: Valkey
    seeding: Mirror
    nodes: Mapping[str, Mirror]
    """The one that seeds, and another one over the same stores."""

    async def read(self, *command: str) -> Any:
        (reply,) = await self.valkey.call(command)
        return reply


@pytest.fixture
async def house(valkey_url: str) -> AsyncIterator[House]:
    truth, clock = Truth(), FixedClock()
    async with open_valkey(valkey_url) as one, open_valkey(valkey_url) as other:
        moments = Moments(truth, one)
        seeding, writing = Mirror(one, moments, clock, STALE_MS), Mirror(other, truth, clock, STALE_MS)
        yield House(truth, moments, other, seeding, {"the node that seeds": seeding, "another node": writing})


Refused = type[Exception] | None


async def refusal_of(node: Mirror, mitra_id: str) -> Refused:
    try:
        await node.heartbeat(mitra_id, NOW)
    except (MitraDeactivated, MitraOffline) as refusal:
        return type(refusal)
    return None


async def waits(house: House, mitra_id: str) -> bool:
    return await house.read("ZSCORE", KEYS.waiting, mitra_id) is not None


Change = Callable[[House, Mirror], Awaitable[None]]
Found = Callable[[House, Mirror], Awaitable[bool]]


async def come_online(house: House, node: Mirror) -> None:
    house.truth.rows[B] = Row()
    await node.went_online(B, NOW)


async def is_there(house: House, node: Mirror) -> bool:
    return (await node.reachability(B)).reachable and await refusal_of(node, B) is None and await waits(house, B)


async def go_offline(house: House, node: Mirror) -> None:
    house.truth.rows[A] = Row(online=False)
    await node.went_offline(A)


async def be_swept_offline(house: House, node: Mirror) -> None:
    house.truth.rows[A] = Row(online=False)
    assert await node.swept_offline({A: NOW}) == {}


async def has_left(house: House, node: Mirror) -> bool:
    return (
        not (await node.reachability(A)).online
        and await refusal_of(node, A) is MitraOffline
        and not await waits(house, A)
        and await house.read("EXISTS", KEYS.heartbeat(A)) == 0
    )


async def be_shut_out(house: House, node: Mirror) -> None:
    house.truth.rows[A] = Row(active=False, online=False)
    await node.deactivated(A)


async def is_shut_out(house: House, node: Mirror) -> bool:
    return (
        await house.read("SISMEMBER", KEYS.deactivated, A) == 1
        and await refusal_of(node, A) is MitraDeactivated
        and not await waits(house, A)
    )


async def be_let_in(house: House, node: Mirror) -> None:
    house.truth.rows[C] = Row(online=False)
    await node.activated(C)


async def is_let_in(house: House, node: Mirror) -> bool:
    return await refusal_of(node, C) is MitraOffline


async def grow_full(house: House, node: Mirror) -> None:
    house.truth.rows[A] = Row(capacity=3, version=2, has_room=False)
    await node.refresh_capacities([A])


async def is_full(house: House, node: Mirror) -> bool:
    return not await waits(house, A) and await house.read("GET", KEYS.capacity(A)) == b"3"


async def have_room(house: House, node: Mirror) -> None:
    house.truth.rows[D] = Row(capacity=2, version=2)
    await node.refresh_capacities([D])


async def has_room(house: House, node: Mirror) -> bool:
    return await waits(house, D) and await house.read("GET", KEYS.capacity(D)) == b"2"


CHANGES: Mapping[str, tuple[Change, Found]] = {
    "online": (come_online, is_there),
    "offline": (go_offline, has_left),
    "swept offline": (be_swept_offline, has_left),
    "deactivated": (be_shut_out, is_shut_out),
    "activated": (be_let_in, is_let_in),
    "full": (grow_full, is_full),
    "with room": (have_room, has_room),
}


async def begin(house: House) -> None:
    house.truth.rows = {
        A: Row(),
        B: Row(online=False),
        C: Row(active=False, online=False),
        D: Row(capacity=3, has_room=False),
    }
    house.moments.happens = None
    await house.read("FLUSHALL")
    for node in house.nodes.values():
        await node.seed()


@pytest.mark.parametrize("which", ["the node that seeds", "another node"])
@pytest.mark.parametrize("change", CHANGES)
async def test_what_was_written_while_a_seed_runs_is_never_undone_at_whatever_moment_it_was_written(
    house: House, change: str, which: str
) -> None:
    """Changed at each moment in turn, and looked for on both nodes at every moment from then on."""
    make, find = CHANGES[change]
    tried, moments = 0, 1
    while tried < moments:
        await begin(house)
        house.moments.count = 0

        async def happen(number: int, at: int = tried) -> None:
            if number == at:
                await make(house, house.nodes[which])
            for name, node in house.nodes.items() if number >= at else ():
                assert await find(house, node), f"{change} at {at}, undone at {number} for {name}"

        house.moments.happens = happen
        await house.seeding.seed()
        house.moments.happens = None
        for node in house.nodes.values():
            assert await find(house, node), f"{change} at {tried}, undone by the end"
        assert all(node.trusted for node in house.nodes.values())
        assert sum(house.seeding.drift.values()) == 0
        moments, tried = house.moments.count, tried + 1
    assert tried >= 8
    assert await house.read("KEYS", "mitras:seed*") == [KEYS.seeded.encode()]


@pytest.mark.parametrize("change", CHANGES)
async def test_what_was_written_while_the_first_seed_runs_is_in_the_mirror_that_it_makes(
    house: House, change: str
) -> None:
    """On an empty Valkey a write-through finds no sets, and must not be taken for all there is."""
    make, find = CHANGES[change]
    tried, moments = 0, 1
    while tried < moments:
        await begin(house)
        await house.read("FLUSHALL")
        house.moments.count = 0

        async def happen(number: int, at: int = tried) -> None:
            if number == at:
                await make(house, house.nodes["another node"])

        house.moments.happens = happen
        await house.seeding.seed()
        house.moments.happens = None
        for node in house.nodes.values():
            assert await find(house, node), f"{change} at {tried}"
        others = {i for i, row in house.truth.rows.items() if row.online}
        assert {member.decode() for member in await house.read("SMEMBERS", KEYS.online)} == others
        in_line = {i for i, row in house.truth.rows.items() if row.online and row.has_room}
        assert {member.decode() for member in await house.read("ZRANGE", KEYS.waiting, "0", "-1")} == in_line
        moments, tried = house.moments.count, tried + 1


@pytest.mark.parametrize("moment", [1, 2])
async def test_who_was_heard_of_since_a_sweep_stays_also_where_a_seed_has_read_that_she_is_offline(
    house: House, moment: int
) -> None:
    """Before its first page, and with that page on its way. Postgres is about to take it back: no ping may be refused meanwhile."""
    await begin(house)
    house.moments.count = 0
    house.truth.rows[A] = Row(online=False)

    async def happen(number: int) -> None:
        if number == moment:
            assert await house.nodes["another node"].swept_offline({A: NOW - 1}) == {A: NOW}

    house.moments.happens = happen
    await house.seeding.seed()
    house.moments.happens = None
    assert await refusal_of(house.nodes["another node"], A) is None
    house.truth.rows[A] = Row()
    await house.nodes["another node"].went_online_all({A: NOW})
    assert await waits(house, A)
    assert (await house.seeding.reseed())[1] == dict.fromkeys(house.seeding.drift, 0)


@pytest.mark.parametrize("seed", range(3))
async def test_while_two_nodes_seed_without_end_every_read_tells_what_was_written_last(house: House, seed: int) -> None:
    """Each mitra is changed by one task, which knows what must be read of her until it changes her again."""
    await begin(house)
    mitras = [mitra(n) for n in range(10, 22)]
    house.truth.rows |= {mitra_id: Row() for mitra_id in mitras}
    await house.seeding.seed()
    living = len(mitras)

    async def live(mitra_id: str, dice: Random) -> None:
        nonlocal living
        for version in range(2, 22):
            node = dice.choice(list(house.nodes.values()))
            row = Row(active=dice.random() < 0.7, version=version, capacity=dice.randrange(4))
            row.online, row.has_room = row.active and dice.random() < 0.7, row.capacity < 3
            was, house.truth.rows[mitra_id] = house.truth.rows[mitra_id], row
            if not row.active:
                await node.deactivated(mitra_id)
            else:
                if not was.active:
                    await node.activated(mitra_id)
                await (node.went_online(mitra_id, NOW) if row.online else node.went_offline(mitra_id))
            await node.refresh_capacities([mitra_id])
            expected = None if row.online else MitraOffline if row.active else MitraDeactivated
            for _ in range(dice.randrange(1, 6)):
                for reader in house.nodes.values():
                    seen = await reader.reachability(mitra_id)
                    assert (seen.source, seen.online, seen.reachable) == ("mirror", row.online, row.online)
                    assert await refusal_of(reader, mitra_id) is expected
                assert await waits(house, mitra_id) == (row.online and row.has_room)
                assert await house.read("SISMEMBER", KEYS.deactivated, mitra_id) == (not row.active)
        living -= 1

    async def seed_for_ever(node: Mirror) -> None:
        while living:
            await node.seed()

    seeds = sum(node.seeds for node in house.nodes.values())
    async with trio.open_nursery() as nursery:
        for node in house.nodes.values():
            nursery.start_soon(seed_for_ever, node)
        for n, mitra_id in enumerate(mitras):
            nursery.start_soon(live, mitra_id, Random(100 * seed + n))
    assert sum(node.seeds for node in house.nodes.values()) >= seeds + 4


async def test_a_seed_whose_log_was_lost_publishes_nothing(house: House) -> None:
    """Without it, what the nodes have written meanwhile would be undone."""
    await begin(house)
    seeded_at = await house.read("GET", KEYS.seeded)

    async def lose(_: int) -> None:
        for name in await house.read("KEYS", "mitras:seed:*:log"):
            await house.read("DEL", name.decode())

    house.truth.rows[A].online = False
    house.moments.happens = lose
    with pytest.raises(ValkeyUnavailable, match="SEEDLOST the log is gone"):
        await house.seeding.seed()
    assert await house.read("SISMEMBER", KEYS.online, A) == 1
    assert await house.read("GET", KEYS.seeded) == seeded_at
    assert house.seeding.trusted


async def test_who_vanishes_from_postgres_while_a_seed_runs_is_not_in_the_mirror_that_it_makes(house: House) -> None:
    await begin(house)

    async def vanish(_: int) -> None:
        if await house.read("KEYS", "mitras:seed:*:online"):  # the pages were read, and written
            house.truth.rows = {B: Row()}

    house.moments.happens = vanish
    assert await house.seeding.seed() == 1
    assert await house.read("SMEMBERS", KEYS.online) == [B.encode()]
    assert await house.read("SCARD", KEYS.deactivated) == 0


async def test_the_logs_of_seeds_that_died_are_forgotten_by_the_next_write(house: House) -> None:
    await begin(house)
    await house.read("SADD", KEYS.seeding, KEYS.scratch("log", "dead"))
    await house.nodes["another node"].went_offline(A)
    assert await house.read("EXISTS", KEYS.seeding, KEYS.scratch("log", "dead")) == 0
