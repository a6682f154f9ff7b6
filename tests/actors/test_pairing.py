"""The pairing desk and its searches, on a clock that jumps and rows in memory."""

import logging
import random
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any
from uuid import uuid4

import msgspec
import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from halo import protocol
from halo.actors.commands import SearchOver, Sighting, View
from halo.actors.pairing import DeskPorts, PairingDesk
from halo.actors.search import STORE_RETRY_SECONDS, SearchPorts
from halo.actors.supervisor import RestartBudget
from halo.clock import Moment, rfc3339
from halo.config import LiveConfig
from halo.effects import Step
from halo.errors import CapacityExceeded, InvalidState, NotFound, OfferResolved, PaymentInUse, Refusal, StoreUnavailable
from halo.pairing import OfferStatus, PairingStatus, Search
from halo.payment import Payment, PaymentStatus
from halo.session import FailureCause, Session, SessionStatus
from tests.actors.pairing_rows import FakeRows

START = 1_700_000_000_000
CUSTOMER = str(uuid4())


class TrioClock:
    """Moments that go with Trio's clock, so that autojump moves both."""

    def now(self) -> Moment:
        return START + round(trio.current_time() * 1000)


@dataclass
class FakeLobby:
    """Everybody's lobby socket: what each was told, and when (seconds since the test began)."""

    began: float
    told: list[tuple[float, str, protocol.Frame]] = field(default_factory=list)
    absent: set[str] = field(default_factory=set)
    asked: list[tuple[str, str]] = field(default_factory=list)

    def tell(self, user_id: str, frame: protocol.Frame) -> None:
        self.told.append((round(trio.current_time() - self.began, 3), user_id, frame))

    def is_in_lobby(self, user_id: str) -> bool:
        return user_id not in self.absent

    def ask_receipt(self, user_id: str, receipt: str) -> None:
        self.asked.append((user_id, receipt))

    def of(self, user_id: str, kind: type[protocol.Frame] = protocol.Frame) -> list[Any]:
        return [frame for _, to, frame in self.told if to == user_id and isinstance(frame, kind)]


@dataclass
class FakeSessions:
    opened_steps: list[Step] = field(default_factory=list)
    assigned: list[tuple[str, str, str, str]] = field(default_factory=list)
    seen: list[tuple[str, Sighting]] = field(default_factory=list)
    assign_: Callable[[str, str], Awaitable[View]] | None = None
    """What becomes of a session that a mitra takes over: its id, and hers."""

    async def opened(self, decided: Step) -> None:
        await trio.lowlevel.checkpoint()
        self.opened_steps.append(decided)

    async def assign(self, session_id: str, *, mitra_id: str, pairing_id: str, offer_id: str) -> View:
        self.assigned.append((session_id, mitra_id, pairing_id, offer_id))
        assert self.assign_ is not None
        return await self.assign_(session_id, mitra_id)

    def saw(self, session_id: str, sighting: Sighting) -> None:
        self.seen.append((session_id, sighting))


@dataclass
class House:
    rows: FakeRows
    lobby: FakeLobby
    sessions: FakeSessions
    desk: PairingDesk
    config: LiveConfig

    def pay(self, status: PaymentStatus = PaymentStatus.CONFIRMED, customer_id: str = CUSTOMER) -> str:
        payment = Payment(
            payment_request_id=str(uuid4()),
            customer_id=customer_id,
            session_id=None,
            status=status,
            amount=10_000,
            currency="IDR",
            duration_minutes=10,
            is_extension=False,
            is_first_session_discount=False,
            failure_cause=None,
            created_at=START,
        )
        return self.rows.add_payment(payment).payment_request_id

    async def search(self, status: PaymentStatus = PaymentStatus.CONFIRMED) -> str:
        """A search that has just done all that it can do at once."""
        view = await self.desk.start(CUSTOMER, self.pay(status))
        await wait_all_tasks_blocked()
        return view.pairing_id

    def offer(self, mitra_id: str) -> str:
        """The offer that this mitra was told of last."""
        offers = self.lobby.of(mitra_id, protocol.Offer)
        return str(offers[-1].offer_id)

    def outcome(self, pairing_id: str) -> tuple[str, str | None]:
        search = self.rows.searches[pairing_id]
        return search.status.value, search.cause


def ports_of(rows: FakeRows, lobby: FakeLobby, sessions: FakeSessions, config: LiveConfig) -> DeskPorts:
    search = SearchPorts(
        clock=TrioClock(), rows=rows, available=rows, lobby=lobby, sessions=sessions, config=lambda: config
    )
    return DeskPorts(search=search, pairings=rows, orphans=rows, answers=rows, offers=rows, minute_ms=60_000)


@asynccontextmanager
async def open_house(rows: FakeRows | None = None, **config: int) -> AsyncIterator[House]:
    live = msgspec.structs.replace(
        LiveConfig(pairing_offer_seconds=30, pairing_blast_size=2, pairing_waves=3), **config
    )
    rows, lobby, sessions = rows or FakeRows(), FakeLobby(trio.current_time()), FakeSessions()
    async with trio.open_nursery() as nursery:
        desk = PairingDesk(nursery, ports_of(rows, lobby, sessions, live), RestartBudget(restarts=2))
        yield House(rows, lobby, sessions, desk, live)
        nursery.cancel_scope.cancel()


