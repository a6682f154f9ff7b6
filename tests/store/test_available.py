"""Who is available, by the mirror and by its twin, over a real Postgres and a Valkey that is really killed."""

import json
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from pathlib import Path
from random import Random

import pytest
import trio

from halo.availability import Presence, judge
from halo.store.available import HEAD, PAGE, RECOUNT_MS, SNAPSHOT_MS, Place
from halo.store.available_twin import AvailableTwin
from halo.store.mirror_twin import MirrorTwin
from halo.store.valkey_link import Link
from halo.store.valkey_wire import Command, Reply
from tests.store.available_house import KEYS, NOW, STALE_MS, House, change_something, open_house
from tests.store.rows import new_id
from tests.store.valkey_server import Server

CALL_LIMIT_SECONDS = 2.0
"""A hung server would hold an answer for ever; 250 ms of the specification, and what a busy machine adds."""


@pytest.fixture
async def house(database_url: str, valkey_url: str) -> AsyncIterator[House]:
    async with open_house(database_url, valkey_url) as opened:
        yield opened


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    made = Server(tmp_path)
    made.start()
    yield made
    made.kill()


@pytest.fixture
async def fragile(database_url: str, server: Server) -> AsyncIterator[House]:
    """A house whose Valkey the test may kill."""
    async with open_house(database_url, server.url) as opened:
        yield opened


async def agree(house: House, dice: Random) -> None:
    """The mirror's readers and their twins say the same."""
    mirror, twin = house.readers(), house.twin()
    everybody = await twin.find_available(1_000, ())
    limit, exclude = dice.randrange(1, 8), dice.sample(everybody, min(len(everybody), dice.randrange(4)))
    asked = twin.queries
    assert await mirror.find_available(1_000, ()) == everybody
    assert await mirror.find_available(limit, exclude) == await twin.find_available(limit, exclude)
    assert await mirror.count_online() == await twin.count_online()
    await house.read("DEL", KEYS.snapshot)
    counted = await mirror.count_available()
    assert (counted.count, counted.as_of) == (len(everybody), house.clock.now())
    assert (await twin.count_available()).count == len(everybody)
    assert (asked, house.mirror.trusted) == (1, True)
    everybody_and_nobody = [*(row.mitra_id for row in await house.rows()), new_id()]
    assert await verdicts(house, everybody_and_nobody) == await twin_verdicts(house, everybody_and_nobody)


async def verdicts(house: House, mitra_ids: Sequence[str], source: str = "mirror") -> dict[str, tuple[bool, bool]]:
    """Who is online and who is reachable, by whoever answers now."""
    found: dict[str, tuple[bool, bool]] = {}

    async def ask(mitra_id: str) -> None:
        seen = await house.mirror.reachability(mitra_id)
        assert seen.source == source
        found[mitra_id] = (seen.online, seen.reachable)

    async with trio.open_nursery() as nursery:
        for mitra_id in mitra_ids:
            nursery.start_soon(ask, mitra_id)
    return found


async def twin_verdicts(house: House, mitra_ids: Sequence[str]) -> dict[str, tuple[bool, bool]]:
    """The same by a twin of its own, which has heard of nothing but what Postgres says."""
    found, twin, now = {}, MirrorTwin(house.db), house.clock.now()
    for mitra_id, seen in zip(mitra_ids, await presences(twin, mitra_ids), strict=True):
        judged = judge(seen, now, STALE_MS, "postgres")
        found[mitra_id] = (judged.online, judged.reachable)
    return found


async def presences(twin: MirrorTwin, mitra_ids: Sequence[str]) -> list[Presence]:
    found: dict[str, Presence] = {}

    async def load(mitra_id: str) -> None:
        found[mitra_id] = await twin.load_presence(mitra_id)

    async with trio.open_nursery() as nursery:  # together they share a query
        for mitra_id in mitra_ids:
            nursery.start_soon(load, mitra_id)
    return [found[mitra_id] for mitra_id in mitra_ids]


# ---- who, and in which order


async def test_the_longest_idle_come_first_without_those_excluded(house: House) -> None:
    idle = {ms: await house.add_mitra(idle_ms=ms) for ms in (1_000, 50_000, 7_000, 300_000)}
    await house.mirror.seed()
    readers = house.readers()
    assert await readers.find_available(3, ()) == [idle[300_000], idle[50_000], idle[7_000]]
    assert await readers.find_available(3, [idle[300_000]]) == [idle[50_000], idle[7_000], idle[1_000]]
    assert await readers.find_available(0, ()) == []


