"""The mirror over a real Valkey that is really killed, hung, flushed and restarted empty.

Postgres is played by `Truth`, which answers the two queries of the twin from a dictionary and counts them;
`test_mirror_twin.py` holds the queries themselves to a real Postgres.
"""

import signal
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
import trio
import trio.testing

from halo.clock import rfc3339
from halo.errors import MitraDeactivated, MitraOffline, StoreUnavailable
from halo.store.mirror import Mirror
from halo.store.mirror_keys import Keys
from halo.store.mirror_twin import PACE_SECONDS, PAGE
from halo.store.queries import Query
from halo.store.valkey import Valkey, ValkeyUnavailable, open_valkey
from tests.store.valkey_server import Server, until

NOW = 1_795_464_900_123
STALE_MS = 90_000
CALL_LIMIT_SECONDS = 2.0
CONVERGENCE_SECONDS = 5.0
PATIENCE_SECONDS = 30.0
KEYS = Keys()


def mitra(n: int) -> str:
    return f"00000000-0000-4000-8000-{n:012d}"


A, B, C = mitra(1), mitra(2), mitra(3)


@dataclass
class Row:
    active: bool = True
    online: bool = True
    heartbeat_at: int | None = NOW
    capacity: int = 0
    version: int = 1
    has_room: bool = True
    idle_since: int = NOW


@dataclass
class Truth:
    """What Postgres would say."""

    rows: dict[str, Row] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    away: bool = False
    hook: Callable[[str], None] | None = None
    """Called with the name of each query once its answer is decided."""
    open: trio.Event | None = None
    """When set, answers wait for it."""
    touched: Sequence[int] | None = None
    """The pages, from 1, that are said to have been written; all of them unless given."""

    async def fetch_all(self, query: Query, values: Mapping[str, Any] = MappingProxyType({})) -> Sequence[Any]:
        self.asked.append(query.name)
        await trio.lowlevel.checkpoint()
        if self.open is not None:
            await self.open.wait()
        if self.away:
            raise StoreUnavailable
        answer = self._answer(query, values)
        if self.hook is not None:
            self.hook(query.name)
        return answer

    def _answer(self, query: Query, params: Mapping[str, Any]) -> Sequence[Any]:
        if query.name == "presences":
            found = ((i, self.rows[i]) for i in params["mitra_ids"] if i in self.rows)
            return [(i, row.active, row.online, row.heartbeat_at) for i, row in found]
        if query.name == "mitras_named":
            return [self._whole(i) for i in params["mitra_ids"] if i in self.rows]
        if query.name == "pages_touched":
            pages = range(1, 1 + len(params["begins"])) if self.touched is None else self.touched
            return [("now", pages if params["since"] else ())]
        page = sorted(i for i in self.rows if params["after"] < i <= params["upto"])[: params["page"]]
        beats, states = zip(*map(self._packed, page), strict=True) if page else ((), ())
        return [(len(page), max(page, default=None), "".join(beats), "\n".join(states))]

    def _packed(self, i: str) -> tuple[str, str]:
        r = self.rows[i]
        letter = "d" if not r.active else "o" if not r.online else "w" if r.has_room else "f"
        known = " " * 24 if r.heartbeat_at is None else rfc3339(r.heartbeat_at)
        return known if letter in "wf" else "-" * 24, f"{i} {letter} {r.capacity} {r.version} {r.idle_since}"

    def _whole(self, i: str) -> tuple[Any, ...]:
        r = self.rows[i]
        return (i, r.active, r.online, r.heartbeat_at, r.capacity, r.version, r.has_room, r.idle_since)


class FixedClock:
    def __init__(self) -> None:
        self.moment = NOW

    def now(self) -> int:
        return self.moment


@dataclass
class House:
    server: Server
    truth: Truth
    clock: FixedClock
    valkey: Valkey
    mirror: Mirror

    async def read(self, *command: str) -> Any:
        (reply,) = await self.valkey.call(command)
        return reply

    async def members(self, key: str) -> set[str]:
        return {member.decode() for member in await self.read("SMEMBERS", key)}

    async def heartbeat(self, mitra_id: str) -> str | None:
        beat = await self.read("GET", KEYS.heartbeat(mitra_id))
        return None if beat is None else beat.decode()

    async def trusted(self) -> float:
        return await until(lambda: self.mirror.trusted, PATIENCE_SECONDS)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    made = Server(tmp_path)
    made.start()
    yield made
    made.kill()


