"""S38: the eight classes of mirror tests, each a class here, by its name in the specification, over a real Postgres and a real Valkey.

What is written goes through the rooms through which halo writes it. The corners of each class are where its rooms are tested, and the
class says where.
"""

import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import trio

from halo.actors.sweeps import AutoOffline, HeartbeatMirror, Reseed
from halo.clock import Moment, SystemClock, rfc3339
from halo.config import LiveConfig
from halo.errors import MitraDeactivated, MitraOffline
from halo.events import DeadlineReached, EndedBy, EndRequested
from halo.net.presence import Presence
from halo.pairing import Opening, open_match
from halo.rules import step
from halo.session import Party, Session
from halo.store import valkey
from halo.store.auth_sessions import AuthSessions
from halo.store.available import SNAPSHOT_MS, AvailableMitras
from halo.store.available_twin import AvailableTwin
from halo.store.capacities import Capacities
from halo.store.mirror import Mirror
from halo.store.mirror_keys import Keys
from halo.store.mitras import Mitras
from halo.store.offers import Offers
from halo.store.pairings import Pairings
from halo.store.postgres import Postgres, open_postgres
from halo.store.sessions import Sessions
from halo.store.sweeps import SweepRows
from halo.store.valkey import Valkey, open_valkey
from halo.sweep import MirrorUnavailable, Swept
from tests.store.rows import add_customer, add_mitra, add_payment, add_session, count, new_id
from tests.store.test_fakes import answers, asks
from tests.store.valkey_server import Server, until

KEYS = Keys()
CLOCK = SystemClock()
OWNER = new_id()
FRESH_MS = 90_000
SOON_STALE_MS = 400
"""For the sweep that waits for it."""
CONVERGENCE_SECONDS = 5.0
NOBODY: frozenset[Party] = frozenset()


@dataclass
class Node:
    """The rooms of one node that write to the mirror and read it."""

    db: Postgres
    server: Server
    valkey: Valkey
    mirror: Mirror
    stale_ms: int

    def __post_init__(self) -> None:
        self.mitras = Mitras(self.db, CLOCK)
        self.presence = Presence(self.mitras, self.mirror, CLOCK)
        self.capacities = Capacities(self.mirror)
        self.sessions = Sessions(self.db, OWNER)
        self.rows = SweepRows(self.db)
        self.auto_offline = AutoOffline(self.mirror, self.rows, CLOCK, self.stale_ms)
        self.heartbeats = HeartbeatMirror(self.mirror, self.rows)
        self.twin = AvailableTwin(self.db, CLOCK, self.stale_ms, 0)
        self.available = AvailableMitras(self.mirror, self.twin, CLOCK, self.stale_ms)

    # ---- what is in the stores

    async def read(self, *command: str) -> Any:
        (reply,) = await self.valkey.call(command)
        return reply

    async def members(self, key: str) -> set[str]:
        return {member.decode() for member in await self.read("SMEMBERS", key)}

    async def capacity(self, mitra_id: str) -> int | None:
        told = await self.read("GET", KEYS.capacity(mitra_id))
        return None if told is None else int(told)

    async def capacity_is(self, mitra_id: str, expected: int) -> None:
        """The daemon gathers changes for some milliseconds before it writes them."""
        with trio.fail_after(CONVERGENCE_SECONDS):
            while await self.capacity(mitra_id) != expected:
                await trio.sleep(0.005)

    async def beat(self, mitra_id: str) -> str | None:
        told = await self.read("GET", KEYS.heartbeat(mitra_id))
        return None if told is None else told.decode()

    async def known_beat(self, mitra_id: str) -> Moment | None:
        """In Postgres."""
        return (await self.mitras.load_status(mitra_id)).last_heartbeat_at

    async def trusted(self) -> None:
        await until(lambda: self.mirror.trusted, CONVERGENCE_SECONDS)

    # ---- what happens

    async def come_online(self) -> str:
        mitra_id = await add_mitra(self.db)
        await self.presence.go_online(mitra_id)
        return mitra_id

    async def ping(self, mitra_id: str) -> Moment:
        at = CLOCK.now()
        await self.mirror.heartbeat(mitra_id, at)
        return at

    async def refused(self, mitra_id: str) -> type[Exception] | None:
        try:
            await self.ping(mitra_id)
        except (MitraDeactivated, MitraOffline) as refusal:
            return type(refusal)
        return None

    async def deactivate(self, mitra_id: str) -> None:
        """As an operator does it: Postgres, then the mirror."""
        await self.mitras.deactivate(mitra_id, "operator")
        await self.mirror.deactivated(mitra_id)

    async def accept(self, mitra_id: str, paid: str = "confirmed") -> Session:
        """A session, opened by the mitra's yes to an offer."""
        customer_id, at = await add_customer(self.db), CLOCK.now()
        payment = await add_payment(self.db, customer_id, paid, is_extension=False)
        pairings, offers = Pairings(self.db, OWNER), Offers(self.db, OWNER)
        view = await pairings.open(new_id(), customer_id, payment, "regular", at)
        search = await pairings.load(view.pairing_id)
        await pairings.send_wave(search, [mitra_id], absent=(), deadline_at=at + 30_000, at=at)
        [offer] = (await pairings.load(view.pairing_id)).offers
        opening = Opening(session_id=new_id(), at=at, minute_ms=60_000, config=LiveConfig())
        answered = await offers.accept(
            offer.offer_id, mitra_id, lambda search: open_match(search, mitra_id, opening), at
        )
        assert answered.opened is not None
        self.capacities.mark(mitra_id)
        return answered.opened.session

    async def move(self, session: Session, event: Any) -> Session:
        """One step, as its actor commits it and tells of it."""
        decided = step(session, event)
        await self.sessions.commit(session, decided, new_id(), NOBODY)
        self.capacities.mark(session.mitra_id)
        return decided.session