async def test_who_is_offline_deactivated_stale_or_full_is_left_out(house: House) -> None:
    good = await house.add_mitra(heard_ms=STALE_MS)
    await house.add_mitra(online=False)
    await house.add_mitra(active=False)
    await house.add_mitra(heard_ms=STALE_MS + 1)
    await house.add_mitra(heard_ms=None)
    await house.add_mitra(max_sessions=1, sessions=1)
    await house.mirror.seed()
    readers = house.readers()
    assert await readers.find_available(10, ()) == [good]
    assert (await readers.count_available()).count == 1
    assert await readers.count_online() == 4


async def test_who_has_just_taken_a_session_goes_to_the_end_of_the_line_and_leaves_it_when_full(house: House) -> None:
    first, second = await house.add_mitra(idle_ms=60_000, max_sessions=2), await house.add_mitra(idle_ms=30_000)
    await house.mirror.seed()
    readers = house.readers()
    seen = []
    for change in (house.add_session, house.add_session, house.end_session):
        await change(first)
        await house.mirror.refresh_capacities([first])
        seen.append(await readers.find_available(2, ()))
    assert seen == [[second, first], [second], [second, first]]


async def test_a_mitra_who_came_after_the_seed_is_available_once_online(house: House) -> None:
    new = await house.add_mitra(heard_ms=0)
    await house.mirror.went_online(new, NOW)
    assert await house.readers().find_available(1, ()) == [new]
    await house.mirror.went_offline(new)
    assert await house.readers().find_available(1, ()) == []


async def test_a_deactivated_mitra_is_not_found_though_a_late_write_left_her_in_the_line(house: House) -> None:
    mitra_id = await house.add_mitra()
    await house.mirror.seed()
    await house.mirror.deactivated(mitra_id)
    await house.read("ZADD", KEYS.waiting, str(NOW), mitra_id)
    await house.read("SADD", KEYS.online, mitra_id)
    assert await house.readers().find_available(1, ()) == []


async def test_a_capacity_that_comes_late_does_not_bring_back_who_has_left(house: House) -> None:
    mitra_id = await house.add_mitra()
    await house.mirror.seed()
    (row,) = await house.mirror.twin.list_mitras_named([mitra_id])
    await house.mirror.went_offline(mitra_id)
    await house.mirror.set_capacities([row])
    assert await house.read("ZCARD", KEYS.waiting) == 0


async def test_a_line_of_thousands_is_walked_to_its_end(house: House) -> None:
    await house.db.execute(
        """INSERT INTO mitras (mitra_id, is_online, last_heartbeat_at, idle_since)
           SELECT gen_random_uuid(), true, at(%(now)s::bigint - CASE WHEN n <= %(stale)s THEN 999999 ELSE 1000 END),
                  at(%(now)s::bigint - 1000000 + n) FROM generate_series(1, %(all)s) AS n""",
        {"now": NOW, "stale": HEAD + PAGE, "all": HEAD + 2 * PAGE + 7},
    )
    await house.mirror.seed()
    found = await house.readers().find_available(1_000, ())
    assert found == (await AvailableTwin(house.db, house.clock, STALE_MS, 0).find_available(500, ())) + found[500:]
    assert len(set(found)) == len(found) == 1_000
    assert (await house.readers().count_available()).count == PAGE + 7


@pytest.mark.parametrize("leaver", ["first", "last"])
async def test_who_leaves_the_line_while_it_is_walked_hides_nobody_behind(
    house: House, monkeypatch: pytest.MonkeyPatch, leaver: str
) -> None:
    """An empty answer would end a search at once, and a session that was handed on with it."""
    monkeypatch.setattr("halo.store.available.HEAD", 3)
    monkeypatch.setattr("halo.store.available.PAGE", 3)
    stale = [await house.add_mitra(heard_ms=999_999, idle_ms=10_000 - n) for n in range(3)]
    fresh = await house.add_mitra(idle_ms=5_000)
    same = [await house.add_mitra(idle_ms=4_000) for _ in range(5)]
    await house.mirror.seed()
    readers, read = house.readers(), house.mirror.read
    leaves = iter([stale[0] if leaver == "first" else stale[2]])

    async def meanwhile(command: Command) -> Reply | None:
        reply = await read(command)
        for mitra_id in leaves:
            await house.mirror.went_offline(mitra_id)
        return reply

    monkeypatch.setattr(house.mirror, "read", meanwhile)
    assert await readers.find_available(1, ()) == [fresh]
    found = await readers.find_available(100, ())
    assert (found[0], set(found[1:]), len(found)) == (fresh, set(same), 6)
    assert (await readers.count_available()).count == 6


