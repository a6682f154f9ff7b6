"""The sweeps between a real Postgres and a real Valkey that is really killed, hung, flushed and restarted empty."""

import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import trio

from halo.actors.sweeps import AutoOffline, HeartbeatMirror
from halo.clock import Moment, SystemClock, rfc3339
from halo.errors import MitraOffline
from halo.store.mirror import Mirror
from halo.store.mirror_keys import Keys
from halo.store.mitras import Mitras
from halo.store.postgres import Postgres, open_postgres
from halo.store.steps import SQL as STEPS
from halo.store.sweeps import SetOffline, SweepRows
from halo.store.valkey import Valkey, open_valkey
from halo.sweep import MirrorUnavailable, Swept
from tests.store.rows import NOW, add_customer, add_mitra, add_session, count, new_id
from tests.store.valkey_server import Server, until

STALE_MS = 800
CONVERGENCE_SECONDS = 30.0
KEYS = Keys()
CHANGE_CAPACITY = STEPS["change_capacity"]
"""What the end of a session does to the row of its mitra."""


@pytest.fixture
async def db(database_url: str) -> AsyncIterator[Postgres]:
    async with open_postgres(database_url) as postgres:
        yield postgres


@pytest.fixture
def rows(db: Postgres) -> SweepRows:
    return SweepRows(db)


async def beat_of(db: Postgres, mitra_id: str) -> Moment | None:
    row = await db.fetch_one("SELECT last_heartbeat_at FROM mitras WHERE mitra_id = %(id)s", {"id": mitra_id})
    assert row is not None
    return row.last_heartbeat_at  # type: ignore[no-any-return]


async def add_online(db: Postgres, beat: Moment | None) -> str:
    mitra_id = await add_mitra(db, is_online=True)
    await db.execute(
        "UPDATE mitras SET last_heartbeat_at = at(%(at)s) WHERE mitra_id = %(id)s", {"id": mitra_id, "at": beat}
    )
    return mitra_id


# ---- the rows


async def test_heartbeats_move_forward_only_and_a_second_run_touches_nothing(rows: SweepRows, db: Postgres) -> None:
    first, second = [await add_mitra(db) for _ in range(2)]
    assert await rows.record_heartbeats({first: NOW, second: NOW + 1}) == 2
    assert await rows.record_heartbeats({first: NOW, second: NOW + 1}) == 0
    assert await rows.record_heartbeats({first: NOW - 1, second: NOW + 2}) == 1
    assert [await beat_of(db, mitra_id) for mitra_id in (first, second)] == [NOW, NOW + 2]


async def test_a_heartbeat_makes_nobody_a_mitra(rows: SweepRows, db: Postgres) -> None:
    mitra_id = await add_mitra(db)
    assert await rows.record_heartbeats({new_id(): NOW, mitra_id: NOW}) == 1
    assert await count(db, "mitras") == 1


async def test_no_heartbeats_cost_no_statement(rows: SweepRows, db: Postgres) -> None:
    before = db.statements
    assert await rows.record_heartbeats({}) == 0
    assert db.statements == before


async def test_nodes_that_mirror_the_same_heartbeats_at_once_all_finish(rows: SweepRows, db: Postgres) -> None:
    ids = [await add_mitra(db) for _ in range(60)]
    async with trio.open_nursery() as nursery:
        for node in range(6):
            order = ids if node % 2 else ids[::-1]
            nursery.start_soon(rows.record_heartbeats, dict.fromkeys(order, NOW + node))
    assert await count(db, "mitras", "last_heartbeat_at = at(%(at)s)", at=NOW + 5) == 60
    assert db.retries == 0  # a deadlock would have been tried again, and seen here


async def test_who_was_heard_of_since_stays_online_and_who_is_offline_already_is_named(
    rows: SweepRows, db: Postgres
) -> None:
    stale, never = await add_online(db, NOW), await add_online(db, None)
    later, gone = await add_online(db, NOW + 1), await add_mitra(db)
    done = await rows.set_offline(dict.fromkeys((stale, never, later, gone, new_id()), NOW))
    assert set(done.offline) == {stale, never, gone}
    assert set(done.presence_versions) == {stale, never}
    assert await count(db, "mitras", "is_online") == 1
    assert set((await rows.set_offline({stale: NOW})).presence_versions) == set()


