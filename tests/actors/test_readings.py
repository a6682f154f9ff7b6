"""A search hears within a second of what another node wrote into its rows, on a clock that jumps and rows in memory."""

from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import cast

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from halo import protocol
from halo.actors.pairing import PairingDesk
from halo.actors.readings import LOOK_SECONDS, Readings
from halo.config import LiveConfig
from halo.effects import Step
from halo.pairing import OfferStatus, PairingStatus, Search
from halo.payment import PaymentStatus
from halo.store.searches import SearchState
from tests.actors.pairing_rows import FakeRows
from tests.actors.test_pairing import CUSTOMER, START, FakeLobby, FakeSessions, House, ports_of

A_SECOND = 1.0


@dataclass
class States:
    """How the rows stand, and how often that was asked."""

    rows: FakeRows
    asked: list[set[str]] = field(default_factory=list)

    async def list_states(self, pairing_ids: Collection[str]) -> list[SearchState]:
        self.asked.append(set(pairing_ids))
        await self.rows._arrive()
        found = [self.rows.searches[pairing_id] for pairing_id in pairing_ids if pairing_id in self.rows.searches]
        return [
            SearchState(
                search.pairing_id,
                search.status,
                search.wave,
                sum(offer.status is OfferStatus.OPEN for offer in search.offers),
                search.payment_status,
            )
            for search in found
        ]


@dataclass
class Watched(House):
    states: States
    woken: list[str] = field(default_factory=list)


@asynccontextmanager
async def open_watched() -> AsyncIterator[Watched]:
    """A desk whose searches sleep for an hour unless they are woken."""
    live = LiveConfig(pairing_offer_seconds=600, pairing_blast_size=2, pairing_waves=3)
    rows, lobby, sessions = FakeRows(), FakeLobby(trio.current_time()), FakeSessions()
    states = States(rows)
    readings = Readings(rows, states)
    ports = ports_of(rows, lobby, sessions, live)
    async with trio.open_nursery() as nursery:
        desk = PairingDesk(nursery, replace(ports, search=replace(ports.search, rows=readings)))
        house = Watched(rows, lobby, sessions, desk, live, states)

        def wake(search: Search) -> None:
            house.woken.append(search.pairing_id)
            desk.payment_settled(search.payment_request_id)

        nursery.start_soon(readings.serve, wake)
        yield house
        nursery.cancel_scope.cancel()


@pytest.fixture
async def house() -> AsyncIterator[Watched]:
    async with open_watched() as opened:
        yield opened


def never(search: Search) -> Step:
    raise AssertionError("the payment has failed; no session is opened")


async def cancelled(house: Watched, pairing_id: str, mitra_id: str) -> None:
    await house.rows.cancel(pairing_id, CUSTOMER, START)


async def deactivated(house: Watched, pairing_id: str, mitra_id: str) -> None:
    house.rows.mitras[mitra_id].is_active = False
    await house.rows.rescind(mitra_id, START)


async def payment_failed(house: Watched, pairing_id: str, mitra_id: str) -> None:
    payment = house.rows.searches[pairing_id].payment_request_id
    house.rows.set_payment(payment, PaymentStatus.FAILED)
    await house.rows.accept(house.offer(mitra_id), mitra_id, never, START)


@pytest.mark.parametrize("elsewhere", [cancelled, deactivated, payment_failed])
async def test_what_another_node_took_back_is_told_to_the_mitra_within_a_second(
    house: Watched, autojump_clock: MockClock, elsewhere: Callable[[Watched, str, str], Awaitable[None]]
) -> None:
    mitra_id = house.rows.add_mitra()
    pairing_id = await house.search()
    offer_id = house.offer(mitra_id)
    await elsewhere(house, pairing_id, mitra_id)
    assert house.lobby.of(mitra_id, protocol.OfferRescinded) == []
    await trio.sleep(A_SECOND)
    [rescinded] = house.lobby.of(mitra_id, protocol.OfferRescinded)
    assert (rescinded.offer_id, rescinded.reason) == (offer_id, "cancelled")
    assert len(house.lobby.of(CUSTOMER, protocol.PairingFailed)) == 1
    assert len(house.desk) == 0