# ---- the twins


@pytest.mark.parametrize("seed", range(4))
async def test_readers_and_twins_agree_on_random_states(house: House, seed: int) -> None:
    dice = Random(seed)
    mitra_ids = [
        await house.add_mitra(
            active=dice.random() < 0.8,
            online=dice.random() < 0.8,
            heard_ms=dice.choice([None, 0, STALE_MS - 1, STALE_MS, STALE_MS + 1, dice.randrange(2 * STALE_MS)]),
            idle_ms=dice.choice([1_000, 2_000, dice.randrange(100_000)]),
            max_sessions=dice.randrange(1, 4),
            sessions=dice.randrange(4),
        )
        for _ in range(40)
    ]
    await house.mirror.seed()
    await agree(house, dice)
    for _ in range(12):
        for _ in range(5):
            await change_something(house, mitra_ids, dice)
        await agree(house, dice)
    assert await house.in_valkey() == await house.in_postgres()


@pytest.mark.parametrize("seed", range(4))
async def test_on_random_states_the_same_mitras_are_reachable_once_valkey_is_gone(
    fragile: House, server: Server, seed: int
) -> None:
    dice = Random(seed)
    mitra_ids = [
        await fragile.add_mitra(
            active=dice.random() < 0.8,
            online=dice.random() < 0.8,
            heard_ms=dice.choice([None, 0, STALE_MS - 1, STALE_MS, STALE_MS + 1, dice.randrange(2 * STALE_MS)]),
        )
        for _ in range(30)
    ]
    await fragile.mirror.seed()
    for _ in range(20):
        await change_something(fragile, mitra_ids, dice)
    everybody_and_nobody = [*mitra_ids, new_id()]
    mirrored = await verdicts(fragile, everybody_and_nobody)
    assert {reachable for _, reachable in mirrored.values()} == {True, False}
    server.kill()
    with trio.fail_after(30):
        while fragile.mirror.trusted:  # until the link has noticed, which the first question makes it
            await fragile.mirror.reachability(mitra_ids[0])
    assert await verdicts(fragile, everybody_and_nobody, "postgres") == mirrored


async def test_the_twin_passes_over_nobody_whose_heartbeat_postgres_may_not_have_heard_of_yet(house: House) -> None:
    late = await house.add_mitra(heard_ms=STALE_MS + 60_000)
    await house.add_mitra(heard_ms=STALE_MS + 60_001)
    assert await AvailableTwin(house.db, house.clock, STALE_MS, 60_000).find_available(5, ()) == [late]


# ---- the shared count


async def test_one_caller_counts_for_all_and_the_others_read_what_it_wrote(house: House) -> None:
    for _ in range(3):
        await house.add_mitra()
    await house.mirror.seed()
    nodes = [house.readers() for _ in range(20)]
    while not await house.read("EXISTS", KEYS.snapshot):  # a machine that stood still for 150 ms has lost it
        await nodes[0].count_available()
    await house.add_mitra()
    counts: Counter[int] = Counter()

    async def count(position: int) -> None:
        counts[(await nodes[position].count_available()).count] += 1

    async with trio.open_nursery() as nursery:
        for position in range(20):
            nursery.start_soon(count, position)
    assert counts == {3: 20}
    assert sum(node.counts for node in nodes) == nodes[0].counts
    written = json.loads(await house.read("GET", KEYS.snapshot))
    assert written == {"available_mitras": 3, "as_of": "2026-11-23T20:15:00.123Z"}
    assert SNAPSHOT_MS - RECOUNT_MS < await house.read("PTTL", KEYS.snapshot) <= SNAPSHOT_MS


