"""The registry: one door to the sessions of a node, also to those that have ended or live elsewhere."""

from typing import Any

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from halo.actors.supervisor import RestartBudget
from halo.errors import Draining, ExtensionResolved, NotFound, Refusal, SessionNotActive, StoreUnavailable
from halo.events import EndedBy
from halo.payment import PaymentStatus
from halo.session import EndReason, SessionStatus
from tests.actors.fakes import AWAY, Broken, Chat, Fault, open_house

BROKEN = Fault(before=Broken)
BROKEN_AFTER = Fault(after=Broken)
BUDGET = RestartBudget(restarts=2, period_seconds=60)


async def settle() -> None:
    await wait_all_tasks_blocked()


async def refused_with(call: Any) -> type[Refusal]:
    with pytest.raises(Refusal) as caught:
        await call
    return type(caught.value)


async def test_opened_twice_is_started_once(autojump_clock: MockClock) -> None:
    async with open_house() as house:
        chat = await house.opens()
        actor = chat.actor
        await house.registry.opened(_Step(chat.row))  # type: ignore[arg-type]
        assert chat.actor is actor
        assert house.outside.changed == [chat.mitra_id, chat.mitra_id]


class _Step:
    def __init__(self, session: Any) -> None:
        self.session = session


async def test_an_ended_session_is_viewed_and_refuses_by_name(autojump_clock: MockClock) -> None:
    async with open_house() as house:
        chat = await house.opens()
        extension = await chat.asks()
        chat.says(chat.customer, "m1")
        await house.registry.end(chat.session_id, EndedBy.CUSTOMER, user_id=chat.customer_id)
        await settle()
        view = await house.registry.view(chat.session_id, user_id=chat.mitra_id)
        assert (view.session.status, view.last_seq) == (SessionStatus.ENDED, 0)
        assert await refused_with(chat.asks()) is SessionNotActive
        assert await refused_with(chat.answers(extension, accepted=True)) is ExtensionResolved
        assert await refused_with(chat.cancels(extension)) is ExtensionResolved
        unknown = house.registry.respond_extension(
            chat.session_id, chat.session_id, mitra_id=chat.mitra_id, accepted=True
        )
        assert await refused_with(unknown) is NotFound
        assert await refused_with(house.registry.end(chat.session_id, EndedBy.ADMIN, user_id=None)) is SessionNotActive


async def test_a_session_that_lives_elsewhere_is_answered_as_retryable(autojump_clock: MockClock) -> None:
    async with open_house() as house:
        chat = await house.opens()
        async with open_house(house.database) as other:
            chat.house = other
            assert await refused_with(chat.asks()) is StoreUnavailable
            await other.registry.drain()
            assert await refused_with(chat.asks()) is Draining
            other.node.fails("load", AWAY)
            assert await refused_with(chat.view()) is StoreUnavailable


async def test_a_users_living_sessions_are_listed_and_the_ended_are_not(autojump_clock: MockClock) -> None:
    async with open_house() as house:
        chat, other = await house.opens(), await house.opens()
        assert [view.session.session_id for view in await house.registry.living_of(chat.mitra_id)] == [chat.session_id]
        await house.registry.end(chat.session_id, EndedBy.ADMIN, user_id=None)
        assert await house.registry.living_of(chat.mitra_id) == []
        assert len(await house.registry.living_of(other.customer_id)) == 1


async def test_a_nudge_for_a_session_that_is_not_here_is_nothing(autojump_clock: MockClock) -> None:
    async with open_house() as house:
        chat = await house.opens()
        async with open_house(house.database) as other:
            await other.registry.payment_settled(chat.session_id)
        assert chat.history == ["mitra_accepted"]


async def test_a_nudge_fits_into_a_full_mailbox(autojump_clock: MockClock) -> None:
    async with open_house() as house:
        chat = await house.opens(confirmed=False)
        house.database.settle(chat.payment.payment_request_id, PaymentStatus.FAILED)
        for number in range(512):
            chat.says(chat.customer, f"m{number}")
        await house.registry.payment_settled(chat.session_id)
        assert len(chat.actor.mailbox) == 513
        await settle()
        assert chat.row.end_reason is EndReason.PAYMENT_FAILED


async def test_cancelling_everything_leaves_nobody_waiting(autojump_clock: MockClock) -> None:
    """As when the drain has taken too long: who still waits is told to come back."""
    told: list[type[Refusal]] = []

    async def ask(chat: Chat) -> None:
        told.append(await refused_with(chat.asks()))

    async with trio.open_nursery() as askers:
        async with open_house() as house:
            chat = await house.opens()
            house.node.fails("commit", Fault(held=trio.Event()))
            askers.start_soon(ask, chat)
            await settle()
    assert told == [Draining]
