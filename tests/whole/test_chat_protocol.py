"""The chat socket as spec 4 writes it down, byte for byte: what is said, what is refused, and how each refusal is put."""

import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from uuid import uuid4

import pytest
import trio

from halo.net import connection
from tests.whole.house import House, Person, open_house, refusal_of
from tests.whole.wire import BINARY, PING, PONG, TEXT, HandshakeRefused, Wire, chat_path, frame, open_wire

FRAME_BYTES_MAX = 65_536
MOMENT = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z")
SETTLED = "settled"
"""The id of a ping whose pong says: what was sent before has been taken."""


@asynccontextmanager
async def joined(house: House, session_id: str, person: Person, **wish: Any) -> AsyncIterator[Wire]:
    """A socket whose welcome has come."""
    async with open_wire(house, chat_path(session_id), person, **wish) as wire:
        assert (await wire.receive())["type"] == "welcome"
        yield wire


async def require_refused(wire: Wire, code: str, status: int, type_: str, **fields: Any) -> dict[str, Any]:
    told = await wire.ask(type_, id="asked", **fields)
    assert told["type"] == "refused", told
    assert (told["code"], told["status"]) == (code, status), told
    assert told["message"]
    return told


async def frames_until_pong(wire: Wire) -> list[str]:
    """The types of all that came before the answer to a ping of ours."""
    await wire.send("ping", id=SETTLED)
    types = []
    while (told := await wire.receive())["type"] != "pong":
        types.append(told["type"])
    return types


async def require_closed(wire: Wire, code: int, seconds: float = 10.0) -> list[dict[str, Any]]:
    came, told = await wire.wait_closed(seconds)
    assert came == code, told
    return told


# ---- saying and hearing


async def test_welcome_comes_first_and_tells_everything(database_url: str, valkey_url: str) -> None:
    async with open_house(database_url, valkey_url, HALO_MESSAGES_PER_10S="7", HALO_BYTES_PER_S="9000") as house:
        customer, mitra, session_id = await house.open_pair()
        async with open_wire(house, chat_path(session_id), customer) as wire:
            welcome = await wire.receive()
            assert list(welcome) == [
                "type", "role", "session", "pending_extension", "last_seq", "replay_from", "server_time", "keepalive_seconds", "limits",
            ]  # fmt: skip
            assert (welcome["type"], welcome["role"], welcome["pending_extension"]) == ("welcome", "customer", None)
            assert (welcome["last_seq"], welcome["replay_from"], welcome["keepalive_seconds"]) == (0, 0, 20)
            assert MOMENT.fullmatch(welcome["server_time"])
            assert welcome["limits"]["messages_per_10s"] == 7
            assert welcome["limits"]["bytes_per_s"] == 9000
            session = welcome["session"]
            assert set(session) == {
                "session_id", "status", "end_reason", "customer_id", "mitra_id", "topic_sensitivity", "duration_minutes", "started_at",
                "expires_at", "remaining_seconds", "deadline_at", "last_seq",
            }  # fmt: skip
            assert (session["session_id"], session["status"], session["end_reason"]) == (session_id, "active", None)
            assert (session["customer_id"], session["mitra_id"]) == (customer.user_id, mitra.user_id)
            assert 295 <= session["remaining_seconds"] <= 300
        payment = await house.pay_extension(customer)
        asked = await house.ask_extension(customer, session_id, payment)
        async with open_wire(house, chat_path(session_id), mitra) as wire:
            welcome = await wire.receive()
            assert (welcome["role"], welcome["session"]["status"]) == ("mitra", "extending")
            assert welcome["pending_extension"] == asked


async def test_a_message_is_acknowledged_to_its_sender_and_heard_by_everybody_else(
    database_url: str, valkey_url: str
) -> None:
    async with open_house(database_url, valkey_url) as house:
        customer, mitra, session_id = await house.open_pair()
        tablet = await house.admit("customer", user_id=customer.user_id)
        async with (
            joined(house, session_id, customer) as phone,
            joined(house, session_id, tablet) as other_device,
            joined(house, session_id, mitra) as other_side,
        ):
            ack = await phone.ask("message", id="one", body="Selamat malam 🌙")
            assert list(ack) == ["type", "id", "seq", "at"]
            assert (ack["id"], ack["seq"]) == ("one", 1)
            assert MOMENT.fullmatch(ack["at"])
            for hearer in (other_device, other_side):
                heard = await hearer.expect("message")
                assert heard == {
                    "type": "message",
                    "session_id": session_id,
                    "seq": 1,
                    "id": "one",
                    "sender": "customer",
                    "body": "Selamat malam 🌙",
                    "at": ack["at"],
                }
            assert (await other_side.ask("message", id="one", body="other side, same id"))["seq"] == 2
            assert "message" not in (await frames_until_pong(other_side))
            assert [(await phone.expect("message"))["seq"], (await other_device.expect("message"))["seq"]] == [2, 2]


