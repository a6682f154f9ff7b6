"""Nothing of halo's that lives long is a cycle: `halo/collector.py` sets the old aside for good, so reference counts alone must free it.

Sessions and sockets come, do all that they can do, and go, with the collector switched off; what it then finds is nobody's but HTTP's, whose
cycles last for one request.
"""

import gc
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from typing import Any

import pytest
import trio

from halo.collector import LOOKED_SECONDS, LOOKS, STAYING_OBJECTS, Tidying, spare_the_old
from tests.whole.house import PATIENCE_SECONDS, House, open_house
from tests.whole.wire import chat_path, open_wire

LONG_LIVED = (
    "halo.actors.", "halo.session.", "halo.net.chat.", "halo.net.connection.", "halo.net.handshake.", "halo.net.limits.",
    "halo.net.lobby.", "halo.net.tap.", "halo.net.tokens.", "trio_websocket.", "wsproto.",
)  # fmt: skip


@contextmanager
def switched_off() -> Iterator[None]:
    """What was there before, which is all that a worker has ever imported and run, is not looked through again."""
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        gc.unfreeze()


def collect_by_type() -> Counter[str]:
    """What only the collector can free, by type."""
    gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        gc.collect()
        return Counter(f"{type(found).__module__}.{type(found).__qualname__}" for found in gc.garbage)
    finally:
        gc.set_debug(0)
        gc.garbage.clear()


async def live_a_session(house: House) -> None:
    """Pair, chat, prolong, leave without a word, come back, end."""
    customer, mitra, session_id = await house.open_pair()
    async with open_wire(house, "/v1/lobby", mitra) as lobby, open_wire(house, chat_path(session_id), mitra) as hers:
        await lobby.expect("welcome")
        await lobby.send("heartbeat", id="beat")
        await lobby.expect("heartbeat_ack")
        async with open_wire(house, chat_path(session_id), customer) as his:
            await his.expect("welcome")
            await his.send("message", id="first", body="hello")
            await his.expect("ack")
            await hers.expect("message")
            payment = await house.pay_extension(customer)
            asked = await house.ask_extension(customer, session_id, payment)
            await hers.send("extension_respond", id="yes", extension_id=asked["extension_id"], accepted=True)
            await his.expect("session_resumed")
        async with open_wire(house, chat_path(session_id), customer) as his:
            await his.expect("welcome")
            await his.send("end_session", id="bye")
            await his.expect("session_ended")
            await hers.expect("session_ended")


async def test_sessions_and_sockets_leave_nothing_to_the_collector(database_url: str, valkey_url: str) -> None:
    async with open_house(database_url, valkey_url) as house:
        await live_a_session(house)  # what is made once is made
        await gone(house)
        with switched_off():
            for _ in range(3):
                await live_a_session(house)
            await gone(house)
            found = collect_by_type()
        assert not {name: number for name, number in found.items() if name.startswith(LONG_LIVED)}


async def gone(house: House) -> None:
    """Until no socket is left."""
    with trio.fail_after(PATIENCE_SECONDS):
        while len(house.own.parts.connections):
            await trio.sleep(0.005)


def test_what_survives_a_full_collection_is_set_aside_when_it_is_much() -> None:
    """A little may be one request's, whose cycles would never be freed."""
    threshold = gc.get_threshold()
    try:
        spare_the_old()
        before = gc.get_freeze_count()
        few = [[number] for number in range(1_000)]
        gc.collect()
        assert gc.get_freeze_count() < before + len(few)
        many = [[number] for number in range(STAYING_OBJECTS)]
        gc.collect()
        assert gc.get_freeze_count() >= before + len(many)
        assert gc.get_threshold() > threshold
    finally:
        gc.callbacks[:] = [callback for callback in gc.callbacks if callback.__module__ != "halo.collector"]
        gc.set_threshold(*threshold)
        gc.unfreeze()


@pytest.mark.parametrize(
    ("seconds", "looks"), [(0.0, LOOKS), (LOOKED_SECONDS / 4, 4), (LOOKED_SECONDS, 1)], ids=["little", "some", "much"]
)
def test_what_is_new_is_looked_through_each_time_and_everything_the_sooner_the_more_is_new(
    seconds: float, looks: int
) -> None:
    looked: list[int] = []

    def note(phase: str, found: dict[str, Any]) -> None:
        if phase == "stop":
            looked.append(found["generation"])

    passing = count()
    tidying = Tidying(clock=lambda: next(passing) * seconds)
    with switched_off():
        gc.callbacks.append(note)
        try:
            for _ in range(2 * looks):
                tidying.look()
        finally:
            gc.callbacks.remove(note)
    assert looked == ([1] * looks + [2]) * 2
