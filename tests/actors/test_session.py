"""The actor of a session on a clock that jumps: its whole life, and what becomes of it when the store does not answer."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from halo.actors.alarm import AWAY_RETRY_MS
from halo.actors.decider import OVERTAKEN_MAX
from halo.actors.ports import UNASKED_AT_ONCE
from halo.config import TimeoutAction
from halo.effects import Step
from halo.errors import (
    Busy,
    ExtensionResolved,
    IdReused,
    InvalidState,
    NotFound,
    PaymentInUse,
    SessionNotActive,
    StoreUnavailable,
)
from halo.events import EndedBy
from halo.payment import PaymentStatus
from halo.session import DecidedBy, EndReason, Extension, ExtensionStatus, Party, SessionStatus
from tests.actors.fakes import (
    AWAY,
    OVERTAKEN,
    START,
    THERE,
    UNKNOWN,
    Chat,
    FakeEar,
    Fault,
    new_id,
    open_house,
)

ACTIVE, EXTENDING, CLOSING, ENDED = (
    SessionStatus.ACTIVE,
    SessionStatus.EXTENDING,
    SessionStatus.CLOSING,
    SessionStatus.ENDED,
)
AUTO_REJECT: dict[str, Any] = {"extension_default_action_on_timeout": TimeoutAction.AUTO_REJECT}


async def settle() -> None:
    await wait_all_tasks_blocked()


# ---- a whole life


async def test_a_session_lives_its_minutes_and_its_grace_and_ends(autojump_clock: MockClock) -> None:
    async with open_house() as house:
        chat = await house.opens(minutes=2)
        await trio.sleep(500)
        assert chat.history == ["mitra_accepted", "deadline_reached", "deadline_reached"]
        for ear in (chat.customer, chat.mitra):
            assert ear.types() == ["session_timer", "session_closing", "session_ended"]
            assert ear.when("session_closing") == [120.0]
            assert ear.when("session_ended") == [240.0]
            assert ear.closed == [1000]
        assert chat.customer.of("session_closing")[0]["reason"] == "time_up"
        assert chat.customer.of("session_ended")[0]["end_reason"] == "completed"
        assert chat.row.end_reason is EndReason.COMPLETED
        assert (chat.row.served_ms, chat.row.paid_ms) == (120_000, 120_000)
        assert house.registry.find(chat.session_id) is None
        assert chat.mitra_id in house.outside.changed


async def test_timers_come_at_every_interval_and_at_each_warning_with_what_remains(autojump_clock: MockClock) -> None:
    async with open_house(session_timer_interval_seconds=100, session_warning_seconds=(300, 60)) as house:
        chat = await house.opens(minutes=7)
        await trio.sleep(430)
        timers = chat.mitra.of("session_timer")
        # Every 100 s from the last one; warnings at 300 s and 60 s before the end at 420 s.
        assert chat.mitra.when("session_timer") == [100.0, 120.0, 220.0, 320.0, 360.0]
        assert [timer["remaining_seconds"] for timer in timers] == [320, 300, 200, 100, 60]
        assert timers[0]["server_time"] == "2026-11-24T12:01:40.000Z"
        assert timers[0]["expires_at"] == "2026-11-24T12:07:00.000Z"
        assert chat.customer.heard == chat.mitra.heard


async def test_no_timer_is_sent_while_the_clock_stands_still(autojump_clock: MockClock) -> None:
    async with open_house(extension_timeout_seconds=600) as house:
        chat = await house.opens(minutes=10)
        await trio.sleep(10)
        extension = await chat.asks()
        await trio.sleep(300)
        assert chat.mitra.of("session_timer") == []
        await chat.answers(extension, accepted=True)
        chat.forget()
        await trio.sleep(61)
        assert chat.mitra.when("session_timer") == [370.0]  # an interval after the clock ran again


async def test_an_accepted_extension_is_charged_once_and_adds_its_minutes(autojump_clock: MockClock) -> None:
    async with open_house() as house:
        chat = await house.opens(minutes=10)
        await trio.sleep(240)
        payment = chat.extension_payment()
        extension = await chat.asks(payment)
        assert extension.status is ExtensionStatus.PENDING
        assert chat.customer.types()[-1] == "session_paused"
        assert chat.mitra.types()[-2:] == ["extension_request", "session_paused"]
        await trio.sleep(30)
        decided = await chat.answers(extension, accepted=True)
        assert decided.status is ExtensionStatus.ACCEPTED
        assert chat.customer.types()[-2:] == ["extension_response", "session_resumed"]
        assert chat.customer.of("session_resumed")[0]["remaining_seconds"] == (6 + 5) * 60
        assert house.database.tables.payments[payment.payment_request_id].status is PaymentStatus.CONSUMED
        assert house.database.tables.ledger[payment.payment_request_id].amount == 5_000
        await trio.sleep(2000)
        assert chat.row.served_ms == 15 * 60_000
        assert chat.customer.when("session_closing") == [15 * 60 + 30.0]  # the 30 s of thinking cost nobody anything


async def test_a_refused_extension_is_refunded_and_the_chat_goes_on(autojump_clock: MockClock) -> None:
    async with open_house() as house:
        chat = await house.opens(minutes=10)
        payment = chat.extension_payment()
        extension = await chat.asks(payment)
        decided = await chat.answers(extension, accepted=False)
        assert decided.status is ExtensionStatus.REJECTED
        assert chat.row.status is ACTIVE
        tables = house.database.tables
        assert tables.payments[payment.payment_request_id].failure_cause == "extension_rejected"
        assert tables.refunds[payment.payment_request_id, "payment_failed"].amount == 5_000
        assert payment.payment_request_id not in tables.ledger


async def test_a_cancelled_extension_frees_its_payment_for_another_request(autojump_clock: MockClock) -> None:
    async with open_house() as house:
        chat = await house.opens(minutes=10)
        payment = chat.extension_payment()
        first = await chat.asks(payment)
        assert (await chat.cancels(first)).status is ExtensionStatus.CANCELLED
        second = await chat.asks(payment)
        assert (await chat.answers(second, accepted=True)).status is ExtensionStatus.ACCEPTED
        with pytest.raises(ExtensionResolved):
            await chat.answers(first, accepted=True)


@pytest.mark.parametrize(
    ("settings", "seen", "status", "decided_by", "reason"),
    [
        ({}, THERE, ExtensionStatus.ACCEPTED, DecidedBy.POLICY, "timeout"),
        (AUTO_REJECT, THERE, ExtensionStatus.TIMEOUT, DecidedBy.POLICY, "timeout"),
        ({}, replace(THERE, connected=False), ExtensionStatus.TIMEOUT, DecidedBy.SAFEGUARD, "safeguard"),
        ({}, replace(THERE, heartbeat_fresh=False), ExtensionStatus.TIMEOUT, DecidedBy.SAFEGUARD, "safeguard"),
    ],
)
async def test_silence_is_decided_by_the_policy_at_its_deadline(
    autojump_clock: MockClock,
    settings: dict[str, Any],
    seen: Any,
    status: ExtensionStatus,
    decided_by: DecidedBy,
    reason: str,
) -> None:
    async with open_house(extension_timeout_seconds=45, **settings) as house:
        house.facts.seen = seen
        chat = await house.opens(minutes=10)
        extension = await chat.asks()
        await trio.sleep(46)
        stored, by = house.database.tables.extensions[extension.extension_id]
        assert (stored.status, by) == (status, decided_by)
        assert chat.customer.when("extension_response") == [45.0]
        (told,) = chat.customer.of("extension_response")
        assert (told["reason"], told["accepted"], told["via_timeout"]) == (
            reason,
            status is ExtensionStatus.ACCEPTED,
            True,
        )
        charged = extension.payment_request_id in house.database.tables.ledger
        assert charged == (status is ExtensionStatus.ACCEPTED)


async def test_the_policy_is_the_one_in_force_when_the_request_was_made(autojump_clock: MockClock) -> None:
    async with open_house(extension_timeout_seconds=30) as house:
        chat = await house.opens(minutes=10)
        extension = await chat.asks()
        house.facts.live_config = type(house.facts.live_config)(extension_timeout_seconds=600, **AUTO_REJECT)
        await trio.sleep(31)
        assert house.database.tables.extensions[extension.extension_id][0].status is ExtensionStatus.ACCEPTED


async def test_the_grace_stands_still_while_an_extension_is_pending(autojump_clock: MockClock) -> None:
    async with open_house(closure_grace_seconds=100, extension_timeout_seconds=600) as house:
        chat = await house.opens(minutes=1)
        await trio.sleep(60 + 30)  # 30 s of the grace are gone
        extension = await chat.asks()
        await trio.sleep(500)
        await chat.answers(extension, accepted=False)
        assert chat.row.status is CLOSING
        await trio.sleep(69)
        assert chat.row.status is CLOSING
        await trio.sleep(2)
        assert chat.row.status is ENDED
        assert chat.customer.when("session_ended") == [660.0]


@pytest.mark.parametrize(
    ("by", "reason", "refunded"),
    [
        (EndedBy.CUSTOMER, EndReason.ENDED_BY_CUSTOMER, False),
        (EndedBy.MITRA, EndReason.ENDED_BY_MITRA, True),
        (EndedBy.ADMIN, EndReason.ENDED_BY_ADMIN, True),
        (EndedBy.DEACTIVATION, EndReason.MITRA_DEACTIVATED, True),
    ],
)
async def test_whoever_ends_it_is_named_and_only_a_customer_forfeits(
    autojump_clock: MockClock, by: EndedBy, reason: EndReason, *, refunded: bool
) -> None:
    async with open_house() as house:
        chat = await house.opens(minutes=10)
        await trio.sleep(60)
        user = {EndedBy.CUSTOMER: chat.customer_id, EndedBy.MITRA: chat.mitra_id}.get(by)
        view = await house.registry.end(chat.session_id, by, user_id=user)
        assert (view.session.status, view.session.end_reason) == (ENDED, reason)
        assert (chat.row.refunded_ms > 0) == refunded
        assert ((chat.payment.payment_request_id, "time_left") in house.database.tables.refunds) == refunded
        assert chat.customer.closed == chat.mitra.closed == [1000]


async def test_an_end_while_an_extension_waits_leaves_no_money_loose(autojump_clock: MockClock) -> None:
    async with open_house() as house:
        chat = await house.opens(minutes=10)
        extension = await chat.asks()
        await house.registry.end(chat.session_id, EndedBy.MITRA, user_id=chat.mitra_id)
        tables = house.database.tables
        assert tables.extensions[extension.extension_id][0].status is ExtensionStatus.CANCELLED
        assert tables.payments[extension.payment_request_id].failure_cause == "session_ended"
        assert (extension.payment_request_id, "payment_failed") in tables.refunds


# ---- a session that waits for its money


async def test_a_payment_that_comes_starts_the_clock(autojump_clock: MockClock) -> None:
    async with open_house() as house:
        chat = await house.opens(confirmed=False)
        await trio.sleep(20)
        house.database.settle(chat.payment.payment_request_id, PaymentStatus.CONFIRMED)
        await house.registry.payment_settled(chat.session_id)
        await settle()
        assert chat.row.status is ACTIVE
        assert chat.row.started_at == START + 20_000
        assert chat.mitra.types() == ["session_started"]


async def test_a_payment_that_fails_ends_it(autojump_clock: MockClock) -> None:
    async with open_house() as house:
        chat = await house.opens(confirmed=False)
        house.database.settle(chat.payment.payment_request_id, PaymentStatus.FAILED)
        await house.registry.payment_settled(chat.session_id)
        await settle()
        assert chat.row.end_reason is EndReason.PAYMENT_FAILED


async def test_a_nudge_without_news_changes_nothing(autojump_clock: MockClock) -> None:
    async with open_house() as house:
        chat = await house.opens(confirmed=False)
        await house.registry.payment_settled(chat.session_id)
        await settle()
        assert chat.history == ["mitra_accepted"]


async def test_a_hold_that_passes_without_money_ends_it_and_late_money_is_refunded(autojump_clock: MockClock) -> None:
    async with open_house(payment_hold_seconds=30) as house:
        chat = await house.opens(confirmed=False)
        await trio.sleep(31)
        assert chat.row.end_reason is EndReason.PAYMENT_TIMEOUT
        assert chat.customer.when("session_ended") == [30.0]
        payment_id = chat.payment.payment_request_id
        assert house.database.tables.payments[payment_id].failure_cause == "payment_expired"
        house.database.settle(payment_id, PaymentStatus.CONFIRMED)
        assert (payment_id, "payment_failed") in house.database.tables.refunds


async def test_money_that_came_without_a_nudge_is_seen_at_the_deadline(autojump_clock: MockClock) -> None:
    async with open_house(payment_hold_seconds=30) as house:
        chat = await house.opens(confirmed=False)
        await settle()  # it has looked already
        house.database.settle(chat.payment.payment_request_id, PaymentStatus.CONFIRMED)
        await trio.sleep(29)
        assert chat.row.status is SessionStatus.PENDING_PAYMENT
        await trio.sleep(2)
        assert chat.row.status is ACTIVE


async def test_money_that_came_before_its_actor_started_is_seen_at_once(autojump_clock: MockClock) -> None:
    async with open_house() as house:
        chat = await house.opens(confirmed=False)
        house.database.settle(chat.payment.payment_request_id, PaymentStatus.CONFIRMED)  # its task has not run yet
        await settle()
        assert (chat.row.status, chat.row.started_at) == (ACTIVE, START)


async def test_a_nudge_that_met_an_absent_store_is_followed_when_it_is_back(autojump_clock: MockClock) -> None:
    async with open_house(payment_hold_seconds=120) as house:
        chat = await house.opens(confirmed=False)
        house.database.settle(chat.payment.payment_request_id, PaymentStatus.CONFIRMED)
        house.node.fails("find_payment", AWAY, AWAY)
        await house.registry.payment_settled(chat.session_id)
        await trio.sleep(2)
        assert chat.row.status is ACTIVE
        assert house.node.calls.count("find_payment") == 3  # tried again with pauses, not in a frenzy


async def test_an_extension_whose_payment_is_taken_back_is_void(autojump_clock: MockClock) -> None:
    async with open_house() as house:
        chat = await house.opens()
        extension = await chat.asks()
        payments = house.database.tables.payments
        payments[extension.payment_request_id] = replace(
            payments[extension.payment_request_id], status=PaymentStatus.FAILED, failure_cause="payment_failed"
        )
        await house.registry.payment_settled(chat.session_id)
        await settle()
        stored, by = house.database.tables.extensions[extension.extension_id]
        assert (stored.status, by) == (ExtensionStatus.CANCELLED, DecidedBy.PAYMENT)
        assert chat.row.status is ACTIVE
        assert extension.payment_request_id not in house.database.tables.ledger


# ---- who may


STRANGER = new_id()


@pytest.mark.parametrize(
    "call",
    [
        lambda chat, extension: chat.house.registry.respond_extension(
            chat.session_id, extension.extension_id, mitra_id=STRANGER, accepted=True
        ),
        lambda chat, extension: chat.house.registry.respond_extension(
            chat.session_id, extension.extension_id, mitra_id=chat.customer_id, accepted=True
        ),
        lambda chat, extension: chat.house.registry.cancel_extension(
            chat.session_id, extension.extension_id, customer_id=STRANGER
        ),
        lambda chat, _: chat.house.registry.end(chat.session_id, EndedBy.CUSTOMER, user_id=STRANGER),
        lambda chat, _: chat.house.registry.view(chat.session_id, user_id=STRANGER),
        lambda chat, _: chat.house.registry.view(new_id(), user_id=STRANGER),
        lambda chat, extension: chat.answers(replace(extension, extension_id=new_id()), accepted=True),
        lambda chat, extension: chat.cancels(replace(extension, extension_id=new_id())),
    ],
)
async def test_to_strangers_and_for_strange_ids_there_is_no_such_thing(
    autojump_clock: MockClock, call: Callable[..., Any]
) -> None:
    async with open_house() as house:
        chat = await house.opens()
        extension = await chat.asks()
        before = chat.row
        chat.forget()
        with pytest.raises(NotFound):
            await call(chat, extension)
        assert chat.row == before
        assert (chat.customer.heard, chat.mitra.heard) == ([], [])


async def test_only_the_sessions_own_customer_can_ask_for_time(autojump_clock: MockClock) -> None:
    async with open_house() as house:
        chat = await house.opens()
        told = set()
        for session_id, user_id in (
            (chat.session_id, STRANGER),
            (chat.session_id, chat.mitra_id),
            (new_id(), STRANGER),
        ):
            with pytest.raises(SessionNotActive) as refused:
                await house.registry.request_extension(
                    session_id, customer_id=user_id, duration_minutes=5, price=5_000, payment_request_id=new_id()
                )
            told.add(refused.value.message)
        assert len(told) == 1, "whether there is such a session must not show"
        assert chat.history == ["mitra_accepted"]


async def test_what_the_rules_refuse_is_told_by_name_and_changes_nothing(autojump_clock: MockClock) -> None:
    async with open_house() as house:
        chat = await house.opens()
        with pytest.raises(InvalidState):
            await chat.asks(chat.extension_payment(status=PaymentStatus.PENDING))
        with pytest.raises(NotFound):
            await chat.asks(replace(chat.extension_payment(), payment_request_id=new_id()))
        extension = await chat.asks()
        with pytest.raises(SessionNotActive):
            await chat.asks()
        await chat.answers(extension, accepted=True)
        with pytest.raises(ExtensionResolved):
            await chat.answers(extension, accepted=False)
        assert chat.history == ["mitra_accepted", "extension_requested", "extension_answered"]


async def ask_again(chat: Chat, extension_id: str, payment_request_id: str) -> Extension:
    return await chat.house.registry.request_extension(
        chat.session_id,
        customer_id=chat.customer_id,
        duration_minutes=5,
        price=5_000,
        payment_request_id=payment_request_id,
        extension_id=extension_id,
    )


async def test_a_request_asked_again_under_its_id_gets_the_same_extension_as_it_is_by_then(
    autojump_clock: MockClock,
) -> None:
    async with open_house() as house:
        chat = await house.opens()
        extension_id, payment_id = new_id(), chat.extension_payment().payment_request_id
        first = await ask_again(chat, extension_id, payment_id)
        assert (first.extension_id, first.status) == (extension_id, ExtensionStatus.PENDING)
        assert await ask_again(chat, extension_id, payment_id) == first
        await chat.answers(first, accepted=True)
        assert (await ask_again(chat, extension_id, payment_id)).status is ExtensionStatus.ACCEPTED
        with pytest.raises(IdReused):
            await ask_again(chat, extension_id, chat.extension_payment().payment_request_id)
        assert len(house.database.tables.extensions) == 1
        assert chat.history == ["mitra_accepted", "extension_requested", "extension_answered"]


async def test_a_request_whose_commit_was_not_answered_is_found_when_it_is_asked_again(
    autojump_clock: MockClock,
) -> None:
    async with open_house() as house:
        chat = await house.opens()
        extension_id, payment_id = new_id(), chat.extension_payment().payment_request_id
        house.node.fails("commit", UNKNOWN)
        with pytest.raises(StoreUnavailable):
            await ask_again(chat, extension_id, payment_id)
        assert (await ask_again(chat, extension_id, payment_id)).extension_id == extension_id
        assert len(house.database.tables.extensions) == 1


async def test_one_payment_is_bound_by_one_of_two_sessions(autojump_clock: MockClock) -> None:
    """Both actors read it free in the same instant; the index has the last word, and the loser is told by name."""
    async with open_house() as house:
        first, second = await house.opens(), await house.opens()
        house.database.move_on(second.session_id, customer_id=first.customer_id)
        await house.registry.end(second.session_id, EndedBy.ADMIN, user_id=None)
        third = await house.opens()
        house.database.move_on(third.session_id, customer_id=first.customer_id)
        await third.actor.recover()  # it reads the row again, and knows its new customer
        assert third.actor.session.customer_id == first.customer_id
        third.customer_id = first.customer_id
        payment = first.extension_payment()
        told: list[str] = []

        async def ask(chat: Chat) -> None:
            try:
                await chat.asks(payment)
                told.append("bound")
            except PaymentInUse as refusal:
                told.append(refusal.code)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask, first)
            nursery.start_soon(ask, third)
        assert sorted(told) == ["PAYMENT_IN_USE", "bound"]
        assert len(house.database.tables.extensions) == 1


async def test_a_participant_who_is_not_on_the_chat_is_asked_in_the_lobby(autojump_clock: MockClock) -> None:
    async with open_house() as house:
        chat = await house.opens()
        chat.actor.audience.leave(chat.mitra)
        extension = await chat.asks()
        assert [(user, type(frame).__name__) for user, frame in house.outside.told] == [
            (chat.mitra_id, "ExtensionRequest")
        ]
        user_id, template, due_at = house.database.tables.pushes[f"extension:{extension.extension_id}"]
        assert (user_id, template, due_at) == (chat.mitra_id, "extension_request", START)
        await chat.answers(extension, accepted=True)
        assert f"extension:{extension.extension_id}" not in house.database.tables.pushes


# ---- overtaken


async def test_an_overtaken_step_is_decided_anew_on_what_is_true_now(autojump_clock: MockClock) -> None:
    async with open_house() as house:
        chat = await house.opens()
        house.database.move_on(chat.session_id, version=7, price=1)
        await chat.asks()
        assert (chat.row.version, chat.row.status, chat.row.price) == (8, EXTENDING, 1)


async def test_a_step_that_is_overtaken_again_and_again_is_given_up_and_its_asker_told(
    autojump_clock: MockClock,
) -> None:
    async with open_house() as house:
        chat = await house.opens()
        house.node.fails("commit", *[OVERTAKEN] * OVERTAKEN_MAX)
        with pytest.raises(Busy):
            await chat.asks()
        assert chat.row.status is ACTIVE
        await chat.asks()  # and the actor lives on


def take_back(chat: Chat, payment_request_id: str) -> None:
    """The provider fails the payment of a pending extension, and its nudge is still on its way."""
    payments = chat.house.database.tables.payments
    payments[payment_request_id] = replace(
        payments[payment_request_id], status=PaymentStatus.FAILED, failure_cause="payment_failed"
    )


async def test_an_end_that_was_overtaken_by_a_payment_taken_back_still_ends(autojump_clock: MockClock) -> None:
    """The void extension is not the answer to what was asked."""
    async with open_house() as house:
        chat = await house.opens(minutes=10)
        extension = await chat.asks()
        take_back(chat, extension.payment_request_id)
        house.node.fails("commit", OVERTAKEN)
        view = await house.registry.end(chat.session_id, EndedBy.CUSTOMER, user_id=chat.customer_id)
        assert view.session.status is ENDED
        assert chat.history[1:] == ["extension_requested", "payment_failed", "end_requested"]
        stored, by = house.database.tables.extensions[extension.extension_id]
        assert (stored.status, by) == (ExtensionStatus.CANCELLED, DecidedBy.PAYMENT)


@pytest.mark.parametrize("accepted", [True, False])
async def test_an_answer_to_an_extension_whose_payment_was_taken_back_is_too_late(
    autojump_clock: MockClock, *, accepted: bool
) -> None:
    async with open_house() as house:
        chat = await house.opens(minutes=10)
        extension = await chat.asks()
        take_back(chat, extension.payment_request_id)
        with pytest.raises(ExtensionResolved):
            await chat.answers(extension, accepted=accepted)
        assert chat.row.status is ACTIVE
        assert house.database.tables.payments[extension.payment_request_id].failure_cause == "payment_failed"
        assert extension.payment_request_id not in house.database.tables.ledger


async def test_money_that_came_as_the_hold_ran_out_starts_the_session(autojump_clock: MockClock) -> None:
    """The actor has read `pending` and decided; the confirmation commits first, and was answered as counting."""
    async with open_house(payment_hold_seconds=30) as house:
        chat = await house.opens(confirmed=False)
        await settle()
        held = trio.Event()
        house.node.fails("commit", Fault(held=held))
        await trio.sleep(31)
        house.database.settle(chat.payment.payment_request_id, PaymentStatus.CONFIRMED)
        held.set()
        await settle()
        assert chat.row.status is ACTIVE
        assert house.database.tables.refunds == {}


async def test_an_answer_and_the_deadline_in_one_instant_have_one_winner(autojump_clock: MockClock) -> None:
    async with open_house(extension_timeout_seconds=10, **AUTO_REJECT) as house:
        outcomes = set()
        for early in (False, True):
            chat = await house.opens()
            extension = await chat.asks()
            at = trio.current_time() + 10
            house.node.fails("reachability", Fault(delay_seconds=0 if early else 1))
            await trio.sleep_until(at)
            try:
                outcomes.add((await chat.answers(extension, accepted=True)).status)
            except ExtensionResolved:
                outcomes.add(house.database.tables.extensions[extension.extension_id][0].status)
            ledger = extension.payment_request_id in house.database.tables.ledger
            refunded = (extension.payment_request_id, "payment_failed") in house.database.tables.refunds
            assert ledger != refunded
        assert outcomes <= {ExtensionStatus.ACCEPTED, ExtensionStatus.TIMEOUT}


async def test_an_end_that_another_writer_committed_is_told_to_the_sockets(autojump_clock: MockClock) -> None:
    async with open_house() as house:
        chat = await house.opens()
        house.database.move_on(
            chat.session_id,
            status=ENDED, end_reason=EndReason.ENDED_BY_ADMIN, version=2, deadline_at=None, running_since=None, expires_at=None,
        )  # fmt: skip
        with pytest.raises(SessionNotActive):
            await chat.asks()
        await settle()
        assert chat.customer.of("session_ended")[0]["end_reason"] == "ended_by_admin"
        assert chat.customer.closed == [1000]
        assert house.registry.find(chat.session_id) is None


# ---- the store is away


async def test_a_command_that_meets_an_absent_store_is_refused_as_retryable_and_said_to_nobody(
    autojump_clock: MockClock,
) -> None:
    async with open_house() as house:
        chat = await house.opens()
        house.node.fails("commit", AWAY)
        with pytest.raises(StoreUnavailable) as caught:
            await chat.asks()
        assert caught.value.retryable
        await trio.sleep(1)
        assert chat.mitra.types() == []
        assert chat.row.status is ACTIVE
        await chat.asks()
        assert chat.mitra.types() == ["extension_request", "session_paused"]


async def test_a_commit_without_an_answer_is_spoken_of_once_when_it_turns_out_to_be_durable(
    autojump_clock: MockClock,
) -> None:
    """Nobody needs to do anything for that: its deadline is running."""
    async with open_house(extension_timeout_seconds=30) as house:
        chat = await house.opens()
        house.node.fails("commit", UNKNOWN)
        house.node.fails("load", AWAY, AWAY)
        with pytest.raises(StoreUnavailable):
            await chat.asks()
        assert chat.mitra.types() == []
        await trio.sleep(2)
        assert chat.mitra.types() == ["extension_request", "session_paused"]
        assert chat.mitra.heard_at[0] < 1.5
        assert chat.actor.view().session == chat.row
        await trio.sleep(30)
        assert chat.mitra.when("extension_response") == [30.0]
        assert chat.mitra.types().count("extension_request") == 1


async def test_the_next_command_after_an_unknown_commit_is_decided_on_what_is_true(autojump_clock: MockClock) -> None:
    async with open_house() as house:
        chat = await house.opens()
        payment = chat.extension_payment()
        house.node.fails("commit", UNKNOWN)
        with pytest.raises(StoreUnavailable):
            await chat.asks(payment)
        with pytest.raises(SessionNotActive):  # it is there already
            await chat.asks(payment)
        assert chat.mitra.types() == ["extension_request", "session_paused"]
        assert len(house.database.tables.extensions) == 1


@pytest.mark.parametrize("fault", [AWAY, UNKNOWN])
@pytest.mark.parametrize("times", [1, 9])
async def test_a_deadline_is_never_lost_to_an_absent_store(autojump_clock: MockClock, fault: Fault, times: int) -> None:
    async with open_house(extension_timeout_seconds=10) as house:
        chat = await house.opens()
        extension = await chat.asks()
        house.node.fails("commit", fault, *[AWAY] * (times - 1))
        house.node.fails("load", *[AWAY] * (times - 1))
        await trio.sleep(10 + 2 * times * AWAY_RETRY_MS / 1000 + 1)
        assert house.database.tables.extensions[extension.extension_id][0].status is ExtensionStatus.ACCEPTED
        assert chat.customer.types() == ["session_paused", "extension_response", "session_resumed"]
        assert len(house.database.tables.ledger) == 2
        assert chat.history == ["mitra_accepted", "extension_requested", "deadline_reached"]


@pytest.mark.parametrize("call", ["reachability", "find_payment"])
async def test_a_deadline_whose_facts_cannot_be_had_is_tried_again(autojump_clock: MockClock, call: str) -> None:
    async with open_house(extension_timeout_seconds=10, payment_hold_seconds=10) as house:
        chat = await house.opens(confirmed=call == "reachability")
        if call == "reachability":
            await chat.asks()
        house.node.fails(call, AWAY, AWAY, AWAY)
        await trio.sleep(9.9)
        tried = len(house.node.calls)
        await trio.sleep(2)
        assert chat.history[-1] == "deadline_reached"
        assert len(house.node.calls) - tried < 12


async def test_without_the_lease_no_deadline_is_acted_upon_and_the_downtime_is_credited_first(
    autojump_clock: MockClock,
) -> None:
    async with open_house(reconnect_grace_seconds=10) as house:
        chat = await house.opens(minutes=1)
        await trio.sleep(30)
        house.lease.kept = False
        await trio.sleep(300)
        assert chat.row.status is ACTIVE
        house.loses_clocks_for(300_000)
        house.lease.kept = True
        await settle()
        assert chat.row.deadline_at == START + 360_000
        await trio.sleep(29)
        assert chat.row.status is ACTIVE
        await trio.sleep(2)
        assert chat.row.status is CLOSING
        assert chat.row.served_ms == 60_000
        assert chat.customer.when("session_closing") == [360.0]


DEEDS: dict[str, Callable[[Chat, Any], Any]] = {
    "ask": lambda chat, _: chat.asks(),
    "answer": lambda chat, extension: chat.answers(extension, accepted=False),
    "cancel": lambda chat, extension: chat.cancels(extension),
    "end": lambda chat, _: chat.house.registry.end(chat.session_id, EndedBy.MITRA, user_id=chat.mitra_id),
}


@pytest.mark.parametrize("deed", DEEDS)
async def test_nothing_that_is_asked_for_is_settled_by_a_clock_that_nobody_kept(
    autojump_clock: MockClock, deed: str
) -> None:
    """The pool is back before the lease's beat: what is decided now would book the outage as served."""
    async with open_house() as house:
        chat = await house.opens(minutes=10)
        await trio.sleep(60)
        extension = await chat.asks() if deed in {"answer", "cancel"} else None
        told = len(chat.history)
        house.lease.kept = False
        await trio.sleep(60)
        with pytest.raises(StoreUnavailable):
            await DEEDS[deed](chat, extension)
        assert len(chat.history) == told
        house.registry.credit_downtime(START + 60_000, START + 120_000)
        house.lease.kept = True
        await DEEDS[deed](chat, extension)
        assert chat.history[told] == "downtime_credited"
        assert chat.row.served_ms == 60_000


