"""A session that loses its mitra is handed on over real sockets: with its history, its minutes to the millisecond, and without the one it had."""

import contextlib
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio

from halo.client import CallRefused, Frame, Socket
from halo.explain import explain_session
from halo.net.chat import ChatConnection
from halo.net.handshake import OpenWebSocket
from tests.whole.house import PATIENCE_SECONDS, House, Person, open_house, open_process, refusal_of, renewed
from tests.whole.wire import HandshakeRefused, chat_path, open_wire

REROUTE_SECONDS = 5
"""The least that the live configuration allows."""
SLACK_SECONDS = 20.0
"""For a busy machine, beside what is waited for."""


async def row_of(house: House, session_id: str) -> Any:
    return await house.db.fetch_one("SELECT * FROM chat_sessions WHERE session_id = %(id)s", {"id": session_id})


async def timeline_of(house: House, session_id: str) -> list[tuple[str, str, str]]:
    sql = "SELECT event, to_status, cause FROM session_timeline WHERE session_id = %(id)s ORDER BY version"
    return [(row.event, row.to_status, row.cause) for row in await house.db.fetch_all(sql, {"id": session_id})]


async def say(socket: Socket, *bodies: str) -> None:
    for body in bodies:
        assert (await socket.ask("message", body=body))["type"] == "ack"


async def offer_of(house: House, mitra: Person) -> dict[str, Any]:
    with trio.fail_after(PATIENCE_SECONDS):
        while not (offers := (await house.call(mitra, "GET", "/api/offers"))["offers"]):
            await trio.sleep(0.005)
    offer: dict[str, Any] = offers[0]
    return offer


async def another(house: House) -> Person:
    """A mitra who is there."""
    mitra = await house.admit("mitra")
    await house.go_online(mitra)
    return mitra


async def transfer(house: House, session_id: str) -> None:
    """There is somebody who can take it; while Valkey is in doubt, Postgres is asked about that once a second only."""
    with trio.fail_after(PATIENCE_SECONDS):
        while True:
            try:
                handed_on = await house.operate("POST", f"/api/sessions/{session_id}/transfer")
            except CallRefused as refused:
                if refused.code != "INVALID_STATE":
                    raise
                await trio.sleep(0.05)
            else:
                assert handed_on["status"] == "rerouting"
                return


async def assert_stranger(house: House, session_id: str, person: Person) -> None:
    with pytest.raises(HandshakeRefused) as refused:
        async with open_wire(house, chat_path(session_id), person):
            pass
    assert refused.value.status == 404
    for method, path in (("GET", "info"), ("GET", "messages"), ("POST", "end")):
        told = await refusal_of(house.call(person, method, f"/api/chat/{session_id}/{path}"))
        assert (told.status, told.code) == (404, "NOT_FOUND"), path
    assert (await house.call(person, "GET", "/api/chat"))["sessions"] == []


async def assert_handed_on(house: House, session_id: str, mitra: Person, remaining_ms: int) -> None:
    """The clock stood still: what was left when the mitra was lost is what the new one began with."""
    row = await row_of(house, session_id)
    assert (row.status, row.mitra_id) == ("active", mitra.user_id)
    assert row.remaining_ms == remaining_ms == row.expires_at - row.running_since
    assert row.paid_ms == row.served_ms + row.refunded_ms + row.forfeited_ms + row.remaining_ms
    await house.require_invariants()