async def test_while_one_counts_anew_the_others_read_the_old_value(house: House) -> None:
    readers = house.readers()
    await readers.count_available()
    await house.add_mitra()
    await house.mirror.seed()
    await house.read("PEXPIRE", KEYS.snapshot, str(SNAPSHOT_MS - RECOUNT_MS - 1))
    await house.read("SET", KEYS.snapshot_lock, "another node", "PX", "2000")
    assert (await readers.count_available()).count == 0
    await house.read("DEL", KEYS.snapshot_lock)
    assert (await readers.count_available()).count == 1
    assert await house.read("EXISTS", KEYS.snapshot_lock) == 0


@pytest.mark.parametrize("snapshot", [None, "half a wo", '{"available_mitras": 1}', "[]"])
async def test_without_a_snapshot_that_can_be_read_postgres_answers_while_another_counts(
    house: House, snapshot: str | None
) -> None:
    await house.add_mitra()
    await house.mirror.seed()
    if snapshot is not None:
        await house.read("SET", KEYS.snapshot, snapshot, "PX", str(SNAPSHOT_MS))
    await house.read("SET", KEYS.snapshot_lock, "another node", "PX", "2000")
    readers = house.readers()
    assert ((await readers.count_available()).count, readers.counts) == (1, 0)


async def test_who_was_too_slow_to_count_does_not_write_over_the_count_of_another(house: House) -> None:
    readers = house.readers()
    other = json.dumps({"available_mitras": 9, "as_of": "2026-11-23T20:15:01.000Z"})
    walk = readers._walk

    async def slow_walk(behind: Place, size: int, want: int, *exclude: str) -> tuple[int, Reply, Place] | None:
        await house.read("SET", KEYS.snapshot, other, "PX", str(SNAPSHOT_MS))
        await house.read("SET", KEYS.snapshot_lock, "another node", "PX", "2000")
        return await walk(behind, size, want, *exclude)

    readers._walk = slow_walk  # type: ignore[method-assign]
    assert (await readers.count_available()).count == 0
    assert (await house.read("GET", KEYS.snapshot)).decode() == other
    assert await house.read("GET", KEYS.snapshot_lock) == b"another node"


# ---- outages


async def killed(house: House, server: Server) -> None:
    server.kill()


async def hung(house: House, server: Server) -> None:
    server.send(signal.SIGSTOP)


async def empty(house: House, server: Server) -> None:
    server.kill()
    server.start()


async def flushed(house: House, server: Server) -> None:
    await house.read("FLUSHALL")


class LossyLink:
    """Every tenth exchange gets no answer; half of those were carried out all the same."""

    def __init__(self, link: Link, dice: Random) -> None:
        self._link = link
        self._dice = dice
        self.connect, self.identify, self.close = link.connect, link.identify, link.close

    async def exchange(self, commands: Sequence[Command]) -> list[Reply]:
        lost = self._dice.random() < 0.1
        if lost and self._dice.random() < 0.5:
            raise ConnectionResetError("lost on its way there")
        replies = await self._link.exchange(commands)
        if lost:
            raise ConnectionResetError("lost on its way back")
        return replies


async def lossy(house: House, server: Server) -> None:
    make, dice = house.valkey._make_link, Random(5)
    house.valkey._make_link = lambda: LossyLink(make(), dice)
    house.valkey._link = LossyLink(house.valkey._link, dice) if house.valkey._link else None


Fault = Callable[[House, Server], Awaitable[None]]


@pytest.mark.usefixtures("valkey_is_given_up_soon")
@pytest.mark.parametrize("fault", [killed, hung, empty, flushed, lossy])
async def test_whatever_becomes_of_valkey_answers_are_right_soon_and_cheap(
    fragile: House, server: Server, fault: Fault
) -> None:
    idle = [await fragile.add_mitra(idle_ms=90_000 - n) for n in range(8)]
    await fragile.add_mitra(max_sessions=1, sessions=1)
    await fragile.mirror.seed()
    readers, took = fragile.readers(), list[float]()
    offline = (await fragile.in_postgres())["online"]

    async def ask(times: int) -> None:
        for _ in range(times):
            for question, answer in (
                (lambda: readers.find_available(3, [idle[0]]), idle[1:4]),
                (readers.count_online, 9),
                (readers.count_available, 8),
            ):
                began = trio.current_time()
                told = await question()
                took.append(trio.current_time() - began)
                assert (told if isinstance(told, int | list) else told.count) == answer

    await fault(fragile, server)
    began = trio.current_time()
    async with trio.open_nursery() as nursery:
        for _ in range(20):
            nursery.start_soon(ask, 10)
    assert max(took) < CALL_LIMIT_SECONDS
    assert readers._twin.queries <= 3 * (2 + trio.current_time() - began)
    assert (await fragile.in_postgres())["online"] == offline