async def test_a_payment_that_is_confirmed_in_an_outage_starts_the_clock_after_it(autojump_clock: MockClock) -> None:
    async with open_house() as house:
        chat = await house.opens(minutes=10, confirmed=False)
        await settle()
        house.lease.kept = False
        await trio.sleep(60)
        house.database.settle(chat.payment.payment_request_id, PaymentStatus.CONFIRMED)
        await house.registry.payment_settled(chat.session_id)
        await trio.sleep(1)
        assert chat.row.status is SessionStatus.PENDING_PAYMENT
        house.registry.credit_downtime(START, START + 61_000)
        house.lease.kept = True
        await trio.sleep(1)
        assert (chat.row.status, chat.row.started_at) == (ACTIVE, START + 61_000)
        assert chat.row.expires_at == START + 661_000


async def test_a_gap_is_credited_only_from_the_sessions_last_step_on(autojump_clock: MockClock) -> None:
    async with open_house() as house:
        await trio.sleep(50)
        chat = await house.opens(minutes=10)
        await trio.sleep(10)
        house.registry.credit_downtime(START, START + 60_000)
        await settle()
        assert chat.row.expires_at == START + 50_000 + 600_000 + 10_000


@pytest.mark.parametrize("fault", [AWAY, UNKNOWN])
async def test_what_is_owed_is_known_until_it_is_written_down(autojump_clock: MockClock, fault: Fault) -> None:
    """As long as it is, the lease keeps the gap in its row for a successor."""
    async with open_house() as house:
        chat = await house.opens()
        house.node.fails("commit", fault)
        house.loses_clocks_for(5_000)
        assert house.registry.owes_downtime()
        await settle()
        assert house.registry.owes_downtime()
        await trio.sleep(1)
        assert not house.registry.owes_downtime()
        assert chat.history == ["mitra_accepted", "downtime_credited"]