@asynccontextmanager
async def open_house(server: Server, prefix: str = "") -> AsyncIterator[House]:
    truth, clock = Truth({A: Row(), B: Row(online=False), C: Row(active=False, online=False)}), FixedClock()
    async with open_valkey(server.url, prefix) as valkey, trio.open_nursery() as nursery:
        mirror = Mirror(valkey, truth, clock, STALE_MS)
        nursery.start_soon(mirror.serve)
        house = House(server, truth, clock, valkey, mirror)
        await house.trusted()
        truth.asked.clear()
        yield house
        nursery.cancel_scope.cancel()


@pytest.fixture
async def house(server: Server) -> AsyncIterator[House]:
    async with open_house(server) as opened:
        yield opened


async def refusal_of(house: House, mitra_id: str, at: int = NOW) -> type[Exception] | None:
    try:
        await house.mirror.heartbeat(mitra_id, at)
    except (MitraDeactivated, MitraOffline) as refusal:
        return type(refusal)
    return None


async def set_capacity(house: House, mitra_id: str, count: int, version: int) -> None:
    """As if Postgres had said so in the snapshot of that version."""
    house.truth.rows[mitra_id] = Row(capacity=count, version=version)
    await house.mirror.refresh_capacities([mitra_id])


# ------------------------------------------------------------------------------------------------------------ keys


@pytest.mark.parametrize("prefix", ["", "{halo}:"])
def test_the_keys_are_named_as_the_specification_names_them(prefix: str) -> None:
    keys = Keys(prefix)
    assert [
        keys.online,
        keys.deactivated,
        keys.capacity(A),
        keys.capacity_version(A),
        keys.heartbeat(A),
        keys.snapshot,
    ] == [
        prefix + name
        for name in (
            "mitras:online",
            "mitras:deactivated",
            f"mitra:capacity:{A}",
            f"mitra:capacity:version:{A}",
            f"mitra:heartbeat:{A}",
            "availability:snapshot",
        )
    ]


async def test_everything_that_the_mirror_writes_stands_behind_the_prefix(server: Server) -> None:
    async with open_house(server, "{halo}:") as house:
        await house.mirror.went_online(B, NOW)
        house.truth.rows[A] = Row(capacity=2, version=5)
        await house.mirror.refresh_capacities([A])
        await house.mirror.heartbeat(A, NOW + 1)
        names = await house.read("KEYS", "*")
    assert names
    assert all(name.startswith(b"{halo}:") for name in names)


# ---------------------------------------------------------------------------------------------------------- writes


async def test_going_online_and_offline_is_written_through(house: House) -> None:
    await house.mirror.went_online(B, NOW + 5)
    assert await house.members(KEYS.online) == {A, B}
    assert await house.heartbeat(B) == rfc3339(NOW + 5)

    await house.mirror.went_offline(B)
    assert await house.members(KEYS.online) == {A}
    assert await house.heartbeat(B) is None


async def test_going_online_never_moves_a_heartbeat_back(house: House) -> None:
    await house.mirror.heartbeat(A, NOW + 9_000)
    await house.mirror.went_online(A, NOW + 1_000)
    assert await house.heartbeat(A) == rfc3339(NOW + 9_000)


async def test_deactivation_takes_the_mitra_offline_and_activation_does_not_bring_it_back(house: House) -> None:
    await house.mirror.deactivated(A)
    assert await house.members(KEYS.deactivated) == {A, C}
    assert await house.members(KEYS.online) == set()
    assert await refusal_of(house, A) is MitraDeactivated

    await house.mirror.activated(A)
    assert await house.members(KEYS.deactivated) == {C}
    assert await refusal_of(house, A) is MitraOffline


async def test_an_older_capacity_never_lands_on_a_newer_one(house: House) -> None:
    await set_capacity(house, A, 3, 12)
    await set_capacity(house, A, 1, 9)
    assert await house.read("GET", KEYS.capacity(A)) == b"3"

    await set_capacity(house, A, 0, 13)
    assert await house.read("MGET", KEYS.capacity(A), KEYS.capacity_version(A)) == [b"0", b"13"]


