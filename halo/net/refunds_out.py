"""The courier of refunds: each that is due is posted to the payment provider as a Standard Webhook.

`webhook-id` is the refund's id, the same at every attempt, so that the provider pays once however often it hears of it: delivery is at
least once. 2xx is delivered; 410 says that nobody will ever listen there; all else may pass, for a day. Read next: `halo/outbox.py`.
"""

from datetime import UTC, datetime
from typing import Final

import msgspec
from standardwebhooks import Webhook

from halo.clock import Clock, rfc3339
from halo.net.outgoing import CallFailed, Outgoing
from halo.outbox import Claim, Delivery, Refund

EVENT: Final = "refund.due"


class RefundCourier:
    """Refunds to `url`, signed with `secret`."""

    def __init__(self, url: str, secret: str, outgoing: Outgoing, clock: Clock) -> None:
        self._url = url
        self._webhook = Webhook(secret)
        self._outgoing = outgoing
        self._clock = clock

    async def deliver(self, claim: Claim) -> Delivery:
        if claim.refund is None:
            return Delivery(refusal="its refund is gone")
        refund, now = claim.refund, self._clock.now()
        content = refund_body(refund)
        moment = datetime.fromtimestamp(now // 1000, UTC)
        headers = {
            "content-type": "application/json",
            "webhook-id": refund.refund_id,
            "webhook-timestamp": str(now // 1000),
            "webhook-signature": self._webhook.sign(refund.refund_id, moment, content.decode()),
        }
        try:
            answer = await self._outgoing.post(self._url, content, headers, traceparent=claim.traceparent)
        except CallFailed as failed:
            return Delivery(failure=str(failed))
        if 200 <= answer.status < 300:
            return Delivery()
        if answer.status == 410:
            return Delivery(refusal="the provider answered 410")
        return Delivery(
            failure=f"the provider answered {answer.status}", retry_after_ms=answer.retry_after_ms(self._clock.now())
        )


def refund_body(refund: Refund) -> bytes:
    """What is signed and sent: which money, how much of it, and why. No name."""
    return msgspec.json.encode(
        {
            "type": EVENT,
            "refund_id": refund.refund_id,
            "payment_request_id": refund.payment_request_id,
            "provider_ref": refund.provider_ref,
            "session_id": refund.session_id,
            "kind": refund.kind,
            "cause": refund.cause,
            "amount": refund.amount,
            "currency": refund.currency,
            "created_at": rfc3339(refund.created_at),
        }
    )
