"""Messages: numbered without a gap, durable before anybody hears of them, stored once however often they are sent."""

from collections import Counter

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from halo.events import EndedBy
from tests.actors.fakes import AWAY, OVERTAKEN, UNKNOWN, Chat, Fault, Message, open_house


async def test_seq_is_dense_from_1_and_everyone_hears_the_same(autojump_clock: MockClock) -> None:
    async with open_house() as house:
        chat = await house.opens()
        for number in range(5):
            chat.says(chat.customer if number % 2 else chat.mitra, f"m{number}")
            await wait_all_tasks_blocked()
        assert [seq for seq, _, _ in chat.messages] == [1, 2, 3, 4, 5]
        assert chat.customer.answers == [("m1", 2), ("m3", 4)]
        assert chat.mitra.answers == [("m0", 1), ("m2", 3), ("m4", 5)]
        assert [seq for seq, _ in chat.customer.bodies()] == [1, 3, 5]  # what is one's own comes as an ack
        assert [seq for seq, _ in chat.mitra.bodies()] == [2, 4]
        assert (await chat.view()).last_seq == 5


async def test_nobody_hears_or_is_acknowledged_before_the_commit(autojump_clock: MockClock) -> None:
    async with open_house() as house:
        chat = await house.opens()
        committed = trio.Event()
        house.node.fails("append", Fault(held=committed))
        chat.says(chat.customer, "m1")
        await trio.sleep(3)
        assert (chat.customer.answers, chat.mitra.bodies()) == ([], [])
        assert (await chat.view()).last_seq == 0
        committed.set()
        await wait_all_tasks_blocked()
        assert (chat.customer.answers, chat.mitra.bodies()) == ([("m1", 1)], [(1, "body of m1")])


async def test_the_last_words_of_one_who_has_left_are_heard_by_the_other(autojump_clock: MockClock) -> None:
    async with open_house() as house:
        chat = await house.opens()
        committed = trio.Event()
        house.node.fails("append", Fault(held=committed))
        chat.says(chat.mitra, "goodbye")
        await wait_all_tasks_blocked()
        chat.actor.audience.leave(chat.mitra)  # the socket is gone before the commit is there
        committed.set()
        await wait_all_tasks_blocked()
        assert chat.customer.bodies() == [(1, "body of goodbye")]


async def test_all_that_waited_goes_into_one_append(autojump_clock: MockClock) -> None:
    async with open_house() as house:
        chat = await house.opens()
        committed = trio.Event()
        house.node.fails("append", Fault(held=committed))
        chat.says(chat.customer, "first")
        await wait_all_tasks_blocked()
        for number in range(50):
            chat.says(chat.mitra if number % 2 else chat.customer, f"m{number}")
        committed.set()
        await wait_all_tasks_blocked()
        assert house.node.appended == [1, 50]
        assert [seq for seq, _, _ in chat.messages] == list(range(1, 52))


async def test_a_retry_is_acknowledged_with_its_first_seq_and_not_heard_again(autojump_clock: MockClock) -> None:
    async with open_house() as house:
        chat = await house.opens()
        for _ in range(3):
            chat.says(chat.customer, "m1")
            await wait_all_tasks_blocked()
        chat.says(chat.mitra, "m1")  # the same id of the other party is another message
        await wait_all_tasks_blocked()
        assert chat.customer.answers == [("m1", 1)] * 3
        assert chat.mitra.answers == [("m1", 2)]
        assert chat.mitra.bodies() == [(1, "body of m1")]
        assert len(chat.messages) == 2


async def test_the_same_id_twice_within_one_batch_is_one_message(autojump_clock: MockClock) -> None:
    async with open_house() as house:
        chat = await house.opens()
        chat.says(chat.customer, "m1")
        chat.says(chat.customer, "m2")
        chat.says(chat.customer, "m1")
        chat.says(chat.customer, "m1", "something else")
        await wait_all_tasks_blocked()
        assert Counter(chat.customer.answers) == Counter([("m1", 1), ("m1", 1), ("m2", 2), ("m1", "ID_REUSED")])
        assert chat.mitra.bodies() == [(1, "body of m1"), (2, "body of m2")]


async def test_a_repetition_within_one_batch_waits_for_the_same_commit(autojump_clock: MockClock) -> None:
    async with open_house() as house:
        chat = await house.opens()
        house.node.fails("append", AWAY)
        chat.says(chat.customer, "m1")
        chat.says(chat.customer, "m1")
        await wait_all_tasks_blocked()
        assert chat.customer.answers == [("m1", "STORE_UNAVAILABLE")] * 2
        assert chat.messages == []


