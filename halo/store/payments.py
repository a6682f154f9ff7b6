"""Payment requests in Postgres: what was asked for, whether its money came, and what it was spent on.

Every change is guarded by the status it starts from, and a payment that fails after its money came leaves a refund due in the same
statement. It must never price anything itself (`halo/payment.py` does), never let one `webhook-id` count twice, and never consume
outside the transaction that grants the time: `consumption`, `failure` and `failure_of_unused` are statements for their
caller's. Locks are taken session before payment before customer. Read next: `halo/store/sessions.py`.
"""

import json
from dataclasses import dataclass
from typing import Any, Final
from uuid import UUID, uuid4

import structlog

from halo.clock import Clock, Moment
from halo.config import LiveConfig
from halo.errors import (
    DiscountUsed,
    InvalidState,
    NotFound,
    PaymentMismatch,
    SessionNotActive,
    StoreUnavailable,
    ValidationFailed,
)
from halo.payment import Payment, PaymentStatus, check_currency, price
from halo.session import FailureCause
from halo.store.connection import Values
from halo.store.postgres import Postgres, Transaction
from halo.store.queries import Query, load_queries
from halo.store.values import Value
from halo.trace import current_traceparent

SQL: Final = load_queries("payments")


_log: structlog.typing.FilteringBoundLogger = structlog.get_logger("halo.store")


class _OtherMoney(Exception):
    """Not what was asked for; leaves the transaction without a trace, so that one can be made outside."""

    def __init__(self, asked_amount: int, asked_currency: str) -> None:
        super().__init__()
        self.asked_amount = asked_amount
        self.asked_currency = asked_currency


@dataclass(frozen=True, slots=True, kw_only=True)
class Settlement:
    """What a report of the provider came to."""

    payment: Payment
    changed: bool
    """False when the report had been taken before, or said nothing new."""
    waiting_session_id: str | None
    """The session that stands still because of this payment, and wants to be told."""