@pytest.fixture(autouse=True)
def _patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Here a server that is gone refuses at once. One that only waits for a busy machine must not be taken for gone."""
    monkeypatch.setattr(valkey, "ROUND_TRIP_SECONDS", CONVERGENCE_SECONDS)
    monkeypatch.setattr(valkey, "CALL_SECONDS", CONVERGENCE_SECONDS)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    made = Server(tmp_path)
    made.start()
    yield made
    made.kill()


@asynccontextmanager
async def open_node(database_url: str, server: Server, stale_ms: int = FRESH_MS) -> AsyncIterator[Node]:
    async with open_postgres(database_url) as db, open_valkey(server.url) as link, trio.open_nursery() as nursery:
        node = Node(db, server, link, Mirror(link, db, CLOCK, stale_ms), stale_ms)
        nursery.start_soon(node.mirror.serve)
        nursery.start_soon(node.capacities.serve)
        await node.trusted()
        yield node
        nursery.cancel_scope.cancel()


@pytest.fixture
async def node(database_url: str, server: Server) -> AsyncIterator[Node]:
    async with open_node(database_url, server) as opened:
        yield opened


class TestSeed:
    """S31, S33–S36: the mirror is built from Postgres, at start, on every reconnect, and now and then. Corners: `test_mirror.py`."""

    async def test_at_start_it_holds_what_postgres_says_about_everybody(
        self, node: Node, database_url: str, server: Server
    ) -> None:
        online, offline, out = await node.come_online(), await add_mitra(node.db), await node.come_online()
        await node.accept(online)
        await node.mitras.deactivate(out, "operator")
        server.kill()
        server.start()
        async with open_node(database_url, server) as fresh:
            assert await fresh.members(KEYS.online) == {online}
            assert await fresh.members(KEYS.deactivated) == {out}
            assert [await fresh.capacity(mitra_id) for mitra_id in (online, offline, out)] == [1, 0, 0]
            assert await fresh.beat(online) == rfc3339(await fresh.known_beat(online) or 0)

    async def test_a_server_that_returns_empty_is_filled_again_by_itself(self, node: Node, server: Server) -> None:
        online = await node.come_online()
        server.kill()
        server.start()
        await until(lambda: node.mirror.seeds >= 2, CONVERGENCE_SECONDS)
        await node.trusted()
        assert await node.members(KEYS.online) == {online}

    async def test_it_never_moves_a_heartbeat_back_to_what_postgres_has_heard(self, node: Node) -> None:
        mitra_id = await node.come_online()
        at = CLOCK.now() + 5_000
        await node.mirror.heartbeat(mitra_id, at)
        await node.mirror.seed()
        assert await node.beat(mitra_id) == rfc3339(at)
        assert (await node.known_beat(mitra_id) or 0) < at

    async def test_a_reseed_brings_back_who_fell_out_and_removes_who_should_not_be_there(self, node: Node) -> None:
        lost, stray = await node.come_online(), await add_mitra(node.db)
        await node.mirror.seed()
        await node.read("SREM", KEYS.online, lost)
        await node.read("SADD", KEYS.online, stray)
        swept = await Reseed(node.mirror).run()
        assert swept.found["online"] == 2
        assert await node.members(KEYS.online) == {lost}

    async def test_two_nodes_that_seed_at_once_leave_one_whole_mirror(
        self, node: Node, database_url: str, server: Server
    ) -> None:
        online = {await node.come_online() for _ in range(20)}
        async with open_node(database_url, server) as other, trio.open_nursery() as nursery:
            for seeding in (node, other, node, other):
                nursery.start_soon(seeding.mirror.seed)
        assert await node.members(KEYS.online) == online
        assert await node.read("KEYS", "mitras:seed:*") == []


class TestWriteThrough:
    """S09–S15: Postgres first, then Valkey, best effort. Corners: `test_mirror.py`, `tests/net/test_lobby.py`."""

    async def test_going_online_is_in_both_stores_with_its_heartbeat(self, node: Node) -> None:
        mitra_id = await node.come_online()
        status = await node.mitras.load_status(mitra_id)
        assert status.is_online
        assert await node.members(KEYS.online) == {mitra_id}
        assert await node.beat(mitra_id) == rfc3339(status.last_heartbeat_at or 0)

    async def test_going_offline_leaves_nothing_of_it_in_either(self, node: Node) -> None:
        mitra_id = await node.come_online()
        await node.presence.go_offline(mitra_id)
        assert not (await node.mitras.load_status(mitra_id)).is_online
        assert await node.members(KEYS.online) == set()
        assert await node.beat(mitra_id) is None

    async def test_what_postgres_refuses_valkey_never_hears(self, node: Node) -> None:
        mitra_id = await add_mitra(node.db)
        await node.deactivate(mitra_id)
        with pytest.raises(MitraDeactivated):
            await node.presence.go_online(mitra_id)
        assert await node.members(KEYS.online) == set()
        assert await node.beat(mitra_id) is None

    async def test_with_valkey_gone_the_truth_is_written_and_the_mirror_heals(self, node: Node, server: Server) -> None:
        server.kill()
        mitra_id = await node.come_online()
        assert (await node.mitras.load_status(mitra_id)).is_online
        assert node.mirror.writes_lost == 1
        server.start()
        await node.trusted()
        assert await node.members(KEYS.online) == {mitra_id}

    async def test_a_heartbeat_is_written_to_valkey_alone(self, node: Node) -> None:
        mitra_id = await node.come_online()
        known, statements = await node.known_beat(mitra_id), node.db.pool.statements
        at = (known or 0) + 1
        await node.mirror.heartbeat(mitra_id, at)
        assert node.db.pool.statements == statements
        assert await node.beat(mitra_id) == rfc3339(at)
        assert await node.known_beat(mitra_id) == known


class TestFallbacks:
    """S19–S23, S26, S27, S37: without Valkey every answer is the same, from Postgres. Corners: `test_available.py`, `test_mirror.py`."""

    async def test_who_is_reachable(self, node: Node, server: Server) -> None:
        there, gone = await node.come_online(), await add_mitra(node.db)
        assert [(await node.mirror.reachability(who)).reachable for who in (there, gone)] == [True, False]
        server.kill()
        fallen_back = [await node.mirror.reachability(who) for who in (there, gone)]
        assert [(seen.reachable, seen.source) for seen in fallen_back] == [(True, "postgres"), (False, "postgres")]

    async def test_who_is_available_and_in_which_order(self, node: Node, server: Server) -> None:
        mitra_ids = [await node.come_online() for _ in range(4)]
        await node.deactivate(mitra_ids[2])
        await node.mirror.seed()
        expected = await node.available.find_available(10, ())
        assert set(expected) == {*mitra_ids} - {mitra_ids[2]}
        server.kill()
        assert await node.available.find_available(10, ()) == expected
        assert node.twin.queries == 1

    async def test_the_counts_for_beacon_and_dashboard(self, node: Node, server: Server) -> None:
        busy = await node.come_online()
        await node.come_online()
        await node.db.execute("UPDATE mitras SET max_sessions = 1 WHERE mitra_id = %(id)s", {"id": busy})
        await node.accept(busy)
        await node.capacity_is(busy, 1)
        mirrored = ((await node.available.count_available()).count, await node.available.count_online())
        server.kill()
        assert (
            ((await node.available.count_available()).count, await node.available.count_online()) == mirrored == (1, 2)
        )

    async def test_a_heartbeat_gets_the_same_verdict_and_is_not_forgotten(self, node: Node, server: Server) -> None:
        online, offline, out = await node.come_online(), await add_mitra(node.db), await add_mitra(node.db)
        await node.deactivate(out)
        verdicts = [await node.refused(who) for who in (online, offline, out)]
        server.kill()
        assert [await node.refused(who) for who in (online, offline, out)] == verdicts
        assert verdicts == [None, MitraOffline, MitraDeactivated]
        at = await node.ping(online)
        server.start()
        await node.trusted()
        assert await node.beat(online) == rfc3339(at)

    async def test_a_mitra_deactivated_during_the_outage_does_not_get_in(self, node: Node, server: Server) -> None:
        mitra_id = await node.come_online()
        server.kill()
        await node.deactivate(mitra_id)
        assert await node.refused(mitra_id) is MitraDeactivated
        assert not (await node.mirror.reachability(mitra_id)).reachable

    async def test_an_emptied_server_is_not_mistaken_for_the_truth(self, node: Node) -> None:
        mitra_id = await node.come_online()
        await node.read("FLUSHALL")
        assert await node.refused(mitra_id) is None
        assert (await node.mirror.reachability(mitra_id)).reachable


class TestCapacityLifecycle:
    """S03, S16–S18: counted anew from Postgres after every change. Corners: `test_capacities.py`, `test_sessions.py`."""

    async def test_an_accept_takes_a_slot_and_an_end_gives_it_back(self, node: Node) -> None:
        mitra_id = await node.come_online()
        session = await node.accept(mitra_id)
        await node.capacity_is(mitra_id, 1)
        await node.move(session, EndRequested(at=CLOCK.now(), by=EndedBy.CUSTOMER))
        await node.capacity_is(mitra_id, 0)

    async def test_a_session_that_waits_for_its_payment_holds_its_slot(self, node: Node) -> None:
        mitra_id = await node.come_online()
        assert (await node.accept(mitra_id, paid="pending")).status == "pending_payment"
        await node.capacity_is(mitra_id, 1)

    async def test_an_extension_asked_and_accepted_changes_nothing(self, node: Node) -> None:
        mitra_id = await node.come_online()
        session = await node.accept(mitra_id)
        await node.capacity_is(mitra_id, 1)
        payment = await add_payment(node.db, session.customer_id, "confirmed")
        asked = await node.move(session, asks(session, payment, CLOCK.now()))
        await node.move(asked, answers(asked, accepted=True, at=CLOCK.now()))
        await node.read("SET", KEYS.capacity(mitra_id), "7")  # whoever writes next, counts
        node.capacities.mark(mitra_id)
        await node.capacity_is(mitra_id, 1)

    async def test_a_session_holds_its_slot_through_the_grace_until_it_has_expired(self, node: Node) -> None:
        mitra_id = await node.come_online()
        session = await node.accept(mitra_id)
        for status, slots in (("closing", 1), ("ended", 0)):
            assert session.deadline_at is not None
            session = await node.move(session, DeadlineReached(at=session.deadline_at, config=LiveConfig()))
            assert session.status == status
            await node.capacity_is(mitra_id, slots)

    @pytest.mark.parametrize("status", ["pending_payment", "active", "extending", "closing", "rerouting", "ended"])
    async def test_every_status_but_the_last_holds_a_slot(self, node: Node, status: str) -> None:
        mitra_id = await node.come_online()
        await add_session(node.db, await add_customer(node.db), mitra_id, status)
        node.capacities.mark(mitra_id)
        await node.capacity_is(mitra_id, 0 if status == "ended" else 1)

    async def test_a_full_mitra_is_not_available_and_is_again_with_the_first_end(self, node: Node) -> None:
        mitra_id = await node.come_online()
        await node.db.execute("UPDATE mitras SET max_sessions = 2 WHERE mitra_id = %(id)s", {"id": mitra_id})
        sessions = [await node.accept(mitra_id) for _ in range(2)]
        await node.capacity_is(mitra_id, 2)
        assert await node.available.find_available(1, ()) == []
        await node.move(sessions[0], EndRequested(at=CLOCK.now(), by=EndedBy.MITRA))
        await node.capacity_is(mitra_id, 1)
        assert await node.available.find_available(1, ()) == [mitra_id]

    async def test_a_change_while_valkey_is_away_is_counted_when_it_is_back(self, node: Node, server: Server) -> None:
        mitra_id = await node.come_online()
        server.kill()
        await node.accept(mitra_id)
        await until(lambda: not node.mirror.trusted, CONVERGENCE_SECONDS)
        server.start()
        await node.trusted()
        await node.capacity_is(mitra_id, 1)


class TestAutoOffline:
    """S28, S29: who fell silent goes offline, by the mirror alone. Corners: `test_sweeps.py`, `tests/actors/test_sweeps.py`."""

    @pytest.fixture
    async def node(self, database_url: str, server: Server) -> AsyncIterator[Node]:
        async with open_node(database_url, server, SOON_STALE_MS) as opened:
            await sweep_until_warm(opened)
            yield opened

    async def test_the_silent_go_offline_in_both_stores_and_who_pings_stays(self, node: Node) -> None:
        silent, talking = await node.come_online(), await node.come_online()
        await grow_stale()
        await node.mirror.heartbeat(talking, CLOCK.now() + 60_000)  # as good as pinging all the while
        assert (await node.auto_offline.run()).rows == 1
        assert [(await node.mitras.load_status(who)).is_online for who in (silent, talking)] == [False, True]
        assert await node.members(KEYS.online) == {talking}

    async def test_a_scan_of_postgres_never_sets_anybody_offline(self, node: Node) -> None:
        """Its heartbeats are old by design: only the mirror has heard the last ones."""
        mitra_id = await add_mitra(node.db, is_online=True)
        await grow_stale()
        assert (await node.auto_offline.run()).rows == 0
        assert (await node.mitras.load_status(mitra_id)).is_online

    async def test_any_error_of_valkey_gives_up_the_whole_run(self, node: Node, server: Server) -> None:
        await node.come_online()
        await grow_stale()
        server.kill()
        with pytest.raises(MirrorUnavailable):
            await node.auto_offline.run()
        assert await count(node.db, "mitras", "is_online") == 1

    async def test_a_server_that_came_back_empty_logs_nobody_out_before_it_is_warm(
        self, node: Node, server: Server
    ) -> None:
        await node.come_online()
        await grow_stale()
        server.kill()
        server.start()
        await until(lambda: node.mirror.seeds >= 2, CONVERGENCE_SECONDS)
        await node.trusted()
        swept = await node.auto_offline.run()
        assert (swept.rows, swept.waits_for) == (0, "warm_up")
        assert await count(node.db, "mitras", "is_online") == 1

    async def test_a_second_run_finds_nothing_left_to_do(self, node: Node) -> None:
        await node.come_online()
        await grow_stale()
        assert [(await node.auto_offline.run()).rows for _ in range(2)] == [1, 0]


async def grow_stale() -> None:
    await trio.sleep((SOON_STALE_MS + 50) / 1000)


async def sweep_until_warm(node: Node) -> Swept:
    """The mirror must have stood for more than a freshness period before the sweep believes it."""
    with trio.fail_after(CONVERGENCE_SECONDS):
        while (swept := await node.auto_offline.run()).waits_for == "warm_up":
            await trio.sleep(0.02)
    return swept


class TestHeartbeatMirror:
    """S04, S30: one upsert a cycle carries the heartbeats to Postgres. Corners: `test_sweeps.py`, `tests/actors/test_sweeps.py`."""

    async def test_a_cycle_is_one_statement_for_everybody(self, node: Node) -> None:
        mitra_ids = [await node.come_online() for _ in range(30)]
        at = CLOCK.now() + 1_000
        for mitra_id in mitra_ids:
            await node.mirror.heartbeat(mitra_id, at)
        statements = node.db.pool.statements
        assert (await node.heartbeats.run()).rows == 30
        assert node.db.pool.statements - statements == 1
        assert {await node.known_beat(mitra_id) for mitra_id in mitra_ids} == {at}

    async def test_two_nodes_that_run_it_write_each_heartbeat_once(
        self, node: Node, database_url: str, server: Server
    ) -> None:
        mitra_id = await node.come_online()
        await node.mirror.heartbeat(mitra_id, CLOCK.now() + 1_000)
        async with open_node(database_url, server) as other:
            assert [(await each.heartbeats.run()).rows for each in (node, other, node)] == [1, 0, 0]

    async def test_it_never_moves_a_heartbeat_back(self, node: Node) -> None:
        mitra_id = await node.come_online()
        at = CLOCK.now() + 5_000
        await node.rows.record_heartbeats({mitra_id: at})
        await node.read("SET", KEYS.heartbeat(mitra_id), rfc3339(at - 60_000))
        assert (await node.heartbeats.run()).rows == 0
        assert await node.known_beat(mitra_id) == at

    async def test_what_was_heard_while_valkey_was_away_arrives_all_the_same(self, node: Node, server: Server) -> None:
        mitra_id = await node.come_online()
        server.kill()
        at = CLOCK.now() + 1_000
        await node.mirror.heartbeat(mitra_id, at)
        swept = await node.heartbeats.run()
        assert (swept.rows, swept.error is not None) == (1, True)
        assert await node.known_beat(mitra_id) == at

    async def test_a_heartbeat_of_nobody_makes_no_mitra(self, node: Node) -> None:
        await node.read("SADD", KEYS.online, stranger := new_id())
        await node.read("SET", KEYS.heartbeat(stranger), rfc3339(CLOCK.now()))
        assert (await node.heartbeats.run()).rows == 0
        assert await count(node.db, "mitras") == 0


class TestDeactivation:
    """S02, S12, S13, S25: locked out in both stores at once. Corners: `test_mitras.py`, `tests/whole/test_deactivation.py`."""

    async def test_it_is_in_the_set_and_out_of_everything_else(self, node: Node) -> None:
        mitra_id, other = await node.come_online(), await node.come_online()
        await node.deactivate(mitra_id)
        assert await node.members(KEYS.deactivated) == {mitra_id}
        assert await node.members(KEYS.online) == {other}
        assert await node.beat(mitra_id) is None
        assert await node.available.find_available(5, ()) == [other]
        assert not (await node.mirror.reachability(mitra_id)).reachable

    async def test_the_guard_of_heartbeats_asks_postgres_nothing(self, node: Node) -> None:
        mitra_id = await node.come_online()
        await node.deactivate(mitra_id)
        statements = node.db.pool.statements
        assert [await node.refused(mitra_id) for _ in range(20)] == [MitraDeactivated] * 20
        assert node.db.pool.statements == statements

    async def test_her_tokens_end_with_it(self, node: Node) -> None:
        auth = AuthSessions(node.db, CLOCK)
        families = [await auth.open(Party.MITRA)]
        mitra_id = families[0].user_id
        families.append(await auth.open(Party.MITRA, mitra_id))
        await node.deactivate(mitra_id)
        assert [await auth.is_alive(family.auth_session_id) for family in families] == [False, False]

    async def test_one_that_valkey_never_heard_of_is_found_by_the_reseed(self, node: Node) -> None:
        mitra_id = await node.come_online()
        await node.mitras.deactivate(mitra_id, "operator")  # and the node dies here
        swept = await Reseed(node.mirror).run()
        assert (swept.found["online"], swept.found["deactivated"]) == (1, 1)
        assert await node.refused(mitra_id) is MitraDeactivated

    async def test_activation_lets_her_in_again_and_not_online(self, node: Node) -> None:
        mitra_id = await node.come_online()
        await node.deactivate(mitra_id)
        await node.mitras.activate(mitra_id, "operator")
        await node.mirror.activated(mitra_id)
        assert await node.refused(mitra_id) is MitraOffline
        await node.presence.go_online(mitra_id)
        assert await node.refused(mitra_id) is None


class TestBeaconCache:
    """S05, S20, S21: one count for the whole cluster, kept for ten seconds. Corners: `test_available.py`, `tests/net/test_beacon.py`."""

    async def test_the_snapshot_says_how_many_and_since_when_and_lives_ten_seconds(self, node: Node) -> None:
        await node.come_online()
        counted = await node.available.count_available()
        assert json.loads(await node.read("GET", KEYS.snapshot)) == {
            "available_mitras": 1,
            "as_of": rfc3339(counted.as_of),
        }
        assert SNAPSHOT_MS == 10_000
        assert 0 < await node.read("PTTL", KEYS.snapshot) <= SNAPSHOT_MS

    async def test_what_one_node_counted_the_others_read(self, node: Node, database_url: str, server: Server) -> None:
        await node.come_online()
        async with open_node(database_url, server) as other:
            told = json.dumps({"available_mitras": 41, "as_of": rfc3339(CLOCK.now())})
            await node.read(
                "SET", KEYS.snapshot, told, "PX", str(6 * SNAPSHOT_MS)
            )  # young for as long as the test may take
            assert [(await each.available.count_available()).count for each in (node, other)] == [41, 41]
            assert (node.available.counts, other.available.counts) == (0, 0)

    async def test_it_counts_who_is_online_active_fresh_and_has_room_and_nobody_else(self, node: Node) -> None:
        out, full, silent, offline, fine = [await node.come_online() for _ in range(5)]
        await node.deactivate(out)
        await node.db.execute("UPDATE mitras SET max_sessions = 1 WHERE mitra_id = %(id)s", {"id": full})
        await node.accept(full)
        await node.capacity_is(full, 1)
        await node.read("SET", KEYS.heartbeat(silent), rfc3339(CLOCK.now() - FRESH_MS - 1))
        await node.presence.go_offline(offline)
        assert (await node.available.count_available()).count == 1
        assert await node.available.find_available(5, ()) == [fine]

    async def test_a_snapshot_that_nobody_renews_dies_and_the_next_caller_counts(self, node: Node) -> None:
        await node.available.count_available()
        await node.come_online()
        await node.read("DEL", KEYS.snapshot)  # its ten seconds are over
        assert (await node.available.count_available()).count == 1
        assert node.available.counts == 2

    async def test_without_valkey_postgres_counts_and_any_number_of_callers_costs_a_few_queries(
        self, node: Node, server: Server
    ) -> None:
        await node.come_online()
        server.kill()
        counts: list[int] = []

        async def ask() -> None:
            counts.append((await node.available.count_available()).count)

        began = trio.current_time()
        async with trio.open_nursery() as nursery:
            for _ in range(200):
                nursery.start_soon(ask)
        assert counts == [1] * 200
        assert node.twin.queries <= 3 * (2 + trio.current_time() - began)