@pytest.fixture
async def house() -> AsyncIterator[House]:
    async with open_house() as opened:
        yield opened


class TestWaves:
    async def test_the_longest_idle_are_asked_first_wave_after_wave(
        self, house: House, autojump_clock: MockClock
    ) -> None:
        by_idleness = [house.rows.add_mitra(idle_since=n) for n in (5, 1, 4, 2, 3)]
        pairing_id = await house.search()
        await trio.sleep(100)
        asked = [(at, to) for at, to, frame in house.lobby.told if isinstance(frame, protocol.Offer)]
        fifth, first, fourth, second, third = by_idleness
        assert asked == [(0, first), (0, second), (30, third), (30, fourth), (60, fifth)]
        assert house.lobby.of(CUSTOMER) == [
            protocol.PairingProgress(pairing_id=pairing_id, wave=1, offered=2),
            protocol.PairingProgress(pairing_id=pairing_id, wave=2, offered=2),
            protocol.PairingProgress(pairing_id=pairing_id, wave=3, offered=1),
            protocol.PairingFailed(pairing_id=pairing_id, cause="timed_out"),
        ]
        assert [at for at, to, _ in house.lobby.told if to == CUSTOMER] == [0, 30, 60, 90]
        assert len(house.desk) == 0

    async def test_a_wave_that_ran_out_is_rescinded_before_the_next_is_asked(
        self, house: House, autojump_clock: MockClock
    ) -> None:
        first, *_ = [house.rows.add_mitra(idle_since=n) for n in range(3)]
        await house.search()
        await trio.sleep(31)
        assert house.lobby.of(first, protocol.OfferRescinded) == [
            protocol.OfferRescinded(offer_id=house.offer(first), reason="timed_out")
        ]

    async def test_an_offer_names_its_deadline_and_what_was_paid(self, house: House, autojump_clock: MockClock) -> None:
        mitra_id = house.rows.add_mitra()
        pairing_id = await house.search()
        [offer] = house.lobby.of(mitra_id)
        assert (offer.pairing_id, offer.duration_minutes, offer.price, offer.currency) == (
            pairing_id,
            10,
            10_000,
            "IDR",
        )
        assert await house.desk.list_offers(mitra_id) == [offer]
        assert (
            house.rows.searches[pairing_id].offers[0].deadline_at == START + round(trio.current_time() * 1000) + 30_000
        )

    async def test_when_all_have_declined_the_next_wave_starts_at_once(
        self, house: House, autojump_clock: MockClock
    ) -> None:
        mitras = [house.rows.add_mitra(idle_since=n) for n in range(3)]
        await house.search()
        await trio.sleep(3)
        await house.desk.decline(house.offer(mitras[0]), mitras[0])
        await trio.sleep(4)
        await house.desk.decline(house.offer(mitras[1]), mitras[1])
        await wait_all_tasks_blocked()
        assert [(at, to) for at, to, frame in house.lobby.told if isinstance(frame, protocol.Offer)][-1] == (
            7,
            mitras[2],
        )

    async def test_whoever_is_told_something_that_a_push_says_too_is_asked_for_a_receipt(
        self, house: House, autojump_clock: MockClock
    ) -> None:
        mitra_id = house.rows.add_mitra()
        pairing_id = await house.search()
        await wait_all_tasks_blocked()
        offer_id = house.offer(mitra_id)
        assert house.lobby.asked == [(mitra_id, f"offer:{offer_id}")]
        await house.desk.decline(offer_id, mitra_id)
        await wait_all_tasks_blocked()
        assert house.lobby.asked[1:] == [(CUSTOMER, f"pairing:{pairing_id}")]

    async def test_mitras_without_a_socket_are_asked_by_push(self, house: House, autojump_clock: MockClock) -> None:
        present, absent = house.rows.add_mitra(idle_since=1), house.rows.add_mitra(idle_since=2)
        house.lobby.absent = {absent}
        pairing_id = await house.search()
        [offer] = [offer for offer in house.rows.searches[pairing_id].offers if offer.mitra_id == absent]
        assert house.rows.pushes == [offer.offer_id]
        assert offer.offer_id != house.offer(present)

    async def test_candidates_who_turn_out_to_be_gone_are_passed_over_in_the_same_wave(
        self, house: House, autojump_clock: MockClock
    ) -> None:
        """The mirror may still list who has just been deactivated."""
        gone = [house.rows.add_mitra(idle_since=n) for n in range(4)]
        good = house.rows.add_mitra(idle_since=10)
        listed = house.rows._may_be_asked

        async def stale(limit: int, exclude: Any) -> list[str]:
            await trio.lowlevel.checkpoint()
            return [mitra_id for mitra_id in [*gone, good] if mitra_id not in exclude][:limit]

        house.rows.find_available = stale  # type: ignore[method-assign]  # a mirror that lags
        for mitra_id in gone:
            house.rows.mitras[mitra_id].is_active = False
        assert not listed(gone[0])
        pairing_id = await house.search()
        assert [offer.mitra_id for offer in house.rows.searches[pairing_id].offers] == [good]