async def test_setting_offline_is_taken_back_from_those_who_have_said_nothing_since(
    rows: SweepRows, db: Postgres
) -> None:
    """A heartbeat, or a session that ends, touches the row as well, and says nothing on whether she is there."""
    mitras = Mitras(db, SystemClock())
    kept, beat, busy, left, came_and_left, locked, let_in = [await add_online(db, NOW) for _ in range(7)]
    everybody = (kept, beat, busy, left, came_and_left, locked, let_in)
    done = await rows.set_offline(dict.fromkeys(everybody, NOW))
    assert set(done.presence_versions) == set(everybody)
    assert await rows.record_heartbeats({beat: NOW + 1}) == 1
    await db.execute(CHANGE_CAPACITY, {"mitra_id": busy, "at": NOW + 1})
    await mitras.go_offline(left, NOW)
    await mitras.go_online(came_and_left, NOW + 1)
    await mitras.go_offline(came_and_left, NOW + 2)
    await mitras.deactivate(locked, "operator")
    await mitras.deactivate(let_in, "operator")
    await mitras.activate(let_in, "operator")
    assert set(await rows.set_online_again(done.presence_versions)) == {kept, beat, busy}
    found = await db.fetch_all("SELECT mitra_id FROM mitras WHERE is_online")
    assert {row.mitra_id for row in found} == {kept, beat, busy}
    assert await rows.set_online_again(done.presence_versions) == []


async def test_nodes_that_set_the_same_mitras_offline_at_once_set_each_once(rows: SweepRows, db: Postgres) -> None:
    ids = [await add_online(db, NOW) for _ in range(60)]
    changed: list[str] = []

    async def sweep(order: list[str]) -> None:
        changed.extend((await rows.set_offline(dict.fromkeys(order, NOW))).presence_versions)

    async with trio.open_nursery() as nursery:
        for node in range(4):
            nursery.start_soon(sweep, ids if node % 2 else ids[::-1])
    assert sorted(changed) == sorted(ids)
    assert db.retries == 0


# ---- both stores


@dataclass
class Node:
    """One of several over the same stores."""

    db: Postgres
    valkey: Valkey
    mirror: Mirror
    stale_ms: int

    def __post_init__(self) -> None:
        self.rows = SweepRows(self.db)
        self.auto_offline = AutoOffline(self.mirror, self.rows, SystemClock(), self.stale_ms)
        self.heartbeats = HeartbeatMirror(self.mirror, self.rows)

    async def trusted(self) -> None:
        await until(lambda: self.mirror.trusted, CONVERGENCE_SECONDS)

    async def read(self, *command: str) -> Any:
        (reply,) = await self.valkey.call(command)
        return reply

    async def ping(self, *mitra_ids: str) -> Moment:
        at = SystemClock().now()
        for mitra_id in mitra_ids:
            await self.mirror.heartbeat(mitra_id, at)
        return at

    async def warm(self) -> None:
        """Until the sweep has seen this mirror stand for more than a freshness period."""
        while (swept := await self.try_sweep()) is None or swept.waits_for == "warm_up":
            await trio.sleep(0.05)

    async def try_sweep(self) -> Swept | None:
        """None: it was given up."""
        try:
            return await self.auto_offline.run()
        except MirrorUnavailable:
            return None


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    made = Server(tmp_path)
    made.start()
    yield made
    made.kill()


@asynccontextmanager
async def open_node(database_url: str, server: Server, stale_ms: int = STALE_MS) -> AsyncIterator[Node]:
    async with open_postgres(database_url) as db, open_valkey(server.url) as valkey, trio.open_nursery() as nursery:
        node = Node(db, valkey, Mirror(valkey, db, SystemClock(), stale_ms), stale_ms)
        nursery.start_soon(node.mirror.serve)
        await node.trusted()
        yield node
        nursery.cancel_scope.cancel()