async def test_a_write_that_is_lost_is_counted_forgotten_and_healed(house: House) -> None:
    house.server.kill()
    house.truth.rows[B].online = True
    began = trio.current_time()
    await house.mirror.went_online(B, NOW)
    assert trio.current_time() - began < CALL_LIMIT_SECONDS
    assert house.mirror.writes_lost == 1
    assert not house.mirror.trusted

    house.server.start()
    await house.trusted()
    assert await house.members(KEYS.online) == {A, B}


async def test_the_mirror_tells_since_when_it_stands_and_a_reseed_does_not_begin_anew(house: House) -> None:
    told = [house.mirror.standing_since]
    house.clock.moment += 1_000
    await house.mirror.seed()
    told.append(house.mirror.standing_since)
    await house.read("FLUSHALL")
    await house.mirror.reachability(A)
    told.append(house.mirror.standing_since)
    await house.trusted()
    assert [*told, house.mirror.standing_since] == [NOW, NOW, None, NOW + 1_000]


async def test_a_write_that_the_server_refuses_makes_the_mirror_doubted_until_it_is_built_anew(house: House) -> None:
    await house.read("DEL", KEYS.online)
    await house.read("SET", KEYS.online, "not a set")
    house.truth.rows[B].online = True

    await house.mirror.went_online(B, NOW)
    assert not house.mirror.trusted
    assert (await house.mirror.reachability(B)).source == "postgres"

    await house.trusted()
    assert await house.members(KEYS.online) == {A, B}


async def test_a_write_whose_caller_goes_away_is_carried_to_its_end_and_costs_nobody_the_mirror(house: House) -> None:
    standing = house.mirror.standing
    with trio.CancelScope() as scope:
        scope.cancel()
        await house.mirror.deactivated(A)
    assert house.mirror.standing == standing
    assert await house.members(KEYS.deactivated) == {A, C}


async def test_an_answer_that_was_under_way_when_doubt_arose_is_not_believed(house: House) -> None:
    sources: list[str] = []

    async def ask() -> None:
        sources.append((await house.mirror.reachability(A)).source)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask)
        await trio.testing.wait_all_tasks_blocked()
        for tell in house.valkey.on_ready:  # as when the server was met anew
            tell()
    assert sources == ["postgres"]


async def test_a_capacity_that_postgres_does_not_tell_in_time_is_left_to_whoever_reads_capacities(house: House) -> None:
    """She is online meanwhile, though her caller has gone away, and goes in line as soon as Postgres answers."""
    unrefreshed = list[str]()
    house.mirror.on_unrefreshed.append(unrefreshed.append)
    house.truth.rows[B].online = True
    house.truth.open = trio.Event()  # Postgres hangs
    standing = house.mirror.standing
    with trio.CancelScope() as scope:
        scope.cancel()
        await house.mirror.went_online(B, NOW)
    assert unrefreshed == [B]
    assert await house.members(KEYS.online) == {A, B}
    assert await house.read("ZSCORE", KEYS.waiting, B) is None
    house.truth.open.set()
    await house.mirror.refresh_capacities(unrefreshed)
    assert await house.read("ZSCORE", KEYS.waiting, B) is not None
    assert house.mirror.standing == standing


# ------------------------------------------------------------------------------------------------------ heartbeats


async def test_a_heartbeat_is_taken_from_those_who_are_online_only(house: House) -> None:
    assert [await refusal_of(house, who, NOW + 1) for who in (A, B, C, mitra(99))] == [
        None,
        MitraOffline,
        MitraDeactivated,
        MitraOffline,
    ]
    assert await house.heartbeat(A) == rfc3339(NOW + 1)
    assert await house.read("EXISTS", KEYS.heartbeat(B), KEYS.heartbeat(C), KEYS.heartbeat(mitra(99))) == 0


async def test_a_hundred_heartbeats_share_one_round_trip_and_cost_postgres_nothing(house: House) -> None:
    house.truth.rows.update({mitra(n): Row() for n in range(100, 200)})
    await house.mirror.seed()
    house.truth.asked.clear()
    await house.read("CONFIG", "RESETSTAT")
    before = house.valkey.round_trips

    async with trio.open_nursery() as nursery:
        for n in range(100, 200):
            nursery.start_soon(house.mirror.heartbeat, mitra(n), NOW + n)

    assert house.valkey.round_trips - before == 1
    stats = await house.read("INFO", "commandstats")
    for command, calls in ((b"eval", 1), (b"smismember", 2), (b"mset", 1)):
        assert b"cmdstat_%s:calls=%d," % (command, calls) in stats
    assert house.truth.asked == []
    assert await house.heartbeat(mitra(150)) == rfc3339(NOW + 150)