class TestCauses:
    async def test_nobody_there_fails_at_once_with_no_mitra_available(
        self, house: House, autojump_clock: MockClock
    ) -> None:
        pairing_id = await house.search()
        assert house.outcome(pairing_id) == ("failed", "no_mitra_available")
        assert house.lobby.of(CUSTOMER) == [protocol.PairingFailed(pairing_id=pairing_id, cause="no_mitra_available")]
        assert house.rows.failures == [(pairing_id, "no_mitra_available")]

    async def test_everybody_declining_fails_with_all_declined_without_waiting(
        self, house: House, autojump_clock: MockClock
    ) -> None:
        mitras = [house.rows.add_mitra() for _ in range(2)]
        pairing_id = await house.search()
        for mitra_id in mitras:
            await house.desk.decline(house.offer(mitra_id), mitra_id)
        await wait_all_tasks_blocked()
        assert house.outcome(pairing_id) == ("failed", "all_declined")

    async def test_one_silent_among_those_who_declined_makes_it_timed_out(
        self, house: House, autojump_clock: MockClock
    ) -> None:
        mitras = [house.rows.add_mitra() for _ in range(2)]
        pairing_id = await house.search()
        await house.desk.decline(house.offer(mitras[0]), mitras[0])
        await trio.sleep(29)
        assert house.outcome(pairing_id) == ("searching", None)
        await trio.sleep(2)
        assert house.outcome(pairing_id) == ("failed", "timed_out")

    async def test_a_customer_who_cancels_is_the_cause(self, house: House, autojump_clock: MockClock) -> None:
        mitra_id = house.rows.add_mitra()
        pairing_id = await house.search()
        view = await house.desk.cancel(pairing_id, CUSTOMER)
        await wait_all_tasks_blocked()
        assert (view.status, view.cause) == (PairingStatus.CANCELLED, "customer_cancelled")
        assert house.lobby.of(mitra_id)[-1] == protocol.OfferRescinded(
            offer_id=house.offer(mitra_id), reason="cancelled"
        )
        assert house.lobby.of(CUSTOMER)[-1] == protocol.PairingFailed(pairing_id=pairing_id, cause="customer_cancelled")
        assert await house.desk.cancel(pairing_id, CUSTOMER) == view == await house.desk.view(pairing_id, CUSTOMER)
        assert len(house.desk) == 0

    async def test_a_payment_that_fails_meanwhile_ends_the_search_at_once(
        self, house: House, autojump_clock: MockClock
    ) -> None:
        mitra_id = house.rows.add_mitra()
        pairing_id = await house.search(PaymentStatus.PENDING)
        payment_request_id = house.rows.searches[pairing_id].payment_request_id
        house.rows.set_payment(payment_request_id, PaymentStatus.FAILED)
        house.desk.payment_settled(payment_request_id)
        await wait_all_tasks_blocked()
        assert house.outcome(pairing_id) == ("failed", "payment_failed")
        assert house.lobby.of(mitra_id)[-1] == protocol.OfferRescinded(
            offer_id=house.offer(mitra_id), reason="cancelled"
        )

    async def test_an_accept_finds_the_payment_failed_even_when_nobody_was_told(
        self, house: House, autojump_clock: MockClock
    ) -> None:
        mitra_id = house.rows.add_mitra()
        pairing_id = await house.search(PaymentStatus.PENDING)
        house.rows.set_payment(house.rows.searches[pairing_id].payment_request_id, PaymentStatus.FAILED)
        with pytest.raises(OfferResolved):
            await house.desk.accept(house.offer(mitra_id), mitra_id)
        await wait_all_tasks_blocked()
        assert house.outcome(pairing_id) == ("failed", "payment_failed")
        assert house.lobby.of(CUSTOMER)[-1] == protocol.PairingFailed(pairing_id=pairing_id, cause="payment_failed")
        assert house.sessions.opened_steps == []


