"""The checks of `halo load` can fail: a proxy lies once about what a real halo said, and the books say so."""

import time
from collections.abc import AsyncIterator

import pytest
import trio

from halo.load import scenes
from halo.load.chats import REFUSED_PAUSE_SECONDS
from halo.load.hdr import Hdr
from halo.load.house import House as Share
from halo.load.ledger import Kind
from halo.load.orders import Orders, Person, Seat
from halo.load.plan import plan_of
from halo.load.playbill import SCENES
from halo.load.verdict import Outcome, message_checks
from tests.whole.house import House, open_house
from tests.whole.lying_proxy import Lie, open_lying_proxy


@pytest.fixture
async def house(database_url: str, valkey_url: str) -> AsyncIterator[House]:
    async with open_house(database_url, valkey_url) as house:
        yield house


async def play(house: House, ws: str) -> Share:
    """One pair talks for a second, sixty messages in the open loop."""
    customer, mitra, session_id = await house.open_pair()
    seat = Seat(session_id, Person(customer.user_id, customer.token), Person(mitra.user_id, mitra.token))
    plan = plan_of("steady", {"pairs": 1, "rate": 60.0, "seconds": 1.0})
    share = Share(Orders(plan=plan, number=0, ws=ws, api=house.ready["api"], tag="run", seats=(seat,)), lambda _: None)
    scene = SCENES["steady"](share)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(share.wires.serve)
        nursery.start_soon(share.chats.bring_back)
        nursery.start_soon(share.chats.try_again)
        await scene.prepare()
        share.start = time.monotonic()
        await scene.play()
        await scene.settle()
        await scene.verify()
        share.meter.close_second(1.0)
        nursery.cancel_scope.cancel()
    share.wires.close()
    return share


def failed(share: Share) -> set[str]:
    checks = message_checks(share.meter.counts, share.findings.counts, share.findings.examples)
    return {check.name for check in checks if check.outcome is Outcome.FAILED}


async def test_an_honest_connection_has_no_findings(house: House) -> None:
    async with open_lying_proxy(house.ready["ws"], Lie.NONE) as proxy:
        share = await play(house, proxy.url)
    counts = share.meter.counts
    assert counts["said"] == counts["acks"] == counts["deliveries"] == counts["stored"] > 10
    assert not share.findings.counts
    assert failed(share) == set()


@pytest.mark.parametrize(
    ("lie", "found", "sentence"),
    [
        (Lie.DROP, Kind.UNDELIVERED, "everything acknowledged reached the other side"),
        (Lie.REPEAT, Kind.REPEATED, "nothing came, was acknowledged or is stored twice"),
        (Lie.SWAP, Kind.DISORDERED, "seq came without a gap and in order on every socket, and in the history"),
        (Lie.ALTER, Kind.ALTERED, "ids, seq and bodies agree wherever they appear"),
        (Lie.FORGE, Kind.MISSING, "everything acknowledged is in the history"),
        (Lie.HUSH, None, "every message was answered"),
        (Lie.ECHO, Kind.REPEATED, "nothing came, was acknowledged or is stored twice"),
    ],
)
async def test_one_lie_is_found_and_fails_its_check(
    house: House, monkeypatch: pytest.MonkeyPatch, lie: Lie, found: Kind | None, sentence: str
) -> None:
    if lie in {Lie.DROP, Lie.FORGE, Lie.HUSH, Lie.SWAP}:
        monkeypatch.setattr(scenes, "SETTLE_SECONDS", 0.5)  # what was lost never comes, however long one waits
    async with open_lying_proxy(house.ready["ws"], lie) as proxy:
        share = await play(house, proxy.url)
        assert proxy.has_lied
    assert found is None or share.findings.counts[found]
    assert sentence in failed(share)


async def test_what_is_refused_for_now_is_said_again_and_its_time_counts_from_the_first(house: House) -> None:
    async with open_lying_proxy(house.ready["ws"], Lie.NOT_NOW) as proxy:
        share = await play(house, proxy.url)
    counts = share.meter.counts
    assert counts["refused_STORE_UNAVAILABLE"] == 1
    assert counts["said"] == counts["acks"] == counts["stored"]
    assert failed(share) == set()
    assert Hdr.decoded(share.meter.whole()["ack"]).highest >= REFUSED_PAUSE_SECONDS * 1e6


async def test_what_is_refused_for_good_is_owed_by_nobody(house: House) -> None:
    async with open_lying_proxy(house.ready["ws"], Lie.NEVER) as proxy:
        share = await play(house, proxy.url)
    counts = share.meter.counts
    assert counts["refused_VALIDATION_ERROR"] == 1
    assert counts["said"] == counts["acks"] + 1
    assert failed(share) == set()
