"""What a pong proves: that the frame before its ping has arrived, at the one who was asked, and nothing else."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
from trio.testing import MockClock

from halo.net.receipts import KEPT_SECONDS, Receipts
from tests.whole.house import PATIENCE_SECONDS, House, open_house
from tests.whole.wire import PONG, Wire, frame, open_wire

RECEIPT = "offer:1"


async def test_a_pong_acknowledges_what_its_ping_was_asked_for(autojump_clock: MockClock) -> None:
    receipts = Receipts()
    mark = receipts.ask("u-1", RECEIPT)
    assert not receipts.has("u-1", RECEIPT)
    receipts.note(mark)
    assert receipts.has("u-1", RECEIPT)
    assert not receipts.has("u-1", "offer:2")
    assert not receipts.has("u-2", RECEIPT)


async def test_a_pong_that_nobody_asked_for_is_nothing(autojump_clock: MockClock) -> None:
    receipts, others = Receipts(), Receipts()
    receipts.note(b"")
    receipts.note(others.ask("u-1", RECEIPT))
    assert not receipts.has("u-1", RECEIPT)
    receipts.ask("u-1", RECEIPT)
    receipts.note(others.ask("u-1", RECEIPT))
    assert not receipts.has("u-1", RECEIPT), "a mark cannot be made up by who knows the names"
    assert len(receipts) == 1


async def test_what_is_old_is_forgotten_asked_or_heard(autojump_clock: MockClock) -> None:
    receipts = Receipts()
    receipts.ask("u-1", "silent")
    receipts.note(receipts.ask("u-1", "heard"))
    await trio.sleep(KEPT_SECONDS - 1)
    receipts.note(receipts.ask("u-1", "young"))
    receipts.forget_old()
    assert len(receipts) == 3
    await trio.sleep(2)
    receipts.forget_old()
    assert len(receipts) == 1
    assert receipts.has("u-1", "young")


@asynccontextmanager
async def open_lobby(database_url: str, valkey_url: str) -> AsyncIterator[tuple[House, str, Wire]]:
    async with open_house(database_url, valkey_url) as house:
        mitra = await house.admit("mitra")
        async with open_wire(house, "/v1/lobby", mitra) as wire:
            wire.answers_pings = False
            assert (await wire.receive())["type"] == "welcome"
            yield house, mitra.user_id, wire


async def until_acknowledged(house: House, user_id: str) -> None:
    with trio.fail_after(PATIENCE_SECONDS):
        while not house.own.parts.connections.acknowledged(user_id, RECEIPT):
            await trio.sleep(0.005)


async def test_a_real_socket_is_asked_and_its_pong_counts_and_no_other_frame_does(
    database_url: str, valkey_url: str
) -> None:
    async with open_lobby(database_url, valkey_url) as (house, user_id, wire):
        connections = house.own.parts.connections
        connections.ask_receipt(user_id, RECEIPT)
        await wire.send_bytes(frame(PONG, b""))  # a keepalive's
        await wire.send_bytes(frame(PONG, b"made up."))
        await wire.send("ping", id="1")
        assert (await wire.receive())["type"] == "pong"
        assert not connections.acknowledged(user_id, RECEIPT)
        wire.answers_pings = True
        connections.ask_receipt(user_id, RECEIPT)
        await wire.send("ping", id="2")
        assert (await wire.receive())["type"] == "pong"  # on the way the wire has answered
        await until_acknowledged(house, user_id)


async def test_only_the_sockets_that_were_told_are_asked(database_url: str, valkey_url: str) -> None:
    async with open_lobby(database_url, valkey_url) as (house, user_id, wire):
        connections = house.own.parts.connections
        wire.answers_pings = True
        connections.ask_receipt(user_id, RECEIPT, "the chat of another session")
        await wire.send("ping", id="1")
        assert (await wire.receive())["type"] == "pong"
        assert not connections.acknowledged(user_id, RECEIPT)
        assert connections.is_in_lobby(user_id)
        assert not connections.is_in_lobby("somebody else")


async def test_the_last_word_of_a_session_is_acknowledged_though_its_socket_closes(
    database_url: str, valkey_url: str
) -> None:
    async with open_house(database_url, valkey_url) as house:
        _, mitra, session_id = await house.open_pair()
        async with house.chat(session_id, mitra) as chat:
            await chat.expect("welcome")
            await house.operate("POST", f"/api/sessions/{session_id}/end", {"reason": "a trial"})
            await chat.expect("session_ended")
            assert await chat.wait_closed() == 1000
        info = await house.db.fetch_one(
            "SELECT version FROM chat_sessions WHERE session_id = %(id)s", {"id": session_id}
        )
        assert info is not None
        receipt = f"session:{session_id}:mitra@{info.version}"
        with trio.fail_after(PATIENCE_SECONDS):
            while not house.own.parts.connections.acknowledged(mitra.user_id, receipt):
                await trio.sleep(0.005)


@pytest.mark.parametrize("user_id", ["u-1", "u-2"])
async def test_marks_are_short_and_differ(autojump_clock: MockClock, user_id: str) -> None:
    receipts = Receipts()
    marks = {receipts.ask(user_id, f"offer:{number}") for number in range(1_000)}
    assert len(marks) == 1_000
    assert {len(mark) for mark in marks} == {8}