class TestAccept:
    async def test_the_first_yes_opens_the_session_and_everybody_is_told(
        self, house: House, autojump_clock: MockClock
    ) -> None:
        winner, loser = [house.rows.add_mitra() for _ in range(2)]
        pairing_id = await house.search()
        await trio.sleep(5)
        session_id, status = await house.desk.accept(house.offer(winner), winner)
        [opened] = house.sessions.opened_steps
        assert (session_id, status) == (opened.session.session_id, "active")
        await wait_all_tasks_blocked()
        assert house.lobby.of(winner, protocol.SessionStarted)[0].session_id == session_id
        assert house.lobby.of(CUSTOMER, protocol.SessionStarted)[0].session_id == session_id
        assert house.lobby.of(CUSTOMER, protocol.PairingMatched) == [
            protocol.PairingMatched(pairing_id=pairing_id, session_id=session_id)
        ]
        assert house.lobby.of(loser)[-1] == protocol.OfferRescinded(offer_id=house.offer(loser), reason="taken")
        assert house.lobby.of(winner, protocol.OfferRescinded) == []
        assert {at for at, _, _ in house.lobby.told} == {0, 5}
        assert len(house.desk) == 0

    async def test_an_unconfirmed_payment_opens_the_session_on_hold(
        self, house: House, autojump_clock: MockClock
    ) -> None:
        mitra_id = house.rows.add_mitra()
        await house.search(PaymentStatus.PENDING)
        _, status = await house.desk.accept(house.offer(mitra_id), mitra_id)
        await wait_all_tasks_blocked()
        assert status == "pending_payment"
        assert house.lobby.of(mitra_id, protocol.SessionStarted) == []
        assert len(house.lobby.of(CUSTOMER, protocol.PairingMatched)) == 1

    async def test_a_late_yes_is_told_that_it_was_late(self, house: House, autojump_clock: MockClock) -> None:
        winner, loser = [house.rows.add_mitra() for _ in range(2)]
        await house.search()
        await house.desk.accept(house.offer(winner), winner)
        with pytest.raises(OfferResolved):
            await house.desk.accept(house.offer(loser), loser)
        for mitra_id in (winner, loser):
            with pytest.raises(OfferResolved):
                await house.desk.decline(house.offer(mitra_id), mitra_id)
        assert len(house.sessions.opened_steps) == 1

    async def test_the_winners_yes_again_names_the_same_session_and_tells_nobody_twice(
        self, house: House, autojump_clock: MockClock
    ) -> None:
        mitra_id = house.rows.add_mitra(max_sessions=1)
        await house.search()
        first = await house.desk.accept(house.offer(mitra_id), mitra_id)
        await wait_all_tasks_blocked()
        told = len(house.lobby.told)
        assert await house.desk.accept(house.offer(mitra_id), mitra_id) == first
        await wait_all_tasks_blocked()
        assert (len(house.sessions.opened_steps), len(house.lobby.told)) == (1, told)

    async def test_the_winners_yes_again_opens_a_session_whose_first_answer_was_lost(
        self, house: House, autojump_clock: MockClock
    ) -> None:
        mitra_id = house.rows.add_mitra()
        await house.search()
        house.rows.lost_answers = ["accept"]
        with pytest.raises(StoreUnavailable):
            await house.desk.accept(house.offer(mitra_id), mitra_id)
        session_id, _ = await house.desk.accept(house.offer(mitra_id), mitra_id)
        await wait_all_tasks_blocked()
        assert [step.session.session_id for step in house.sessions.opened_steps] == [session_id]

    async def test_a_mitra_without_room_keeps_the_offer_for_when_there_is_some(
        self, house: House, autojump_clock: MockClock
    ) -> None:
        mitra_id = house.rows.add_mitra(max_sessions=1)
        await house.search()
        first = house.offer(mitra_id)
        await house.search()
        await house.desk.accept(first, mitra_id)
        with pytest.raises(CapacityExceeded):
            await house.desk.accept(house.offer(mitra_id), mitra_id)
        house.rows.mitras[mitra_id].living = 0
        await house.desk.accept(house.offer(mitra_id), mitra_id)
        assert len(house.sessions.opened_steps) == 2

    async def test_a_socket_that_closes_in_the_middle_of_an_accept_leaves_no_session_without_its_actor(
        self, house: House, autojump_clock: MockClock
    ) -> None:
        mitra_id = house.rows.add_mitra()
        pairing_id = await house.search()
        with trio.CancelScope() as socket:
            socket.cancel()
            await house.desk.accept(house.offer(mitra_id), mitra_id)
        await wait_all_tasks_blocked()
        assert house.outcome(pairing_id)[0] == "matched"
        assert len(house.sessions.opened_steps) == 1
        assert len(house.lobby.of(CUSTOMER, protocol.PairingMatched)) == 1

    async def test_a_commit_whose_answer_was_lost_opens_the_session_all_the_same(
        self, house: House, autojump_clock: MockClock
    ) -> None:
        mitra_id, loser = [house.rows.add_mitra() for _ in range(2)]
        pairing_id = await house.search()
        house.rows.lost_answers = ["accept"]
        with pytest.raises(StoreUnavailable):
            await house.desk.accept(house.offer(mitra_id), mitra_id)
        await wait_all_tasks_blocked()
        [opened] = house.sessions.opened_steps
        assert house.rows.searches[pairing_id].session_id == opened.session.session_id
        assert house.lobby.of(CUSTOMER, protocol.PairingMatched)[0].session_id == opened.session.session_id
        assert house.lobby.of(loser)[-1].reason == "taken"

    async def test_a_crash_between_the_commit_and_its_actor_leaves_the_session_in_the_rows(
        self, house: House, autojump_clock: MockClock
    ) -> None:
        """The registry finds it there at the next start; the desk has nothing left to take up."""
        mitra_id = house.rows.add_mitra()
        pairing_id = await house.search()

        class Dies:
            async def opened(self, decided: Step) -> None:
                raise KeyboardInterrupt

        house.desk._ports.search.sessions.opened = Dies().opened  # type: ignore[method-assign]  # the process dies here
        with pytest.raises(KeyboardInterrupt):
            await house.desk.accept(house.offer(mitra_id), mitra_id)
        session_id = house.rows.searches[pairing_id].session_id
        assert session_id in house.rows.sessions
        async with open_house(house.rows) as successor:
            assert await successor.desk.restore() == 0

    async def test_the_opening_of_a_session_is_logged_as_its_first_step_once(
        self, house: House, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
    ) -> None:
        with caplog.at_level(logging.INFO, logger="halo"):
            mitra_id = house.rows.add_mitra()
            await house.search()
            accepted = await house.desk.accept(house.offer(mitra_id), mitra_id)
            assert await house.desk.accept(house.offer(mitra_id), mitra_id) == accepted
        [line] = [record.msg for record in caplog.records if "session_step" in str(record.msg)]
        assert isinstance(line, dict)
        assert (line["session_id"], line["step"], line["before"]) == (accepted[0], "mitra_accepted", None)
        assert (line["after"], line["cause"], line["version"]) == ("active", "payment_confirmed", 1)


