"""A node whose lease was gone for a moment finds out what it lost, and what a dead one left undone is made good, over real sockets."""

from typing import Any

import pytest
import trio

from halo.clock import SystemClock
from halo.store.mitras import Mitras
from halo.store.nodes import NodeLease
from tests.store.ground import find_holder, lines, open_journal, open_node
from tests.whole.house import PATIENCE_SECONDS, House, open_house, refusal_of
from tests.whole.test_deactivation import closing_code


@pytest.fixture(autouse=True)
def look_only_when_the_lease_was_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the round of five seconds might be what is seen here."""
    monkeypatch.setattr("halo.server.TAKE_UP_SECONDS", 3_600)


async def cut_lease(house: House) -> None:
    """The connection that holds its lock breaks; it is had again in a fraction of a second."""
    lease: Any = house.own.parts.lease
    before = await find_holder(house.db, lease)
    await house.db.fetch_one("SELECT pg_terminate_backend(%(pid)s)", {"pid": before})
    with trio.fail_after(PATIENCE_SECONDS):
        while await find_holder(house.db, lease) in {before, None}:
            await trio.sleep(0.01)


async def test_sockets_of_a_session_that_another_node_took_meanwhile_are_sent_there(
    database_url: str, valkey_url: str
) -> None:
    """Its actor here would acknowledge nothing, and tell nobody what is said there."""
    async with open_house(database_url, valkey_url) as house, open_node(house.db) as other:
        customer, mitra, session_id = await house.open_pair()
        someone, somebody, kept_id = await house.open_pair()
        async with (
            house.chat(session_id, customer) as talk,
            house.chat(session_id, mitra) as chat,
            house.chat(kept_id, someone) as kept,
            house.chat(kept_id, somebody) as heard,
        ):
            await house.db.execute(
                "UPDATE chat_sessions SET owner = %(owner)s, epoch = epoch + 1 WHERE session_id = %(id)s",
                {"owner": other.node_id, "id": session_id},
            )
            await cut_lease(house)
            for socket in (talk, chat):
                assert (await socket.expect("reconnect"))["reason"] == "moved"
            await kept.ask("message", body="still here?")
            assert (await heard.expect("message"))["body"] == "still here?"
            assert (kept.closed_with, heard.closed_with) == (None, None)


async def test_a_former_mitra_reads_nothing_of_her_successor_from_a_node_that_has_not_heard_of_it(
    database_url: str, valkey_url: str
) -> None:
    async with open_house(database_url, valkey_url) as house, open_node(house.db) as other:
        customer, mitra, session_id = await house.open_pair()
        async with house.chat(session_id, mitra) as chat:
            await chat.ask("message", body="before")
        successor = await house.admit("mitra")
        await house.db.execute(
            "UPDATE chat_sessions SET owner = %(owner)s, epoch = 2, mitra_id = %(mitra)s WHERE session_id = %(id)s",
            {"owner": other.node_id, "mitra": successor.user_id, "id": session_id},
        )
        async with open_journal(house.db) as journal:
            await journal.append(session_id, 2, lines(2, 2))
        async with house.chat(session_id, mitra) as chat:
            assert await closing_code(chat, PATIENCE_SECONDS) == 4404
            assert [frame["type"] for frame in chat.frames] == ["welcome"]
        told = await refusal_of(house.call(mitra, "GET", f"/api/chat/{session_id}/messages"))
        assert (told.status, told.code) == (404, "NOT_FOUND")
        for person in (customer, successor):
            read = await house.call(person, "GET", f"/api/chat/{session_id}/messages")
            assert (read["last_seq"], [message["body"] for message in read["messages"]]) == (2, ["before", "body 2"])


async def test_what_a_dead_node_had_committed_and_not_mirrored_is_in_the_mirror_once_it_is_found_dead(
    database_url: str, valkey_url: str
) -> None:
    """Not five minutes later, at the next reseed (A1)."""
    async with open_house(database_url, valkey_url) as house:
        gone, come = await house.admit("mitra"), await house.admit("mitra")
        await house.go_online(gone)
        clock, mirror = SystemClock(), house.own.parts.mirror
        rows = Mitras(house.db, clock)
        await rows.go_offline(gone.user_id, clock.now())
        await rows.go_online(come.user_id, clock.now())
        await NodeLease(house.db, clock).open()  # it was there, and holds no lock
        await cut_lease(house)
        with trio.fail_after(PATIENCE_SECONDS):
            while (await mirror.reachability(gone.user_id)).online or not (
                await mirror.reachability(come.user_id)
            ).online:
                await trio.sleep(0.02)
        assert mirror.trusted