async def test_heartbeats_of_one_mitra_in_one_batch_never_move_back(house: House) -> None:
    async with trio.open_nursery() as nursery:
        for at in (NOW + 1, NOW + 30, NOW + 7):
            nursery.start_soon(house.mirror.heartbeat, A, at)
    assert await house.heartbeat(A) == rfc3339(NOW + 30)
    await house.mirror.heartbeat(A, NOW + 20)
    assert await house.heartbeat(A) == rfc3339(NOW + 30)
    assert house.mirror.take_unmirrored() == {A: NOW + 30}


async def test_a_cancelled_heartbeat_does_not_break_those_that_travel_with_it(house: House) -> None:
    taken: list[int] = []

    async def ping(n: int, scope: trio.CancelScope) -> None:
        with scope:
            await house.mirror.heartbeat(A, NOW + n)
            taken.append(n)

    scopes = [trio.CancelScope() for _ in range(6)]
    async with trio.open_nursery() as nursery:
        for n, scope in enumerate(scopes):
            nursery.start_soon(ping, n, scope)
        await trio.lowlevel.checkpoint()
        for scope in scopes[::2]:
            scope.cancel()
    assert sorted(taken) == [1, 3, 5]


async def test_with_valkey_gone_the_verdicts_are_the_same_and_the_moments_are_kept(house: House) -> None:
    house.server.kill()
    expected = [None, MitraOffline, MitraDeactivated, MitraOffline]
    assert [await refusal_of(house, who, NOW + 1) for who in (A, B, C, mitra(99))] == expected
    await until(lambda: house.valkey.breaker == "open")
    assert [await refusal_of(house, who, NOW + 2) for who in (A, B, C, mitra(99))] == expected
    assert house.mirror.take_unmirrored() == {A: NOW + 2}
    assert house.mirror.take_unmirrored() == {}


async def test_a_mitra_deactivated_while_valkey_is_away_does_not_get_in(house: House) -> None:
    house.server.kill()
    assert await refusal_of(house, A) is None
    house.truth.rows[A].active = False
    assert await refusal_of(house, A) is MitraDeactivated


async def test_with_valkey_gone_any_number_of_heartbeats_costs_a_bounded_number_of_queries(house: House) -> None:
    house.truth.rows.update({mitra(n): Row() for n in range(100, 130)})
    house.server.kill()
    await until(lambda: house.valkey.breaker == "open")
    house.truth.asked.clear()

    async def ping_often(n: int) -> None:
        for turn in range(10):
            await house.mirror.heartbeat(mitra(n), NOW + turn)

    began = trio.current_time()
    async with trio.open_nursery() as nursery:
        for n in range(100, 130):
            nursery.start_soon(ping_often, n)
    assert len(house.truth.asked) <= 1 + (trio.current_time() - began) / PACE_SECONDS
    assert set(house.mirror.take_unmirrored().values()) == {NOW + 9}


async def test_with_both_stores_gone_a_heartbeat_fails_for_now_and_all_waiters_are_told_at_once(house: House) -> None:
    house.server.kill()
    await until(lambda: house.valkey.breaker == "open")
    house.truth.away = True
    house.truth.asked.clear()
    told = 0

    async def ping() -> None:
        nonlocal told
        with pytest.raises(StoreUnavailable):
            await house.mirror.heartbeat(A, NOW)
        told += 1

    async with trio.open_nursery() as nursery:
        for _ in range(50):
            nursery.start_soon(ping)
    assert told == 50
    assert len(house.truth.asked) <= 2


async def test_a_cancelled_fallback_is_taken_over_by_those_who_waited_with_it(house: House) -> None:
    house.server.kill()
    await until(lambda: house.valkey.breaker == "open")
    house.truth.open = trio.Event()
    first = trio.CancelScope()
    done: list[str] = []

    async def ping(name: str, scope: trio.CancelScope) -> None:
        with scope:
            await house.mirror.heartbeat(A, NOW)
            done.append(name)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ping, "first", first)
        await until(lambda: house.truth.asked[-1:] == ["presences"])
        nursery.start_soon(ping, "second", trio.CancelScope())
        nursery.start_soon(ping, "third", trio.CancelScope())
        await trio.lowlevel.checkpoint()
        first.cancel()
        house.truth.open.set()
    assert sorted(done) == ["second", "third"]