class TestOneWinner:
    async def test_accept_cancel_and_deadline_in_one_instant(self, autojump_clock: MockClock) -> None:
        """All fall due at the same moment, a few checkpoints apart; each of the three gets to win, and all others are told."""
        dice, winners = random.Random(1), Counter[str | None]()
        for _ in range(200):
            async with open_house(pairing_waves=1) as house:
                winners[await self.play_one_instant(house, dice)] += 1
        assert set(winners) == {None, "customer_cancelled", "timed_out"}

    async def play_one_instant(self, house: House, dice: random.Random) -> str | None:
        """The cause; None for a match."""
        mitras = [house.rows.add_mitra() for _ in range(2)]
        pairing_id = await house.search()
        offers = {mitra_id: house.offer(mitra_id) for mitra_id in mitras}
        results: list[object] = []

        async def at_the_deadline(work: Callable[[], Awaitable[object]], spread: int) -> None:
            await trio.sleep(30)
            for _ in range(dice.randrange(spread)):
                await trio.lowlevel.checkpoint()
            try:
                results.append(await work())
            except Refusal as refusal:
                results.append(refusal)

        async with trio.open_nursery() as nursery:
            for mitra_id in mitras:
                nursery.start_soon(at_the_deadline, partial(house.desk.accept, offers[mitra_id], mitra_id), 6)
            nursery.start_soon(at_the_deadline, partial(house.desk.cancel, pairing_id, CUSTOMER), 1)  # it looks first
        await wait_all_tasks_blocked()
        status, cause = house.outcome(pairing_id)
        wins = [result for result in results if isinstance(result, tuple)]
        assert len(wins) == len(house.sessions.opened_steps) == (status == "matched")
        assert sum(isinstance(result, OfferResolved) for result in results) == 2 - len(wins)
        told = house.lobby.of(CUSTOMER)[1:]  # after the progress
        if status == "matched":
            assert [type(frame) for frame in told] == [protocol.PairingMatched, protocol.SessionStarted]
            assert any(isinstance(result, InvalidState) for result in results)
        else:
            assert told == [protocol.PairingFailed(pairing_id=pairing_id, cause=cause or "")]
            assert house.rows.failures == [(pairing_id, cause)]
        for offer in house.rows.searches[pairing_id].offers:
            rescinded = house.lobby.of(offer.mitra_id, protocol.OfferRescinded)
            assert len(rescinded) == (offer.status is not OfferStatus.ACCEPTED)
        return cause

    async def test_200_mitras_accepting_at_once_get_one_session(self, autojump_clock: MockClock) -> None:
        async with open_house(pairing_blast_size=200) as house:
            mitras = [house.rows.add_mitra() for _ in range(200)]
            await house.search()
            wins, refusals = [], []

            async def accept(mitra_id: str) -> None:
                try:
                    wins.append(await house.desk.accept(house.offer(mitra_id), mitra_id))
                except OfferResolved as refusal:
                    refusals.append(refusal)

            async with trio.open_nursery() as nursery:
                for mitra_id in mitras:
                    nursery.start_soon(accept, mitra_id)
            await wait_all_tasks_blocked()
            assert (len(wins), len(refusals), len(house.sessions.opened_steps)) == (1, 199, 1)
            assert sum(isinstance(frame, protocol.OfferRescinded) for _, _, frame in house.lobby.told) == 199


class TestStarting:
    async def test_the_same_pairing_id_again_is_the_same_search(self, house: House, autojump_clock: MockClock) -> None:
        house.rows.add_mitra()
        payment_request_id, pairing_id = house.pay(), str(uuid4())
        views = [await house.desk.start(CUSTOMER, payment_request_id, "sensitive", pairing_id) for _ in range(3)]
        await wait_all_tasks_blocked()
        assert {view.pairing_id for view in views} == {pairing_id}
        assert len(house.desk) == len(house.rows.searches) == 1
        with pytest.raises(PaymentInUse):
            await house.desk.start(CUSTOMER, payment_request_id)

    async def test_a_search_whose_insert_lost_its_answer_is_kept_all_the_same(
        self, house: House, autojump_clock: MockClock
    ) -> None:
        mitra_id = house.rows.add_mitra()
        house.rows.lost_answers = ["open"]
        with pytest.raises(StoreUnavailable):
            await house.desk.start(CUSTOMER, house.pay())
        await wait_all_tasks_blocked()
        assert len(house.lobby.of(mitra_id, protocol.Offer)) == 1

    async def test_a_search_whose_insert_was_never_done_leaves_no_task(
        self, house: House, autojump_clock: MockClock
    ) -> None:
        house.rows.away = True
        with pytest.raises(StoreUnavailable):
            await house.desk.start(CUSTOMER, house.pay())
        assert len(house.desk) == 1
        house.rows.away = False
        await trio.sleep(2 * STORE_RETRY_SECONDS)
        assert len(house.desk) == 0

    async def test_a_pairing_is_its_own_customers_only(self, house: House, autojump_clock: MockClock) -> None:
        pairing_id = await house.search()
        for call in (house.desk.view, house.desk.cancel):
            with pytest.raises(NotFound):
                await call(pairing_id, str(uuid4()))


