"""`Valkey.hand_in` and `Mirror.hand_in` over a real Valkey: nobody waits, and each is told exactly once, whatever becomes of the server."""

import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from halo.availability import Beaten
from halo.clock import rfc3339
from halo.errors import MitraDeactivated, MitraOffline
from halo.store import valkey as room
from halo.store.mirror_keys import NOT_ACTIVE, NOT_ONLINE
from halo.store.valkey import FAILURES_TO_OPEN, ROUND_TRIP_SECONDS, Valkey, open_valkey
from halo.store.valkey_batch import Unanswered, Variadic
from tests.store.test_mirror import KEYS, NOW, A, B, C, House, mitra, open_house
from tests.store.test_valkey import GETS
from tests.store.valkey_server import Server, until

UNANSWERED = Unanswered.UNANSWERED
REFUSED = Variadic[str, Any](lambda items: ("NOSUCHCOMMAND", *items), lambda reply, _: reply)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    made = Server(tmp_path)
    made.start()
    yield made
    made.kill()


async def settled_all(valkey: Valkey) -> None:
    """Whatever was handed in before has been settled by the time that this is answered."""
    await valkey.call(("PING",))


# ---- Valkey


async def test_what_is_handed_in_is_answered_once_to_each_in_its_place(server: Server) -> None:
    told: list[tuple[int, object]] = []
    async with open_valkey(server.url) as valkey:
        await valkey.call(*(("SET", f"k{n}", f"v{n}") for n in range(100)))
        before = valkey.round_trips
        for n in range(101):
            assert valkey.hand_in(GETS, f"k{n}", lambda answer, n=n: told.append((n, answer)))  # type: ignore[misc]
        assert told == []  # not before the caller goes on
        await settled_all(valkey)
        assert valkey.round_trips - before == 1
        assert told == [*((n, f"v{n}".encode()) for n in range(100)), (100, None)]
        await settled_all(valkey)
        assert len(told) == 101
        assert valkey.failures == 0


async def test_what_nobody_waits_for_gathers_and_leaves_by_itself(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "PATIENCE_SECONDS", 0.3)
    told: list[object] = []
    async with open_valkey(server.url) as valkey:
        before = valkey.round_trips
        for n in range(5):
            assert valkey.hand_in(GETS, f"k{n}", told.append)
            await trio.sleep(0.01)
        with trio.fail_after(10):
            while len(told) < 5:
                await trio.sleep(0.01)
        assert valkey.round_trips - before == 1


async def test_whoever_waits_takes_what_was_handed_in_along_at_once(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "PATIENCE_SECONDS", 3600)
    told: list[object] = []
    async with open_valkey(server.url) as valkey:
        assert valkey.hand_in(GETS, "k", told.append)
        await trio.sleep(0.01)
        with trio.fail_after(10):
            await valkey.ask(GETS, "k")
            assert valkey.hand_in(GETS, "k", told.append)
            await settled_all(valkey)
        assert told == [None, None]


async def test_those_who_ask_and_those_who_hand_in_share_a_question(server: Server) -> None:
    told: list[object] = []
    async with open_valkey(server.url) as valkey:
        await valkey.call(("SET", "a", "1"), ("SET", "b", "2"))
        valkey.hand_in(GETS, "a", told.append)
        assert await valkey.ask(GETS, "b") == b"2"
        assert told == [b"1"]


async def test_a_question_that_the_server_refuses_is_unanswered(server: Server) -> None:
    told: list[object] = []
    async with open_valkey(server.url) as valkey:
        valkey.hand_in(REFUSED, "x", told.append)
        valkey.hand_in(GETS, "x", told.append)
        await settled_all(valkey)
        assert told == [UNANSWERED, None]
        assert valkey.failures == 1