async def test_of_many_deadlines_at_once_only_some_are_under_way(autojump_clock: MockClock) -> None:
    """Who asks for something meanwhile must find a connection."""
    async with open_house() as house:
        chats = [await house.opens(minutes=1) for _ in range(200)]
        asker = await house.opens(minutes=10)
        under_way, most = 0, 0
        commit = house.node.commit

        async def counted(*args: Any) -> Step:
            nonlocal under_way, most
            under_way += 1
            most = max(most, under_way)
            await trio.sleep(1)
            committed = await commit(*args)
            under_way -= 1
            return committed

        house.node.commit = counted  # type: ignore[method-assign, assignment]
        await trio.sleep(60.5)
        assert most == UNASKED_AT_ONCE
        asked_at = trio.current_time()
        await asker.asks()
        assert trio.current_time() - asked_at < 2
        await trio.sleep(1.1 * len(chats) / UNASKED_AT_ONCE)
        assert {chat.row.status for chat in chats} <= {CLOSING, ENDED}
        assert most == UNASKED_AT_ONCE + 1  # and the one who asked


async def test_who_waits_for_its_turn_is_not_woken_before(autojump_clock: MockClock) -> None:
    """Ten thousand who tried again every second and a half kept each other from ever being done."""
    async with open_house() as house:
        chats = [await house.opens(minutes=1) for _ in range(200)]
        commit = house.node.commit

        async def slowly(*args: Any) -> Step:
            await trio.sleep(0.5)
            return await commit(*args)

        house.node.commit = slowly  # type: ignore[method-assign, assignment]
        await trio.sleep(59)
        before = house.meters.taken_items.count
        await trio.sleep(2 + 0.5 * len(chats) / UNASKED_AT_ONCE)
        assert {chat.row.status for chat in chats} == {CLOSING}
        assert house.meters.taken_items.count - before <= 2 * len(chats)  # to find that it has to wait, and to do it