# ---------------------------------------------------------------------------------------------------- reachability


async def test_reachable_means_online_and_heard_of_lately(house: House) -> None:
    house.clock.moment = NOW + STALE_MS
    seen = await house.mirror.reachability(A)
    assert (seen.reachable, seen.heartbeat_age_ms, seen.source) == (True, STALE_MS, "mirror")

    house.clock.moment += 1
    assert not (await house.mirror.reachability(A)).reachable
    await house.mirror.heartbeat(A, house.clock.moment)
    assert (await house.mirror.reachability(A)).reachable
    assert not (await house.mirror.reachability(B)).reachable
    assert not (await house.mirror.reachability(C)).reachable
    assert house.truth.asked == []


async def test_both_paths_give_the_same_verdict(house: House) -> None:
    await house.mirror.heartbeat(A, NOW + 4_000)
    house.clock.moment = NOW + 60_000
    mirrored = [await house.mirror.reachability(who) for who in (A, B, C, mitra(99))]
    house.server.kill()
    fallen_back = [await house.mirror.reachability(who) for who in (A, B, C, mitra(99))]

    assert {seen.source for seen in mirrored} == {"mirror"}
    assert {seen.source for seen in fallen_back} == {"postgres"}
    for one, other in zip(mirrored, fallen_back, strict=True):
        assert (one.online, one.reachable) == (other.online, other.reachable)
    # A ping that only Valkey was told is remembered by the node that took it.
    assert fallen_back[0].heartbeat_age_ms == 56_000


async def test_a_heartbeat_that_nobody_can_read_is_answered_by_postgres(house: House) -> None:
    await house.read("SET", KEYS.heartbeat(A), "yesterday")
    assert (await house.mirror.reachability(A)).source == "postgres"


@pytest.mark.usefixtures("valkey_is_given_up_soon")
async def test_a_hung_valkey_delays_no_answer_beyond_its_budget(house: House) -> None:
    took: list[float] = []

    async def ask_often() -> None:
        for _ in range(6):
            began = trio.current_time()
            assert (await house.mirror.reachability(A)).reachable
            assert await refusal_of(house, B) is MitraOffline
            took.append((trio.current_time() - began) / 2)

    house.server.send(signal.SIGSTOP)
    async with trio.open_nursery() as nursery:
        for _ in range(20):
            nursery.start_soon(ask_often)
    assert max(took) < CALL_LIMIT_SECONDS

    house.server.send(signal.SIGCONT)
    await house.trusted()
    assert (await house.mirror.reachability(A)).source == "mirror"


# ------------------------------------------------------------------------------------------------------------ seed


async def test_a_seed_makes_the_mirror_equal_to_postgres(house: House) -> None:
    rows = {
        mitra(n): Row(
            active=n % 7 != 0,
            online=n % 3 == 0 and n % 7 != 0,
            heartbeat_at=None if n % 5 == 0 else NOW + n,
            capacity=n % 4,
            version=n,
        )
        for n in range(1, 2 * PAGE + 300)
    }
    house.truth.rows = rows
    await house.read("SADD", KEYS.online, "somebody-long-gone")
    await house.mirror.seed()

    assert await house.members(KEYS.online) == {i for i, row in rows.items() if row.online}
    assert await house.members(KEYS.deactivated) == {i for i, row in rows.items() if not row.active}
    capacities = await house.read("MGET", *map(KEYS.capacity, rows))
    assert [int(count) for count in capacities] == [row.capacity for row in rows.values()]
    beats = await house.read("MGET", *map(KEYS.heartbeat, rows))
    expected = [rfc3339(r.heartbeat_at) if r.online and r.heartbeat_at is not None else None for r in rows.values()]
    # A kept heartbeat of an earlier state: A had one before, and a seed without a newer one leaves it.
    assert [None if beat is None else beat.decode() for beat in beats] == expected
    assert await house.read("KEYS", "mitras:seed:*") == []
    assert await house.read("TTL", KEYS.online) == -1


async def test_a_seed_moves_no_heartbeat_back_and_no_capacity_to_an_older_version(house: House) -> None:
    await house.mirror.heartbeat(A, NOW + 50_000)
    await set_capacity(house, A, 3, 8)
    house.truth.rows[A] = Row(heartbeat_at=NOW, capacity=1, version=7)
    await house.mirror.seed()
    assert await house.heartbeat(A) == rfc3339(NOW + 50_000)
    assert await house.read("GET", KEYS.capacity(A)) == b"3"


