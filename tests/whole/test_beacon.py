"""Customers see how many mitras are available, on the socket as by HTTP, and pairing finds the same ones."""

import pytest
import trio

from halo.net import beacon
from halo.store import available
from tests.whole.house import PATIENCE_SECONDS, House, Person, open_house
from tests.whole.wire import Wire, open_wire

LOBBY = "/v1/lobby"


async def hear(wire: Wire, available: int) -> None:
    """Until the socket says so."""
    with trio.fail_after(PATIENCE_SECONDS):
        while (told := await wire.receive())["type"] != "beacon" or told["available_mitras"] != available:
            pass


async def counted(house: House, customer: Person, available: int) -> None:
    with trio.fail_after(PATIENCE_SECONDS):
        while (await house.call(customer, "GET", "/api/customer/beacon"))["available_mitras"] != available:
            await trio.sleep(0.05)


async def test_the_beacon_follows_who_comes_goes_and_is_full(
    database_url: str, valkey_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a tenth of the pauses, which `tests/net/test_beacon.py` proves on a clock of its own."""
    monkeypatch.setattr(beacon, "LOOK_SECONDS", 0.1)
    monkeypatch.setattr(beacon, "QUIET_SECONDS", 0.2)
    monkeypatch.setattr(available, "RECOUNT_MS", 200)
    async with open_house(database_url, valkey_url) as house:
        await house.settle()
        customer, mitra, other = [await house.admit(kind) for kind in ("customer", "mitra", "mitra")]
        async with open_wire(house, LOBBY, customer) as wire:
            assert (await wire.receive())["type"] == "welcome"
            assert (await wire.receive())["available_mitras"] == 0
            await house.go_online(mitra, rooms=1)
            await house.go_online(other)
            await hear(wire, 2)
            await house.call(other, "POST", "/api/mitra/status/offline")
            await hear(wire, 1)
            await house.pair(customer, mitra)
            await hear(wire, 0)
            overview = await house.operate("GET", "/api/overview")
            assert (overview["mitras_online"], overview["mitras_available"]) == (1, 0)
        await counted(house, customer, 0)
        await house.admit("mitra", user_id=mitra.user_id, max_sessions=2)
        await counted(house, customer, 1)


async def test_a_mitra_hears_no_beacon(database_url: str, valkey_url: str) -> None:
    async with open_house(database_url, valkey_url) as house:
        mitra = await house.admit("mitra")
        async with open_wire(house, LOBBY, mitra) as wire:
            assert (await wire.receive())["type"] == "welcome"
            await wire.send("ping", id="1")
            assert (await wire.receive())["type"] == "pong"


async def test_a_heartbeat_through_the_lobby_costs_postgres_no_statement(database_url: str, valkey_url: str) -> None:
    async with open_house(database_url, valkey_url) as house:
        await house.settle()
        mitra = await house.admit("mitra")
        await house.go_online(mitra)
        async with open_wire(house, LOBBY, mitra) as wire:
            await wire.receive()
            statements, began = house.own.parts.db.pool.statements, trio.current_time()
            for number in range(600):
                await wire.send("heartbeat", id=str(number))
                assert (await wire.receive())["type"] == "heartbeat_ack"
            # The daemons' own looks go on meanwhile, whoever beats: some ten a second.
            assert house.own.parts.db.pool.statements - statements < 20 + 20 * (trio.current_time() - began)