async def test_who_waits_for_its_turn_goes_on_with_its_people(autojump_clock: MockClock) -> None:
    async with open_house() as house:
        chats = [await house.opens(minutes=1) for _ in range(4 * UNASKED_AT_ONCE)]
        held = trio.Event()
        house.node.fails("commit", *[Fault(held=held)] * UNASKED_AT_ONCE)
        await trio.sleep(60.1)
        waiting = next(chat for chat in reversed(chats) if chat.row.status is ACTIVE)
        waiting.says(waiting.customer, "m1")
        await settle()
        assert waiting.customer.answers == [("m1", 1)]
        held.set()
        await trio.sleep(1)
        assert {chat.row.status for chat in chats} == {CLOSING}


async def test_an_alarm_that_rang_before_the_credit_waits_for_it(autojump_clock: MockClock) -> None:
    """Both lie in the mailbox when the lease is back: the alarm came first, and must not come first."""
    async with open_house(reconnect_grace_seconds=10) as house:
        chat = await house.opens(minutes=1)
        held = trio.Event()
        house.node.fails("append", Fault(held=held))
        house.lease.kept = False
        chat.says(chat.customer, "m1")
        await trio.sleep(100)  # the alarm rang at 60 s and waits behind the append
        house.loses_clocks_for(100_000)
        house.lease.kept = True
        held.set()
        await settle()
        assert chat.row.status is ACTIVE
        assert chat.history == ["mitra_accepted", "downtime_credited"]
        await trio.sleep(58)
        assert chat.row.status is ACTIVE
        await trio.sleep(3)
        assert chat.row.status is CLOSING