async def test_a_mitra_whose_sockets_die_is_replaced_over_the_lobby(database_url: str, valkey_url: str) -> None:
    async with open_house(database_url, valkey_url) as house:
        await house.configure(reroute_after_seconds=REROUTE_SECONDS)
        customer, mitra, session_id = await house.open_pair(minutes=10)
        async with house.chat(session_id, customer) as talk:
            async with house.chat(session_id, mitra) as chat:
                await say(talk, "are you there?")
                await say(chat, "I am", "the line is bad")
            other = await another(house)
            await house.call(mitra, "POST", "/api/mitra/status/offline")
            async with house.lobby(other) as lobby:
                await talk.expect("session_rerouting", REROUTE_SECONDS + SLACK_SECONDS)
                lost = await row_of(house, session_id)
                assert (lost.status, lost.running_since, lost.expires_at) == ("rerouting", None, None)
                offer = await lobby.expect("offer")
                assert offer["duration_minutes"] == -(-lost.remaining_ms // 60_000)
                assert (await talk.ask("message", body="hello?"))["code"] == "SESSION_PAUSED"
                accepted = await lobby.ask("offer_accept", offer_id=offer["offer_id"])
                assert (accepted["type"], accepted["session_id"]) == ("ack", session_id)
                told: list[Frame] = [await talk.expect("session_started"), await lobby.expect("session_started")]
                assert {(frame["session_id"], frame["mitra_id"]) for frame in told} == {(session_id, other.user_id)}
                assert not [frame for frame in talk.frames if frame["type"].startswith("pairing_")]
            await assert_handed_on(house, session_id, other, lost.remaining_ms)
            async with house.chat(session_id, other) as chat:
                assert [(await chat.expect("message"))["body"] for _ in range(3)] == [
                    "are you there?",
                    "I am",
                    "the line is bad",
                ]
                await say(chat, "I take over")
                assert (await talk.expect(lambda frame: frame.get("seq") == 4))["body"] == "I take over"
        await assert_stranger(house, session_id, mitra)
        assert [event for event, *_ in await timeline_of(house, session_id)] == [
            "mitra_accepted",
            "mitra_lost",
            "mitra_assigned",
        ]
        story = await explain_session(house.db, session_id)
        assert story is not None
        for told_of in ("mitra_silent", "silent_ms", "mitra_online False", "offer_accepted", f"to {other.user_id}"):
            assert told_of in story
        async with httpx.AsyncClient(trust_env=False) as scraper:
            figures = (await scraper.get(house.ready["admin"] + "/metrics")).text.splitlines()
        assert {"halo_reroutes_silent_total 1.0", "halo_reroutes_found_total 1.0"} <= set(figures)
        await house.require_invariants()


async def test_an_operator_transfers_a_session_and_another_accepts_by_http(database_url: str, valkey_url: str) -> None:
    async with open_house(database_url, valkey_url) as house:
        customer, mitra, session_id = await house.open_pair(minutes=10)
        async with house.chat(session_id, customer) as talk, house.chat(session_id, mitra) as chat:
            await say(talk, "good morning")
            other = await another(house)
            await transfer(house, session_id)
            for socket in (talk, chat):
                await socket.expect("session_rerouting")
            assert (await chat.ask("message", body="why?"))["code"] == "SESSION_PAUSED"
            assert chat.closed_with is None  # she stays until somebody has accepted
            lost = await row_of(house, session_id)
            again = await refusal_of(house.operate("POST", f"/api/sessions/{session_id}/transfer"))
            assert (again.status, again.code) == (409, "SESSION_NOT_ACTIVE")
            offer = await offer_of(house, other)
            pairing = f"/api/pairings/{offer['pairing_id']}"
            assert (await house.call(customer, "GET", pairing))["status"] == "searching"
            refused = await refusal_of(house.call(customer, "DELETE", pairing))
            assert (refused.status, refused.code) == (409, "INVALID_STATE")
            assert (await house.call(mitra, "GET", "/api/offers"))["offers"] == []  # not the one it had
            path = f"/api/offers/{offer['offer_id']}/accept"
            for _ in range(2):  # also when she says it again
                assert await house.call(other, "POST", path) == {"session_id": session_id, "status": "active"}
            assert (await talk.expect("session_started"))["mitra_id"] == other.user_id
            assert await chat.wait_closed() == 4404
            assert "session_started" not in [frame["type"] for frame in chat.frames]
            assert (await house.call(customer, "GET", pairing))["session_id"] == session_id
        await assert_handed_on(house, session_id, other, lost.remaining_ms)
        await assert_stranger(house, session_id, mitra)
        audited = await house.db.fetch_all(
            "SELECT action, subject FROM operator_actions WHERE action = 'transfer_session'"
        )
        assert [row.subject for row in audited] == [session_id, session_id]  # the second was tried as well
        rows = await house.db.fetch_all("SELECT mitra_id, count(*) AS n FROM chat_sessions GROUP BY 1")
        assert {row.mitra_id: row.n for row in rows} == {other.user_id: 1}


async def test_whatever_the_old_mitra_sends_in_that_instant_nothing_is_said_in_the_new_ones_name(
    database_url: str, valkey_url: str
) -> None:
    """She goes on writing as fast as she can while another accepts: until then refused, then closed, never stored."""
    async with open_house(database_url, valkey_url) as house:
        customer, mitra, session_id = await house.open_pair(minutes=10)
        other = await another(house)
        async with house.chat(session_id, customer) as talk, open_wire(house, chat_path(session_id), mitra) as wire:
            await wire.expect("welcome")
            await transfer(house, session_id)
            offer = await offer_of(house, other)

            async def write() -> None:
                with contextlib.suppress(trio.BrokenResourceError):  # closed in the middle of it
                    for number in range(
                        400
                    ):  # their refusals fit into the buffers of the system, until somebody reads them
                        await wire.send("message", id=f"m{number}", body="still me")

            async with trio.open_nursery() as nursery:
                nursery.start_soon(write)
                await house.call(other, "POST", f"/api/offers/{offer['offer_id']}/accept")
            code, frames = await wire.wait_closed()
            assert code == 4404
            assert {frame["type"] for frame in frames} <= {"refused", "session_rerouting"}
            await talk.expect("session_started")
            async with house.chat(session_id, other) as chat:
                await say(chat, "it is me now")
        rows = await house.db.fetch_all("SELECT seq, body FROM messages WHERE session_id = %(id)s", {"id": session_id})
        assert [tuple(row) for row in rows] == [(1, "it is me now")]
        await house.require_invariants()


async def test_a_handshake_that_is_overtaken_by_the_takeover_lets_nobody_in(
    database_url: str, valkey_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_house(database_url, valkey_url) as house:
        customer, mitra, session_id = await house.open_pair(minutes=10)
        other = await another(house)
        admitted, taken_over = trio.Event(), trio.Event()
        converse = ChatConnection.converse

        async def late(connection: ChatConnection, websocket: OpenWebSocket) -> None:
            if connection.user_id == mitra.user_id:
                admitted.set()
                await taken_over.wait()
            await converse(connection, websocket)

        monkeypatch.setattr(ChatConnection, "converse", late)
        async with house.chat(session_id, customer) as talk:
            await say(talk, "for her eyes only")
            await transfer(house, session_id)
            async with open_wire(house, chat_path(session_id), mitra) as wire:
                await admitted.wait()
                offer = await offer_of(house, other)
                await house.call(other, "POST", f"/api/offers/{offer['offer_id']}/accept")
                await say(talk, "for the new one's")
                taken_over.set()
                assert await wire.wait_closed() == (4404, [])
            assert not [frame for frame in talk.frames if frame["type"] == "presence"]


@pytest.mark.parametrize(("asked", "cause"), [(False, "no_mitra_available"), (True, "all_declined")])
async def test_when_no_other_mitra_takes_over_the_time_left_is_refunded(
    database_url: str, valkey_url: str, asked: bool, cause: str
) -> None:
    """She is silent and alone, or handed over and the only other one declines."""
    async with open_house(database_url, valkey_url) as house:
        await house.configure(reroute_after_seconds=REROUTE_SECONDS)
        customer, mitra, session_id = await house.open_pair(minutes=10)
        async with house.chat(session_id, customer) as talk:
            if asked:
                async with house.chat(session_id, mitra) as chat:
                    other = await another(house)
                    await transfer(house, session_id)
                    offer = await offer_of(house, other)
                    await house.call(other, "POST", f"/api/offers/{offer['offer_id']}/decline")
                    assert (await chat.expect("session_ended"))["end_reason"] == "no_mitra"
                    assert await chat.wait_closed() == 1000
            else:
                await house.call(mitra, "POST", "/api/mitra/status/offline")
            await talk.expect("session_rerouting", REROUTE_SECONDS + SLACK_SECONDS)
            assert (await talk.expect("session_ended"))["end_reason"] == "no_mitra"
            assert await talk.wait_closed() == 1000
        row = await row_of(house, session_id)
        assert row.paid_ms == row.served_ms + row.refunded_ms
        (refund,) = await house.db.fetch_all("SELECT kind, cause, amount, refunded_ms FROM refunds")
        amount = -(-row.paid_amount * row.refunded_ms // row.paid_ms)
        assert tuple(refund) == ("time_left", "no_mitra", amount, row.refunded_ms)
        assert amount > row.paid_amount // 2
        (failure,) = await house.db.fetch_all("SELECT cause, session_id FROM pairing_failures")
        assert tuple(failure) == (cause, session_id)
        assert (await timeline_of(house, session_id))[-1] == ("search_failed", "ended", cause)
        await house.require_invariants()


async def test_a_transfer_that_would_find_nobody_leaves_a_healthy_session_alone(
    database_url: str, valkey_url: str
) -> None:
    """Neither its own mitra counts, nor whoever had it before."""
    async with open_house(database_url, valkey_url) as house:
        customer, mitra, session_id = await house.open_pair(minutes=10)
        handing_on = f"/api/sessions/{session_id}/transfer"
        async with house.chat(session_id, customer) as talk:
            told = await refusal_of(house.operate("POST", handing_on))
            assert (told.status, told.code) == (409, "INVALID_STATE")
            other = await another(house)
            await transfer(house, session_id)
            offer = await offer_of(house, other)
            await house.call(other, "POST", f"/api/offers/{offer['offer_id']}/accept")
            await talk.expect("session_started")
            told = await refusal_of(house.operate("POST", handing_on))  # she from whom it was taken is there, and free
            assert (told.status, told.code) == (409, "INVALID_STATE")
            third = await another(house)
            await transfer(house, session_id)
            offer = await offer_of(house, third)
            assert (await house.call(mitra, "GET", "/api/offers"))["offers"] == []
            await house.call(third, "POST", f"/api/offers/{offer['offer_id']}/accept")
            await talk.expect("session_started")
            await say(talk, "still here")
        row = await row_of(house, session_id)
        assert (row.mitra_id, list(row.former_mitra_ids)) == (third.user_id, [mitra.user_id, other.user_id])
        await house.require_invariants()


async def test_the_new_mitras_app_may_number_its_messages_as_the_first_ones_did(
    database_url: str, valkey_url: str
) -> None:
    """Client ids belong to a person (C3): nothing is thrown away, a retry is known, and everybody reads `mitra`."""
    async with open_house(database_url, valkey_url) as house:
        customer, mitra, session_id = await house.open_pair(minutes=10)
        async with house.chat(session_id, customer) as talk:
            async with house.chat(session_id, mitra) as chat:
                assert (await chat.ask("message", id="1", body="hello"))["seq"] == 1
            other = await another(house)
            await transfer(house, session_id)
            offer = await offer_of(house, other)
            await house.call(other, "POST", f"/api/offers/{offer['offer_id']}/accept")
            await talk.expect("session_started")
            async with house.chat(session_id, other) as chat:
                for body, seq in (("hello", 2), ("hello", 2)):
                    ack = await chat.ask("message", id="1", body=body)
                    assert (ack["type"], ack["seq"]) == ("ack", seq)
                assert (await chat.ask("message", id="1", body="something else"))["code"] == "ID_REUSED"
                await say(chat, "and more")
            heard = [(await talk.expect("message")) for _ in range(3)]
            assert [(f["seq"], f["sender"], f["body"]) for f in heard] == [
                (1, "mitra", "hello"), (2, "mitra", "hello"), (3, "mitra", "and more"),
            ]  # fmt: skip
        read = (await house.call(customer, "GET", f"/api/chat/{session_id}/messages"))["messages"]
        assert [(m["seq"], m["sender"]) for m in read] == [(1, "mitra"), (2, "mitra"), (3, "mitra")]
        rows = await house.db.fetch_all(
            "SELECT sender FROM messages WHERE session_id = %(id)s ORDER BY seq", {"id": session_id}
        )
        assert [row.sender for row in rows] == ["mitra", "mitra:2", "mitra:2"]
        await house.require_invariants()


async def test_deactivating_the_mitra_who_was_lost_leaves_the_customer_the_search(
    database_url: str, valkey_url: str
) -> None:
    async with open_house(database_url, valkey_url) as house:
        customer, mitra, session_id = await house.open_pair(minutes=10)
        other = await another(house)
        async with house.chat(session_id, customer) as talk:
            await transfer(house, session_id)
            offer = await offer_of(house, other)
            await house.operate("POST", f"/api/mitras/{mitra.user_id}/deactivate")
            assert (await row_of(house, session_id)).status == "rerouting"
            await house.call(other, "POST", f"/api/offers/{offer['offer_id']}/accept")
            await talk.expect("session_started")
        await house.require_invariants()


@pytest.mark.parametrize("end", ["killed", "drained"])
async def test_a_session_that_waits_for_another_mitra_outlives_its_server(
    database_url: str, valkey_url: str, tmp_path: Path, end: str
) -> None:
    async with open_process(tmp_path, database_url, valkey_url) as (stage, house):
        await house.configure(pairing_offer_seconds=60)
        customer, mitra, session_id = await house.open_pair(minutes=10)
        other = await another(house)
        await transfer(house, session_id)
        lost, offer = await row_of(house, session_id), await offer_of(house, other)
        if end == "killed":
            await stage.kill()
        else:
            assert await stage.stop() == 0
        await stage.start()
        async with renewed(stage, house) as again:
            waiting = await row_of(again, session_id)
            assert (waiting.status, waiting.remaining_ms) == ("rerouting", lost.remaining_ms)
            assert waiting.deadline_at > lost.deadline_at  # nobody could answer meanwhile
            async with again.lobby(other) as lobby, again.chat(session_id, customer) as talk:
                assert (await talk.expect("welcome"))["session"]["status"] == "rerouting"
                assert (await lobby.expect("offer"))["offer_id"] == offer["offer_id"]
                assert (await lobby.ask("offer_accept", offer_id=offer["offer_id"]))["type"] == "ack"
                await talk.expect("session_started")
            await assert_handed_on(again, session_id, other, lost.remaining_ms)
            await assert_stranger(again, session_id, mitra)
