"""What actors observe of themselves, on a clock that jumps."""

import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from halo.effects import Step
from halo.session import SessionStatus
from halo.trace import Trace, current_trace, following
from tests.actors.fakes import UNKNOWN, open_house


async def test_deadlines_and_timers_are_as_late_as_they_were_decided_and_sent(autojump_clock: MockClock) -> None:
    async with open_house() as house:
        chat = await house.opens(minutes=2)
        await trio.sleep(500)
        meters = house.meters
        assert chat.history[1:] == ["deadline_reached", "deadline_reached"]
        assert meters.deadline_lateness_seconds.count == 2
        assert meters.deadline_lateness_seconds.sum <= 0.002
        assert meters.timer_lateness_seconds.count == 1
        assert meters.timer_lateness_seconds.sum <= 0.002
        assert meters.step_seconds.count == 2


async def test_an_acknowledged_message_is_observed_once_and_one_that_was_not_stored_is_not(
    autojump_clock: MockClock,
) -> None:
    async with open_house() as house:
        chat = await house.opens(minutes=2)
        chat.says(chat.customer, "one")
        await wait_all_tasks_blocked()
        meters = house.meters
        assert meters.ack_seconds.count == 1
        house.node.fails("append", UNKNOWN)
        chat.says(chat.customer, "two")
        await trio.sleep(1)
        assert meters.ack_seconds.count == 1
        assert meters.taken_items.count >= 2


async def test_an_actor_does_not_go_on_in_the_trace_that_it_was_started_in(autojump_clock: MockClock) -> None:
    seen: list[Trace | None] = []
    async with open_house() as house:
        real = house.node.commit

        async def commit(*args: object) -> Step:
            seen.append(current_trace())
            return await real(*args)  # type: ignore[arg-type]

        house.node.commit = commit  # type: ignore[method-assign,assignment]
        opening, asking = Trace.begun(), Trace.begun()
        with following(opening):
            chat = await house.opens(minutes=2)
        with following(asking):
            await chat.asks()
        await trio.sleep(1000)
        assert chat.row.status is SessionStatus.ENDED
    assert seen[0] == asking
    assert set(seen[1:]) == {None}  # deadlines: nobody asked