async def test_typing_read_and_presence_go_to_the_other_side_only(database_url: str, valkey_url: str) -> None:
    async with open_house(database_url, valkey_url) as house:
        customer, mitra, session_id = await house.open_pair()
        tablet = await house.admit("customer", user_id=customer.user_id)
        async with joined(house, session_id, customer) as phone, joined(house, session_id, tablet) as other_device:
            async with joined(house, session_id, mitra) as other_side:
                for device in (phone, other_device):
                    assert await device.expect("presence") == {"type": "presence", "party": "mitra", "connected": True}
                await phone.ask("message", id="one", body="one")
                await phone.send("typing", on=True)
                await phone.send("typing", on=False)
                await phone.send("read", seq=1)
                assert await other_side.expect("typing") == {"type": "typing", "sender": "customer", "on": True}
                assert await other_side.expect("typing") == {"type": "typing", "sender": "customer", "on": False}
                assert await other_side.expect("read") == {"type": "read", "sender": "customer", "seq": 1}
                assert await frames_until_pong(phone) == []
                assert await frames_until_pong(other_device) == ["message"]
                await phone.send("read", seq=2)
                assert (await phone.expect("refused"))["code"] == "VALIDATION_ERROR"
            for device in (phone, other_device):
                assert await device.expect("presence") == {"type": "presence", "party": "mitra", "connected": False}


async def test_the_same_id_is_stored_once_and_another_body_under_it_is_refused(
    database_url: str, valkey_url: str
) -> None:
    async with open_house(database_url, valkey_url) as house:
        customer, mitra, session_id = await house.open_pair()
        async with joined(house, session_id, mitra) as other_side, joined(house, session_id, customer) as wire:
            first = await wire.ask("message", id="one", body="hello")
            assert await wire.ask("message", id="one", body="hello") == first
            told = await wire.ask("message", id="one", body="something else")
            assert (told["type"], told["code"], told["status"], told["retryable"]) == (
                "refused",
                "ID_REUSED",
                409,
                False,
            )
            assert (await wire.ask("message", id="two", body="hello"))["seq"] == 2
            assert (await frames_until_pong(other_side)).count("message") == 2
            await house.require_invariants()


async def test_a_body_is_one_to_four_thousand_characters_of_text(database_url: str, valkey_url: str) -> None:
    async with open_house(database_url, valkey_url) as house:
        customer, _, session_id = await house.open_pair()
        async with joined(house, session_id, customer) as wire:
            for body in ("", "x" * 4001, "a\0b", 7, None):
                await require_refused(wire, "VALIDATION_ERROR", 422, "message", body=body)
            await wire.send_text('{"type":"message","id":"lone","body":"\\ud800"}')
            assert (await wire.expect("refused"))["code"] in {"VALIDATION_ERROR", "MALFORMED"}
            assert (await wire.ask("message", id="long", body="🌙" * 4000))["seq"] == 1
            for name in ("", "x" * 65):
                await wire.send("message", id=name, body="named badly")
                told = await wire.expect("refused")
                assert (told["code"], told["id"]) == ("VALIDATION_ERROR", None)


async def test_ping_is_answered_in_both_ways(database_url: str, valkey_url: str) -> None:
    async with open_house(database_url, valkey_url) as house:
        customer, _, session_id = await house.open_pair()
        async with joined(house, session_id, customer) as wire:
            pong = await wire.ask("ping", id="p1")
            assert list(pong) == ["type", "id", "server_time"]
            assert MOMENT.fullmatch(pong["server_time"])
            await wire.send_bytes(frame(PING, b"are you there"))
            assert await wire.receive_frame() == (PONG, b"are you there")


# ---- bad input


async def test_unknown_types_and_wrong_fields_are_refused_and_no_strike(database_url: str, valkey_url: str) -> None:
    async with open_house(database_url, valkey_url) as house:
        customer, _, session_id = await house.open_pair()
        async with joined(house, session_id, customer) as wire:
            for _ in range(4):
                await require_refused(wire, "UNKNOWN_TYPE", 400, "teleport")
                await require_refused(wire, "UNKNOWN_TYPE", 400, "go_online")
                await require_refused(wire, "VALIDATION_ERROR", 422, "message")
                await require_refused(wire, "VALIDATION_ERROR", 422, "typing", on="yes")
                await require_refused(
                    wire, "VALIDATION_ERROR", 422, "extension_respond", extension_id="not a uuid", accepted=True
                )
                await require_refused(
                    wire, "VALIDATION_ERROR", 422, "extension_respond", extension_id=f"{uuid4()}\n", accepted=True
                )
            assert (await wire.ask("message", id="fine", body="still here"))["seq"] == 1


