"""What leaves halo: pushes at a server that speaks as FCM does, refunds at a payment provider, and a halo that does not wait for either."""

import base64
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
from standardwebhooks import Webhook

from halo.net import outgoing
from halo.net.service_account import CredentialsUnusable
from halo.outbox import BACKOFFS, Backoff, OutboxKind
from halo.store import pairings, steps
from tests.net.provider import Provider, Reply, Request, open_provider
from tests.whole.house import PATIENCE_SECONDS, House, Person, open_house
from tests.whole.wire import open_wire

REFUND_SECRET = "whsec_" + base64.b64encode(b"of the refunds, of their own").decode()


@asynccontextmanager
async def open_street(
    database_url: str, valkey_url: str, folder: Path, **changes: str
) -> AsyncIterator[tuple[House, Provider]]:
    """A halo, and the provider to which it sends everything."""
    async with open_provider() as provider:
        given = {
            "HALO_FCM_CREDENTIALS": str(provider.credentials(folder)),
            "FCM_ENDPOINT": provider.url,
            "HALO_REFUND_URL": f"{provider.url}/refunds",
            "HALO_REFUND_SECRET": REFUND_SECRET,
        }
        async with open_house(database_url, valkey_url, clock=None, **(given | changes)) as house:
            yield house, provider


def pushed(provider: Provider, template: str) -> list[Request]:
    requests = [request for request in provider.requests if request.path.endswith("messages:send")]
    return [request for request in requests if request.json["message"]["data"]["template"] == template]


async def until(holds: Callable[[], Any]) -> Any:
    with trio.fail_after(PATIENCE_SECONDS):
        while not (found := holds()):
            await trio.sleep(0.01)
        return found


async def outbox(house: House, template: str) -> list[Any]:
    return await house.db.fetch_all(
        "SELECT * FROM outbox WHERE template = %(template)s ORDER BY created_at", {"template": template}
    )


async def until_status(house: House, template: str, *statuses: str) -> list[Any]:
    with trio.fail_after(PATIENCE_SECONDS):
        while True:
            rows = await outbox(house, template)
            if sorted(row.status for row in rows) == sorted(statuses):
                return rows
            await trio.sleep(0.02)


def dict_of_backoffs() -> dict[OutboxKind, Backoff]:
    assert isinstance(BACKOFFS, dict)
    return BACKOFFS


async def search(house: House, customer: Person) -> None:
    payment = await house.pay(customer)
    await house.call(customer, "POST", "/api/pairings", {"payment_request_id": payment["id"]})


@pytest.fixture
def _patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """A push waits for its pong until the test says so (`ripen`), so that no machine is too slow for it."""
    for room in (pairings, steps):
        monkeypatch.setattr(room, "PUSH_PATIENCE_MS", 3_600_000)


async def ripen(house: House) -> None:
    """All pushes have waited for long enough now."""
    await house.db.execute(
        "UPDATE outbox SET due_at = at(0), expires_at = now() + interval '1 hour' WHERE status = 'due'"
    )


async def until_heard(house: House, template: str, person: Person) -> None:
    """Until the pong of this person's socket has come in."""
    [row] = [row for row in await outbox(house, template) if row.user_id == person.user_id]
    await until(lambda: house.own.parts.connections.acknowledged(person.user_id, row.receipt))


async def test_an_offer_reaches_the_phone_of_a_mitra_without_a_socket(
    database_url: str, valkey_url: str, tmp_path: Path
) -> None:
    async with open_street(database_url, valkey_url, tmp_path) as (house, provider):
        mitra = await house.admit("mitra", push_token="phone-of-the-mitra", locale="en", display_name="Sari Dewi")
        customer = await house.admit("customer", display_name="Budi Santoso")
        await house.go_online(mitra)
        await search(house, customer)
        [request] = await until(lambda: pushed(provider, "offer"))
        message = request.json["message"]
        assert message["token"] == "phone-of-the-mitra"
        assert message["notification"]["title"] == "New session request"
        assert all(isinstance(value, str) for value in message["data"].values())
        offers = (await house.call(mitra, "GET", "/api/offers"))["offers"]
        assert message["data"]["offer_id"] == offers[0]["offer_id"]
        for told in ("Sari", "Budi", str(offers[0]["price"]), "IDR"):
            assert told not in request.body.decode()
        [row] = await until_status(house, "offer", "sent")
        assert (row.attempts, row.last_error) == (1, None)


