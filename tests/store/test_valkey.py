"""A real Valkey, really killed, hung and restarted empty. Times are real, with slack for a busy machine."""

import gc
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
import trio_asyncio

from halo.parsing import valkey_url
from halo.store import valkey as room
from halo.store.mirror_twin import PACE_SECONDS
from halo.store.valkey import (
    CALL_SECONDS,
    FAILURES_TO_OPEN,
    LINGER_SECONDS,
    ROUND_TRIP_SECONDS,
    Valkey,
    ValkeyUnavailable,
    open_valkey,
)
from halo.store.valkey_batch import VARIADIC_ITEMS, Variadic
from halo.store.valkey_link import DirectLink, ValkeyUrlRefused, choose_link
from tests.store.valkey_server import RETURN_LIMIT_SECONDS, Server, start_on_tcp, until

CALL_LIMIT_SECONDS = 2.0
"""A hung server would hold a call for ever. That a call is given 250 ms at most is read from the constants, for a busy machine adds to it."""

QUERY_SECONDS = 0.03
"""For one question of the twin, of a millisecond on a quiet machine."""

HASTY = pytest.mark.usefixtures("valkey_is_given_up_soon")


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    made = Server(tmp_path)
    made.start()
    yield made
    made.kill()


GETS = Variadic[str, Any](lambda names: ("MGET", *names), lambda reply, _: reply)


async def fails(valkey: Valkey) -> float:
    """How long a call took to fail."""
    began = trio.current_time()
    with pytest.raises(ValkeyUnavailable):
        await valkey.call(("GET", "x"))
    return trio.current_time() - began


async def answered(valkey: Valkey) -> bool:
    try:
        await valkey.call(("GET", "x"))
    except ValkeyUnavailable:
        return False
    return True


def test_a_call_and_the_twin_after_it_fit_into_the_250_ms_of_the_specification() -> None:
    """What else is needed: a batch under way, which the next one waits for, and the pace and the query of the twin."""
    assert LINGER_SECONDS + ROUND_TRIP_SECONDS < CALL_SECONDS  # a call outlives a round trip that has just hung
    assert CALL_SECONDS + PACE_SECONDS + QUERY_SECONDS <= 0.25


async def test_commands_of_one_call_are_answered_in_order(server: Server) -> None:
    async with open_valkey(server.url) as valkey:
        replies = await valkey.call(("SET", "a", "1"), ("GET", "a"), ("DEL", "a"), ("GET", "a"))

    assert list(replies) == [b"OK", b"1", 1, None]


async def test_a_hundred_callers_share_one_round_trip_and_each_gets_its_own_answer(server: Server) -> None:
    found: dict[int, bytes] = {}

    async def ask(n: int) -> None:
        found[n] = await valkey.ask(GETS, f"k{n}")

    async with open_valkey(server.url) as valkey:
        await valkey.call(*(("SET", f"k{n}", f"v{n}") for n in range(100)))
        before = valkey.round_trips
        async with trio.open_nursery() as nursery:
            for n in range(100):
                nursery.start_soon(ask, n)
        assert valkey.round_trips - before == 1
        (stats,) = await valkey.call(("INFO", "commandstats"))

    assert found == {n: f"v{n}".encode() for n in range(100)}
    assert b"cmdstat_mget:calls=1," in stats


async def test_questions_and_commands_of_different_callers_travel_together(server: Server) -> None:
    async with open_valkey(server.url) as valkey:
        before = valkey.round_trips
        async with trio.open_nursery() as nursery:
            nursery.start_soon(valkey.ask, GETS, "a")
            nursery.start_soon(valkey.call, ("SET", "b", 1))
            nursery.start_soon(valkey.ask, Variadic[str, Any](GETS.compose, GETS.split), "c")
        assert valkey.round_trips - before == 1


async def test_more_items_than_one_command_takes_are_split_and_stay_in_place(server: Server) -> None:
    count = VARIADIC_ITEMS * 2 + 7
    found: dict[int, bytes] = {}

    async def ask(n: int) -> None:
        found[n] = await valkey.ask(GETS, f"k{n % 50}")

    async with open_valkey(server.url) as valkey:
        await valkey.call(*(("SET", f"k{n}", f"v{n}") for n in range(50)))
        async with trio.open_nursery() as nursery:
            for n in range(count):
                nursery.start_soon(ask, n)

    assert found == {n: f"v{n % 50}".encode() for n in range(count)}