async def test_a_no_said_to_another_node_lets_the_next_wave_go_out(house: Watched, autojump_clock: MockClock) -> None:
    first, second, third = [house.rows.add_mitra(idle_since=n) for n in range(3)]
    await house.search()
    for mitra_id in (first, second):
        await house.rows.decline(house.offer(mitra_id), mitra_id, START)
    await trio.sleep(A_SECOND)
    assert len(house.lobby.of(third, protocol.Offer)) == 1


async def test_a_cancellation_between_two_looks_at_a_young_search_is_not_missed(
    house: Watched, autojump_clock: MockClock
) -> None:
    """No look has ever seen it searching."""
    mitra_id = house.rows.add_mitra()
    pairing_id = await house.search()
    await cancelled(house, pairing_id, mitra_id)
    assert house.states.asked == []
    await trio.sleep(A_SECOND)
    assert len(house.lobby.of(mitra_id, protocol.OfferRescinded)) == 1


async def test_with_nothing_searched_nothing_is_asked_and_with_much_it_is_one_statement(
    house: Watched, autojump_clock: MockClock
) -> None:
    await trio.sleep(10)
    assert house.states.asked == []
    house.rows.add_mitra(max_sessions=100)
    pairing_ids = {await house.search() for _ in range(50)}
    await trio.sleep(1.5 * LOOK_SECONDS)
    assert house.states.asked == [pairing_ids]


async def test_a_search_that_nobody_moved_sleeps_on(house: Watched, autojump_clock: MockClock) -> None:
    house.rows.add_mitra()
    await house.search()
    await trio.sleep(60)
    assert house.woken == []


async def test_what_was_moved_while_the_store_was_away_is_told_when_it_is_back(
    house: Watched, autojump_clock: MockClock
) -> None:
    mitra_id = house.rows.add_mitra()
    pairing_id = await house.search()
    await cancelled(house, pairing_id, mitra_id)
    house.rows.away = True
    await trio.sleep(30)
    assert house.lobby.of(mitra_id, protocol.OfferRescinded) == []
    house.rows.away = False
    await trio.sleep(A_SECOND)
    assert len(house.lobby.of(mitra_id, protocol.OfferRescinded)) == 1


async def test_a_wake_that_was_lost_is_given_again(autojump_clock: MockClock) -> None:
    rows = FakeRows()
    states = States(rows)
    readings = Readings(rows, states)
    woken: list[Search] = []
    async with trio.open_nursery() as nursery:
        desk = PairingDesk(nursery, ports_of(rows, FakeLobby(0), FakeSessions(), LiveConfig()))
        house = House(rows, FakeLobby(0), FakeSessions(), desk, LiveConfig())
        view = await rows.open("p", CUSTOMER, house.pay(), "regular", START)
        await readings.load(view.pairing_id)
        await rows.cancel(view.pairing_id, CUSTOMER, START)
        nursery.start_soon(readings.serve, woken.append)
        await trio.sleep(2 * A_SECOND + LOOK_SECONDS / 2)
        assert len(woken) == 4
        assert (await readings.load(view.pairing_id)).status is PairingStatus.CANCELLED
        await trio.sleep(A_SECOND)
        assert len(woken) == 4  # it knows by now
        nursery.cancel_scope.cancel()


async def test_a_search_read_anew_during_the_look_is_judged_by_the_next(autojump_clock: MockClock) -> None:
    """Else each move of this node's own would wake it once more."""
    rows = FakeRows()
    inner = States(rows)
    woken: list[Search] = []

    class Slow:
        async def list_states(self, pairing_ids: Collection[str]) -> list[SearchState]:
            found = await inner.list_states(pairing_ids)
            await readings.load("p")
            return [replace(state, wave=0) for state in found]

    readings = Readings(rows, Slow())
    house = House(rows, FakeLobby(0), FakeSessions(), cast(PairingDesk, None), LiveConfig())
    await rows.open("p", CUSTOMER, house.pay(), "regular", START)
    await readings.load("p")
    rows.searches["p"] = replace(rows.searches["p"], wave=1)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(readings.serve, woken.append)
        await trio.sleep(LOOK_SECONDS)
        await wait_all_tasks_blocked()
        assert woken == []
        nursery.cancel_scope.cancel()