@pytest.mark.parametrize("fault", [AWAY, UNKNOWN])
async def test_a_credit_that_meets_an_absent_store_is_given_once_and_before_any_deadline(
    autojump_clock: MockClock, fault: Fault
) -> None:
    async with open_house(reconnect_grace_seconds=0) as house:
        chat = await house.opens(minutes=1)
        await trio.sleep(59)
        house.node.fails("commit", fault, AWAY, AWAY)
        house.node.fails("load", AWAY, AWAY, AWAY, AWAY, AWAY)
        house.loses_clocks_for(30_000)
        await trio.sleep(20)
        assert chat.history == ["mitra_accepted", "downtime_credited"]
        assert chat.row.deadline_at == START + 90_000
        assert len(house.node.calls) < 20
        assert chat.mitra.types() == ["session_timer"]
        await trio.sleep(15)
        assert chat.row.status is CLOSING


async def test_what_somebody_asks_for_is_decided_after_the_credit_that_is_owed(autojump_clock: MockClock) -> None:
    """Else the downtime would be booked as served when the clock stops."""
    async with open_house() as house:
        chat = await house.opens(minutes=10)
        await trio.sleep(60)
        house.node.fails("commit", AWAY)
        house.loses_clocks_for(30_000)
        await settle()
        await house.registry.end(chat.session_id, EndedBy.MITRA, user_id=chat.mitra_id)
        assert chat.history == ["mitra_accepted", "downtime_credited", "end_requested"]
        assert chat.row.served_ms == 30_000