async def test_a_cancelled_caller_does_not_break_the_batch_for_the_others(server: Server) -> None:
    found: list[bytes] = []

    async def ask(scope: trio.CancelScope) -> None:
        with scope:
            found.append(await valkey.ask(GETS, "k"))

    async with open_valkey(server.url) as valkey:
        await valkey.call(("SET", "k", "v"))
        scopes = [trio.CancelScope() for _ in range(10)]
        before = valkey.round_trips
        server.send(signal.SIGSTOP)
        async with trio.open_nursery() as nursery:
            for scope in scopes:
                nursery.start_soon(ask, scope)
            await until(lambda: valkey.round_trips > before)
            for scope in scopes[::2]:
                scope.cancel()
            await trio.testing.wait_all_tasks_blocked()
            server.send(signal.SIGCONT)

    assert found == [b"v"] * 5
    assert valkey.failures == 0


async def test_a_command_that_the_server_refuses_fails_its_caller_only(server: Server) -> None:
    outcomes: list[str] = []

    async def good() -> None:
        assert await valkey.call(("GET", "set")) == [b"1"]
        outcomes.append("good")

    async def bad() -> None:
        with pytest.raises(ValkeyUnavailable, match="WRONGTYPE"):
            await valkey.call(("SADD", "set", "x"))
        outcomes.append("bad")

    async with open_valkey(server.url) as valkey:
        await valkey.call(("SET", "set", "1"))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(good)
            nursery.start_soon(bad)

        assert sorted(outcomes) == ["bad", "good"]
        assert valkey.breaker == "closed"
        assert valkey.round_trips_failed == 0


async def test_a_question_that_the_server_refuses_fails_all_who_asked_it(server: Server) -> None:
    wrong = Variadic[str, Any](lambda items: ("NOSUCHCOMMAND", *items), lambda reply, _: reply)
    refused = 0

    async def ask(n: int) -> None:
        nonlocal refused
        with pytest.raises(ValkeyUnavailable):
            await valkey.ask(wrong, str(n))
        refused += 1

    async with open_valkey(server.url) as valkey, trio.open_nursery() as nursery:
        for n in range(5):
            nursery.start_soon(ask, n)

    assert refused == 5


async def test_a_killed_server_opens_the_breaker_and_its_return_is_noticed_within_two_seconds(server: Server) -> None:
    ready: list[int] = []
    async with open_valkey(server.url) as valkey:
        valkey.on_ready.append(lambda: ready.append(valkey.generation))
        await valkey.call(("SET", "x", "1"))
        assert valkey.generation == 1
        server.kill()

        assert max([await fails(valkey) for _ in range(FAILURES_TO_OPEN + 2)]) < CALL_LIMIT_SECONDS
        await until(lambda: valkey.breaker == "open")
        round_trips = valkey.round_trips
        assert max([await fails(valkey) for _ in range(100)]) < CALL_LIMIT_SECONDS
        assert valkey.round_trips - round_trips < 10  # probes may go out meanwhile; nobody waits for them
        assert valkey.breaker_opened == 1

        server.start()
        took = await until(lambda: valkey.breaker == "closed")
        assert took < RETURN_LIMIT_SECONDS
        assert ready == [2]
        assert await valkey.call(("GET", "x")) == [None]


async def test_death_and_return_are_noticed_while_nobody_calls(server: Server) -> None:
    async with open_valkey(server.url) as valkey:
        server.kill()
        await until(lambda: valkey.breaker == "open")
        server.start()
        await until(lambda: valkey.generation == 2)
        assert valkey.calls == 0


async def test_a_server_restarted_between_two_calls_is_a_new_generation_before_it_is_believed(server: Server) -> None:
    async with open_valkey(server.url) as valkey:
        await valkey.call(("SET", "x", "1"))
        server.kill()
        server.start()

        # The first call finds the connection gone; none may be answered by the new server under the old generation.
        with trio.fail_after(RETURN_LIMIT_SECONDS):
            while not await answered(valkey):
                await trio.sleep(0.005)
        assert valkey.generation == 2