@pytest.mark.usefixtures("_patience")
async def test_a_mitra_whose_lobby_answers_is_spared_the_push_and_one_whose_lobby_is_dead_is_not(
    database_url: str, valkey_url: str, tmp_path: Path
) -> None:
    async with open_street(database_url, valkey_url, tmp_path) as (house, provider):
        awake = await house.admit("mitra", push_token="awake")
        asleep = await house.admit("mitra", push_token="asleep")
        customer = await house.admit("customer")
        async with house.lobby(awake) as lobby, open_wire(house, "/v1/lobby", asleep) as dead:
            dead.answers_pings = False
            assert (await dead.receive())["type"] == "welcome"
            await lobby.expect("welcome")
            await house.go_online(awake)
            await house.go_online(asleep)
            await search(house, customer)
            await lobby.expect("offer")
            assert (await dead.receive())["type"] == "offer"  # its bytes arrive, and nobody says so
            await until_heard(house, "offer", awake)
            await ripen(house)
            rows = await until_status(house, "offer", "cancelled", "sent")
        assert {row.status: row.user_id for row in rows} == {"cancelled": awake.user_id, "sent": asleep.user_id}
        assert {row.status: row.last_error for row in rows} == {"cancelled": "acknowledged", "sent": None}
        assert [request.token for request in pushed(provider, "offer")] == ["asleep"]


@pytest.mark.usefixtures("_patience")
async def test_a_phone_in_the_background_hears_how_its_session_came_out(
    database_url: str, valkey_url: str, tmp_path: Path
) -> None:
    """The customer is away from the start; the mitra is on the chat and answers pings, so nobody rings at her phone."""
    async with open_street(database_url, valkey_url, tmp_path) as (house, provider):
        customer = await house.admit("customer", push_token="phone-of-the-customer")
        mitra = await house.admit("mitra", push_token="phone-of-the-mitra")
        await house.go_online(mitra)
        session_id = await house.pair(customer, mitra)
        await ripen(house)
        await until(lambda: pushed(provider, "session_started"))
        async with house.chat(session_id, mitra) as chat:
            await chat.expect("welcome")
            payment = await house.pay_extension(customer, session_id)
            asked = await house.ask_extension(customer, session_id, payment)
            await chat.expect("extension_request")
            path = f"/api/chat/{session_id}/extensions/{asked['extension_id']}/respond"
            await house.call(mitra, "POST", path, {"accepted": True})
            await until(lambda: pushed(provider, "extension_accepted"))
            await house.call(customer, "POST", f"/api/chat/{session_id}/end")
            await chat.expect("session_ended")
            await until_heard(house, "session_ended", mitra)
            await ripen(house)
            rows = await until_status(house, "session_ended", "cancelled")
            assert (rows[0].user_id, rows[0].last_error) == (mitra.user_id, "acknowledged")
        assert pushed(provider, "extension_request") == []
        told = {request.token for request in provider.requests if request.path.endswith("messages:send")}
        assert told == {"phone-of-the-customer"} | {request.token for request in pushed(provider, "offer")}


async def test_a_token_that_no_phone_has_any_more_is_forgotten(
    database_url: str, valkey_url: str, tmp_path: Path
) -> None:
    async with open_street(database_url, valkey_url, tmp_path) as (house, provider):
        provider.answers = lambda _: Reply(
            404, b'{"error": {"status": "NOT_FOUND", "details": [{"errorCode": "UNREGISTERED"}]}}'
        )
        mitra, customer = await house.admit("mitra", push_token="gone"), await house.admit("customer")
        await house.go_online(mitra)
        await search(house, customer)
        [row] = await until_status(house, "offer", "cancelled")
        assert row.last_error == "no device any more"
        assert await house.db.fetch_all("SELECT FROM auth_sessions WHERE push_token IS NOT NULL") == []