async def test_two_credits_are_both_given(autojump_clock: MockClock) -> None:
    async with open_house(reconnect_grace_seconds=0) as house:
        chat = await house.opens(minutes=1)
        house.node.fails("commit", AWAY)
        house.registry.credit_downtime(START, START + 10_000)
        house.registry.credit_downtime(START + 20_000, START + 25_000)
        await trio.sleep(1)
        assert chat.row.deadline_at == START + 75_000


async def test_an_outage_that_is_told_of_twice_is_credited_once(autojump_clock: MockClock) -> None:
    """A session that was found late owes it from its opening on, and then the beat comes back and tells of it as well."""
    async with open_house(reconnect_grace_seconds=0) as house:
        chat = await house.opens(minutes=1)
        house.registry.credit_downtime(START + 5_000, START + 30_000)
        house.registry.credit_downtime(START, START + 31_000)
        await settle()
        assert chat.row.deadline_at == START + 60_000 + 26_000


async def test_a_credit_for_a_session_that_turns_out_to_have_ended_is_nothing(autojump_clock: MockClock) -> None:
    async with open_house() as house:
        chat = await house.opens()
        house.node.fails("commit", UNKNOWN)
        with pytest.raises(StoreUnavailable):
            await house.registry.end(chat.session_id, EndedBy.CUSTOMER, user_id=chat.customer_id)
        house.loses_clocks_for(10_000)
        await settle()
        assert chat.row.status is ENDED
        assert chat.customer.types() == ["session_ended"]