async def test_an_id_with_another_body_is_refused_by_name(autojump_clock: MockClock) -> None:
    async with open_house() as house:
        chat = await house.opens()
        chat.says(chat.customer, "m1")
        await wait_all_tasks_blocked()
        chat.says(chat.customer, "m1", "something else")
        await wait_all_tasks_blocked()
        assert chat.customer.answers == [("m1", 1), ("m1", "ID_REUSED")]
        assert len(chat.messages) == 1


async def test_retries_of_what_an_earlier_incarnation_stored_are_recognised(autojump_clock: MockClock) -> None:
    """After a restart the ids come from the store, however many there are."""
    async with open_house() as house:
        chat = await house.opens()
        chat.says(chat.customer, "m1")
        await wait_all_tasks_blocked()
        database = house.database
        house.node.alive = False
        async with open_house(database) as second:
            await second.registry.restore()
            await wait_all_tasks_blocked()
            actor = second.registry.find(chat.session_id)
            assert actor is not None
            chat.house = second
            chat.listens()
            chat.says(chat.customer, "m1")
            chat.says(chat.customer, "m2")
            await wait_all_tasks_blocked()
            assert chat.customer.answers == [("m1", 1), ("m1", 1), ("m2", 2)]
            assert chat.mitra.bodies() == [(2, "body of m2")]


async def test_after_a_restart_no_more_ids_are_asked_for_than_there_are(autojump_clock: MockClock) -> None:
    """Sessions that come back together share an answer, which has room for so many rows: what nobody needs would keep others out."""
    async with open_house() as house:
        chat = await house.opens()
        for number in range(3):
            chat.says(chat.customer, f"m{number}")
        await wait_all_tasks_blocked()
        asked: list[tuple[int, int]] = []
        there = house.node.list_message_ids

        async def list_message_ids(session_id: str, after_seq: int, limit: int) -> list[tuple[int, str, str]]:
            asked.append((after_seq, limit))
            return await there(session_id, after_seq, limit)

        house.node.list_message_ids = list_message_ids  # type: ignore[method-assign]
        chat.actor.conversation.forget_ids()
        chat.says(chat.customer, "m1")
        await wait_all_tasks_blocked()
        assert asked == [(0, 3)]
        assert chat.customer.answers[-1] == ("m1", 2)


async def test_a_paused_session_refuses_what_is_new_and_acknowledges_what_was_stored(autojump_clock: MockClock) -> None:
    async with open_house() as house:
        chat = await house.opens()
        chat.says(chat.customer, "m1")
        await wait_all_tasks_blocked()
        await chat.asks()
        chat.says(chat.customer, "m1")
        chat.says(chat.customer, "m2")
        await wait_all_tasks_blocked()
        assert chat.customer.answers == [("m1", 1), ("m1", 1), ("m2", "SESSION_PAUSED")]


async def test_a_session_on_hold_takes_no_messages(autojump_clock: MockClock) -> None:
    async with open_house() as house:
        chat = await house.opens(confirmed=False)
        chat.says(chat.customer, "m1")
        await wait_all_tasks_blocked()
        assert chat.customer.answers == [("m1", "SESSION_NOT_ACTIVE")]


async def test_a_failed_append_is_told_to_the_speaker_and_a_retry_gets_through(autojump_clock: MockClock) -> None:
    async with open_house() as house:
        chat = await house.opens()
        house.node.fails("append", AWAY)
        chat.says(chat.customer, "m1")
        await wait_all_tasks_blocked()
        assert chat.customer.answers == [("m1", "STORE_UNAVAILABLE")]
        chat.says(chat.customer, "m1")
        await wait_all_tasks_blocked()
        assert chat.customer.answers == [("m1", "STORE_UNAVAILABLE"), ("m1", 1)]
        assert chat.mitra.bodies() == [(1, "body of m1")]


@pytest.mark.parametrize("retries", [True, False])
async def test_what_turns_out_to_be_durable_is_heard_once_by_itself(
    autojump_clock: MockClock, *, retries: bool
) -> None:
    """The append was done and its answer was lost: whether or not the speaker tries again, it is delivered once."""
    async with open_house() as house:
        chat = await house.opens()
        house.node.fails("append", UNKNOWN)
        chat.says(chat.customer, "m1")
        chat.says(chat.customer, "m2")
        await wait_all_tasks_blocked()
        assert chat.customer.answers == [("m1", "STORE_UNAVAILABLE"), ("m2", "STORE_UNAVAILABLE")]
        assert chat.mitra.bodies() == []
        if retries:
            chat.says(chat.customer, "m2")
        await trio.sleep(1)
        assert chat.mitra.bodies() == [(1, "body of m1"), (2, "body of m2")]
        chat.says(chat.customer, "m3")
        await trio.sleep(1)
        assert chat.customer.answers[2:] == ([("m2", 2)] if retries else []) + [("m3", 3)]
        assert [seq for seq, _ in chat.mitra.bodies()] == [1, 2, 3]