async def test_a_refund_reaches_the_provider_signed_and_is_delivered(
    database_url: str, valkey_url: str, tmp_path: Path
) -> None:
    async with open_street(database_url, valkey_url, tmp_path) as (house, provider):
        _, mitra, session_id = await house.open_pair()
        await house.call(mitra, "POST", f"/api/chat/{session_id}/end")
        [request] = await until(lambda: [each for each in provider.requests if each.path == "/refunds"])
        Webhook(REFUND_SECRET).verify(request.body, request.headers)
        await until_status(house, "refund_due", "sent")
        [refund] = (await house.operate("GET", "/api/refunds?status=delivered"))["refunds"]
        assert request.headers["webhook-id"] == request.json["refund_id"] == refund["refund_id"]
        assert (request.json["type"], request.json["amount"]) == ("refund.due", refund["amount"])
        await house.require_invariants()


async def test_a_dead_refund_is_told_and_replayed(database_url: str, valkey_url: str, tmp_path: Path) -> None:
    async with open_street(database_url, valkey_url, tmp_path) as (house, provider):
        provider.answers = lambda _: Reply(410)
        _, mitra, session_id = await house.open_pair()
        await house.call(mitra, "POST", f"/api/chat/{session_id}/end")
        await until_status(house, "refund_due", "dead")
        rows = house.own.parts.outbox
        [letter] = await rows.list_dead()
        assert letter.last_error == "the provider answered 410"
        provider.answers = lambda _: Reply()
        await rows.replay(letter.outbox_id, "Ani")
        await until_status(house, "refund_due", "sent")
        [refund] = (await house.operate("GET", "/api/refunds"))["refunds"]
        assert refund["status"] == "delivered"


async def test_without_an_address_refunds_wait(database_url: str, valkey_url: str) -> None:
    async with open_house(database_url, valkey_url) as house:
        _, mitra, session_id = await house.open_pair()
        await house.call(mitra, "POST", f"/api/chat/{session_id}/end")
        await until_status(house, "session_ended", "sent")  # the log takes pushes, so a look has been made since
        [row] = await outbox(house, "refund_due")
        assert (row.status, row.attempts) == ("due", 0)


async def test_providers_that_hang_keep_nobody_waiting_and_get_everything_once_they_are_back(
    database_url: str, valkey_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a tenth of the pauses, which `tests/actors/test_outbox.py` proves on a clock of its own."""
    monkeypatch.setattr(outgoing, "CALL_SECONDS", 0.5)
    for kind in OutboxKind:
        monkeypatch.setitem(dict_of_backoffs(), kind, Backoff(first_ms=100, longest_ms=200))
    async with open_street(database_url, valkey_url, tmp_path) as (house, provider):
        provider.answers = lambda _: Reply(hangs=True)
        customer = await house.admit("customer", push_token="phone")
        mitra = await house.admit("mitra", push_token="another phone")
        await house.go_online(mitra)
        with trio.fail_after(PATIENCE_SECONDS):
            session_id = await house.pair(customer, mitra)
            async with house.chat(session_id, mitra) as other:
                await other.expect("welcome")
                async with house.chat(session_id, customer) as chat:
                    await chat.expect("welcome")
                    await chat.send("message", id="1", body="hello")
                    assert (await other.expect("message"))["body"] == "hello"
                await house.call(mitra, "POST", f"/api/chat/{session_id}/end")
                await other.expect("session_ended")
            await until(lambda: [request for request in provider.requests if request.path == "/refunds"])
            await until(lambda: pushed(provider, "session_ended"))
        [refund], [push] = await outbox(house, "refund_due"), await outbox(house, "session_ended")
        assert (refund.status, push.status, push.user_id) == ("due", "due", customer.user_id)
        taken: list[Request] = []

        def take(request: Request) -> Reply:
            taken.append(request)
            return Reply()

        provider.answers = take
        await until_status(house, "refund_due", "sent")
        await until_status(house, "session_ended", "sent")
        assert [request.json["refund_id"] for request in taken if request.path == "/refunds"]
        messages = [request.json["message"] for request in taken if request.path.endswith("messages:send")]
        ended = [message for message in messages if message["data"]["outbox_id"] == push.outbox_id]
        assert {message["token"] for message in ended} == {"phone"}
        await house.require_invariants()


async def test_credentials_that_cannot_be_used_stop_the_start(
    database_url: str, valkey_url: str, tmp_path: Path
) -> None:
    path = tmp_path / "none.json"
    with pytest.RaisesGroup(pytest.RaisesExc(CredentialsUnusable, match="cannot be read"), flatten_subgroups=True):
        async with open_house(database_url, valkey_url, HALO_FCM_CREDENTIALS=str(path)):
            pass