async def test_a_seed_knows_the_pings_that_this_node_took_while_valkey_was_away(house: House) -> None:
    house.server.kill()
    await house.mirror.heartbeat(A, NOW + 40_000)
    assert not house.mirror.trusted
    house.server.start()
    await house.trusted()
    assert await house.heartbeat(A) == rfc3339(NOW + 40_000)


async def test_when_nobody_is_online_the_sets_are_empty_and_the_mirror_is_trusted(house: House) -> None:
    house.truth.rows = {B: Row(online=False)}
    await house.mirror.seed()
    assert await house.members(KEYS.online) == set()
    assert await refusal_of(house, B) is MitraOffline
    assert house.truth.asked.count("presences") == 0


async def test_who_goes_online_or_offline_while_a_seed_runs_is_not_lost(house: House) -> None:
    changed = False

    def change(name: str) -> None:
        nonlocal changed
        if name == "mitras_packed" and not changed:
            changed = True
            house.truth.rows[A].online = False
            house.truth.rows[B].online = True
            house.truth.rows[C].active = True

    house.truth.hook = change
    await house.mirror.seed()
    assert await house.members(KEYS.online) == {B}
    assert await house.members(KEYS.deactivated) == set()
    assert await house.heartbeat(A) is None
    assert await house.heartbeat(B) == rfc3339(NOW)


async def test_who_changes_again_while_a_seed_catches_up_is_not_lost(house: House) -> None:
    """It looks again until it has found nobody."""
    pages = 0

    def change(name: str) -> None:
        nonlocal pages
        if name != "mitras_packed":
            return
        pages += 1
        if pages in {
            1,
            3,
            4,
        }:  # behind the only page, which the build follows up with a look behind it, and the first two catch-ups
            house.truth.rows[A].online = pages == 3
            house.truth.rows[B].online = pages != 3

    house.truth.hook = change
    await house.mirror.seed()
    assert pages == 6
    assert await house.members(KEYS.online) == {B}
    assert await house.heartbeat(A) is None


async def test_who_comes_and_who_changes_on_one_of_many_pages_while_a_seed_runs_is_not_lost(house: House) -> None:
    house.truth.rows.update({mitra(n): Row(version=n) for n in range(10, 10 + 2 * PAGE)})
    newcomer, changed, left = mitra(10 + 3 * PAGE), mitra(PAGE), mitra(PAGE + 500)
    asked = 0

    def change(name: str) -> None:
        nonlocal asked
        asked += name == "mitras_packed"
        if asked == 4:  # behind the last page and the look behind it: what changes now, no page of the build has seen
            house.truth.rows[newcomer] = Row(heartbeat_at=None)
            house.truth.rows[changed] = Row(capacity=3, version=10**6, has_room=False)
            house.truth.rows[left] = Row(online=False, version=10**6)

    house.truth.hook = change
    count = await house.mirror.seed()
    assert count == len(house.truth.rows)
    online = {i for i, row in house.truth.rows.items() if row.online}
    assert await house.members(KEYS.online) == online
    waiting = {member.decode() for member in await house.read("ZRANGE", KEYS.waiting, "0", "-1")}
    assert waiting == online - {changed}
    assert await house.read("GET", KEYS.capacity(changed)) == b"3"
    assert await house.heartbeat(newcomer) is None
    assert await house.heartbeat(left) is None
    assert house.mirror.drift["online"] == 2 * PAGE - 3  # taken off: who changed meanwhile was no drift


async def test_only_the_pages_that_were_written_since_are_read_again(house: House) -> None:
    house.truth.rows.update({mitra(n): Row() for n in range(10, 10 + 2 * PAGE)})
    house.truth.touched = [2]
    house.truth.asked.clear()
    await house.mirror.seed()
    assert house.truth.asked.count("mitras_packed") == 3 + 1 + 1  # three pages, the end, and the second page once more


async def test_a_seed_without_valkey_or_without_postgres_fails_by_that_name_and_leaves_no_task(house: House) -> None:
    """Not as a group: whoever waits for a seed waits for one of these two."""
    house.truth.rows.update({mitra(n): Row() for n in range(10, 10 + 2 * PAGE)})
    house.truth.away = True
    with pytest.raises(StoreUnavailable):
        await house.mirror.seed()
    house.truth.away = False
    house.server.kill()
    with pytest.raises(ValkeyUnavailable):
        await house.mirror.seed()


