"""A payment request as a value, and what minutes cost.

The server prices, nobody else: what a client sends is compared with this, never taken over. Pure; the rows live in
`halo/store/payments.py`. Read next: `halo/extension.py`.
"""

from collections.abc import Collection
from dataclasses import dataclass
from enum import StrEnum

from halo.clock import Moment
from halo.config import LiveConfig
from halo.errors import DiscountNotForExtensions, PaymentMismatch, ValidationFailed


class PaymentStatus(StrEnum):
    """`pending` → `confirmed` → `consumed`; `failed` from either of the first two, with exactly one cause."""

    PENDING = "pending"
    CONFIRMED = "confirmed"
    CONSUMED = "consumed"
    FAILED = "failed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Payment:
    """One payment request; columns of `payment_requests` have the same names."""

    payment_request_id: str
    customer_id: str
    session_id: str | None
    """The session that it was made for, if any."""
    status: PaymentStatus
    amount: int
    """Minor units of `currency`."""
    currency: str
    duration_minutes: int
    is_extension: bool
    is_first_session_discount: bool
    failure_cause: str | None
    created_at: Moment
    in_use: bool = False
    """Bound to a pending or accepted extension, or to a pairing or session that lives."""


def price(config: LiveConfig, duration_minutes: int, *, is_extension: bool, is_first_session_discount: bool) -> int:
    """What `duration_minutes` cost, in minor units of `config.currency`; a discount rounds in the customer's favour.

    Raises:
        ValidationFailed: the minutes are outside `min_minutes` and `max_minutes`.
        DiscountNotForExtensions: both an extension and a first-session discount.
    """
    if not config.min_minutes <= duration_minutes <= config.max_minutes:
        raise ValidationFailed(
            f"duration_minutes must be between {config.min_minutes} and {config.max_minutes}.",
            errors=[{"field": "duration_minutes", "message": f"Expected {config.min_minutes} to {config.max_minutes}"}],
        )
    if is_extension and is_first_session_discount:
        raise DiscountNotForExtensions
    full = duration_minutes * config.price_per_minute
    percent = 100 - config.first_session_discount_percent if is_first_session_discount else 100
    return full * percent // 100


def check_currency(config: LiveConfig, currencies: Collection[str]) -> None:
    """Time that is sold now can be added to a session that is paid in one of `currencies`; of none at all it may be one to come.

    The policy has one price, in one currency. After an operator has changed the currency, that price says nothing about a session
    which runs in the old one, and money that is taken all the same would only be given back at its end.

    Raises:
        PaymentMismatch
    """
    if currencies and config.currency not in currencies:
        paid_in = " or ".join(sorted(set(currencies)))
        raise PaymentMismatch(
            f"The session is paid in {paid_in}, and time is sold in {config.currency} now; none can be added to it."
        )