async def test_who_is_in_flight_or_in_the_queue_when_the_server_dies_is_told_once_and_then_nothing_is_taken(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[object] = []
    async with open_valkey(server.url) as valkey:
        monkeypatch.setattr(room, "ROUND_TRIP_SECONDS", ROUND_TRIP_SECONDS)
        server.send(signal.SIGSTOP)
        handed_in = 0
        with trio.fail_after(10):
            while valkey.hand_in(GETS, "x", told.append):
                handed_in += 1
                await trio.sleep(0.001)
        assert valkey.breaker == "open"
        assert valkey.round_trips_failed >= FAILURES_TO_OPEN
        assert told == [UNANSWERED] * handed_in
        assert valkey.failures == valkey.calls == handed_in + 1
        monkeypatch.setattr(room, "ROUND_TRIP_SECONDS", 15.0)
        server.send(signal.SIGCONT)
        await until(lambda: valkey.breaker == "closed")
        await settled_all(valkey)
        assert told == [UNANSWERED] * handed_in


@pytest.mark.parametrize("in_flight", [False, True])
async def test_who_is_not_answered_when_valkey_is_closed_is_told_so(server: Server, in_flight: bool) -> None:
    told: list[object] = []
    async with open_valkey(server.url) as valkey:
        server.send(signal.SIGSTOP)
        before = valkey.round_trips
        valkey.hand_in(GETS, "x", told.append)
        if in_flight:
            await until(lambda: valkey.round_trips > before)
            valkey.hand_in(GETS, "x", told.append)
    server.send(signal.SIGCONT)
    assert told == [UNANSWERED] * (1 + in_flight)
    assert not valkey.hand_in(GETS, "x", told.append)


async def test_a_listener_with_a_fault_harms_nobody(server: Server, claims_errors: list[Any]) -> None:
    def fail(_: object) -> None:
        raise LookupError("quotes what was sent")

    told: list[object] = []
    async with open_valkey(server.url) as valkey:
        await valkey.call(("SET", "x", "1"))
        valkey.hand_in(GETS, "x", fail)
        valkey.hand_in(GETS, "x", told.append)
        assert await valkey.ask(GETS, "x") == b"1"
        assert told == [b"1"]
        assert valkey.breaker == "closed"
    (record,) = claims_errors
    assert "valkey_listener_failed" in record.getMessage()
    assert "quotes" not in record.getMessage()


async def test_a_listener_may_hand_in_the_next(server: Server) -> None:
    told: list[object] = []

    def go_on(answer: object) -> None:
        told.append(answer)
        if len(told) < 3:
            assert valkey.hand_in(GETS, "x", go_on)

    async with open_valkey(server.url) as valkey:
        valkey.hand_in(GETS, "x", go_on)
        await until(lambda: len(told) == 3)
        assert told == [None] * 3


# ---- the mirror


def beat(house: House, told: dict[str, Beaten], mitra_id: str, at: int = NOW) -> bool:
    """Each may be told once."""

    def settled(beaten: Beaten) -> None:
        assert mitra_id not in told
        told[mitra_id] = beaten

    return house.mirror.hand_in(mitra_id, at, settled)


async def test_pings_that_are_handed_in_are_taken_or_refused_as_those_that_are_waited_for(server: Server) -> None:
    told: dict[str, Any] = {}
    async with open_house(server) as house:
        for mitra_id in (A, B, C, mitra(9)):
            assert beat(house, told, mitra_id, NOW + 7)
        await settled_all(house.valkey)
        assert told.pop(A) is None
        assert [type(told[mitra_id]) for mitra_id in (B, C, mitra(9))] == [MitraOffline, MitraDeactivated, MitraOffline]
        assert await house.heartbeat(A) == rfc3339(NOW + 7)
        assert house.mirror.take_unmirrored() == {A: NOW + 7}
        assert house.truth.asked == []


async def test_a_refused_ping_is_forgotten_as_one_that_was_waited_for(server: Server) -> None:
    told: dict[str, Any] = {}
    async with open_house(server) as house:
        await house.mirror.heartbeat(A, NOW)
        await house.mirror.went_offline(A)
        beat(house, told, A)
        await settled_all(house.valkey)
        assert type(told[A]) is MitraOffline
        assert house.mirror.take_unmirrored() == {}


@pytest.mark.parametrize("verdict", [NOT_ACTIVE, NOT_ONLINE])
async def test_postgres_refuses_as_the_mirror_does_when_it_must_decide(server: Server, verdict: int) -> None:
    async with open_house(server) as house:
        await house.read("FLUSHALL")
        with pytest.raises(MitraDeactivated if verdict == NOT_ACTIVE else MitraOffline):
            await house.mirror.heartbeat(C if verdict == NOT_ACTIVE else B, NOW)


async def distrusted(house: House) -> None:
    await house.read("FLUSHALL")
    house.truth.open = trio.Event()  # and Postgres does not tell
    await house.mirror.read(("GET", KEYS.seeded))  # who asks the mirror finds it out


async def away(house: House) -> None:
    house.server.kill()
    await until(lambda: house.valkey.breaker == "open")


@pytest.mark.parametrize("lost", [distrusted, away])
async def test_without_a_mirror_to_be_trusted_nothing_is_taken_in(server: Server, lost: Callable[[House], Any]) -> None:
    told: dict[str, Any] = {}
    async with open_house(server) as house:
        await lost(house)
        assert not beat(house, told, A)
        assert told == {}
        assert house.mirror.take_unmirrored() == {}


async def test_a_ping_to_a_mirror_that_was_flushed_is_undecided_and_ends_the_trust(server: Server) -> None:
    told: dict[str, Any] = {}
    async with open_house(server) as house:
        standing = house.mirror.standing
        await house.read("FLUSHALL")
        assert beat(house, told, A)
        await settled_all(house.valkey)
        assert told == {A: "undecided"}
        assert house.mirror.take_unmirrored() == {}
        await house.trusted()
        assert house.mirror.standing != standing


async def test_a_ping_whose_server_was_met_anew_meanwhile_is_undecided(server: Server) -> None:
    """It may have been answered by a server that came back empty."""
    told: dict[str, Any] = {}
    async with open_house(server) as house:
        beat(house, told, A)
        for tell in house.valkey.on_ready:
            tell()
        await settled_all(house.valkey)
        assert told == {A: "undecided"}


async def test_a_ping_that_the_server_refuses_is_undecided_and_costs_nobody_the_mirror(server: Server) -> None:
    """Silence and refusals are no flush: a full server would have the mirror built anew at every ping."""
    told: dict[str, Any] = {}
    async with open_house(server) as house:
        standing = house.mirror.standing
        await house.read("SET", KEYS.online, "not a set")
        beat(house, told, A)
        await settled_all(house.valkey)
        assert told == {A: "undecided"}
        assert house.mirror.standing == standing


async def test_a_ping_that_dies_with_its_server_is_undecided(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    told: dict[str, Any] = {}
    async with open_house(server) as house:
        monkeypatch.setattr(room, "ROUND_TRIP_SECONDS", ROUND_TRIP_SECONDS)
        server.send(signal.SIGSTOP)
        assert beat(house, told, A)
        await until(lambda: bool(told))
        assert told == {A: "undecided"}
        assert house.mirror.take_unmirrored() == {}
        server.send(signal.SIGCONT)