class Payments:
    """The rows of payment requests, refunds that they owe, and deliveries of the provider."""

    def __init__(self, db: Postgres, clock: Clock) -> None:
        self._db = db
        self._clock = clock

    async def create(
        self,
        customer_id: str,
        *,
        duration_minutes: int,
        is_extension: bool = False,
        is_first_session_discount: bool = False,
        session_id: str | None = None,
        config: LiveConfig,
        payment_request_id: str | None = None,
    ) -> Payment:
        """A `pending` request, priced by `config`. With a `payment_request_id` that exists, that payment, as it is now.

        Raises:
            ValidationFailed: minutes out of bounds, or a session named for what is no extension.
            DiscountNotForExtensions: both an extension and a first-session discount.
            DiscountUsed: the customer has had a session that started, or holds a discount that is confirmed or consumed.
            NotFound: the session is not this customer's.
            SessionNotActive: the session has ended.
            PaymentMismatch: time is sold in another currency by now than the session is paid in, and could never be added to it.
            StoreUnavailable
        """
        payment_request_id = payment_request_id or str(uuid4())
        if session_id is not None and not is_extension:
            raise ValidationFailed(
                "Only an extension is paid for a session that exists.",
                errors=[{"field": "session_id", "message": "Expected is_extension to be true"}],
            )

        async def write(tx: Transaction) -> Payment:
            # A repeat is answered before anything is checked: by now the discount may be used, the session over, the price another.
            if (repeated := await _find(tx, payment_request_id)) is not None:
                return repeated
            amount = price(
                config, duration_minutes, is_extension=is_extension, is_first_session_discount=is_first_session_discount
            )
            if session_id is not None:
                session = await tx.fetch_one(
                    SQL["lock_session"], {"session_id": session_id, "customer_id": customer_id}
                )
                if session is None:
                    raise NotFound("There is no such session.")
                if session.status == "ended":
                    raise SessionNotActive("The session has ended; no time can be bought for it.")
                check_currency(config, [session.currency])
            elif is_extension:
                living = await tx.fetch_all(SQL["list_living_currencies"], {"customer_id": customer_id})
                check_currency(config, [row.currency for row in living])
            if is_first_session_discount:
                discount = await tx.fetch_one(SQL["check_discount"], {"customer_id": customer_id})
                if discount is not None and discount.used:
                    raise DiscountUsed
            await tx.execute(
                SQL["insert_payment"],
                {
                    "payment_request_id": payment_request_id,
                    "customer_id": customer_id,
                    "session_id": session_id,
                    "amount": amount,
                    "currency": config.currency,
                    "duration_minutes": duration_minutes,
                    "is_extension": is_extension,
                    "is_first_session_discount": is_first_session_discount,
                    "at": self._clock.now(),
                },
            )
            return await _load(tx, payment_request_id)

        payment = await self._db.transact(write, str(uuid4()))
        if payment.customer_id != customer_id:  # only an id that was not derived from this customer can get here
            raise NotFound("There is no such payment.")
        return payment

    async def find(self, payment_request_id: str) -> Payment | None:
        """The payment with `in_use` as of now, whosever it is; or None, also for what is no id at all."""
        try:
            payment_request_id = str(UUID(payment_request_id))  # chat frames carry whatever the client took for an id
        except ValueError:
            return None
        return await _find(self._db, payment_request_id)

    async def load(self, payment_request_id: str) -> Payment:
        """The same. Raises NotFound, StoreUnavailable."""
        payment = await self.find(payment_request_id)
        if payment is None:
            raise NotFound("There is no such payment.")
        return payment

    async def confirm(
        self, payment_request_id: str, *, provider_ref: str, amount: int, currency: str, webhook_id: str | None = None
    ) -> Settlement:
        """The provider has the money: `amount` minor units of `currency`.

        A pending payment becomes `confirmed`; a customer's second discount becomes `failed` with its refund due; money for a payment
        that had failed stays failed and is refunded, once. Everything else changes nothing, and so does a `webhook_id` seen before.

        Raises:
            NotFound, StoreUnavailable
            PaymentMismatch: another amount or currency than was asked for; nothing is kept, not even the webhook's id, but the trace
                that an operator needs to find the money: a line in the log and one among the operators' actions.
        """
        at = self._clock.now()
        report: dict[str, Value] = {
            "payment_request_id": payment_request_id,
            "provider_ref": provider_ref,
            "at": at,
            "traceparent": current_traceparent(),
        }

        async def write(tx: Transaction) -> Settlement:
            if await _is_repeat(tx, webhook_id, payment_request_id, "payment.confirmed", at):
                return await _settlement(tx, payment_request_id, changed=False)
            row = await _lock(tx, payment_request_id)
            if (row.amount, row.currency) != (amount, currency):
                raise _OtherMoney(asked_amount=row.amount, asked_currency=row.currency)
            changed = False
            match PaymentStatus(row.status):
                case PaymentStatus.PENDING if await _is_second_discount(tx, row):
                    changed = await tx.execute(SQL["record_arrival"], report) == 1
                    await fail_payment(tx, payment_request_id, FailureCause.PAYMENT_FAILED.value, at)
                case PaymentStatus.PENDING:
                    changed = await tx.execute(SQL["confirm_payment"], report) == 1
                case PaymentStatus.FAILED:
                    changed = await tx.fetch_one(SQL["refund_late_money"], report) is not None
                case PaymentStatus.CONFIRMED | PaymentStatus.CONSUMED:
                    pass  # the same news again
            return await _settlement(tx, payment_request_id, changed=changed)

        try:
            settlement = await self._db.transact(write, str(uuid4()))
        except _OtherMoney as other:
            asked = f"{other.asked_amount} {other.asked_currency}"
            await self._trace_mismatch(payment_request_id, asked, f"{amount} {currency}", provider_ref, webhook_id)
            raise PaymentMismatch(f"{asked} were asked for, {amount} {currency} were paid.") from None
        if settlement.changed and webhook_id is not None:  # the sandbox has one reference for all
            await self._warn_of_shared_ref(report)
        return settlement

    async def _trace_mismatch(
        self, payment_request_id: str, asked: str, paid: str, provider_ref: str, webhook_id: str | None
    ) -> None:
        """Money has moved that no row shows. If this cannot be kept the report is not answered, so the provider delivers it again."""
        _log.warning(
            "payment_mismatch", payment_request_id=payment_request_id, asked=asked, paid=paid, provider_ref=provider_ref
        )
        details = {"asked": asked, "paid": paid, "provider_ref": provider_ref, "webhook_id": webhook_id}
        await self._db.execute(
            SQL["record_mismatch"], {"payment_request_id": payment_request_id, "details": json.dumps(details)}
        )

    async def _warn_of_shared_ref(self, report: Values) -> None:
        try:
            other = await self._db.fetch_one(SQL["find_shared_ref"], report)
        except StoreUnavailable:
            return  # the money is booked; a warning less must not make the provider deliver it again
        if other is not None:
            _log.warning(
                "provider_ref_shared",
                payment_request_id=report["payment_request_id"],
                other_payment_request_id=other.payment_request_id,
                provider_ref=report["provider_ref"],
            )

    async def fail(
        self, payment_request_id: str, cause: FailureCause = FailureCause.PAYMENT_FAILED, webhook_id: str | None = None
    ) -> Settlement:
        """The provider says that no money will come; where it had come, all of it is due back. Failing twice changes nothing.

        Raises:
            NotFound, StoreUnavailable
            InvalidState: the payment is consumed: what it bought was granted.
        """
        at = self._clock.now()

        async def write(tx: Transaction) -> Settlement:
            if await _is_repeat(tx, webhook_id, payment_request_id, "payment.failed", at):
                return await _settlement(tx, payment_request_id, changed=False)
            row = await _lock(tx, payment_request_id)
            if row.status == PaymentStatus.CONSUMED:
                raise InvalidState("The payment is consumed; it can no longer fail.")
            changed = await fail_payment(tx, payment_request_id, cause.value, at)
            return await _settlement(tx, payment_request_id, changed=changed)

        return await self._db.transact(write, str(uuid4()))