@pytest.mark.parametrize("strike", ["no json", "[1]", '"text"', '{"id":"x"}', '{"type":7}', "", "{" * 3000])
async def test_the_third_strike_closes(database_url: str, valkey_url: str, strike: str) -> None:
    async with open_house(database_url, valkey_url) as house:
        customer, _, session_id = await house.open_pair()
        async with joined(house, session_id, customer) as wire:
            for _ in range(2):
                await wire.send_text(strike)
                told = await wire.expect("refused")
                assert (told["code"], told["status"], told["retryable"]) == ("MALFORMED", 400, False)
                await wire.ask("ping", id="not forgiven by good frames")
            await wire.send_text(strike)
            assert await require_closed(wire, 4400) == []


@pytest.mark.parametrize(
    ("sent", "code"),
    [
        (frame(BINARY, b"{}"), 1003),
        (frame(TEXT, b'{"type":"ping","id":"\xff"}'), 1007),
        (frame(TEXT, b"\xc3", final=False) + frame(0, b"\x28"), 1007),
        (frame(TEXT, b"x" * (FRAME_BYTES_MAX + 1)), 1009),
        (frame(TEXT, b"x" * 40_000, final=False) + frame(0, b"x" * 40_000), 1009),
        (frame(TEXT, b'{"type":"ping","id":"p"}', masked=False), 1002),
        (frame(TEXT, b'{"type":"ping","id":"p"}', reserved=0x40), 1002),
        (frame(0x3, b""), 1002),
        (frame(0, b"continues nothing"), 1002),
        (frame(PING, b"x" * 126), 1002),
        (frame(PING, b"x", final=False), 1002),
    ],
    ids=[
        "binary", "bad UTF-8", "bad UTF-8 across fragments", "too big", "too big in fragments", "unmasked", "reserved bit",
        "reserved opcode", "stray continuation", "ping too long", "ping in fragments",
    ],
)  # fmt: skip
async def test_what_is_no_frame_of_ours_closes_with_its_code(
    database_url: str, valkey_url: str, sent: bytes, code: int
) -> None:
    async with open_house(database_url, valkey_url) as house:
        customer, mitra, session_id = await house.open_pair()
        async with joined(house, session_id, mitra) as other, joined(house, session_id, customer) as wire:
            await wire.send_bytes(sent)
            await require_closed(wire, code)
            assert (await other.ask("message", id="1", body="nobody else notices"))["type"] == "ack"


async def test_the_largest_frame_and_fragments_are_taken(database_url: str, valkey_url: str) -> None:
    async with open_house(database_url, valkey_url) as house:
        customer, _, session_id = await house.open_pair()
        async with joined(house, session_id, customer) as wire:
            text = json.dumps({"type": "message", "id": "large", "body": "x"})
            await wire.send_text(text[:-1] + " " * (FRAME_BYTES_MAX - len(text)) + "}")
            assert (await wire.expect("ack"))["seq"] == 1
            parts = json.dumps({"type": "message", "id": "parts", "body": "é"}, ensure_ascii=False).encode()
            last = len(parts) - 1
            await wire.send_bytes(
                b"".join(frame(0 if n else TEXT, parts[n : n + 1], final=n == last) for n in range(len(parts)))
            )
            assert (await wire.expect("ack"))["seq"] == 2


# ---- rates


async def test_beyond_the_message_rate_a_frame_is_refused_with_a_time_to_wait(
    database_url: str, valkey_url: str
) -> None:
    async with open_house(database_url, valkey_url, HALO_MESSAGES_PER_10S="5") as house:
        customer, mitra, session_id = await house.open_pair()
        async with joined(house, session_id, mitra) as other, joined(house, session_id, customer) as wire:
            for number in range(5):
                assert (await wire.ask("message", id=f"{number}", body="x"))["type"] == "ack"
            told = await require_refused(wire, "RATE_LIMITED", 429, "message", body="x")
            assert told["retryable"] is True
            assert 0 < told["retry_after_ms"] <= 2_000
            assert (await other.ask("message", id="mine", body="my own rate"))["type"] == "ack"
            await trio.sleep(told["retry_after_ms"] / 1000 + 0.05)  # the two clocks are not one
            assert (await wire.ask("message", id="asked", body="x"))["type"] == "ack"


async def test_beyond_the_byte_rate_a_frame_is_refused(database_url: str, valkey_url: str) -> None:
    async with open_house(database_url, valkey_url, HALO_BYTES_PER_S="1000") as house:
        customer, _, session_id = await house.open_pair()
        async with joined(house, session_id, customer) as wire:
            answers = [await wire.ask("message", id=f"{number}", body="x" * 3900) for number in range(4)]
            assert [answer["type"] for answer in answers] == ["ack", "ack", "refused", "refused"]
            assert answers[-1]["code"] == "RATE_LIMITED"
            assert answers[-1]["retry_after_ms"] > 0