async def test_a_hold_that_an_unknown_credit_moved_is_not_over_early(autojump_clock: MockClock) -> None:
    async with open_house(payment_hold_seconds=30, reconnect_grace_seconds=0) as house:
        chat = await house.opens(confirmed=False)
        await trio.sleep(29.9)
        house.node.fails("commit", UNKNOWN)
        house.loses_clocks_for(60_000)
        await trio.sleep(5)
        assert chat.row.status is SessionStatus.PENDING_PAYMENT
        await trio.sleep(60)
        assert chat.row.end_reason is EndReason.PAYMENT_TIMEOUT
        assert chat.customer.when("session_ended") == [90.0]


# ---- the end of an actor


async def test_stop_finishes_what_came_before_it_and_refuses_what_came_after(autojump_clock: MockClock) -> None:
    async with open_house() as house:
        chat = await house.opens()
        committed = trio.Event()
        house.node.fails("append", Fault(held=committed))
        chat.says(chat.customer, "m1")
        await settle()
        chat.says(chat.customer, "m2")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(house.registry.drain)
            await settle()
            chat.says(chat.customer, "m3")
            committed.set()
        assert chat.customer.answers == [("m1", 1), ("m2", 2), ("m3", "DRAINING")]
        assert chat.row.status is ACTIVE
        assert len(house.registry) == 0