class TestWithdrawal:
    async def test_a_deactivated_mitras_offers_are_withdrawn_and_the_search_goes_on_at_once(
        self, house: House, autojump_clock: MockClock
    ) -> None:
        first, second, third = [house.rows.add_mitra(idle_since=n) for n in range(3)]
        await house.search()
        await house.desk.decline(house.offer(second), second)
        await trio.sleep(2)
        house.rows.mitras[first].is_active = False
        await house.desk.rescind_for(first)
        await wait_all_tasks_blocked()
        assert house.lobby.of(first)[-1] == protocol.OfferRescinded(offer_id=house.offer(first), reason="cancelled")
        assert len(house.lobby.of(third, protocol.Offer)) == 1

    async def test_offers_that_the_deactivation_itself_withdrew_are_noticed(
        self, house: House, autojump_clock: MockClock
    ) -> None:
        mitra_id, other = house.rows.add_mitra(idle_since=1), house.rows.add_mitra(idle_since=2)
        await house.search()
        house.rows.mitras[mitra_id].is_active = False
        await house.rows.rescind(mitra_id, START)
        await house.desk.rescind_for(mitra_id)
        await wait_all_tasks_blocked()
        assert house.lobby.of(mitra_id)[-1] == protocol.OfferRescinded(
            offer_id=house.offer(mitra_id), reason="cancelled"
        )
        assert house.lobby.of(other, protocol.OfferRescinded) == []


class TestRestart:
    async def test_a_wave_is_resumed_in_its_middle(self, house: House, autojump_clock: MockClock) -> None:
        first, second = [house.rows.add_mitra() for _ in range(2)]
        pairing_id = await house.search()
        await trio.sleep(10)
        async with open_house(house.rows) as successor:
            assert await successor.desk.restore() == 1
            await wait_all_tasks_blocked()
            assert successor.rows.searches[pairing_id].wave == 1
            assert {successor.offer(first), successor.offer(second)} == {house.offer(first), house.offer(second)}
            await trio.sleep(19)
            await successor.desk.accept(successor.offer(first), first)
            await wait_all_tasks_blocked()
            assert successor.lobby.of(second)[-1].reason == "taken"

    async def test_deadlines_that_fell_during_downtime_wait_for_the_reconnect_grace(
        self, autojump_clock: MockClock
    ) -> None:
        rows = FakeRows()
        async with open_house(rows) as house:
            mitra_id = rows.add_mitra()
            pairing_id = await house.search()
        await trio.sleep(300)
        async with open_house(rows, reconnect_grace_seconds=10) as successor:
            await successor.desk.restore()
            await trio.sleep(9.5)
            assert successor.outcome(pairing_id) == ("searching", None)
            assert len(await successor.desk.list_offers(mitra_id)) == 1
            await trio.sleep(1)
            assert successor.outcome(pairing_id) == ("failed", "timed_out")

    async def test_a_search_that_had_asked_nobody_yet_waits_for_mitras_to_return(
        self, autojump_clock: MockClock
    ) -> None:
        rows = FakeRows()
        async with open_house(rows) as house:
            await house.desk.start(CUSTOMER, house.pay())
        async with open_house(rows, reconnect_grace_seconds=10) as successor:
            await successor.desk.restore()
            await trio.sleep(5)
            mitra_id = rows.add_mitra()
            await trio.sleep(6)
            assert len(successor.lobby.of(mitra_id, protocol.Offer)) == 1

    async def test_restoring_twice_keeps_one_task_a_search(self, house: House, autojump_clock: MockClock) -> None:
        mitra_id = house.rows.add_mitra()
        await house.search()
        await house.desk.restore()
        await wait_all_tasks_blocked()
        assert len(house.desk) == 1
        assert len(house.lobby.of(mitra_id, protocol.Offer)) == 1


