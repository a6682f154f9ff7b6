"""Postgres dies, or hangs, under a living server: senders are told to try again, nothing falls due, and nobody pays for it (T3)."""

import signal
import tempfile
from collections.abc import Iterator
from contextlib import AsyncExitStack, ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import trio

from halo.client import CallRefused, Socket
from tests.store.postmaster import Postmaster, run_postmaster
from tests.whole.house import House, Person, open_house, refusal_of
from tests.whole.wire import chat_path, open_wire

MINUTE_SECONDS = 1
"""Sessions of five minutes: their time is up while Postgres is away, if anybody kept counting."""
AWAY_SECONDS = {"killed": 5.0, "hung": 8.0}
"""As long as the session and the extension's deadline; a hung one is noticed only after the store's own deadline of 5 s."""
RECOVERY_SECONDS = 10.0
"""A tenth of it on a quiet machine."""
REFUSED_SECONDS = 15.0
"""The store's deadline, and what a busy machine adds."""
QUIET = ("session_closing", "session_ended", "extension_response", "session_resumed")


@pytest.fixture
def postmasters() -> Iterator[dict[str, Postmaster]]:
    """One to be killed and one to hang. Their directories are short, since they hold sockets."""
    with tempfile.TemporaryDirectory(prefix="away-") as home, ExitStack() as stack:
        yield {how: stack.enter_context(run_postmaster(Path(home) / how)) for how in AWAY_SECONDS}


async def test_while_postgres_is_away_nothing_falls_due_and_then_everything_goes_on(
    postmasters: dict[str, Postmaster], valkey_url: str
) -> None:
    """Two houses side by side, since both mostly wait: the one's Postgres is killed, the other's hangs."""
    async with AsyncExitStack() as stack:
        houses = {
            how: await stack.enter_async_context(
                open_house(
                    postmaster.url,
                    valkey_url,
                    HALO_VALKEY_PREFIX=f"{how}:",
                    HALO_MINUTE_SECONDS=str(MINUTE_SECONDS),
                )
            )
            for how, postmaster in postmasters.items()
        }
        async with trio.open_nursery() as nursery:
            for how, house in houses.items():
                nursery.start_soon(go_on, house, postmasters[how], how)


async def go_on(house: House, postmaster: Postmaster, how: str) -> None:
    await house.configure(reconnect_grace_seconds=1, closure_grace_seconds=1, extension_timeout_seconds=5)
    mitra = await house.admit("mitra")
    await house.configure(extension_default_action_on_timeout="auto_approve")
    (talker, _, running), (asker, _, extending) = await house.open_pairs([mitra], 2)
    tablet = await house.admit("customer", user_id=talker.user_id)
    payment = await house.pay_extension(asker)
    async with (
        house.chat(running, talker) as talk,
        house.chat(extending, asker) as ask,
        house.chat(extending, mitra),
    ):
        assert (await talk.ask("message", body="before"))["seq"] == 1
        await house.ask_extension(asker, extending, payment)
        left_before = (await house.info(running, talker))["session"]["remaining_seconds"]
        went = trio.current_time()
        postmaster.send(signal.SIGKILL) if how == "killed" else postmaster.send_all(signal.SIGSTOP)
        await refuse_all(house, talker, talk)
        await send_back(house, running, tablet)
        await trio.sleep_until(went + AWAY_SECONDS[how])
        for socket in (talk, ask):
            assert not [frame for frame in socket.frames if frame["type"] in QUIET], "something fell due meanwhile"
            assert socket.closed_with is None
        await trio.to_thread.run_sync(postmaster.start) if how == "killed" else postmaster.send_all(signal.SIGCONT)
        back = trio.current_time()
        await say_until_stored(talk, "after")
        assert trio.current_time() - back <= RECOVERY_SECONDS
        await talk.expect("session_timer")  # the credit: no other timer is due
        left_after = (await house.info(running, talker))["session"]["remaining_seconds"]
        gone = trio.current_time() - went
        assert left_before - left_after <= gone - AWAY_SECONDS[how] + 2, f"{left_before} s were left, then {left_after}"
        await end_well(house, talk, ask)
    await require_books(house, running, extending)


async def refuse_all(house: House, talker: Person, talk: Socket) -> None:
    """A message and a call, both told to try again, and not for ever."""
    began = trio.current_time()

    async def call() -> None:
        refused: CallRefused = await refusal_of(house.call(talker, "POST", "/api/payments", {"duration_minutes": 5}))
        assert (refused.status, refused.code, refused.problem["retryable"]) == (503, "STORE_UNAVAILABLE", True)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(call)
        refused = await talk.ask("message", id="meanwhile", body="meanwhile")
        assert (refused["type"], refused["code"], refused["retryable"]) == ("refused", "STORE_UNAVAILABLE", True)
    assert trio.current_time() - began <= REFUSED_SECONDS


async def send_back(house: House, session_id: str, newcomer: Person) -> None:
    """Who comes now, and has a history to hear, is told to come back; and it is nobody's fault (an ERROR would fail the test)."""
    with trio.fail_after(REFUSED_SECONDS):
        async with open_wire(house, chat_path(session_id), newcomer) as wire:
            code, told = await wire.wait_closed()
    assert code == 1011
    assert "message" not in [frame["type"] for frame in told]


async def say_until_stored(talk: Socket, name: str) -> None:
    """As an app does it: the same id again and again."""
    with trio.fail_after(10):
        while (answer := await talk.ask("message", id=name, body=name))["type"] != "ack":
            assert answer["retryable"], answer
            await trio.sleep(0.02)


async def end_well(house: House, talk: Socket, ask: Socket) -> None:
    """Both go on to their end: the one is served to the last second, the other's question is decided by the policy."""
    response = await ask.expect("extension_response", 10)
    assert (response["accepted"], response["reason"], response["via_timeout"]) == (True, "timeout", True)
    assert (await talk.expect("session_closing", 30))["reason"] == "time_up"
    assert (await talk.expect("session_ended", 10))["end_reason"] == "completed"


async def require_books(house: House, running: str, extending: str) -> None:
    await house.require_invariants()
    row: Any = await house.db.fetch_one(
        "SELECT started_at, paid_ms, served_ms, refunded_ms, forfeited_ms FROM chat_sessions WHERE session_id = %(id)s",
        {"id": running},
    )
    assert (row.served_ms, row.refunded_ms, row.forfeited_ms) == (row.paid_ms, 0, 0)
    closed: Any = await house.db.fetch_one(
        "SELECT at FROM session_timeline WHERE session_id = %(id)s AND to_status = 'closing'", {"id": running}
    )
    assert closed.at - row.started_at >= row.paid_ms, "the customer was given less than was paid for"
    assert closed.at <= datetime.now(UTC).timestamp() * 1000
    ledger = await house.db.fetch_all(
        "SELECT type FROM customer_transactions WHERE session_id = %(id)s ORDER BY at", {"id": extending}
    )
    assert [entry.type for entry in ledger] == ["session", "extension"]
    bodies = await house.db.fetch_all(
        "SELECT body FROM messages WHERE session_id = %(id)s ORDER BY seq", {"id": running}
    )
    assert [message.body for message in bodies][0::2][:1] == ["before"]
    assert [message.body for message in bodies].count("after") == 1