async def test_who_goes_on_flooding_is_closed_and_nobody_else_notices(
    database_url: str, valkey_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For ten seconds, of which two will do here."""
    assert connection.ABUSE_MS == 10_000
    monkeypatch.setattr(connection, "ABUSE_MS", 2_000)
    async with open_house(database_url, valkey_url, HALO_MESSAGES_PER_10S="10") as house:
        await house.configure(pairing_offer_seconds=600)
        (flooder, _, flooded), (good, _, quiet) = await house.open_pairs([await house.admit("mitra")], 2)
        async with watched(house, quiet, good), joined(house, flooded, flooder) as wire:
            began = trio.current_time()
            code = 0
            with trio.fail_after(20):
                while not code:
                    for number in range(12):
                        await wire.send("message", id=f"{number}", body="x")
                    with trio.move_on_after(0.5):
                        code, _ = await wire.wait_closed(14)
            assert code == 4429
            assert trio.current_time() - began >= 1.9


async def test_who_reads_nothing_is_closed_and_nobody_else_notices(database_url: str, valkey_url: str) -> None:
    async with open_house(database_url, valkey_url) as house:
        await house.configure(pairing_offer_seconds=600)
        mitra = await house.admit("mitra")
        (sleeper, _, slept), (good, _, quiet) = await house.open_pairs([mitra], 2)
        async with (
            watched(house, quiet, good),
            joined(house, slept, mitra) as speaker,
            joined(house, slept, sleeper, receive_buffer=4096) as wire,
        ):
            with trio.fail_after(20):
                await talk_until_gone(speaker)
            code, _ = await wire.wait_closed()
            assert code in {4001, 1006}


async def test_a_flood_of_hints_never_costs_a_slow_listener_its_socket(database_url: str, valkey_url: str) -> None:
    """Typing is worth nothing a second later: it is dropped for who lags, and what was said comes all the same."""
    async with open_house(
        database_url, valkey_url, HALO_MESSAGES_PER_10S="10000", HALO_BYTES_PER_S="10000000"
    ) as house:
        customer, mitra, session_id = await house.open_pair()
        async with (
            joined(house, session_id, customer) as speaker,
            joined(house, session_id, mitra, receive_buffer=4096) as listener,
        ):
            for number in range(60):  # the kernel's buffers are full, and some frames wait
                assert (await speaker.ask("message", id=f"{number}", body="🌙" * 4000))["type"] == "ack"
            for number in range(2_200):
                await speaker.send("typing", on=number % 2 == 0)
            assert (await speaker.ask("message", id="last", body="still there?"))["seq"] == 61
            heard: list[int] = []
            typing = 0
            while not heard or heard[-1] != 61:
                told = await listener.receive()
                typing += told["type"] == "typing"
                if told["type"] == "message":
                    heard.append(told["seq"])
            assert heard == list(range(1, 62))
            assert typing < 2_200
            assert (await listener.ask("message", id="answer", body="yes"))["seq"] == 62


async def talk_until_gone(speaker: Wire) -> None:
    """Long messages, each acknowledged, until the other side's socket is given up."""
    body = "🌙" * 4000
    number = 0
    while True:
        number += 1
        await speaker.send("message", id=f"{number}", body=body)
        while (told := await speaker.receive())["type"] != "ack":
            if told == {"type": "presence", "party": "customer", "connected": False}:
                return


@asynccontextmanager
async def watched(house: House, session_id: str, person: Person) -> AsyncIterator[None]:
    """Somebody else's socket, which must not wait meanwhile."""
    slowest = 0.0

    async def ping() -> None:
        nonlocal slowest
        async with joined(house, session_id, person) as wire:
            while True:
                began = trio.current_time()
                assert (await wire.ask("ping", id="well?"))["type"] == "pong"
                slowest = max(slowest, trio.current_time() - began)
                await trio.sleep(0.5)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ping)
        yield
        nursery.cancel_scope.cancel()
    assert slowest < 5.0, f"somebody else waited {slowest:.2f} s"


# ---- who may come in, and who must go


async def test_a_token_comes_in_the_header_or_as_a_subprotocol(database_url: str, valkey_url: str) -> None:
    async with open_house(database_url, valkey_url) as house:
        customer, _, session_id = await house.open_pair()
        path = chat_path(session_id)
        async with open_wire(house, path, customer) as wire:
            assert "sec-websocket-protocol" not in wire.headers
            assert "sec-websocket-extensions" not in wire.headers
        protocols = {
            "Sec-WebSocket-Protocol": f"halo.v1, bearer.{customer.token}",
            "Sec-WebSocket-Extensions": "permessage-deflate",
        }
        async with open_wire(house, path, headers=protocols) as wire:
            assert wire.headers["sec-websocket-protocol"] == "halo.v1"
            assert "sec-websocket-extensions" not in wire.headers
        for headers in (
            {},
            {"Authorization": "Bearer nonsense"},
            {"Authorization": f"Basic {customer.token}"},
            {"Sec-WebSocket-Protocol": "halo.v1"},
            {"Sec-WebSocket-Protocol": "halo.v1, bearer.a, bearer.b"},
            {"Cookie": f"token={customer.token}"},
        ):
            await require_no_entry(
                house, f"{path}&access_token={customer.token}", 401, "UNAUTHENTICATED", headers=headers
            )