async def test_a_page_full_of_pings_that_only_this_node_knows_goes_into_the_new_mirror(house: House) -> None:
    house.truth.rows.update({mitra(n): Row(heartbeat_at=None if n % 2 else NOW) for n in range(10, 700)})
    house.truth.rows[mitra(11)].online = False
    await house.mirror.seed()
    for n in range(10, 700, 7):
        if n != 11:
            await house.mirror.heartbeat(mitra(n), NOW + n)
    await house.read("FLUSHALL")
    await house.mirror.seed()
    for n in range(10, 700):
        expected = NOW + n if (n - 10) % 7 == 0 and n != 11 else None if n % 2 else NOW
        assert await house.heartbeat(mitra(n)) == (None if expected is None else rfc3339(expected)), n


async def test_readers_see_the_old_mirror_until_the_new_one_is_whole(house: House) -> None:
    house.truth.rows.update({mitra(n): Row() for n in range(10, 10 + 2 * PAGE)})
    sizes: set[int] = set()
    async with trio.open_nursery() as nursery:

        async def watch() -> None:
            while True:
                sizes.add(await house.read("SCARD", KEYS.online))

        nursery.start_soon(watch)
        await house.mirror.seed()
        sizes.add(await house.read("SCARD", KEYS.online))
        nursery.cancel_scope.cancel()
    assert sizes == {1, 1 + 2 * PAGE}


async def test_a_seed_whose_scratch_was_lost_leaves_the_mirror_as_it_was(house: House) -> None:
    lost = False

    async def lose() -> None:
        nonlocal lost
        while not lost:
            names = await house.read("KEYS", "mitras:seed:*:online")
            if names:
                await house.read("DEL", names[0].decode())
                lost = True

    house.truth.rows.update({mitra(n): Row() for n in range(10, 10 + 4 * PAGE)})
    failed = house.mirror.seeds_failed
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lose)
        with pytest.raises(Exception, match="SEEDLOST"):
            await house.mirror.seed()
    assert lost
    assert house.mirror.seeds_failed == failed
    assert await house.members(KEYS.online) == {A}


async def test_a_server_that_comes_back_empty_is_not_believed_until_it_was_seeded(house: House) -> None:
    house.truth.open = trio.Event()  # Postgres is slow: the seed cannot finish
    house.server.kill()
    house.server.start()
    await until(lambda: house.valkey.generation == 2)
    assert not house.mirror.trusted

    verdicts: list[type[Exception] | None] = []

    async def ping() -> None:
        verdicts.append(await refusal_of(house, A))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ping)
        await until(lambda: "presences" in house.truth.asked)
        assert verdicts == []
        house.truth.open.set()
    assert verdicts == [None]
    await house.trusted()
    assert await house.members(KEYS.online) == {A}


async def test_a_restart_between_two_heartbeats_turns_nobody_away(house: House) -> None:
    house.server.kill()
    house.server.start()
    with trio.fail_after(PATIENCE_SECONDS):
        while house.mirror.seeds < 2:
            assert await refusal_of(house, A) is None
    assert await refusal_of(house, A) is None


async def test_a_flushed_server_turns_nobody_away_and_is_seeded_again(house: House) -> None:
    await house.read("FLUSHALL")
    assert await refusal_of(house, A) is None
    assert not house.mirror.trusted
    await house.trusted()
    assert await house.members(KEYS.online) == {A}


async def test_a_seed_waits_for_postgres_and_is_tried_again(house: House) -> None:
    house.truth.away = True
    house.server.kill()
    house.server.start()
    await until(lambda: house.mirror.seeds_failed >= 1, PATIENCE_SECONDS)
    house.truth.away = False
    await house.trusted()


async def test_ten_thousand_mitras_converge_within_five_seconds_of_a_restart_from_nothing(house: House) -> None:
    house.truth.rows = {mitra(n): Row(heartbeat_at=NOW + n) for n in range(10_000)}
    house.server.kill()
    house.server.start()
    began = time.process_time()  # a busy machine takes longer, and no more than this of its own
    await until(lambda: house.valkey.generation == 2)
    await house.trusted()
    assert time.process_time() - began < CONVERGENCE_SECONDS
    assert await house.read("SCARD", KEYS.online) == 10_000
