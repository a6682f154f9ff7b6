"""A session that loses its mitra, on a clock that jumps: another is sought, one takes over, or nobody does, and the money follows."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from halo.actors.commands import Answer, AssignMitra, MitraSilent, SearchOver, View
from halo.actors.rerouting import SEARCH_SLACK_MS
from halo.clock import rfc3339
from halo.errors import (
    CapacityExceeded,
    MitraDeactivated,
    NotFound,
    OfferResolved,
    Refusal,
    SessionNotActive,
    StoreUnavailable,
)
from halo.events import EndedBy
from halo.pairing import OfferStatus, PairingStatus
from halo.session import EndReason, FailureCause, Party, SessionStatus
from tests.actors.fakes import (
    AWAY,
    START,
    THERE,
    UNKNOWN,
    Broken,
    Chat,
    FakeEar,
    Fault,
    House,
    MitraRow,
    new_id,
    open_house,
)

ACTIVE, REROUTING, ENDED = SessionStatus.ACTIVE, SessionStatus.REROUTING, SessionStatus.ENDED
SILENT = replace(THERE, online=False, heartbeat_fresh=False, connected=False)


async def settle() -> None:
    await wait_all_tasks_blocked()


async def lost(house: House, **wish: Any) -> Chat:
    """A chat of ten minutes that is handed on by an operator after four."""
    chat = await house.opens(minutes=10, **wish)
    await trio.sleep(240)
    await settle()  # the timer of this instant comes first
    chat.forget()
    await chat.transfers()
    return chat


def outcome(told: list[str], asked: Callable[[], Any]) -> Callable[[], Any]:
    async def ask() -> None:
        try:
            view = await asked()
        except Refusal as refusal:
            told.append(refusal.code)
        else:
            told.append(view.session.status.value)

    return ask


# ---- lost


async def test_a_transfer_stops_the_clock_opens_a_search_and_tells_both(autojump_clock: MockClock) -> None:
    async with open_house(pairing_waves=2, pairing_offer_seconds=20) as house:
        chat = await lost(house)
        assert (chat.row.status, chat.row.remaining_ms, chat.row.expires_at) == (REROUTING, 360_000, None)
        assert chat.row.deadline_at == START + 240_000 + 2 * 20_000 + SEARCH_SLACK_MS
        assert house.outside.searches == [(house.database.search(chat.session_id).pairing_id, "transfer")]
        for ear in (chat.customer, chat.mitra):
            assert ear.types() == ["session_rerouting"]
            assert ear.closed == []  # she stays until another has accepted
        assert house.outside.told == []


async def test_who_is_not_on_the_chat_hears_of_it_in_the_lobby(autojump_clock: MockClock) -> None:
    async with open_house() as house:
        chat = await house.opens()
        chat.actor.audience.leave(chat.customer)
        chat.actor.audience.leave(chat.mitra)
        await chat.transfers()
        told = [(user_id, type(frame).__name__) for user_id, frame in house.outside.told]
        assert told == [(chat.customer_id, "SessionRerouting"), (chat.mitra_id, "SessionRerouting")]


async def test_only_a_running_session_is_transferred_and_once(autojump_clock: MockClock) -> None:
    async with open_house() as house:
        chat = await house.opens(minutes=1)
        extension = await chat.asks()
        with pytest.raises(SessionNotActive):
            await chat.transfers()
        await chat.answers(extension, accepted=False)
        await chat.transfers()
        with pytest.raises(SessionNotActive):
            await chat.transfers()
        held = await house.opens(confirmed=False)
        with pytest.raises(SessionNotActive):
            await held.transfers()
        with pytest.raises(NotFound):
            await house.registry.transfer(new_id())
        assert chat.history.count("mitra_lost") == 1


async def test_a_deactivation_that_was_decided_while_the_session_was_hers_ends_neither_the_search_nor_the_next_ones_session(
    autojump_clock: MockClock,
) -> None:
    async with open_house() as house:
        chat = await lost(house)
        with pytest.raises(SessionNotActive):
            await house.registry.end(chat.session_id, EndedBy.DEACTIVATION, user_id=chat.row.mitra_id)
        assert chat.row.status is REROUTING
        before = chat.row.mitra_id
        await chat.assigns(*chat.offers())
        with pytest.raises(NotFound):
            await house.registry.end(chat.session_id, EndedBy.DEACTIVATION, user_id=before)
        assert chat.row.status is ACTIVE


async def test_nothing_is_said_and_no_timer_comes_while_another_is_sought(autojump_clock: MockClock) -> None:
    async with open_house(session_timer_interval_seconds=5) as house:
        chat = await lost(house)
        chat.forget()
        chat.says(chat.customer, "c1")
        chat.says(chat.mitra, "m1")
        await trio.sleep(30)
        assert chat.customer.answers == [("c1", "SESSION_PAUSED")]
        assert chat.mitra.answers == [("m1", "SESSION_PAUSED")]
        assert chat.customer.types() == chat.mitra.types() == []


@pytest.mark.parametrize(
    "seen",
    [
        THERE,
        replace(SILENT, connected=True),
        replace(SILENT, online=True, heartbeat_fresh=True),
        replace(SILENT, source="postgres"),
    ],
)
async def test_a_mitra_who_is_there_after_all_keeps_her_session(autojump_clock: MockClock, seen: Any) -> None:
    async with open_house() as house:
        house.facts.seen = seen
        chat = await house.opens()
        await trio.sleep(130)
        chat.actor.hand_in(MitraSilent(since=house.clock.now() - 120_000))
        await settle()
        assert chat.history == ["mitra_accepted"]


async def test_a_silent_mitra_is_lost_and_the_timeline_says_what_was_known(autojump_clock: MockClock) -> None:
    async with open_house() as house:
        house.facts.seen = SILENT
        chat = await house.opens()
        await trio.sleep(130)
        house.registry.saw(chat.session_id, MitraSilent(since=house.clock.now() - 120_000))
        await settle()
        assert chat.history == ["mitra_accepted", "mitra_lost"]
        assert house.outside.searches[0][1] == "mitra_silent"
        house.registry.saw(chat.session_id, MitraSilent(since=house.clock.now() - 120_000))
        await settle()
        assert chat.row.status is REROUTING
        assert chat.history.count("mitra_lost") == 1


@pytest.mark.parametrize("fault", [AWAY, UNKNOWN, Fault(before=Broken), Fault(after=Broken)])
async def test_a_sighting_that_the_store_or_a_crash_swallowed_is_made_good_by_the_next(
    autojump_clock: MockClock, fault: Fault, claims_errors: list[Any]
) -> None:
    async with open_house() as house:
        house.facts.seen = SILENT
        chat = await house.opens()
        await trio.sleep(10)
        house.node.fails("commit", fault)
        for _ in range(2):
            house.registry.saw(chat.session_id, MitraSilent(since=START))
            await trio.sleep(2)
        assert chat.row.status is REROUTING
        assert chat.history.count("mitra_lost") == len(house.outside.searches) == 1
        assert chat.customer.types().count("session_rerouting") == 1


async def test_with_no_minute_left_nobody_is_asked_to_take_over(autojump_clock: MockClock) -> None:
    async with open_house(closure_grace_seconds=30) as house:
        house.facts.seen = SILENT
        chat = await house.opens(minutes=1)
        house.node.fails("reachability", Fault(delay_seconds=60))
        chat.actor.hand_in(MitraSilent(since=START - 120_000))
        await trio.sleep(61)
        assert chat.history == ["mitra_accepted", "deadline_reached"]
        assert chat.row.status is SessionStatus.CLOSING


# ---- handed on


async def test_another_mitra_takes_over_with_the_minutes_that_were_left(autojump_clock: MockClock) -> None:
    async with open_house(session_warning_seconds=(300, 60), session_timer_interval_seconds=3600) as house:
        chat = await lost(house)
        await trio.sleep(25)
        other = chat.offers()
        chat.forget()
        view = await chat.assigns(*other)
        assert (view.session.mitra_id, view.session.status) == (other[0], ACTIVE)
        assert (view.session.remaining_ms, view.session.expires_at) == (360_000, START + 265_000 + 360_000)
        assert [(u, type(f).__name__) for u, f in house.outside.told] == [(other[0], "SessionStarted")]
        assert chat.customer.types() == ["presence", "session_started"]
        assert chat.customer.of("session_started")[0]["mitra_id"] == other[0]
        assert (chat.mitra.types(), chat.mitra.closed) == ([], [4404])  # X1: not a word of the new conversation
        assert {chat.mitra_id, other[0]} <= set(house.outside.changed)
        search = house.database.search(chat.session_id)
        assert (search.status, search.session_id) == (PairingStatus.MATCHED, chat.session_id)
        assert house.outside.outcomes == ["found"]
        joined = FakeEar(Party.MITRA, other[0])
        chat.actor.join(joined)
        chat.customer.forget()
        await trio.sleep(1_000)
        # The warnings fit the new end, at 625 s.
        assert chat.customer.when("session_timer") == joined.when("session_timer") == [325.0, 565.0]
        assert chat.customer.when("session_closing") == [625.0]
        assert (chat.row.served_ms, chat.row.paid_ms) == (600_000, 600_000)


async def test_what_the_old_mitra_had_on_its_way_is_not_said_in_the_new_ones_name(autojump_clock: MockClock) -> None:
    """Frames that wait in the mailbox, in hand behind the change, or come afterwards from a socket that is closing."""
    async with open_house() as house:
        chat = await lost(house)
        mitra_id, pairing_id, offer_id = chat.offers()
        answer: Answer[View] = Answer()
        gate = trio.Event()
        house.node.fails("commit", Fault(held=gate))
        chat.actor.hand_in(AssignMitra(asker=answer, mitra_id=mitra_id, pairing_id=pairing_id, offer_id=offer_id))
        chat.says(chat.mitra, "behind the command")
        chat.says(chat.customer, "from the customer")
        await settle()
        chat.says(chat.mitra, "while it is committed")
        gate.set()
        assert (await answer.wait()).session.mitra_id == mitra_id
        chat.says(chat.mitra, "afterwards")
        await settle()
        assert chat.mitra.answers == [
            ("behind the command", "SESSION_NOT_ACTIVE"),
            ("while it is committed", "SESSION_NOT_ACTIVE"),
            ("afterwards", "SESSION_NOT_ACTIVE"),
        ]
        assert chat.customer.answers == [("from the customer", 1)]
        assert chat.messages == [(1, "customer", "body of from the customer")]
        assert chat.mitra.bodies() == []


async def test_a_new_mitra_who_numbers_her_messages_from_one_again_is_heard(autojump_clock: MockClock) -> None:
    """Ids belong to a person: what the one before her said under the same id, in the same words or not, is not hers (C3)."""
    async with open_house() as first:
        chat = await first.opens(minutes=10)
        chat.says(chat.mitra, "1", "hello")
        chat.says(chat.mitra, "2", "how are you?")
        await settle()
        await chat.transfers()
        other = chat.offers()
        await chat.assigns(*other)
        new = FakeEar(Party.MITRA, other[0])
        chat.actor.join(new)
        chat.forget()
        chat.says(new, "1", "hello")
        chat.says(new, "2", "I am new here")
        chat.says(new, "1", "hello")
        await settle()
        assert sorted(new.answers) == [("1", 3), ("1", 3), ("2", 4)]
        assert chat.customer.bodies() == [(3, "hello"), (4, "I am new here")]
        assert {frame["sender"] for frame in chat.customer.of("message")} == {"mitra"}
        assert [(seq, sender) for seq, sender, _ in chat.messages] == [
            (1, "mitra"), (2, "mitra"), (3, "mitra:2"), (4, "mitra:2"),
        ]  # fmt: skip
        first.crash()
        async with open_house(first.database) as second:  # it is known of the rows as well
            await second.registry.restore()
            chat.house = second
            chat.says(new, "2", "I am new here")
            chat.says(new, "2", "how are you?")
            await settle()
            assert new.answers[3:] == [("2", 4), ("2", "ID_REUSED")]
            assert len(chat.messages) == 4


async def test_what_is_being_handed_on_is_missing_from_a_list_and_spoils_it_for_nobody(
    autojump_clock: MockClock,
) -> None:
    async with open_house() as house:
        chat = await lost(house)
        other, pairing_id, offer_id = chat.offers()
        hers = await house.opens()
        house.database.move_on(hers.session_id, mitra_id=other)
        hers.actor._decider.session = house.database.session(hers.session_id)
        gate, answer = trio.Event(), Answer[View]()
        house.node.fails("commit", Fault(held_after=gate))
        chat.actor.hand_in(AssignMitra(asker=answer, mitra_id=other, pairing_id=pairing_id, offer_id=offer_id))
        await settle()
        assert [view.session.session_id for view in await house.registry.living_of(other)] == [hers.session_id]
        gate.set()
        await answer.wait()
        there = {view.session.session_id for view in await house.registry.living_of(other)}
        assert there == {chat.session_id, hers.session_id}


async def test_whoever_takes_up_a_session_looks_at_the_room_of_all_its_mitras(autojump_clock: MockClock) -> None:
    """Its node may have died between a hand-over's commit and the mirror's hearing of it."""
    async with open_house() as first:
        chat = await lost(first)
        other = chat.offers()
        await chat.assigns(*other)
        first.crash()
        async with open_house(first.database) as second:
            await second.registry.restore()
            assert set(second.outside.changed) == {chat.mitra_id, other[0]}


async def test_the_old_mitra_is_a_stranger_afterwards(autojump_clock: MockClock) -> None:
    async with open_house() as house:
        chat = await lost(house)
        await chat.assigns(*chat.offers())
        with pytest.raises(NotFound):
            await house.registry.view(chat.session_id, user_id=chat.mitra_id)
        with pytest.raises(NotFound):
            await house.registry.end(chat.session_id, EndedBy.MITRA, user_id=chat.mitra_id)
        late = FakeEar(Party.MITRA, chat.mitra_id)  # let in by a handshake that began before
        with pytest.raises(NotFound):
            chat.actor.join(late)
        chat.actor.audience.leave(chat.mitra)  # as her socket does when it is gone
        chat.actor.audience.leave(late)
        assert chat.actor.audience.parties() == {Party.CUSTOMER}
        assert chat.row.status is ACTIVE


@pytest.mark.parametrize(
    ("row", "refusal"), [(MitraRow(is_active=False), MitraDeactivated), (MitraRow(max_sessions=0), CapacityExceeded)]
)
async def test_a_mitra_whom_the_rows_refuse_changes_nothing_and_another_may_take_over(
    autojump_clock: MockClock, row: MitraRow, refusal: type[Refusal]
) -> None:
    async with open_house() as house:
        chat = await lost(house)
        refused, other = chat.offers(), chat.offers()
        house.database.tables.mitras[refused[0]] = row
        with pytest.raises(refusal):
            await chat.assigns(*refused)
        assert chat.row.status is REROUTING
        assert (chat.mitra.closed, house.outside.outcomes) == ([], [])
        assert "load" not in house.node.calls  # nothing was in doubt
        await chat.assigns(*other)
        assert chat.row.mitra_id == other[0]


async def test_of_many_who_accept_one_takes_over_and_the_others_are_told_so(autojump_clock: MockClock) -> None:
    async with open_house() as house:
        chat = await lost(house)
        offers = [chat.offers() for _ in range(20)]
        told: list[str] = []
        async with trio.open_nursery() as nursery:
            for offer in offers:
                nursery.start_soon(outcome(told, lambda offer=offer: chat.assigns(*offer)))  # type: ignore[misc]  # bound here
        assert sorted(told) == ["OFFER_RESOLVED"] * 19 + ["active"]
        statuses = [offer.status for _, offer in house.database.search(chat.session_id).offers]
        assert sorted(statuses) == [OfferStatus.ACCEPTED] + [OfferStatus.TAKEN] * 19
        await house.registry.end(chat.session_id, EndedBy.ADMIN, user_id=None)
        await settle()
        with pytest.raises(OfferResolved):  # also when there is no actor any more
            await chat.assigns(*offers[0])


async def test_a_takeover_whose_answer_was_lost_is_told_when_it_is_known(autojump_clock: MockClock) -> None:
    async with open_house() as house:
        chat = await lost(house)
        other = chat.offers()
        chat.forget()
        house.node.fails("commit", UNKNOWN)
        with pytest.raises(StoreUnavailable):
            await chat.assigns(*other)
        await trio.sleep(1)
        assert (chat.row.mitra_id, chat.actor.session.mitra_id) == (other[0], other[0])
        assert chat.customer.types() == ["presence", "session_started"]
        assert (chat.mitra.types(), chat.mitra.closed) == ([], [4404])
        assert house.outside.outcomes == ["found"]


@pytest.mark.parametrize("is_answered", [True, False])
async def test_the_clock_of_a_takeover_starts_when_its_locks_are_held_not_before_the_wait(
    autojump_clock: MockClock, is_answered: bool
) -> None:
    """Also where only the rows can tell afterwards that it was committed: what was decided last is what they hold (T3)."""
    async with open_house() as house:
        chat = await lost(house)
        other = chat.offers()
        house.node.fails("commit", replace(Fault() if is_answered else UNKNOWN, delay_seconds=4))
        if is_answered:
            await chat.assigns(*other)
        else:
            with pytest.raises(StoreUnavailable):
                await chat.assigns(*other)
            await trio.sleep(1)
        assert chat.actor.session == chat.row
        assert (chat.row.running_since, chat.row.remaining_ms) == (START + 244_000, 360_000)
        started = chat.customer.of("session_started")[-1]
        assert started["expires_at"] == rfc3339(START + 244_000 + 360_000)


async def test_a_crash_behind_the_takeovers_commit_shuts_the_old_mitra_out(
    autojump_clock: MockClock, claims_errors: list[Any]
) -> None:
    async with open_house() as house:
        chat = await lost(house)
        other = chat.offers()
        house.node.fails("commit", Fault(after=Broken))
        with pytest.raises(Refusal):
            await chat.assigns(*other)
        await trio.sleep(1)
        assert chat.mitra.closed == [4404]
        assert "session_started" not in chat.mitra.types()
        assert chat.actor.audience.parties() == {Party.CUSTOMER}


async def test_a_session_can_be_handed_on_again_and_the_first_search_is_over(autojump_clock: MockClock) -> None:
    async with open_house() as house:
        chat = await lost(house)
        first = chat.offers()
        await chat.assigns(*first)
        await trio.sleep(60)
        await chat.transfers()
        with pytest.raises(OfferResolved):
            await chat.assigns(*first)
        second = chat.offers()
        await chat.assigns(*second)
        assert chat.row.mitra_id == second[0]
        assert chat.row.remaining_ms == 300_000
        assert house.outside.outcomes == ["found", "found"]


# ---- nobody


async def test_a_search_that_failed_ends_the_session_at_once_with_its_refund(autojump_clock: MockClock) -> None:
    async with open_house() as house:
        chat = await lost(house)
        pairing_id = house.database.search(chat.session_id).pairing_id
        house.database.fail_search(pairing_id, FailureCause.ALL_DECLINED)
        house.registry.saw(chat.session_id, SearchOver(pairing_id=pairing_id, cause=FailureCause.ALL_DECLINED))
        await settle()
        assert (chat.row.status, chat.row.end_reason) == (ENDED, EndReason.NO_MITRA)
        assert (chat.row.served_ms, chat.row.refunded_ms) == (240_000, 360_000)
        refund = house.database.tables.refunds[chat.payment.payment_request_id, "time_left"]
        assert (refund.amount, refund.cause) == (6_000, "no_mitra")
        assert chat.customer.of("session_ended")[0]["end_reason"] == "no_mitra"
        assert house.outside.outcomes == ["no_mitra"]
        assert house.database.tables.failures == ((FailureCause.ALL_DECLINED, None),)


async def test_when_nobody_tells_of_the_search_the_deadline_ends_the_session(autojump_clock: MockClock) -> None:
    async with open_house(pairing_waves=3, pairing_offer_seconds=30) as house:
        chat = await lost(house)
        other = chat.offers()
        await trio.sleep(101)
        assert chat.customer.when("session_ended") == [340.0]
        search = house.database.search(chat.session_id)
        assert (search.status, search.cause) == (PairingStatus.FAILED, "timed_out")
        with pytest.raises(OfferResolved):
            await chat.assigns(*other)
        assert house.database.tables.refunds[chat.payment.payment_request_id, "time_left"].amount == 6_000


async def test_that_a_search_is_over_means_nothing_to_a_session_that_does_not_wait(autojump_clock: MockClock) -> None:
    async with open_house() as house:
        chat = await lost(house)
        other = chat.offers()
        await chat.assigns(*other)
        chat.actor.hand_in(SearchOver(pairing_id=other[1], cause=FailureCause.TIMED_OUT))
        await settle()
        assert chat.row.status is ACTIVE


async def test_a_customer_who_goes_meanwhile_closes_the_search(autojump_clock: MockClock) -> None:
    async with open_house() as house:
        chat = await lost(house)
        chat.offers()
        await house.registry.end(chat.session_id, EndedBy.CUSTOMER, user_id=chat.customer_id)
        search = house.database.search(chat.session_id)
        assert (search.status, search.cause) == (PairingStatus.CANCELLED, "customer_cancelled")
        assert [offer.status for _, offer in search.offers] == [OfferStatus.CANCELLED]
        assert chat.row.forfeited_ms == 360_000
        assert house.database.tables.refunds == {}


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1), (1, 2, 0), (1, 0, 2), (0, 2, 1), (2, 1, 0)])
async def test_an_accept_an_end_and_the_deadline_in_one_instant_have_one_winner(
    autojump_clock: MockClock, order: tuple[int, ...]
) -> None:
    async with open_house(pairing_waves=1, pairing_offer_seconds=20) as house:
        chat = await lost(house)
        other, told = chat.offers(), list[str]()
        await trio.sleep(29.999)
        asks: list[Callable[[], Any]] = [
            outcome(told, lambda: chat.assigns(*other)),
            outcome(told, lambda: house.registry.end(chat.session_id, EndedBy.CUSTOMER, user_id=chat.customer_id)),
            partial(trio.sleep, 0.001),
        ]
        async with trio.open_nursery() as nursery:
            for place in order:
                nursery.start_soon(asks[place])
                await settle()
        await settle()
        row, search = chat.row, house.database.search(chat.session_id)
        if row.status is ACTIVE or ("end_requested" in chat.history and row.mitra_id == other[0]):
            assert row.mitra_id == other[0]
            assert search.status is PairingStatus.MATCHED
        else:
            assert row.mitra_id == chat.mitra_id
            assert search.status in {PairingStatus.CANCELLED, PairingStatus.FAILED}
            assert "OFFER_RESOLVED" in told
        assert row.paid_ms == row.served_ms + row.refunded_ms + row.forfeited_ms + row.remaining_ms
        assert len(house.outside.outcomes) == 1


# ---- restart


async def test_a_restart_credits_the_search_too_and_an_accept_then_works(autojump_clock: MockClock) -> None:
    async with open_house(pairing_waves=1, pairing_offer_seconds=30) as first:
        chat = await lost(first)
        other = chat.offers()
        await trio.sleep(35)
        first.crash()
        await trio.sleep(60)
        async with open_house(first.database, reconnect_grace_seconds=10) as second:
            assert await second.registry.restore() == 1
            chat.house = second
            assert chat.row.deadline_at == START + 240_000 + 40_000 + 60_000
            assert chat.row.remaining_ms == 360_000
            await trio.sleep(4)
            view = await chat.assigns(*other)
            assert view.session.remaining_ms == 360_000
            assert view.session.mitra_id == other[0]


async def test_a_drain_leaves_the_search_and_refuses_who_accepts_as_retryable(autojump_clock: MockClock) -> None:
    async with open_house() as first:
        chat = await lost(first)
        other, told = chat.offers(), list[str]()
        gate = trio.Event()
        first.node.fails("commit", Fault(held=gate))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(first.registry.drain)
            await settle()
            await outcome(told, lambda: chat.assigns(*other))()
            gate.set()
        assert told == ["DRAINING"]
        first.crash()
        async with open_house(first.database) as second:
            await second.registry.restore()
            chat.house = second
            assert (await chat.assigns(*other)).session.mitra_id == other[0]