async def test_only_participants_of_a_living_session_come_in(database_url: str, valkey_url: str) -> None:
    async with open_house(database_url, valkey_url) as house:
        customer, mitra, session_id = await house.open_pair()
        for stranger in (await house.admit("customer"), await house.admit("mitra")):
            await require_no_entry(house, chat_path(session_id), 404, "NOT_FOUND", stranger)
        for path in (
            chat_path(str(uuid4())),
            "/v1/chat/",
            "/v1/chat/me",
            "/",
            f"/v2/chat/{session_id}",
            f"/v1/chat/{session_id}/",
        ):
            await require_no_entry(house, path, 404, "NOT_FOUND", customer)
        await house.call(mitra, "POST", f"/api/chat/{session_id}/end")
        for person in (customer, mitra):
            await require_no_entry(house, chat_path(session_id), 404, "NOT_FOUND", person)


async def test_a_foreign_origin_stays_outside(database_url: str, valkey_url: str) -> None:
    async with open_house(database_url, valkey_url, HALO_ALLOWED_ORIGINS="https://app.example") as house:
        customer, _, session_id = await house.open_pair()
        for origin in ("https://evil.example", "https://app.example.evil.example", "http://app.example", "null"):
            await require_no_entry(
                house, chat_path(session_id), 403, "ORIGIN_REFUSED", customer, headers={"Origin": origin}
            )
        async with joined(house, session_id, customer, headers={"Origin": "https://app.example"}):
            pass


async def require_no_entry(
    house: House, path: str, status: int, code: str, person: Person | None = None, **wish: Any
) -> None:
    with pytest.raises(HandshakeRefused) as refused:
        async with open_wire(house, path, person, **wish):
            pass
    assert (refused.value.status, refused.value.problem["code"]) == (status, code)
    assert refused.value.headers["content-type"] == "application/problem+json"


async def test_a_token_that_expires_closes_its_sockets_and_a_fresh_one_keeps_them(
    database_url: str, valkey_url: str
) -> None:
    async with open_house(database_url, valkey_url, HALO_ACCESS_TOKEN_SECONDS="3") as house:
        customer, mitra, session_id = await house.open_pair()
        stranger = await house.admit("customer")
        async with joined(house, session_id, customer) as wire, joined(house, session_id, mitra) as kept:
            opened = trio.current_time()
            told = await kept.ask("refresh", id="r0", access_token=stranger.token)
            assert (told["type"], told["code"]) == ("refused", "UNAUTHENTICATED")
            told = await kept.ask("refresh", id="r1", access_token="nonsense")
            assert (told["type"], told["code"], told["status"]) == ("refused", "UNAUTHENTICATED", 401)
            await trio.sleep(1.2)
            fresh = await house.api.call("POST", "/api/auth/refresh", {"refresh_token": mitra.refresh_token})
            told = await kept.ask("refresh", id="r2", access_token=fresh["access_token"])
            assert list(told) == ["type", "id", "expires_at"]
            await require_closed(wire, 4401, 4)
            assert trio.current_time() - opened <= 4.2, "later than a second after its end"
            assert (await kept.ask("ping", id="p"))["type"] == "pong"
            await require_closed(kept, 4401, 4)


async def test_signing_out_closes_the_sockets_of_that_token_within_a_second(database_url: str, valkey_url: str) -> None:
    async with open_house(database_url, valkey_url) as house:
        customer, _, session_id = await house.open_pair()
        tablet = await house.admit("customer", user_id=customer.user_id)
        async with (
            joined(house, session_id, customer) as wire,
            open_wire(house, "/v1/lobby", customer) as lobby,
            joined(house, session_id, tablet) as other_device,
        ):
            await house.call(customer, "DELETE", "/api/auth/sessions/current")
            await require_closed(wire, 4401)
            await require_closed(lobby, 4401)
            assert (await other_device.ask("ping", id="p"))["type"] == "pong"
            await require_no_entry(house, chat_path(session_id), 401, "UNAUTHENTICATED", customer)


async def test_deactivation_closes_the_mitras_sockets_and_ends_the_sessions_with_refunds(
    database_url: str, valkey_url: str
) -> None:
    async with open_house(database_url, valkey_url) as house:
        customer, mitra, session_id = await house.open_pair()
        payment = await house.pay_extension(customer)
        async with (
            joined(house, session_id, mitra) as wire,
            open_wire(house, "/v1/lobby", mitra) as lobby,
            joined(house, session_id, customer) as left,
        ):
            await house.ask_extension(customer, session_id, payment)
            await house.operate("POST", f"/api/mitras/{mitra.user_id}/deactivate")
            await require_closed(wire, 4403, 1)
            await require_closed(lobby, 4403, 1)
            told = await require_closed(left, 1000, 1)
            assert told[-1] == {"type": "session_ended", "session_id": session_id, "end_reason": "mitra_deactivated"}
        with pytest.raises(HandshakeRefused) as refused:
            async with open_wire(house, "/v1/lobby", mitra):
                pass
        assert (refused.value.status, refused.value.problem["code"]) in {
            (403, "MITRA_DEACTIVATED"),
            (401, "UNAUTHENTICATED"),
        }
        refunds = (await house.operate("GET", "/api/refunds"))["refunds"]
        assert sorted(refund["kind"] for refund in refunds) == ["payment_failed", "time_left"]
        await house.require_invariants()