async def test_a_full_mailbox_refuses_new_items_as_busy(autojump_clock: MockClock) -> None:
    async with open_house() as house:
        chat = await house.opens()
        committed = trio.Event()
        house.node.fails("append", Fault(held=committed))
        chat.says(chat.customer, "first")
        await settle()
        for number in range(512):
            chat.says(chat.customer, f"m{number}")
        with pytest.raises(Busy):
            chat.says(chat.customer, "one too many")
        committed.set()
        await settle()
        assert len(chat.messages) == 513


async def test_a_view_and_joining_fit_together_without_a_gap(autojump_clock: MockClock) -> None:
    async with open_house() as house:
        chat = await house.opens()
        chat.says(chat.customer, "m1")
        await settle()
        view = chat.actor.join(chat.mitra)
        assert view.last_seq == 1
        chat.says(chat.customer, "m2")
        await settle()
        assert {seq for seq, _ in chat.mitra.bodies()} == {1, 2}


async def test_who_joins_after_the_end_is_told_of_it_and_closed(autojump_clock: MockClock) -> None:
    """The handshake took its time; the actor is out of the registry, and the socket still holds it."""
    async with open_house() as house:
        chat = await house.opens()
        actor, late = chat.actor, FakeEar(Party.MITRA, chat.mitra_id)
        await house.registry.end(chat.session_id, EndedBy.CUSTOMER, user_id=chat.customer_id)
        await settle()
        assert actor.join(late).session.status is ENDED
        assert late.of("session_ended")[0]["end_reason"] == "ended_by_customer"
        assert late.closed == [1000]


async def test_who_joins_an_actor_that_was_stopped_is_sent_to_the_next_node(autojump_clock: MockClock) -> None:
    async with open_house() as house:
        chat = await house.opens()
        actor, late = chat.actor, FakeEar(Party.MITRA, chat.mitra_id)
        await house.registry.drain()
        actor.join(late)
        assert (late.types(), late.closed) == (["reconnect"], [4000])


# ---- receipts


async def test_behind_the_frames_of_a_push_a_receipt_is_asked_for_of_that_very_step(autojump_clock: MockClock) -> None:
    """What was asked for before the frame would prove nothing, and the pong of an earlier step nothing of a later one."""
    async with open_house() as house:
        chat = await house.opens()
        heard = len(chat.mitra.heard)
        extension = await chat.asks()
        version = chat.actor.session.version
        assert house.outside.asked[-1] == (chat.mitra_id, f"extension:{extension.extension_id}@{version}")
        assert chat.mitra.heard[heard:], "the frames went first, in the same turn"
        await chat.answers(extension, accepted=True)
        news = f"session:{chat.session_id}:customer@{chat.actor.session.version}"
        assert house.outside.asked[-1] == (chat.customer_id, news)