class TestFaults:
    async def test_nothing_runs_out_while_the_store_is_away_nor_right_after(
        self, house: House, autojump_clock: MockClock
    ) -> None:
        mitra_id = house.rows.add_mitra()
        pairing_id = await house.search()
        await trio.sleep(20)
        house.rows.away = True
        await trio.sleep(60)
        house.rows.away = False
        await trio.sleep(house.config.reconnect_grace_seconds - 2)
        assert house.outcome(pairing_id) == ("searching", None)
        await house.desk.accept(house.offer(mitra_id), mitra_id)
        assert house.outcome(pairing_id)[0] == "matched"

    async def test_a_wave_whose_commit_lost_its_answer_is_announced_once(
        self, house: House, autojump_clock: MockClock
    ) -> None:
        mitra_id = house.rows.add_mitra()
        house.rows.lost_answers = ["send_wave"]
        pairing_id = await house.search()
        await trio.sleep(2 * STORE_RETRY_SECONDS)
        assert len(house.lobby.of(mitra_id, protocol.Offer)) == 1
        assert house.rows.searches[pairing_id].wave == 1

    async def test_a_failure_whose_commit_lost_its_answer_is_told_and_recorded_once(
        self, house: House, autojump_clock: MockClock
    ) -> None:
        house.rows.lost_answers = ["give_up"]
        pairing_id = await house.search()
        await trio.sleep(2 * STORE_RETRY_SECONDS)
        assert house.rows.failures == [(pairing_id, "no_mitra_available")]
        assert len(house.lobby.of(CUSTOMER, protocol.PairingFailed)) == 1

    async def test_a_fault_in_one_search_is_its_own(
        self, house: House, autojump_clock: MockClock, claims_errors: object
    ) -> None:
        mitra_id = house.rows.add_mitra()
        healthy = await house.search()
        load = house.rows.load
        broken = str(uuid4())

        async def fails_for_one(pairing_id: str) -> Search:
            if pairing_id == broken:
                raise ZeroDivisionError
            return await load(pairing_id)

        house.rows.load = fails_for_one  # type: ignore[method-assign]  # a fault of ours, for one search only
        await house.desk.start(CUSTOMER, house.pay(), "regular", broken)
        await trio.sleep(10)
        assert len(house.desk) == 1  # parked
        house.rows.load = load  # type: ignore[method-assign]  # repaired
        await house.desk.accept(house.offer(mitra_id), mitra_id)
        assert house.outcome(healthy)[0] == "matched"
        await house.desk.restore()
        await trio.sleep(house.config.reconnect_grace_seconds + 1)
        assert house.rows.searches[broken].wave == 1

    async def test_a_search_that_dies_of_a_passing_fault_goes_on(
        self, house: House, autojump_clock: MockClock, claims_errors: list[Any]
    ) -> None:
        mitra_id = house.rows.add_mitra()
        find_available, faults = house.rows.find_available, [ZeroDivisionError()]

        async def fails_once(limit: int, exclude: Any) -> list[str]:
            if faults:
                raise faults.pop()
            return await find_available(limit, exclude)

        house.rows.find_available = fails_once  # type: ignore[method-assign]  # a fault of ours, once
        await house.search()
        await trio.sleep(1)
        assert len(house.lobby.of(mitra_id, protocol.Offer)) == 1
        assert len(claims_errors) == 1