async def test_the_time_left_of_an_extended_session_is_refunded_on_each_of_its_payments(
    database_url: str, valkey_url: str
) -> None:
    """None gives back more than was charged on it; together it is what the timeline says that the time was worth."""
    async with open_house(database_url, valkey_url) as house:
        customer, mitra, session_id = await house.open_pair(minutes=5)
        payment = await house.pay_extension(customer, minutes=20)
        asked = await house.ask_extension(customer, session_id, payment)
        await house.call(
            mitra, "POST", f"/api/chat/{session_id}/extensions/{asked['extension_id']}/respond", {"accepted": True}
        )
        await house.call(mitra, "POST", f"/api/chat/{session_id}/end")
        told = await house.operate("GET", f"/api/sessions/{session_id}")
        refunds = {refund["payment_request_id"]: refund for refund in told["refunds"]}
        charged = {row["payment_request_id"]: row["amount"] for row in told["ledger"]}
        assert len(charged) == 2
        assert set(refunds) == set(charged)
        assert refunds[payment["id"]]["amount"] == payment["amount"] == charged[payment["id"]]
        assert all(0 < refund["amount"] <= charged[id_] for id_, refund in refunds.items())
        (row,) = await house.db.fetch_all(
            "SELECT evidence FROM session_timeline WHERE session_id = %(id)s AND to_status = 'ended'",
            {"id": session_id},
        )
        assert sum(refund["amount"] for refund in refunds.values()) == row.evidence["refund_amount"]
        waiting = await house.db.fetch_all("SELECT payload FROM outbox WHERE kind = 'refund'")
        assert {line.payload["refund_id"] for line in waiting} == {refund["refund_id"] for refund in refunds.values()}
        await house.require_invariants()


async def test_the_same_token_on_the_same_path_replaces_its_older_socket(database_url: str, valkey_url: str) -> None:
    async with open_house(database_url, valkey_url) as house:
        customer, _, session_id = await house.open_pair()
        async with (
            open_wire(house, "/v1/lobby", customer) as lobby,
            joined(house, session_id, customer) as older,
            joined(house, session_id, customer) as newer,
        ):
            await require_closed(older, 4002)
            assert (await newer.ask("message", id="1", body="x"))["type"] == "ack"
            assert (await lobby.ask("ping", id="p"))["type"] == "pong"


async def test_one_connection_too_many_costs_the_users_oldest(database_url: str, valkey_url: str) -> None:
    async with open_house(database_url, valkey_url, HALO_CONNECTIONS_PER_USER="2") as house:
        customer, mitra, session_id = await house.open_pair()
        devices = [customer, *[await house.admit("customer", user_id=customer.user_id) for _ in range(2)]]
        async with (
            joined(house, session_id, mitra) as other,
            joined(house, session_id, devices[0]) as first,
            joined(house, session_id, devices[1]) as second,
            joined(house, session_id, devices[2]) as third,
        ):
            await require_closed(first, 4002)
            for wire in (second, third, other):
                assert (await wire.ask("ping", id="p"))["type"] == "pong"


async def test_a_draining_node_sends_its_sockets_away_and_lets_nobody_in(database_url: str, valkey_url: str) -> None:
    """The one who does not answer the goodbye keeps the door open for a moment, and newcomers are told to try again."""
    async with open_house(database_url, valkey_url) as house:
        customer, mitra, session_id = await house.open_pair()
        async with joined(house, session_id, mitra) as polite, joined(house, session_id, customer) as silent:
            house.own.stop.set()
            told = await require_closed(polite, 4000)
            assert (told[-1]["type"], told[-1]["reason"]) == ("reconnect", "draining")
            assert told[-1]["after_ms"] >= 0
            await require_no_entry(house, chat_path(session_id), 503, "DRAINING", mitra)
            told = await require_closed(silent, 4000)
            assert told[-1]["type"] == "reconnect"


# ---- more time, over the socket


