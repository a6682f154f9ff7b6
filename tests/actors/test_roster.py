"""The roster: a crash stays where it happens, and a drain waits for everybody who can still do something."""

import logging

import pytest
import trio
from trio.testing import MockClock

from halo.actors.supervisor import RestartBudget
from halo.errors import ActorFault
from halo.session import SessionStatus
from tests.actors.fakes import AWAY, START, Broken, Chat, Fault, House, open_house
from tests.actors.test_registry import refused_with, settle

BROKEN = Fault(before=Broken)
BROKEN_AFTER = Fault(after=Broken)
BUDGET = RestartBudget(restarts=2, period_seconds=60)


# ---- crashes


async def test_a_crash_is_told_as_retryable_and_never_replayed_and_the_sockets_stay(
    autojump_clock: MockClock, claims_errors: list[logging.LogRecord]
) -> None:
    async with open_house() as house:
        chat = await house.opens()
        house.node.fails("commit", BROKEN)
        assert await refused_with(chat.asks()) is ActorFault
        assert ActorFault.retryable
        await trio.sleep(1)
        assert (chat.customer.closed, chat.mitra.closed) == ([], [])
        assert house.database.tables.extensions == {}
        assert house.node.calls.count("commit") == 1
        await chat.asks()  # it runs again
        assert chat.mitra.types() == ["extension_request", "session_paused"]
        assert len(claims_errors) == 1


async def test_everything_in_hand_is_refused_at_a_crash_and_what_waited_behind_is_done(
    autojump_clock: MockClock, claims_errors: list[logging.LogRecord]
) -> None:
    async with open_house() as house:
        chat = await house.opens()
        held = trio.Event()
        house.node.fails("append", Fault(held=held, before=Broken))
        chat.says(chat.customer, "m1")
        await settle()
        chat.says(chat.customer, "m2")  # in the mailbox, not in hand
        held.set()
        await trio.sleep(1)
        assert chat.customer.answers == [("m1", "INTERNAL"), ("m2", 1)]


async def test_what_a_crashed_commit_had_done_is_spoken_of_after_the_restart(
    autojump_clock: MockClock, claims_errors: list[logging.LogRecord]
) -> None:
    async with open_house() as house:
        chat = await house.opens()
        house.node.fails("commit", BROKEN_AFTER)
        assert await refused_with(chat.asks()) is ActorFault
        await trio.sleep(1)
        assert chat.mitra.types() == ["extension_request", "session_paused"]
        assert chat.actor.session == chat.row


async def test_what_a_crashed_append_had_stored_is_heard_once_after_the_restart(
    autojump_clock: MockClock, claims_errors: list[logging.LogRecord]
) -> None:
    async with open_house() as house:
        chat = await house.opens()
        house.node.fails("append", BROKEN_AFTER)
        chat.says(chat.customer, "m1")
        await trio.sleep(1)
        chat.says(chat.customer, "m1")
        await settle()
        assert chat.customer.answers == [("m1", "INTERNAL"), ("m1", 1)]
        assert chat.mitra.bodies() == [(1, "body of m1")]


async def test_who_was_answered_before_a_crash_is_not_refused_after_it_and_everybody_hears_what_was_stored(
    autojump_clock: MockClock, claims_errors: list[logging.LogRecord]
) -> None:
    """It crashed behind an acknowledgement in the middle of what one append had stored."""
    async with open_house() as house:
        chat = await house.opens()
        stored = chat.customer.stored

        def crashes(client_id: str, seq: int, at: int) -> None:
            stored(client_id, seq, at)
            if client_id == "m2":
                raise Broken

        chat.customer.stored = crashes  # type: ignore[method-assign]
        for id_ in ("m1", "m2", "m3"):
            chat.says(chat.customer, id_)
        await trio.sleep(1)
        assert chat.customer.answers == [("m1", 1), ("m2", 2), ("m3", "INTERNAL")]
        assert [seq for seq, _ in chat.mitra.bodies()] == [1, 2, 3]
        chat.says(chat.customer, "m3")
        await settle()
        assert chat.customer.answers[-1] == ("m3", 3)
        assert len(claims_errors) == 1


@pytest.mark.parametrize("waits", ["credit", "stop"])
async def test_what_nobody_asked_for_survives_a_crash_before_it(
    autojump_clock: MockClock, claims_errors: list[logging.LogRecord], waits: str
) -> None:
    """A lost credit would cost the customer its minutes, a lost stop would hold up the drain."""
    async with open_house(reconnect_grace_seconds=0) as house:
        chat = await house.opens()
        house.node.fails("append", BROKEN)
        chat.says(chat.customer, "m1")
        if waits == "credit":
            house.loses_clocks_for(7_000)
            await trio.sleep(1)
            assert chat.row.deadline_at == START + 607_000
        else:
            with trio.fail_after(5):
                await house.registry.drain()
            assert len(house.registry) == 0
        assert chat.customer.answers == [("m1", "INTERNAL")]


