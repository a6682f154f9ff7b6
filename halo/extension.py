"""Who may ask for more time, and with which payment: the asking table of spec 2, in its order, each row with its code.

Pure: the session, the payment and the configuration are handed in. The payment is bound when the request is made (a unique
index in Postgres has the last word) and consumed only at approval. Read next: `halo/rules.py`, which decides what an answer or
silence means.
"""

import re
from dataclasses import dataclass

from halo.clock import Moment
from halo.config import LiveConfig
from halo.errors import (
    DiscountNotForExtensions,
    ExtensionLimit,
    Forbidden,
    InvalidState,
    NotFound,
    PaymentInUse,
    PaymentMismatch,
    SessionNotActive,
    ValidationFailed,
)
from halo.payment import Payment, PaymentStatus
from halo.session import Extension, ExtensionStatus, Session, SessionStatus

MINUTES_SANE = range(1, 1441)
"""A day at most: what is beyond is a client's mistake, not a wish."""
PRICE_SANE = range(10**15 + 1)
"""Far above any price, far below what a bigint holds."""


_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What was sent, as it was sent: nothing of it is believed before `check`."""

    customer_id: str
    """The user who asks, whoever that is."""
    duration_minutes: int | None
    price: int | None
    payment_request_id: str | None


def check(session: Session, asked: Asked, payment: Payment | None, config: LiveConfig) -> Payment:
    """The whole asking table of spec 2, in its order; `payment` is the one that was named, or None when there is none.

    Raises:
        Refusal: the first row that does not hold.
    """
    if asked.customer_id != session.customer_id:
        raise SessionNotActive  # in the words for a session that does not exist: a stranger learns nothing
    check_session(session, config)
    duration_minutes, price, _ = check_input(asked.duration_minutes, asked.price, asked.payment_request_id)
    return check_payment(session, payment, duration_minutes, price)


def check_session(session: Session, config: LiveConfig) -> None:
    """The session's own side: it must be `active` or `closing` and have an extension left.

    Raises:
        SessionNotActive, ExtensionLimit
    """
    if session.status not in {SessionStatus.ACTIVE, SessionStatus.CLOSING}:
        raise SessionNotActive(f"The session is {session.status}; time can be added while it is active or closing.")
    if session.extensions_accepted >= config.max_extensions_per_session:
        raise ExtensionLimit


def check_input(
    duration_minutes: int | None, price: int | None, payment_request_id: str | None
) -> tuple[int, int, str]:
    """What the customer sent, present and sane: `(duration_minutes, price, payment_request_id)`.

    Raises:
        ValidationFailed: naming every field that is missing or absurd.
    """
    errors = []
    if duration_minutes is None or duration_minutes not in MINUTES_SANE:
        errors.append({"field": "duration_minutes", "message": "Expected a whole number from 1 to 1440"})
    if price is None or price not in PRICE_SANE:
        errors.append({"field": "price", "message": "Expected a whole number of minor units, at least 0"})
    if payment_request_id is None or not _UUID.fullmatch(payment_request_id):
        errors.append({"field": "extension_payment_request_id", "message": "Expected the id of a confirmed payment"})
    if errors or duration_minutes is None or price is None or payment_request_id is None:
        raise ValidationFailed(
            "An extension needs duration_minutes, price and extension_payment_request_id.", errors=errors
        )
    return duration_minutes, price, payment_request_id


def check_payment(session: Session, payment: Payment | None, duration_minutes: int, price: int) -> Payment:
    """The payment can pay for exactly this request.

    Raises:
        NotFound, Forbidden, InvalidState, DiscountNotForExtensions, PaymentMismatch, PaymentInUse: in the order of spec 2.
    """
    if payment is None:
        raise NotFound("There is no such payment.")
    if payment.customer_id != session.customer_id:
        raise Forbidden("This payment is somebody else's.")
    if payment.status is not PaymentStatus.CONFIRMED:
        raise InvalidState(f"The payment is {payment.status}; it must be confirmed.")
    if not payment.is_extension:
        raise InvalidState("The payment was made for a session, not for an extension.")
    if payment.is_first_session_discount:
        raise DiscountNotForExtensions
    if (payment.duration_minutes, payment.amount) != (duration_minutes, price):
        raise PaymentMismatch(
            f"{payment.duration_minutes} minutes for {payment.amount} were paid, {duration_minutes} for {price} asked."
        )
    if payment.currency != session.currency:
        raise PaymentMismatch(f"The payment is in {payment.currency}, the session in {session.currency}.")
    if payment.session_id not in {None, session.session_id}:
        raise PaymentInUse("This payment was made for another session.")
    if payment.in_use:
        raise PaymentInUse
    return payment


def request(session: Session, payment: Payment, extension_id: str, at: Moment, config: LiveConfig) -> Extension:
    """The request as it is written down, with the policy in force now copied onto it (spec 1 B)."""
    return Extension(
        extension_id=extension_id,
        session_id=session.session_id,
        payment_request_id=payment.payment_request_id,
        status=ExtensionStatus.PENDING,
        duration_minutes=payment.duration_minutes,
        price=payment.amount,
        currency=payment.currency,
        requested_at=at,
        deadline_at=at + config.extension_timeout_seconds * 1000,
        timeout_seconds=config.extension_timeout_seconds,
        default_action_on_timeout=config.extension_default_action_on_timeout,
        refusal_outcome=config.extension_refusal,
        config_version=config.version,
    )