@pytest.fixture
async def node(database_url: str, server: Server) -> AsyncIterator[Node]:
    async with open_node(database_url, server) as opened:
        yield opened


async def come_online(node: Node, number: int) -> list[str]:
    """Online in both stores; Postgres will know no later heartbeat than this one."""
    at = SystemClock().now()
    ids = [await add_mitra(node.db) for _ in range(number)]
    for mitra_id in ids:
        await Mitras(node.db, SystemClock()).go_online(mitra_id, at)
        await node.mirror.went_online(mitra_id, at)
    return ids


async def grow_stale() -> None:
    await trio.sleep((STALE_MS + 50) / 1000)


async def online(node: Node) -> set[str]:
    return {row.mitra_id for row in await node.db.fetch_all("SELECT mitra_id FROM mitras WHERE is_online")}


async def test_the_silent_go_offline_in_both_stores_and_the_others_stay(node: Node) -> None:
    await node.warm()
    silent, talking = await come_online(node, 2)
    await grow_stale()
    await node.ping(talking)
    swept = await node.auto_offline.run()
    assert (swept.rows, swept.error) == (1, None)
    assert await online(node) == {talking}
    assert {member.decode() for member in await node.read("SMEMBERS", KEYS.online)} == {talking}
    assert await node.read("EXISTS", KEYS.heartbeat(silent)) == 0


async def heartbeats_are_mirrored(node: Node, silent: str) -> None:
    await node.heartbeats.run()


async def a_session_ends(node: Node, silent: str) -> None:
    await node.db.execute(CHANGE_CAPACITY, {"mitra_id": silent, "at": SystemClock().now()})


async def the_mirror_is_reseeded(node: Node, silent: str) -> None:
    await node.mirror.reseed()