async def test_a_crash_while_the_store_is_away_does_not_spend_the_budget(
    autojump_clock: MockClock, claims_errors: list[logging.LogRecord]
) -> None:
    """A minute without Postgres must not park whoever happened to crash in it."""
    async with open_house(budget=BUDGET) as house:
        chat = await house.opens(minutes=10)
        house.node.fails("commit", BROKEN)
        house.node.fails("load", *[AWAY] * 100)
        assert await refused_with(chat.asks()) is ActorFault
        await trio.sleep(60)
        assert not chat.actor.is_parked
        assert len(claims_errors) == 1
        await chat.asks()


async def test_past_its_budget_a_session_is_parked_alone(
    autojump_clock: MockClock, claims_errors: list[logging.LogRecord]
) -> None:
    async with open_house(budget=BUDGET) as house:
        sick, well = await house.opens(), await house.opens()
        for _ in range(3):
            house.node.fails("commit", BROKEN)
            assert await refused_with(sick.asks()) is ActorFault
            await trio.sleep(0.2)
        assert sick.actor.is_parked
        assert (sick.customer.closed, sick.mitra.closed) == ([], [])
        assert await refused_with(sick.asks()) is ActorFault
        with pytest.raises(ActorFault):
            sick.says(sick.customer, "m1")
        await house.registry.payment_settled(sick.session_id)
        assert len(sick.actor.mailbox) == 0
        await trio.sleep(1000)
        assert sick.row.status is SessionStatus.ACTIVE  # an operator has to look
        assert well.row.status is SessionStatus.ENDED  # and the other lived as ever
        assert [type(actor) for actor in house.registry] == [type(sick.actor)]


async def test_other_sessions_notice_nothing_of_a_crash(
    autojump_clock: MockClock, claims_errors: list[logging.LogRecord]
) -> None:
    """X6: not even the one whose commands are under way in the same moment."""
    async with open_house() as house:
        sick, *others = [await house.opens() for _ in range(5)]
        house.node.fails("commit", BROKEN, *[Fault(delay_seconds=0.01)] * 4)
        told: list[str] = []

        async def ask(chat: Chat) -> None:
            try:
                told.append((await chat.asks()).status)
            except ActorFault:
                told.append("fault")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask, sick)
            await settle()
            for chat in others:
                nursery.start_soon(ask, chat)
        assert sorted(told) == ["fault", *["pending"] * 4]
        assert all(chat.mitra.types() == ["extension_request", "session_paused"] for chat in others)
        assert len(claims_errors) == 1


async def test_draining_does_not_wait_for_the_parked(
    autojump_clock: MockClock, claims_errors: list[logging.LogRecord]
) -> None:
    async with open_house(budget=RestartBudget(restarts=0)) as house:
        sick, _ = await house.opens(), await house.opens()
        house.node.fails("commit", BROKEN)
        assert await refused_with(sick.asks()) is ActorFault
        await settle()
        with trio.fail_after(5):
            await house.registry.drain()
        assert [actor.is_parked for actor in house.registry] == [True]


async def test_draining_stops_who_is_opened_meanwhile(autojump_clock: MockClock) -> None:
    """An accept was under way: its session gets its actor, which stops at once."""
    async with open_house() as house:
        chat = await house.opens()
        held = trio.Event()
        house.node.fails("append", Fault(held=held))
        chat.says(chat.customer, "m1")
        await settle()
        with trio.fail_after(5):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(house.registry.drain)
                await settle()
                late = await house.opens()
                held.set()
        assert len(house.registry) == 0
        assert late.row.status is SessionStatus.ACTIVE


async def test_draining_is_over_when_the_last_one_is_parked(
    autojump_clock: MockClock, claims_errors: list[logging.LogRecord]
) -> None:
    async with open_house(budget=RestartBudget(restarts=0)) as house:
        chat = await house.opens()
        held = trio.Event()
        house.node.fails("append", Fault(held=held, before=Broken))
        chat.says(chat.customer, "m1")
        await settle()
        with trio.fail_after(5):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(house.registry.drain)
                await settle()
                held.set()
        assert chat.actor.is_parked


class Stopped(trio.abc.Instrument):
    """How many sessions left in the fullest turn of the event loop."""

    def __init__(self, house: House) -> None:
        self._house = house
        self._before = 0
        self.fullest = 0

    def after_io_wait(self, timeout: float) -> None:
        self._before = len(self._house.registry)

    def before_io_wait(self, timeout: float) -> None:
        self.fullest = max(self.fullest, self._before - len(self._house.registry))


async def test_a_drain_stops_its_sessions_in_parts_with_turns_of_the_loop_between(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ten thousand that ended in one turn kept the loop for half a second."""
    monkeypatch.setattr("halo.actors.roster.STOPPED_AT_ONCE", 5)
    async with open_house() as house:
        for _ in range(100):
            await house.opens()
        stopped = Stopped(house)
        trio.lowlevel.add_instrument(stopped)
        await house.registry.drain()
        trio.lowlevel.remove_instrument(stopped)
        assert len(house.registry) == 0
        assert (
            0 < stopped.fullest <= 25
        )  # to end takes some turns, not always as many: parts may come together at the end