@HASTY
async def test_no_call_to_a_hung_server_lasts_longer_than_its_budget_and_the_breaker_opens(server: Server) -> None:
    took: list[float] = []

    async def call_often() -> None:
        took.extend([await fails(valkey) for _ in range(8)])

    async with open_valkey(server.url) as valkey:
        await valkey.call(("GET", "x"))
        server.send(signal.SIGSTOP)
        async with trio.open_nursery() as nursery:
            for _ in range(20):
                nursery.start_soon(call_often)
        assert max(took) < CALL_LIMIT_SECONDS
        assert valkey.breaker == "open"

        server.send(signal.SIGCONT)
        await until(lambda: valkey.breaker == "closed")
        assert await valkey.call(("SET", "x", "1")) == [b"OK"]
        assert valkey.generation == 2


async def test_a_caller_who_waits_behind_a_hung_round_trip_keeps_to_its_own_budget(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "CALL_SECONDS", CALL_SECONDS)  # and the round trip would go on for much longer
    async with open_valkey(server.url) as valkey, trio.open_nursery() as nursery:
        before = valkey.round_trips
        server.send(signal.SIGSTOP)
        nursery.start_soon(fails, valkey)
        await until(lambda: valkey.round_trips > before)
        with pytest.raises(ValkeyUnavailable, match=f"within {CALL_SECONDS} s"):
            await valkey.call(("GET", "x"))


async def test_those_who_wait_when_the_breaker_opens_are_told_at_once(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "ROUND_TRIP_SECONDS", ROUND_TRIP_SECONDS)  # and the call would wait for much longer
    async with open_valkey(server.url) as valkey:
        server.send(signal.SIGSTOP)
        await until(lambda: valkey.round_trips_failed == FAILURES_TO_OPEN - 1)
        # The last round trip before the breaker opens is on its way; ours waits behind it, and never leaves.
        with pytest.raises(ValkeyUnavailable, match=f"within {ROUND_TRIP_SECONDS} s"):
            await valkey.call(("GET", "x"))
        assert valkey.breaker == "open"
        assert valkey.round_trips_failed == FAILURES_TO_OPEN


async def test_a_link_that_was_closed_does_not_connect_again_in_silence(server: Server) -> None:
    async with trio_asyncio.open_loop():
        link = choose_link(server.url, "")()
        await link.connect()
        assert await link.exchange([("PING",)]) == [b"PONG"]
        await link.close()
        with pytest.raises(ConnectionResetError):
            await link.exchange([("PING",)])


async def test_only_one_probe_at_a_time_asks_for_a_server_that_is_away(server: Server) -> None:
    async with open_valkey(server.url) as valkey:
        server.kill()
        await until(lambda: valkey.breaker == "open")
        before = valkey.round_trips
        with trio.move_on_after(1.3):
            while True:
                await fails(valkey)
                await trio.sleep(0.001)
        assert 1 <= valkey.round_trips - before <= 3


@HASTY
@pytest.mark.parametrize("fault", [signal.SIGSTOP, signal.SIGKILL])
async def test_closing_does_not_wait_for_a_server_that_is_gone(server: Server, fault: signal.Signals) -> None:
    async with trio.open_nursery() as nursery:
        async with open_valkey(server.url) as valkey:
            await valkey.call(("GET", "x"))
            before = valkey.round_trips
            server.send(fault)
            # More than the socket's buffers hold, so that bytes are left unsent.
            nursery.start_soon(swallow, valkey, ("SET", "x", b"x" * 8_000_000))
            await until(lambda: valkey.round_trips > before)
            began = trio.current_time()
        assert trio.current_time() - began < 1.0


