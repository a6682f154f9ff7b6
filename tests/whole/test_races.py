"""What many want at once, one gets: payments, answers, deadlines, deliveries, all over real sockets."""

import json
from collections import Counter
from collections.abc import Callable
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from functools import partial
from typing import Any

import pytest
import trio
from standardwebhooks import Webhook

from halo.client import CallRefused, Socket
from tests.whole.house import AT_ONCE, WEBHOOK_SECRET, House, Person, open_house
from tests.whole.wire import chat_path, open_wire

CROWD = 50
RACES = 200
OFFSETS_MS = (-1000, -300, -100, -30, -10, -5, -4, -3, -2, -1, 0, 1, 2, 3, 5)
"""When an answer is sent, seen from its deadline; the early ones win on a busy machine too."""


@pytest.mark.parametrize("sessions", [1, 5])
async def test_of_fifty_requests_on_one_payment_one_is_bound(database_url: str, valkey_url: str, sessions: int) -> None:
    """Over HTTP and WebSocket, on one and on several sessions of the customer."""
    async with open_house(database_url, valkey_url) as house, AsyncExitStack() as stack:
        customer, mitra = await house.admit("customer"), await house.admit("mitra")
        await house.go_online(mitra, rooms=sessions)
        session_ids = [await house.pair(customer, mitra) for _ in range(sessions)]
        sockets = [await stack.enter_async_context(house.chat(session_id, customer)) for session_id in session_ids]
        payment = await house.pay_extension(customer)
        told: list[str] = []

        async def ask(number: int) -> None:
            place = number % sessions
            if number % 2:
                told.append(await ask_by_http(house, customer, session_ids[place], payment))
            else:
                told.append(await ask_by_socket(sockets[place], payment))

        async with trio.open_nursery() as nursery:
            for number in range(CROWD):
                nursery.start_soon(ask, number)
        # On the winner's own session the others find an extension pending; elsewhere they find the payment bound.
        assert Counter(told) == {"ack": 1, "SESSION_NOT_ACTIVE": CROWD // sessions - 1} | (
            {"PAYMENT_IN_USE": CROWD - CROWD // sessions} if sessions > 1 else {}
        )
        bound = await house.db.fetch_all("SELECT session_id, status FROM session_extensions")
        assert [row.status for row in bound] == ["pending"]
        infos = [await house.info(session_id, customer) for session_id in session_ids]
        assert [info["session"]["status"] for info in infos].count("extending") == 1
        assert (await house.call(customer, "GET", f"/api/payments/{payment['id']}"))["status"] == "confirmed"
        await house.require_invariants()


async def test_a_consumed_payment_is_refused_by_its_status_and_a_freed_one_may_be_used_again(
    database_url: str, valkey_url: str
) -> None:
    async with open_house(database_url, valkey_url) as house:
        customer, mitra, session_id = await house.open_pair()
        payment = await house.pay_extension(customer)
        asked = await house.ask_extension(customer, session_id, payment)
        path = f"/api/chat/{session_id}/extensions/{asked['extension_id']}"
        assert (await house.call(customer, "DELETE", path))["status"] == "cancelled"
        asked = await house.ask_extension(customer, session_id, payment)
        path = f"/api/chat/{session_id}/extensions/{asked['extension_id']}/respond"
        assert (await house.call(mitra, "POST", path, {"accepted": True}))["status"] == "accepted"
        assert await ask_by_http(house, customer, session_id, payment) == "INVALID_STATE"
        await house.require_invariants()


async def test_an_answer_in_the_instant_of_the_deadline_has_one_winner(database_url: str, valkey_url: str) -> None:
    """Two hundred sessions, half of them with each policy; most answers are sent within 5 ms of the deadline, before, on and behind it."""
    async with open_house(database_url, valkey_url) as house:
        mitra = await house.admit("mitra")
        other = await house.admit("mitra")
        await house.configure(extension_timeout_seconds=5, pairing_offer_seconds=600)
        pairs = await house.open_pairs([mitra, other], RACES)
        answers: list[tuple[str, bool, str]] = []
        async with house.chat(pairs[0][2], pairs[0][1]), house.chat(pairs[-1][2], pairs[-1][1]):  # mitras who are there
            extensions: dict[int, dict[str, Any]] = {}
            asked = [trio.Event() for _ in range(RACES)]

            def note(number: int, extension: dict[str, Any]) -> None:
                extensions[number] = extension
                asked[number].set()

            async def answer(number: int, *, task_status: trio.TaskStatus[None]) -> None:
                _, answering, session_id = pairs[number]
                async with open_wire(house, chat_path(session_id), answering) as wire:
                    await wire.receive()
                    task_status.started()
                    async with trio.open_nursery() as meanwhile:
                        meanwhile.start_soon(wire.heed)
                        await asked[number].wait()
                        extension, accepted = extensions[number], number % 2 == 0
                        at = (
                            datetime.fromisoformat(extension["deadline_at"]).timestamp()
                            + OFFSETS_MS[number % len(OFFSETS_MS)] / 1000
                        )
                        await trio.sleep(max(0, at - datetime.now(UTC).timestamp()))
                        meanwhile.cancel_scope.cancel()
                    named = {"extension_id": extension["extension_id"], "accepted": accepted}
                    told = await wire.ask("extension_respond", id="answer", **named)
                status = ("accepted" if accepted else "rejected") if told["type"] == "ack" else told["code"]
                answers.append((extension["extension_id"], accepted, status))

            async with trio.open_nursery() as nursery:
                for number in range(RACES):  # on their sockets before anybody asks: then the clock runs
                    await nursery.start(answer, number)
                await ask_all(house, pairs, note)
        rows = await house.db.fetch_all(
            "SELECT extension_id, status, decided_by, default_action_on_timeout AS policy FROM session_extensions"
        )
        decided = {row.extension_id: row for row in rows}
        assert len(decided) == len(answers) == RACES
        for extension_id, accepted, told in answers:
            row = decided[extension_id]
            if told == "EXTENSION_RESOLVED":
                assert (row.decided_by, row.status) == (
                    "timeout",
                    "accepted" if row.policy == "auto_approve" else "timeout",
                )
            else:
                assert (row.decided_by, row.status, told) == ("answered", told, "accepted" if accepted else "rejected")
        winners = Counter(told == "EXTENSION_RESOLVED" for _, _, told in answers)
        assert winners[True] >= RACES // 20, "the deadline never won: this was no race"
        assert winners[False] >= RACES // 20, "the answer never won: this was no race"
        await house.require_invariants()


async def test_answer_cancel_and_end_at_once_have_one_winner_and_the_others_are_told(
    database_url: str, valkey_url: str
) -> None:
    rounds = 30
    async with open_house(database_url, valkey_url) as house:
        mitra = await house.admit("mitra")
        await house.configure(pairing_offer_seconds=600)
        pairs = await house.open_pairs([mitra], rounds)
        extensions = await ask_all(house, pairs)
        told: dict[int, dict[str, str]] = {number: {} for number in range(rounds)}

        async def try_(number: int, what: str, person: Person, method: str, path: str, body: Any) -> None:
            try:
                told[number][what] = (await house.call(person, method, path, body))["status"]
            except CallRefused as refused:
                told[number][what] = refused.code

        async with trio.open_nursery() as nursery:
            for number, (customer, answering, session_id) in enumerate(pairs):
                chat = f"/api/chat/{session_id}"
                path = f"{chat}/extensions/{extensions[number]['extension_id']}"
                attempts = [
                    ("answer", answering, "POST", f"{path}/respond", {"accepted": True}),
                    ("cancel", customer, "DELETE", path, None),
                    ("end", customer, "POST", f"{chat}/end", None),
                ]
                for turn in range(3):  # each of the three is sent first in a third of the rounds
                    nursery.start_soon(try_, number, *attempts[(turn + number) % 3])
        firsts = Counter[str]()
        for number in range(rounds):
            answer, cancel, end = (told[number][what] for what in ("answer", "cancel", "end"))
            assert end == "ended"
            assert (answer, cancel) in {
                ("accepted", "EXTENSION_RESOLVED"),
                ("EXTENSION_RESOLVED", "cancelled"),
                ("EXTENSION_RESOLVED", "EXTENSION_RESOLVED"),
            }, told[number]
            firsts[f"{answer} {cancel}"] += 1
        assert len(firsts) == 3, firsts
        await house.require_invariants()


async def test_fifty_deliveries_of_one_webhook_confirm_once(database_url: str, valkey_url: str) -> None:
    async with open_house(database_url, valkey_url) as house:
        customer = await house.admit("customer")
        payment = await house.call(customer, "POST", "/api/payments", {"duration_minutes": 5})
        body = {
            "type": "payment.confirmed",
            "payment_request_id": payment["id"],
            "provider_ref": "from the provider",
            "amount": payment["amount"],
            "currency": payment["currency"],
        }
        deliver = partial(deliver_webhook, house, body, "msg_the_only_one")
        async with trio.open_nursery() as nursery:
            for _ in range(CROWD):
                nursery.start_soon(deliver)
        assert (await house.call(customer, "GET", f"/api/payments/{payment['id']}"))["status"] == "confirmed"
        deliveries = await house.db.fetch_all("SELECT webhook_id, type FROM webhook_deliveries")
        assert [tuple(row) for row in deliveries] == [("msg_the_only_one", "payment.confirmed")]
        await house.require_invariants()


async def deliver_webhook(house: House, body: dict[str, Any], webhook_id: str) -> None:
    """204, or this raises. The bytes that are signed are the bytes that the client sends."""
    raw = json.dumps(body, separators=(",", ":"), ensure_ascii=False)
    now = datetime.now(UTC)
    headers = {
        "webhook-id": webhook_id,
        "webhook-timestamp": str(int(now.timestamp())),
        "webhook-signature": Webhook(WEBHOOK_SECRET).sign(webhook_id, now, raw),
    }
    assert await house.api.call("POST", "/api/payments/webhook", body, headers) is None


async def ask_all(
    house: House,
    pairs: list[tuple[Person, Person, str]],
    note: Callable[[int, dict[str, Any]], None] = lambda *_: None,
) -> list[dict[str, Any]]:
    """A pending extension on every session, the first half under auto_approve, the others under auto_reject."""
    payments: list[dict[str, Any]] = [{}] * len(pairs)
    extensions: list[dict[str, Any]] = [{}] * len(pairs)

    places = trio.CapacityLimiter(AT_ONCE)

    async def pay(number: int) -> None:
        async with places:
            payments[number] = await house.pay_extension(pairs[number][0])

    async def ask(number: int) -> None:
        async with places:
            extensions[number] = await house.ask_extension(pairs[number][0], pairs[number][2], payments[number])
        note(number, extensions[number])

    async with trio.open_nursery() as nursery:
        for number in range(len(pairs)):
            nursery.start_soon(pay, number)
    half = len(pairs) // 2
    for policy, numbers in (("auto_approve", range(half)), ("auto_reject", range(half, len(pairs)))):
        await house.configure(extension_default_action_on_timeout=policy)
        async with trio.open_nursery() as nursery:
            for number in numbers:
                nursery.start_soon(ask, number)
    return extensions


async def ask_by_http(house: House, customer: Person, session_id: str, payment: dict[str, Any]) -> str:
    """`ack`, or the code of the refusal."""
    try:
        await house.ask_extension(customer, session_id, payment)
    except CallRefused as refused:
        return refused.code
    return "ack"


async def ask_by_socket(socket: Socket, payment: dict[str, Any]) -> str:
    answer = await socket.ask(
        "extension_request",
        duration_minutes=payment["duration_minutes"],
        price=payment["amount"],
        extension_payment_request_id=payment["id"],
    )
    return str(answer.get("code", "ack"))
