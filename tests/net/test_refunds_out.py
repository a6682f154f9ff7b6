"""Refunds at a real HTTP server, as the payment provider sees them."""

import base64
from collections.abc import AsyncIterator

import pytest
from standardwebhooks import Webhook

from halo.clock import rfc3339
from halo.net.outgoing import open_outgoing, trust_nobody
from halo.net.refunds_out import RefundCourier
from halo.outbox import Claim, Delivery, OutboxKind, Refund
from tests.net.provider import Provider, Reply, open_provider
from tests.store.rows import NOW, SetClock

SECRET = "whsec_" + base64.b64encode(b"of the refunds, of their own").decode()
TRACE = f"00-{'a' * 32}-{'b' * 16}-01"
REFUND = Refund(
    refund_id="r-1",
    payment_request_id="p-1",
    provider_ref="ch_1",
    session_id="s-1",
    kind="time_left",
    cause="mitra_deactivated",
    amount=12_500,
    currency="IDR",
    created_at=NOW,
)


def a_claim(refund: Refund | None = REFUND) -> Claim:
    return Claim(
        outbox_id="o-1",
        kind=OutboxKind.REFUND,
        user_id="u-1",
        template="refund_due",
        collapse_key="refund:r-1",
        attempts=1,
        tries=1,
        first_attempt_at=NOW,
        traceparent=TRACE,
        refund=refund,
    )


@pytest.fixture
async def provider() -> AsyncIterator[Provider]:
    async with open_provider() as provider:
        yield provider


async def deliver(provider: Provider, clock: SetClock | None = None, claim: Claim | None = None) -> Delivery:
    async with open_outgoing(trust_nobody()) as outgoing:
        courier = RefundCourier(f"{provider.url}/refunds?of=halo", SECRET, outgoing, clock or SetClock())
        return await courier.deliver(claim or a_claim())


async def test_a_refund_says_which_money_how_much_and_why(provider: Provider) -> None:
    assert await deliver(provider) == Delivery()
    [request] = provider.requests
    assert (request.method, request.path) == ("POST", "/refunds?of=halo")
    assert request.headers["traceparent"].startswith(TRACE[:35])
    assert request.json == {
        "type": "refund.due",
        "refund_id": "r-1",
        "payment_request_id": "p-1",
        "provider_ref": "ch_1",
        "session_id": "s-1",
        "kind": "time_left",
        "cause": "mitra_deactivated",
        "amount": 12_500,
        "currency": "IDR",
        "created_at": rfc3339(NOW),
    }


async def test_the_signature_is_good_and_the_id_the_same_at_every_attempt(provider: Provider) -> None:
    """The library checks the moment by the system's clock, so ours is set to it."""
    import time  # noqa: PLC0415  # for this test alone

    clock = SetClock(time.time_ns() // 1_000_000)
    for _ in range(2):
        await deliver(provider, clock)
        clock.moment += 1_000
    for request in provider.requests:
        Webhook(SECRET).verify(request.body, request.headers)
    assert [request.headers["webhook-id"] for request in provider.requests] == ["r-1", "r-1"]
    first, second = [int(request.headers["webhook-timestamp"]) for request in provider.requests]
    assert second == first + 1


@pytest.mark.parametrize("status", [200, 201, 202, 204])
async def test_any_2xx_is_delivered(provider: Provider, status: int) -> None:
    provider.answers = lambda _: Reply(status, b"")
    assert await deliver(provider) == Delivery()


@pytest.mark.parametrize("status", [301, 307, 400, 401, 404, 409, 422, 500, 503])
async def test_anything_else_is_tried_again_and_no_redirect_is_followed(provider: Provider, status: int) -> None:
    provider.answers = lambda _: Reply(status, headers={"location": f"{provider.url}/other", "retry-after": "7"})
    delivery = await deliver(provider)
    assert (delivery.failure, delivery.refusal) == (f"the provider answered {status}", None)
    assert delivery.retry_after_ms == 7_000
    assert len(provider.requests) == 1


async def test_410_is_final(provider: Provider) -> None:
    provider.answers = lambda _: Reply(410)
    assert await deliver(provider) == Delivery(refusal="the provider answered 410")


async def test_a_provider_that_is_away_is_tried_again_and_its_address_told_nobody() -> None:
    delivery = await deliver(Provider(url="http://127.0.0.1:1"))
    assert delivery.failure == "ConnectError"


async def test_a_row_whose_refund_is_gone_is_refused(provider: Provider) -> None:
    claim = a_claim(None)
    assert (await deliver(provider, claim=claim)).refusal is not None
    assert provider.requests == []