@pytest.mark.parametrize("meanwhile", [heartbeats_are_mirrored, a_session_ends, the_mirror_is_reseeded])
async def test_a_ping_that_comes_while_a_sweep_is_at_work_wins_whatever_else_happens_then(
    node: Node, meanwhile: Callable[[Node, str], Awaitable[None]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In both stores, and she waits for an offer again; the next ping is taken."""
    await node.warm()
    silent, _ = await come_online(node, 2)
    await grow_stale()
    set_offline, set_online_again = node.rows.set_offline, node.rows.set_online_again

    async def set_offline_and_ping(seen: Mapping[str, Moment]) -> SetOffline:
        done = await set_offline(seen)
        await node.ping(silent)
        return done

    async def happen_and_set_online_again(versions: Mapping[str, int]) -> list[str]:
        await meanwhile(node, silent)
        return await set_online_again(versions)

    monkeypatch.setattr(node.rows, "set_offline", set_offline_and_ping)
    monkeypatch.setattr(node.rows, "set_online_again", happen_and_set_online_again)
    assert (await node.auto_offline.run()).rows == 1
    assert await online(node) == {silent}
    assert {member.decode() for member in await node.read("SMEMBERS", KEYS.online)} == {silent}
    assert await node.read("ZSCORE", KEYS.waiting, silent) is not None
    await node.ping(silent)


async def test_two_nodes_sweep_at_once_and_nobody_is_set_offline_twice(database_url: str, server: Server) -> None:
    async with open_node(database_url, server) as one, open_node(database_url, server) as other:
        await one.warm()
        await other.warm()
        silent, talking = await come_online(one, 9), await come_online(other, 9)
        await grow_stale()
        for node in (one, other):
            await node.ping(*talking)
        done: list[int] = []

        async def sweep(node: Node) -> None:
            await node.heartbeats.run()
            done.append((await node.auto_offline.run()).rows)
            await node.mirror.reseed()

        async with trio.open_nursery() as nursery:
            for node in (one, other):
                nursery.start_soon(sweep, node)
        assert sum(done) == len(silent)
        assert await online(one) == set(talking)
        assert {member.decode() for member in await one.read("SMEMBERS", KEYS.online)} == set(talking)
        assert (await one.mirror.reseed())[1] == dict.fromkeys(one.mirror.drift, 0)


async def kill(node: Node, server: Server) -> None:
    server.kill()


async def hang(node: Node, server: Server) -> None:
    server.send(signal.SIGSTOP)


async def flush(node: Node, server: Server) -> None:
    await node.read("FLUSHALL")


async def restart_empty(node: Node, server: Server) -> None:
    server.kill()
    server.start()


@dataclass
class Pings:
    """Everybody pings a node all the time."""

    stale_ms: int
    longest_gap_ms: float = 0.0

    async def go_on(self, node: Node, mitras: list[str], over: trio.Event) -> None:
        last = trio.current_time()
        while not over.is_set():
            at = SystemClock().now()
            async with trio.open_nursery() as nursery:
                for mitra_id in mitras:
                    nursery.start_soon(node.mirror.heartbeat, mitra_id, at)
            self.longest_gap_ms = max(self.longest_gap_ms, (trio.current_time() - last) * 1000)
            last = trio.current_time()
            await trio.sleep(self.stale_ms / 8000)


@pytest.mark.usefixtures("valkey_is_given_up_soon")
@pytest.mark.parametrize("fault", [kill, hang, flush, restart_empty])
async def test_an_outage_sets_nobody_offline_neither_while_it_lasts_nor_when_it_is_over(
    database_url: str, server: Server, fault: Callable[[Node, Server], Any]
) -> None:
    """Where the machine was too busy for anybody to ping that often, they were silent indeed: again, with a longer freshness."""
    for stale_ms in (STALE_MS, 4 * STALE_MS, 16 * STALE_MS):
        pings, done = Pings(stale_ms), False
        try:
            await outlive(database_url, server, fault, pings)
            done = True
        except* (AssertionError, MitraOffline):
            if pings.longest_gap_ms < stale_ms / 4 or stale_ms == 16 * STALE_MS:
                raise
        if done:
            return
        server.kill()
        server.start()


async def outlive(database_url: str, server: Server, fault: Callable[[Node, Server], Any], pings: Pings) -> None:
    """Everybody pings another node all the time; Postgres' heartbeats are stale, since no mirror cycle runs here."""
    over, stale_ms = trio.Event(), pings.stale_ms
    async with open_node(database_url, server, stale_ms) as node, open_node(database_url, server, stale_ms) as other:
        await node.db.execute("UPDATE mitras SET is_online = false")
        mitras = await come_online(node, 9)
        node.mirror.take_unmirrored()

        async def sweep_for_ever() -> None:
            while not over.is_set():
                await node.try_sweep()
                await trio.sleep(0.03)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(pings.go_on, other, mitras, over)
            await node.warm()
            nursery.start_soon(sweep_for_ever)
            await fault(node, server)
            await trio.sleep(1.5 * stale_ms / 1000)
            assert await online(node) == set(mitras)
            if fault is kill:
                server.start()
            elif fault is hang:
                server.send(signal.SIGCONT)
            await node.trusted()
            await node.warm()
            await trio.sleep(stale_ms / 1000)
            swept = await node.auto_offline.run()
            assert (swept.rows, swept.waits_for, swept.found) == (0, None, {"online": 9, "stale": 0})
            over.set()
        assert await online(node) == set(mitras)


async def test_a_mirror_that_another_node_built_after_a_flush_is_not_believed_too_early(
    database_url: str, server: Server
) -> None:
    """This node noticed nothing: its connection lived, and the mirror stands again before it looks."""
    async with open_node(database_url, server) as node, open_node(database_url, server) as other:
        await node.warm()
        mitras = await come_online(node, 3)
        await grow_stale()
        await node.ping(*mitras)
        node.mirror.take_unmirrored()  # they are another node's mitras
        standing = node.mirror.standing
        await other.read("FLUSHALL")
        await other.mirror.seed()
        assert node.mirror.standing == standing
        swept = await node.try_sweep()
        assert swept is not None
        assert (swept.rows, swept.waits_for) == (0, "warm_up")
        assert await online(node) == set(mitras)


async def test_heartbeats_reach_postgres_from_valkey_and_from_memory_and_never_move_back(
    node: Node, server: Server
) -> None:
    here, elsewhere = await come_online(node, 2)
    at = await node.ping(here, elsewhere)
    node.mirror.take_unmirrored()
    assert (await node.heartbeats.run()).error is None
    assert [await beat_of(node.db, mitra_id) for mitra_id in (here, elsewhere)] == [at, at]
    await node.read("SET", KEYS.heartbeat(elsewhere), rfc3339(at - 60_000))  # as after a restart from an old copy
    server.kill()
    later = await node.ping(here)
    with pytest.raises(MirrorUnavailable):
        async for _ in node.mirror.pages_online():
            pass
    swept = await node.heartbeats.run()
    assert (swept.rows, swept.error is not None) == (1, True)
    assert [await beat_of(node.db, mitra_id) for mitra_id in (here, elsewhere)] == [later, at]
    server.start()
    await node.trusted()
    assert await node.read("GET", KEYS.heartbeat(here)) == rfc3339(later).encode()  # a seed moves none back either
    assert await node.read("GET", KEYS.heartbeat(elsewhere)) == rfc3339(at).encode()


async def test_a_reseed_counts_the_drift_by_kind_and_heals_it(node: Node) -> None:
    first, second, third = await come_online(node, 3)
    offline = await add_mitra(node.db)
    await add_session(node.db, await add_customer(node.db), third, "active")
    await node.db.execute("UPDATE mitras SET capacity_version = 9 WHERE mitra_id = %(id)s", {"id": third})
    await node.mirror.refresh_capacities([third])
    newest = await node.ping(first)
    _, drift = await node.mirror.reseed()
    assert set(drift.values()) <= {0, 1}  # the one who was added behind the mirror's back has no capacity there yet
    await node.read("SREM", KEYS.online, first)
    await node.read("SADD", KEYS.online, offline)
    await node.read("SADD", KEYS.deactivated, second)
    await node.read("ZREM", KEYS.waiting, second)
    await node.read("DEL", KEYS.heartbeat(second))
    await node.read("SET", KEYS.heartbeat(offline), rfc3339(newest))
    await node.read("SET", KEYS.capacity(third), "0")
    _, drift = await node.mirror.reseed()
    assert drift == {"online": 2, "deactivated": 1, "waiting": 1, "heartbeats": 2, "capacities": 1}
    assert {member.decode() for member in await node.read("SMEMBERS", KEYS.online)} == {first, second, third}
    assert await node.read("GET", KEYS.heartbeat(first)) == rfc3339(newest).encode()
    assert (await node.mirror.reseed())[1] == dict.fromkeys(drift, 0)


async def test_a_stray_member_and_an_unreadable_heartbeat_stop_no_sweep(node: Node) -> None:
    await node.warm()
    silent, garbled = await come_online(node, 2)
    await grow_stale()
    await node.read("SADD", KEYS.online, "nobody", new_id())
    await node.read("SET", KEYS.heartbeat(garbled), "soon")
    assert (await node.auto_offline.run()).rows == 2
    assert (await node.heartbeats.run()).error is None
    assert await online(node) == set()
    assert await node.read("SISMEMBER", KEYS.online, silent) == 0


async def test_the_pages_hold_everybody_once_or_more_with_their_heartbeats(node: Node) -> None:
    ids = [new_id() for _ in range(2_500)]
    await node.read("SADD", KEYS.online, *ids)
    await node.read("MSET", *(part for n, i in enumerate(ids[:-1]) for part in (KEYS.heartbeat(i), rfc3339(NOW + n))))
    found: dict[str, Moment | None] = {}
    async for page in node.mirror.pages_online():
        found.update(page)
    assert found == {mitra_id: NOW + n for n, mitra_id in enumerate(ids[:-1])} | {ids[-1]: None}