async def test_a_mitra_deactivated_while_valkey_is_away_is_gone_from_the_twin_within_a_second(
    fragile: House, server: Server
) -> None:
    mitra_id = await fragile.add_mitra()
    await fragile.mirror.seed()
    server.kill()
    readers = fragile.readers()
    assert await readers.find_available(1, ()) == [mitra_id]
    await fragile.set(mitra_id, is_active=False, is_online=False)
    await fragile.mirror.deactivated(mitra_id)
    with trio.fail_after(10):
        while await readers.find_available(1, ()):
            await trio.sleep(0.05)


@pytest.mark.usefixtures("valkey_is_given_up_soon")
@pytest.mark.parametrize("seed", range(3))
async def test_after_random_faults_the_mirror_equals_what_postgres_says(
    fragile: House, server: Server, seed: int
) -> None:
    dice = Random(seed)
    mitra_ids = [await fragile.add_mitra(max_sessions=dice.randrange(1, 4)) for _ in range(15)]
    await fragile.mirror.seed()
    for _ in range(12):
        match dice.randrange(4):
            case 0:
                server.kill()
            case 1:
                server.send_if_alive(signal.SIGSTOP)
            case 2 if fragile.valkey.up:
                await flush_if_there(fragile)
            case _:
                pass
        for _ in range(dice.randrange(1, 5)):
            await change_something(fragile, mitra_ids, dice)
        if dice.random() < 0.3:
            server.kill()
        server.send_if_alive(signal.SIGCONT)
        server.start_if_dead()
        for _ in range(dice.randrange(1, 5)):
            await change_something(fragile, mitra_ids, dice)
    await fragile.trusted()
    if await fragile.read("EXISTS", KEYS.seeded) == 0:  # flushed since, and nobody has looked
        await fragile.mirror.reachability(mitra_ids[0])
        await fragile.trusted()
    assert await fragile.in_valkey() == await fragile.in_postgres()
    await agree(fragile, dice)


async def flush_if_there(house: House) -> None:
    if house.mirror.trusted:
        await house.read("FLUSHALL")


async def test_ten_thousand_mitras_wait_in_line_again_within_five_seconds_of_a_restart_from_nothing(
    fragile: House, server: Server
) -> None:
    await fragile.db.execute(
        """INSERT INTO mitras (mitra_id, is_online, last_heartbeat_at, idle_since)
           SELECT gen_random_uuid(), true, at(%(now)s), at(%(now)s::bigint - n) FROM generate_series(1, 10000) AS n""",
        {"now": NOW},
    )
    server.kill()
    server.start()
    began = time.process_time()  # a busy machine takes longer, and no more than this of its own
    with trio.fail_after(30):
        while await fragile.readers().count_online() != 10_000 or not fragile.mirror.trusted:
            await trio.sleep(0.02)
    assert time.process_time() - began < 5.0
    assert (await fragile.readers().count_available()).count == 10_000
    assert await fragile.read("ZCARD", KEYS.waiting) == 10_000


async def test_heartbeats_and_readers_cost_postgres_no_statement_while_valkey_answers(house: House) -> None:
    mitra_ids = [await house.add_mitra() for _ in range(50)]
    await house.mirror.seed()
    readers = house.readers()
    before = -1
    for turn in range(5):
        before, failures = house.db.pool.statements, house.valkey.failures
        async with trio.open_nursery() as nursery:
            for beat in range(20):
                for mitra_id in mitra_ids:
                    nursery.start_soon(house.mirror.heartbeat, mitra_id, NOW + 20 * turn + beat)
                nursery.start_soon(readers.find_available, 5, ())
                nursery.start_soon(readers.count_online)
        await readers.count_available()
        if house.valkey.failures == failures and house.mirror.trusted:
            break  # it answered all along, as it does unless the machine stands still for 150 ms
        await house.trusted()
    assert house.db.pool.statements == before