async def test_a_link_is_closed_also_when_the_end_comes_while_it_is_being_given_up(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A close that is cancelled would leave the socket to the garbage collector: `_hang_up` has let go of the link by then."""
    begun, closed, close = trio.Event(), [], DirectLink.close

    async def close_slowly(link: DirectLink) -> None:
        begun.set()
        await trio.sleep(0.01)
        await close(link)
        closed.append(link)

    monkeypatch.setattr(DirectLink, "close", close_slowly)
    async with open_valkey(server.url) as valkey:
        await valkey.call(("GET", "x"))
        server.kill()
        with trio.fail_after(RETURN_LIMIT_SECONDS):
            await begun.wait()
    assert len(closed) == 1


async def swallow(valkey: Valkey, command: tuple[Any, ...]) -> None:
    with pytest.raises(ValkeyUnavailable):
        await valkey.call(command)


async def test_a_call_after_closing_fails_at_once(server: Server) -> None:
    async with open_valkey(server.url) as valkey:
        pass
    assert await fails(valkey) < CALL_LIMIT_SECONDS
    assert valkey.round_trips == 1  # its own, when it was opened


async def test_opening_without_a_server_succeeds_and_finds_it_when_it_comes(tmp_path: Path) -> None:
    server = Server(tmp_path)
    try:
        began = trio.current_time()
        async with open_valkey(server.url) as valkey:
            assert trio.current_time() - began < 1.0
            assert valkey.generation == 0
            assert await fails(valkey) < CALL_LIMIT_SECONDS
            server.start()
            with trio.fail_after(RETURN_LIMIT_SECONDS):
                await valkey.wait_up()
            assert valkey.generation == 1
    finally:
        server.kill()


async def test_a_password_that_is_wrong_counts_as_away(server: Server) -> None:
    async with open_valkey(server.url) as owner:
        await owner.call(("CONFIG", "SET", "requirepass", "right"))
    async with open_valkey(f"unix://:wrong@{server.socket}") as valkey:
        assert await fails(valkey) < CALL_LIMIT_SECONDS
        assert valkey.generation == 0
    async with open_valkey(f"unix://:right@{server.socket}") as valkey:
        assert await answered(valkey)


@pytest.mark.filterwarnings(
    "ignore:Exception ignored in. <function AbstractConnection.__del__:pytest.PytestUnraisableExceptionWarning"
)
async def test_a_cluster_is_reached_through_its_own_scheme(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """redis-py's cluster client forgets a connection whose opening is cancelled, and scolds when it is collected: here, not later."""
    server, port = start_on_tcp(tmp_path, "--cluster-enabled", "yes")
    try:
        async with open_valkey(server.url) as direct:
            await direct.call(("CLUSTER", "ADDSLOTSRANGE", 0, 16383))
            with trio.fail_after(10):
                while b"cluster_state:ok" not in (await direct.call(("CLUSTER", "INFO")))[0]:
                    await trio.sleep(0.02)
        async with open_valkey(f"redis+cluster://127.0.0.1:{port}", "{halo}:") as valkey:
            assert await valkey.call(("SET", "{halo}:a", "1"), ("MGET", "{halo}:a", "{halo}:b")) == [
                b"OK",
                [b"1", None],
            ]
            monkeypatch.undo()  # of the patience with a healthy one
            server.kill()
            assert await fails(valkey) < CALL_LIMIT_SECONDS
            await until(lambda: valkey.breaker == "open")
            assert valkey.generation == 1
    finally:
        server.kill()
        gc.collect()


@pytest.mark.parametrize("url", ["", "valkey://x", "unix://", "http://localhost", "redis"])
async def test_an_unknown_url_is_refused_in_a_sentence(url: str) -> None:
    with pytest.raises(ValkeyUrlRefused, match="HALO_VALKEY_URL must begin with"):
        async with open_valkey(url):
            raise AssertionError("opened")


@pytest.mark.parametrize(
    "url", ["redis://v", "rediss://:word@v:6380/1", "unix:///run/v", "redis+cluster://v:1", "rediss+cluster://u:p@v:1"]
)
def test_every_url_that_the_settings_take_makes_a_link(url: str) -> None:
    assert valkey_url(url) == url
    assert callable(choose_link(url, "{halo}:"))


@pytest.mark.parametrize("url", ["valkey://v", "http://v", "unix+cluster:///run/v", "tls+cluster://v"])
def test_no_url_that_makes_no_link_is_taken_by_the_settings(url: str) -> None:
    with pytest.raises(ValueError, match=r"rediss\+cluster://"):
        valkey_url(url)
    with pytest.raises(ValkeyUrlRefused):
        choose_link(url, "{halo}:")


@pytest.mark.parametrize("prefix", ["", "halo:", "{}:"])
async def test_a_cluster_without_a_hash_tag_is_refused(prefix: str) -> None:
    with pytest.raises(ValkeyUrlRefused, match="hash tag"):
        async with open_valkey("redis+cluster://127.0.0.1:1", prefix):
            raise AssertionError("opened")


async def test_nothing_of_asyncio_leaks_into_the_callers_task(server: Server) -> None:
    async with open_valkey(server.url):
        assert trio_asyncio.current_loop.get() is None


def count_descriptors() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


async def test_no_file_descriptor_is_left_after_an_outage(server: Server) -> None:
    before = count_descriptors()
    async with open_valkey(server.url) as valkey:
        server.kill()
        await until(lambda: valkey.breaker == "open")
        server.start()
        await until(lambda: valkey.breaker == "closed")
    assert count_descriptors() <= before