async def test_while_the_store_stays_away_everyone_is_told_and_nothing_is_lost_or_doubled(
    autojump_clock: MockClock,
) -> None:
    async with open_house() as house:
        chat = await house.opens()
        house.node.fails("append", UNKNOWN)
        house.node.fails("load", *[AWAY] * 20)
        for number in range(3):
            chat.says(chat.customer, f"m{number}")
            await wait_all_tasks_blocked()
        assert chat.customer.answers == [(f"m{number}", "STORE_UNAVAILABLE") for number in range(3)]
        await trio.sleep(20)
        chat.says(chat.customer, "m1")
        await wait_all_tasks_blocked()
        assert chat.customer.answers[3:] == [("m1", 2)]
        assert [body for _, body in chat.mitra.bodies()] == ["body of m0", "body of m1"]


async def test_catching_up_ends_where_the_session_was_known_to_be_its_own(autojump_clock: MockClock) -> None:
    """What lies behind may be said to another mitra, on another node (X1)."""
    async with open_house() as house:
        chat = await house.opens()
        held = trio.Event()
        house.node.fails("append", UNKNOWN)
        house.node.fails("list_messages", Fault(held=held))
        chat.says(chat.customer, "m1")
        await trio.sleep(1)
        rows = house.database.messages[chat.session_id]
        rows.append(Message(2, "mitra:2", "s1", "for the customer alone", house.clock.now()))
        held.set()
        await wait_all_tasks_blocked()
        assert chat.mitra.bodies() == [(1, "body of m1")]


async def test_ids_that_cannot_be_looked_up_mean_that_nothing_was_written(autojump_clock: MockClock) -> None:
    async with open_house() as house:
        chat = await house.opens()
        chat.says(chat.customer, "m1")
        await wait_all_tasks_blocked()
        house.node.fails("find_message", AWAY)
        chat.says(chat.customer, "m1")
        chat.says(chat.customer, "m2")
        await wait_all_tasks_blocked()
        assert chat.customer.answers[1:] == [("m1", "STORE_UNAVAILABLE"), ("m2", "STORE_UNAVAILABLE")]
        assert len(chat.messages) == 1


async def test_a_tail_that_somebody_else_wrote_is_read_before_anything_is_numbered(autojump_clock: MockClock) -> None:
    """A row is already there: what was said goes behind it when it is said again."""
    async with open_house() as house:
        chat = await house.opens()
        house.database.messages[chat.session_id].append(Message(1, "system", "s1", "hello", house.clock.now()))
        chat.says(chat.customer, "m1")
        await wait_all_tasks_blocked()
        assert chat.customer.answers == [("m1", "STORE_UNAVAILABLE")]
        assert chat.mitra.bodies() == [(1, "hello")]
        chat.says(chat.customer, "m1")
        await wait_all_tasks_blocked()
        assert [(seq, body) for seq, _, body in chat.messages] == [(1, "hello"), (2, "body of m1")]


async def test_an_append_that_is_overtaken_with_nothing_there_is_refused_and_the_session_goes_on(
    autojump_clock: MockClock,
) -> None:
    async with open_house() as house:
        chat = await house.opens()
        house.node.fails("append", OVERTAKEN, OVERTAKEN)
        for number in range(3):
            chat.says(chat.customer, f"m{number}")
            await wait_all_tasks_blocked()
        assert chat.customer.answers == [("m0", "STORE_UNAVAILABLE"), ("m1", "STORE_UNAVAILABLE"), ("m2", 1)]


async def test_messages_and_commands_keep_their_order(autojump_clock: MockClock) -> None:
    """What is said before an end is stored, what comes after it is refused (C6)."""
    async with open_house() as house:
        chat = await house.opens()
        committed = trio.Event()
        house.node.fails("append", Fault(held=committed))
        chat.says(chat.customer, "m1")
        await wait_all_tasks_blocked()
        chat.says(chat.customer, "m2")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_end, chat)
            await wait_all_tasks_blocked()
            chat.says(chat.customer, "m3")
            committed.set()
        await wait_all_tasks_blocked()
        assert chat.customer.answers == [("m1", 1), ("m2", 2), ("m3", "SESSION_NOT_ACTIVE")]


async def _end(chat: Chat) -> None:
    await chat.house.registry.end(chat.session_id, EndedBy.MITRA, user_id=chat.mitra_id)