class TestReroute:
    """Searches for another mitra: the session tells its customer, and its actor decides who takes over."""

    SESSION = str(uuid4())

    async def lose(self, house: House, **fields: Any) -> str:
        """A search that a session's own step has opened, once it has done all that it can do at once."""
        payment_request_id = house.pay(PaymentStatus.CONSUMED)
        pairing_id = str(uuid4())
        search = Search(
            pairing_id=pairing_id,
            customer_id=CUSTOMER,
            payment_request_id=payment_request_id,
            topic_sensitivity="regular",
            status=PairingStatus.SEARCHING,
            wave=0,
            deadline_at=TrioClock().now(),
            session_id=None,
            cause=None,
            rerouted_session_id=self.SESSION,
            without_mitra_ids=(str(uuid4()),),
            payment_status=PaymentStatus.CONSUMED,
            duration_minutes=6,
            amount=6_000,
            currency="IDR",
            offers=(),
        )
        house.rows.searches[pairing_id] = replace(search, **fields)
        house.desk.search_opened(pairing_id)
        await wait_all_tasks_blocked()
        return pairing_id

    def takes_over(self, house: House, status: SessionStatus = SessionStatus.ACTIVE) -> None:
        """The session's actor says yes to the first, and the rows know it."""

        async def assign(session_id: str, mitra_id: str) -> View:
            await trio.lowlevel.checkpoint()
            [(pairing_id, search)] = house.rows.searches.items()
            if search.status is not PairingStatus.SEARCHING:
                raise OfferResolved
            [offer] = [offer for offer in search.offers if offer.mitra_id == mitra_id]
            house.rows._set_offer(pairing_id, offer.offer_id, OfferStatus.ACCEPTED)
            house.rows._resolve_open(pairing_id, OfferStatus.TAKEN)
            house.rows.searches[pairing_id] = replace(
                house.rows.searches[pairing_id], status=PairingStatus.MATCHED, session_id=session_id
            )
            session = Session(
                session_id=session_id,
                customer_id=CUSTOMER,
                mitra_id=mitra_id,
                payment_request_id=search.payment_request_id,
                topic_sensitivity="regular",
                status=status,
                duration_minutes=10,
                minute_ms=60_000,
                price=10_000,
                currency="IDR",
            )
            house.rows.sessions[session_id] = Step(session=session, effects=(), at=0, event="", cause="")
            return View(session=session, last_seq=0)

        house.sessions.assign_ = assign

    async def test_the_mitras_hear_of_the_minutes_left_and_the_customer_of_no_pairing(
        self, house: House, autojump_clock: MockClock
    ) -> None:
        winner, loser = [house.rows.add_mitra() for _ in range(2)]
        pairing_id = await self.lose(house)
        [offer] = house.lobby.of(winner, protocol.Offer)
        assert (offer.pairing_id, offer.duration_minutes, offer.price) == (pairing_id, 6, 6_000)
        self.takes_over(house)
        assert await house.desk.accept(offer.offer_id, winner) == (self.SESSION, "active")
        await wait_all_tasks_blocked()
        assert house.sessions.assigned == [(self.SESSION, winner, pairing_id, offer.offer_id)]
        assert house.lobby.of(loser)[-1] == protocol.OfferRescinded(offer_id=house.offer(loser), reason="taken")
        assert house.lobby.of(CUSTOMER) == []
        assert (house.sessions.opened_steps, house.sessions.seen, len(house.desk)) == ([], [], 0)

    async def test_none_of_the_mitras_it_had_is_asked_in_any_wave(
        self, house: House, autojump_clock: MockClock
    ) -> None:
        first, second, other = [house.rows.add_mitra() for _ in range(3)]
        await self.lose(house, without_mitra_ids=(first, second))
        await trio.sleep(200)
        assert len(house.lobby.of(other, protocol.Offer)) == 1
        assert house.lobby.of(first) == house.lobby.of(second) == []

    async def test_no_mitra_is_told_a_deadline_at_which_the_session_waits_no_longer(
        self, house: House, autojump_clock: MockClock
    ) -> None:
        """The configuration may have become more patient than it was when the session lost its mitra."""
        mitra_id = house.rows.add_mitra()
        ends_at = TrioClock().now() + 3_000
        pairing_id = await self.lose(house, session_deadline_at=ends_at)
        [offer] = house.lobby.of(mitra_id, protocol.Offer)
        assert offer.deadline_at == rfc3339(ends_at)
        later = house.rows.add_mitra()
        await trio.sleep(10)  # the session is owed downtime, so it has not ended: nobody is asked before that is known
        assert house.lobby.of(later) == []
        search = house.rows.searches[pairing_id]
        house.rows.searches[pairing_id] = replace(search, session_deadline_at=ends_at + 60_000)
        await trio.sleep(2)
        assert len(house.lobby.of(later, protocol.Offer)) == 1

    async def test_the_winner_who_says_yes_again_hears_the_same(self, house: House, autojump_clock: MockClock) -> None:
        mitra_id = house.rows.add_mitra()
        await self.lose(house)
        self.takes_over(house)
        offer_id, told = house.offer(mitra_id), list[tuple[str, str]]()

        async def accept() -> None:
            told.append(await house.desk.accept(offer_id, mitra_id))

        async with trio.open_nursery() as nursery:  # twice at once, from two devices
            nursery.start_soon(accept)
            nursery.start_soon(accept)
        await accept()
        assert told == [(self.SESSION, "active")] * 3

    async def test_a_yes_whose_answer_was_lost_finds_its_session_when_it_is_repeated(
        self, house: House, autojump_clock: MockClock
    ) -> None:
        mitra_id = house.rows.add_mitra()
        await self.lose(house)
        self.takes_over(house)
        decide = house.sessions.assign_
        assert decide is not None

        async def lose_answer(session_id: str, asking: str) -> View:
            await decide(session_id, asking)
            raise StoreUnavailable

        house.sessions.assign_ = lose_answer
        with pytest.raises(StoreUnavailable):
            await house.desk.accept(house.offer(mitra_id), mitra_id)
        assert await house.desk.accept(house.offer(mitra_id), mitra_id) == (self.SESSION, "active")
        assert len(house.sessions.assigned) == 1

    @pytest.mark.parametrize("refusal", [OfferResolved, CapacityExceeded, StoreUnavailable])
    async def test_what_the_session_refuses_is_told_to_the_mitra_and_the_search_goes_on(
        self, house: House, autojump_clock: MockClock, refusal: type[Refusal]
    ) -> None:
        mitra_id = house.rows.add_mitra()
        pairing_id = await self.lose(house)

        async def refuse(session_id: str, asking: str) -> View:
            await trio.lowlevel.checkpoint()
            raise refusal

        house.sessions.assign_ = refuse
        with pytest.raises(refusal):
            await house.desk.accept(house.offer(mitra_id), mitra_id)
        await wait_all_tasks_blocked()
        assert house.outcome(pairing_id) == ("searching", None)
        assert len(house.desk) == 1

    async def test_when_nobody_is_left_the_session_is_told_at_once(
        self, house: House, autojump_clock: MockClock
    ) -> None:
        mitra_id = house.rows.add_mitra()
        pairing_id = await self.lose(house)
        await house.desk.decline(house.offer(mitra_id), mitra_id)
        await wait_all_tasks_blocked()
        over = SearchOver(pairing_id=pairing_id, cause=FailureCause.ALL_DECLINED)
        assert house.sessions.seen == [(self.SESSION, over)]
        assert house.lobby.of(CUSTOMER) == []

    async def test_its_customer_sees_the_search_and_cannot_cancel_it(
        self, house: House, autojump_clock: MockClock
    ) -> None:
        house.rows.add_mitra()
        pairing_id = await self.lose(house)
        assert (await house.desk.view(pairing_id, CUSTOMER)).status is PairingStatus.SEARCHING
        with pytest.raises(InvalidState):
            await house.desk.cancel(pairing_id, CUSTOMER)
        with pytest.raises(NotFound):
            await house.desk.view(pairing_id, str(uuid4()))
        assert house.outcome(pairing_id) == ("searching", None)
