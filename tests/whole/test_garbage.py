"""Nothing of halo's that lives long is a cycle: `halo/collector.py` sets the old aside for good, so reference counts alone must free it.

Sessions and sockets come, do all that they can do, and go, with the collector switched off; what it then finds is nobody's but HTTP's, whose
cycles last for one request.
"""

import gc
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import trio

from halo.collector import STAYING_OBJECTS, spare_the_old
from tests.whole.house import PATIENCE_SECONDS, House, open_house
from tests.whole.wire import chat_path, open_wire

LONG_LIVED = (
    "halo.actors.", "halo.session.", "halo.net.chat.", "halo.net.connection.", "halo.net.handshake.", "halo.net.limits.",
    "halo.net.lobby.", "halo.net.tap.", "halo.net.tokens.", "trio_websocket.", "wsproto.",
)  # fmt: skip


@contextmanager
def switched_off() -> Iterator[None]:
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


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
