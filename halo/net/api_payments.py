"""Paying: `/api/payments/…`, the provider's webhook, and the sandbox's confirmation (spec 4).

The server prices; the provider alone says that money came, and its word is taken once for each `webhook-id`. Whoever waits for a
payment is told after the commit, at every delivery, since the first one's telling may have been lost with its node.
Read next: `halo/store/payments.py`.
"""

from halo.clock import rfc3339
from halo.errors import InvalidState, NotFound
from halo.net.body import uuid_or_none
from halo.net.call import Call, Handler
from halo.net.desk import Desk
from halo.payment import Payment, PaymentStatus
from halo.resources import PaymentState, PaymentWebhook, RequestPayment
from halo.store.payments import Settlement


def payment_handlers(desk: Desk) -> dict[str, Handler]:
    """The handlers of these routes, by name."""

    async def request_payment(call: Call) -> PaymentState:
        body: RequestPayment = call.body
        payment = await desk.payments.create(
            call.user.user_id,
            duration_minutes=body.duration_minutes,
            is_extension=body.is_extension,
            is_first_session_discount=body.is_first_session_discount,
            session_id=uuid_or_none(body.session_id),
            config=desk.current_config(),
            payment_request_id=call.derived_id,
        )
        return state_of(payment)

    async def payment(call: Call) -> PaymentState:
        return state_of(await own(call))

    async def payment_webhook(call: Call) -> None:
        body: PaymentWebhook = call.body
        payment_request_id = str(body.payment_request_id)
        if body.type == "payment.confirmed":
            settlement = await desk.payments.confirm(
                payment_request_id,
                provider_ref=body.provider_ref,
                amount=body.amount,
                currency=body.currency,
                webhook_id=call.webhook_id,
            )
        else:
            settlement = await desk.payments.fail(payment_request_id, webhook_id=call.webhook_id)
        await tell(settlement)

    async def sandbox_confirm(call: Call) -> PaymentState:
        found = await own(call)
        if found.status in {PaymentStatus.CONSUMED, PaymentStatus.FAILED}:
            raise InvalidState(f"The payment is {found.status}; only a pending one can be confirmed.")
        settlement = await desk.payments.confirm(
            found.payment_request_id, provider_ref="sandbox", amount=found.amount, currency=found.currency
        )
        await tell(settlement)
        if settlement.payment.status is PaymentStatus.FAILED:
            raise InvalidState(f"The payment has failed: {settlement.payment.failure_cause}.")
        return state_of(settlement.payment)

    async def own(call: Call) -> Payment:
        """The payment of the path. Somebody else's looks as if there were none."""
        found = await desk.payments.load(call.places["payment_request_id"])
        if found.customer_id != call.user.user_id:
            raise NotFound("There is no such payment.")
        return found

    async def tell(settlement: Settlement) -> None:
        desk.pairings.payment_settled(settlement.payment.payment_request_id)
        if settlement.waiting_session_id is not None:
            await desk.sessions.payment_settled(settlement.waiting_session_id)

    return {
        "request_payment": request_payment,
        "payment": payment,
        "payment_webhook": payment_webhook,
        "sandbox_confirm": sandbox_confirm,
    }


def state_of(payment: Payment) -> PaymentState:
    """The payment as apps see it."""
    return PaymentState(
        id=payment.payment_request_id,
        status=payment.status.value,
        amount=payment.amount,
        currency=payment.currency,
        duration_minutes=payment.duration_minutes,
        is_extension=payment.is_extension,
        is_first_session_discount=payment.is_first_session_discount,
        session_id=payment.session_id,
        failure_cause=payment.failure_cause,
        created_at=rfc3339(payment.created_at),
    )