async def test_every_row_of_the_asking_table_has_its_code(database_url: str, valkey_url: str) -> None:
    async with open_house(database_url, valkey_url) as house:
        mitra = await house.admit("mitra")
        (customer, _, session_id), (stranger, _, _) = await house.open_pairs([mitra], 2)
        good = await house.pay_extension(customer)
        async with joined(house, session_id, customer) as wire, joined(house, session_id, mitra) as other:

            def ask(payment: dict[str, Any], **other_fields: Any) -> dict[str, Any]:
                wish = {"duration_minutes": payment["duration_minutes"], "price": payment["amount"]}
                return {**wish, "extension_payment_request_id": payment["id"], **other_fields}

            refused = require_refused
            for field, bad in (
                ("extension_payment_request_id", None), ("extension_payment_request_id", "x"), ("duration_minutes", 0),
                ("duration_minutes", None), ("duration_minutes", 1441), ("duration_minutes", "2"), ("price", -1), ("price", None),
            ):  # fmt: skip
                await refused(wire, "VALIDATION_ERROR", 422, "extension_request", **ask(good, **{field: bad}))
            await refused(
                wire, "NOT_FOUND", 404, "extension_request", **ask(good, extension_payment_request_id=str(uuid4()))
            )
            await refused(wire, "FORBIDDEN", 403, "extension_request", **ask(await house.pay_extension(stranger)))
            unpaid = await house.call(customer, "POST", "/api/payments", {"duration_minutes": 2, "is_extension": True})
            told = await refused(wire, "INVALID_STATE", 409, "extension_request", **ask(unpaid))
            assert "pending" in told["message"]
            await refused(wire, "INVALID_STATE", 409, "extension_request", **ask(await house.pay(customer)))
            await refused(wire, "PAYMENT_MISMATCH", 409, "extension_request", **ask(good, duration_minutes=3))
            await refused(wire, "PAYMENT_MISMATCH", 409, "extension_request", **ask(good, price=good["amount"] - 1))
            await refused(other, "FORBIDDEN", 403, "extension_request", **ask(good))
            discount = {"duration_minutes": 2, "is_extension": True, "is_first_session_discount": True}
            no = await refusal_of(house.call(customer, "POST", "/api/payments", discount))
            assert (no.status, no.code) == (400, "FIRST_SESSION_DISCOUNT_NOT_ALLOWED")
            await house.configure(max_extensions_per_session=0)
            await refused(wire, "EXTENSION_LIMIT", 409, "extension_request", **ask(good))
            await house.configure(max_extensions_per_session=20)
            assert (await wire.ask("extension_request", id="good", **ask(good)))["type"] == "ack"
            spare = await house.pay_extension(customer)
            await refused(wire, "SESSION_NOT_ACTIVE", 409, "extension_request", **ask(spare))
            extensions = await house.db.fetch_all("SELECT status FROM session_extensions")
            assert [row.status for row in extensions] == ["pending"], "what was refused has left nothing behind"
            await house.require_invariants()


async def test_a_payment_bound_elsewhere_is_in_use(database_url: str, valkey_url: str) -> None:
    async with open_house(database_url, valkey_url) as house:
        customer, mitra = await house.admit("customer"), await house.admit("mitra")
        await house.go_online(mitra)
        one, other = await house.pair(customer, mitra), await house.pair(customer, mitra)
        payment = await house.pay_extension(customer)
        asked = await house.ask_extension(customer, one, payment)
        async with joined(house, other, customer) as wire:
            wish = {"duration_minutes": 2, "price": payment["amount"], "extension_payment_request_id": payment["id"]}
            await require_refused(wire, "PAYMENT_IN_USE", 409, "extension_request", **wish)
            await house.call(
                mitra, "POST", f"/api/chat/{one}/extensions/{asked['extension_id']}/respond", {"accepted": True}
            )
            await require_refused(wire, "INVALID_STATE", 409, "extension_request", **wish)