def consumption(payment_request_id: str, session_id: str, ledger_type: str, at: Moment) -> tuple[Query, Values]:
    """Spends a confirmed payment on a session and writes its one ledger row (M1).

    Touches no row when the payment is not confirmed any more, or was made for another session.
    """
    values: dict[str, Value] = {
        "payment_request_id": payment_request_id,
        "session_id": session_id,
        "type": ledger_type,
        "at": at,
    }
    return SQL["consume_payment"], values


def failure(
    payment_request_id: str,
    cause: str,
    at: Moment,
    *,
    session_id: str | None = None,
    expected: PaymentStatus | None = None,
) -> tuple[Query, Values]:
    """Fails a pending or confirmed payment; a refund of all of it is due if its money had come.

    Touches no row when it was failed or consumed before, and keeps the cause that it had (M6), nor when it is not `expected`.
    `session_id` is noted on the refund when the payment itself does not know its session.
    """
    values: dict[str, Value] = {
        "payment_request_id": payment_request_id,
        "cause": cause,
        "at": at,
        "session_id": session_id,
        "expected": expected,
        "traceparent": current_traceparent(),
    }
    return SQL["fail_payment"], values


def failure_of_unused(session_id: str, at: Moment) -> tuple[Query, Values]:
    """Fails this session's extension payments that bought nothing, with refunds (M7).

    To be run after the session's own row was written `ended`: only then does `Payments.create` let no other in behind it.
    """
    values: dict[str, Value] = {"session_id": session_id, "at": at, "traceparent": current_traceparent()}
    return SQL["fail_unused_payments"], values


async def fail_payment(tx: Transaction, payment_request_id: str, cause: str, at: Moment) -> bool:
    """Run `failure` in the caller's transaction: whether it touched the payment."""
    return await tx.execute(*failure(payment_request_id, cause, at)) == 1


def payment_of(row: Any, *, in_use: bool) -> Payment:
    """A row of `payment_requests` as a value."""
    return Payment(
        payment_request_id=row.payment_request_id,
        customer_id=row.customer_id,
        session_id=row.session_id,
        status=PaymentStatus(row.status),
        amount=row.amount,
        currency=row.currency,
        duration_minutes=row.duration_minutes,
        is_extension=row.is_extension,
        is_first_session_discount=row.is_first_session_discount,
        failure_cause=row.failure_cause,
        created_at=row.created_at,
        in_use=in_use,
    )


async def _find(source: Postgres | Transaction, payment_request_id: str) -> Payment | None:
    row = await source.fetch_one(SQL["find_payment"], {"payment_request_id": payment_request_id})
    if row is None:
        return None
    return payment_of(row, in_use=row.in_use)


async def _load(tx: Transaction, payment_request_id: str) -> Payment:
    payment = await _find(tx, payment_request_id)
    if payment is None:
        raise NotFound("There is no such payment.")
    return payment


async def _lock(tx: Transaction, payment_request_id: str) -> Any:
    row = await tx.fetch_one(SQL["lock_payment"], {"payment_request_id": payment_request_id})
    if row is None:
        raise NotFound("There is no such payment.")
    return row


async def _is_repeat(tx: Transaction, webhook_id: str | None, payment_request_id: str, event: str, at: Moment) -> bool:
    """Note the delivery; two of one id in the same moment wait for each other here."""
    if webhook_id is None:
        return False
    delivery: dict[str, Value] = {
        "webhook_id": webhook_id,
        "payment_request_id": payment_request_id,
        "type": event,
        "at": at,
    }
    return await tx.execute(SQL["take_delivery"], delivery) == 0


async def _is_second_discount(tx: Transaction, payment: Any) -> bool:
    """Whether this customer has had a discount, or a first session, since this one was asked for."""
    if not payment.is_first_session_discount:
        return False
    of_customer = {"customer_id": payment.customer_id}
    await tx.fetch_one(SQL["lock_customer"], of_customer)
    return bool(await tx.fetch_all(SQL["find_held_discount"], of_customer))


async def _settlement(tx: Transaction, payment_request_id: str, *, changed: bool) -> Settlement:
    waiting = await tx.fetch_one(SQL["find_waiting_session"], {"payment_request_id": payment_request_id})
    payment = await _load(tx, payment_request_id)
    return Settlement(
        payment=payment, changed=changed, waiting_session_id=None if waiting is None else waiting.session_id
    )