@pytest.mark.parametrize(
    ("decision", "refusal"),
    [("accepted", "resume"), ("refused", "resume"), ("refused", "close"), ("cancelled", "close")],
)
async def test_an_extension_pauses_the_chat_until_it_is_decided(
    database_url: str, valkey_url: str, decision: str, refusal: str
) -> None:
    async with open_house(database_url, valkey_url) as house:
        customer, mitra, session_id = await house.open_pair()
        await house.configure(extension_refusal=refusal)
        tablet = await house.admit("customer", user_id=customer.user_id)
        payment = await house.pay_extension(customer)
        async with (
            open_wire(house, "/v1/lobby", mitra) as lobby,
            joined(house, session_id, mitra) as asked_one,
            joined(house, session_id, tablet) as other_device,
            joined(house, session_id, customer) as wire,
        ):
            ask = {"duration_minutes": 2, "price": payment["amount"], "extension_payment_request_id": payment["id"]}
            ack = await wire.ask("extension_request", id="more", **ask)
            assert list(ack) == ["type", "id", "extension_id"]
            named = {"extension_id": ack["extension_id"]}
            question = await asked_one.expect("extension_request")
            assert {name: question[name] for name in ("extension_id", "session_id", "duration_minutes", "price", "currency")} == {
                **named, "session_id": session_id, "duration_minutes": 2, "price": payment["amount"], "currency": "IDR",
            }  # fmt: skip
            assert (question["topic_sensitivity"], question["timeout_seconds"]) == ("regular", 60)
            for device in (wire, other_device, asked_one):
                paused = await device.expect("session_paused")
                assert paused == {
                    "type": "session_paused", "session_id": session_id, "reason": "extension_pending", **named,
                    "deadline_at": question["deadline_at"],
                }  # fmt: skip
            for device in (wire, asked_one):
                told = await require_refused(device, "SESSION_PAUSED", 409, "message", body="are you there?")
                assert told["retryable"] is True
            await require_refused(wire, "FORBIDDEN", 403, "extension_respond", accepted=True, **named)
            await require_refused(asked_one, "FORBIDDEN", 403, "extension_cancel", **named)
            stray = {"extension_id": str(uuid4())}
            await require_refused(asked_one, "NOT_FOUND", 404, "extension_respond", accepted=True, **stray)
            await require_refused(wire, "NOT_FOUND", 404, "extension_cancel", **stray)
            if decision == "cancelled":
                ack = await wire.ask("extension_cancel", id="decided", **named)
            else:
                ack = await asked_one.ask("extension_respond", id="decided", accepted=decision == "accepted", **named)
            assert ack == {"type": "ack", "id": "decided"}
            goes_on = decision != "refused" or refusal == "resume"
            for device in (wire, other_device, asked_one):
                response = await device.expect("extension_response")
                assert response["accepted"] is (decision == "accepted")
                assert (response["reason"], response["via_timeout"]) == (
                    "cancelled" if decision == "cancelled" else "answered",
                    False,
                )
                assert response["duration_minutes"] == 2
                after = await device.receive()
                assert after["type"] == ("session_resumed" if goes_on else "session_closing")
            await require_refused(asked_one, "EXTENSION_RESOLVED", 409, "extension_respond", accepted=True, **named)
            await require_refused(wire, "EXTENSION_RESOLVED", 409, "extension_cancel", **named)
            assert (await wire.ask("message", id="on", body="and on"))["type"] == "ack"
            assert "extension_request" not in await frames_until_pong(lobby), "only for who is not on that chat"
        status = (await house.call(customer, "GET", f"/api/payments/{payment['id']}"))["status"]
        assert status == {"accepted": "consumed", "refused": "failed", "cancelled": "confirmed"}[decision]
        await house.require_invariants()


async def test_a_mitra_who_is_not_on_the_chat_is_asked_in_the_lobby(database_url: str, valkey_url: str) -> None:
    async with open_house(database_url, valkey_url) as house:
        customer, mitra, session_id = await house.open_pair()
        payment = await house.pay_extension(customer)
        async with open_wire(house, "/v1/lobby", mitra) as lobby:
            assert [session["session_id"] for session in (await lobby.receive())["sessions"]] == [session_id]
            asked = await house.ask_extension(customer, session_id, payment)
            assert (await lobby.expect("extension_request"))["extension_id"] == asked["extension_id"]


# ---- the end


@pytest.mark.parametrize(("ender", "reason"), [("customer", "ended_by_customer"), ("mitra", "ended_by_mitra")])
async def test_the_end_is_told_to_everybody_and_closes_every_socket(
    database_url: str, valkey_url: str, ender: str, reason: str
) -> None:
    async with open_house(database_url, valkey_url) as house:
        customer, mitra, session_id = await house.open_pair()
        tablet = await house.admit("customer", user_id=customer.user_id)
        async with (
            joined(house, session_id, customer) as one,
            joined(house, session_id, tablet) as two,
            joined(house, session_id, mitra) as other,
        ):
            ending, others = (one, (two, other)) if ender == "customer" else (other, (one, two))
            await ending.send("end_session", id="enough")
            told = await require_closed(ending, 1000)
            assert [name for name in (item["type"] for item in told) if name in {"ack", "session_ended"}].count(
                "ack"
            ) == 1
            ended = {"type": "session_ended", "session_id": session_id, "end_reason": reason}
            assert ended in told
            for wire in others:
                assert (await require_closed(wire, 1000))[-1] == ended
        page = await house.call(customer, "GET", f"/api/chat/{session_id}/messages")
        assert page == {"messages": [], "last_seq": 0}
        refunds = (await house.operate("GET", "/api/refunds"))["refunds"]
        assert len(refunds) == (1 if ender == "mitra" else 0), "only a customer can give up minutes"
        await house.require_invariants()


async def test_time_up_leads_through_the_grace_to_the_end(database_url: str, valkey_url: str) -> None:
    async with open_house(database_url, valkey_url, HALO_MINUTE_SECONDS="0.4") as house:
        await house.configure(closure_grace_seconds=1, session_warning_seconds=[1])
        customer, mitra, session_id = await house.open_pair()
        async with joined(house, session_id, customer) as wire, joined(house, session_id, mitra) as other:
            for side in (wire, other):
                timer = await side.expect("session_timer")
                assert (timer["session_id"], timer["remaining_seconds"]) == (session_id, 1)
                closing = await side.expect("session_closing")
                assert (closing["reason"], closing["grace_seconds"]) == ("time_up", 1)
            assert (await wire.ask("message", id="bye", body="good night"))["type"] == "ack"
            for side in (wire, other):
                told = await require_closed(side, 1000)
                assert told[-1] == {"type": "session_ended", "session_id": session_id, "end_reason": "completed"}
        await house.require_invariants()
