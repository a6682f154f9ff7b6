"""The asking table of the specification's second page, every row and their order."""

from collections.abc import Callable
from dataclasses import replace
from itertools import combinations
from uuid import UUID

import pytest

from halo.config import LiveConfig, RefusalOutcome, TimeoutAction
from halo.errors import (
    DiscountNotForExtensions,
    ExtensionLimit,
    Forbidden,
    InvalidState,
    NotFound,
    PaymentInUse,
    PaymentMismatch,
    Refusal,
    SessionNotActive,
    ValidationFailed,
)
from halo.events import EndedBy
from halo.extension import Asked, check, check_input, check_payment, check_session, request
from halo.payment import Payment, PaymentStatus
from halo.session import ExtensionStatus, Session
from tests.pure.story import (
    CUSTOMER,
    EXTENSION,
    EXTENSION_PAYMENT,
    MITRA,
    NOON,
    SECOND,
    SESSION,
    Story,
    an_extension_payment,
)

ASKED = Asked(customer_id=CUSTOMER, duration_minutes=5, price=5_000, payment_request_id=EXTENSION_PAYMENT)
ACTIVE_SESSION = Story.paid().session
Case = tuple[Session, Asked, Payment | None]
SOUND: Case = (ACTIVE_SESSION, ASKED, an_extension_payment())


def _payment(case: Case, **changes: object) -> Case:
    session, asked, payment = case
    return session, asked, None if payment is None else replace(payment, **changes)  # type: ignore[arg-type]  # fields by name


TABLE: list[tuple[type[Refusal], str, int, Callable[[Case], Case]]] = [
    (
        SessionNotActive,
        "SESSION_NOT_ACTIVE",
        409,
        lambda case: (Story.paid().is_ended_by(EndedBy.CUSTOMER).session, *case[1:]),
    ),
    (ValidationFailed, "VALIDATION_ERROR", 422, lambda case: (case[0], replace(case[1], duration_minutes=0), case[2])),
    (NotFound, "NOT_FOUND", 404, lambda case: (*case[:2], None)),
    (Forbidden, "FORBIDDEN", 403, lambda case: _payment(case, customer_id=str(UUID(int=99)))),
    (InvalidState, "INVALID_STATE", 409, lambda case: _payment(case, status=PaymentStatus.PENDING)),
    (InvalidState, "INVALID_STATE", 409, lambda case: _payment(case, is_extension=False)),
    (
        DiscountNotForExtensions,
        "FIRST_SESSION_DISCOUNT_NOT_ALLOWED",
        400,
        lambda case: _payment(case, is_first_session_discount=True),
    ),
    (PaymentMismatch, "PAYMENT_MISMATCH", 409, lambda case: _payment(case, amount=4_999)),
    (PaymentInUse, "PAYMENT_IN_USE", 409, lambda case: _payment(case, in_use=True)),
]
"""Each row of the table as its refusal and as the one thing that is wrong."""

NO_LIMIT = LiveConfig()


def test_a_request_with_nothing_wrong_is_let_through_with_its_payment() -> None:
    assert check(*SOUND, NO_LIMIT) == SOUND[2]


@pytest.mark.parametrize("row", range(len(TABLE)))
def test_each_row_is_refused_by_its_own_code(row: int) -> None:
    refusal, code, status, break_ = TABLE[row]
    with pytest.raises(refusal) as caught:
        check(*break_(SOUND), NO_LIMIT)
    assert (caught.value.code, caught.value.status, caught.value.retryable) == (code, status, False)


@pytest.mark.parametrize(("earlier", "later"), list(combinations(range(len(TABLE)), 2)))
def test_of_two_things_wrong_the_earlier_row_answers(earlier: int, later: int) -> None:
    broken = TABLE[earlier][3](TABLE[later][3](SOUND))
    with pytest.raises(TABLE[earlier][0]) as alone:
        check(*TABLE[earlier][3](SOUND), NO_LIMIT)
    with pytest.raises(TABLE[earlier][0]) as both:
        check(*broken, NO_LIMIT)
    assert both.value.message == alone.value.message


def test_everything_wrong_at_once_is_answered_by_the_first_row() -> None:
    case = SOUND
    for *_, break_ in reversed(TABLE):
        case = break_(case)
    with pytest.raises(SessionNotActive):
        check(*case, NO_LIMIT)


@pytest.mark.parametrize(
    "session",
    [
        Story.unpaid().session,
        Story.paid().asks().session,
        Story.paid().loses_its_mitra().session,
        Story.paid().is_ended_by(EndedBy.MITRA).session,
    ],
    ids=lambda session: session.status,
)
def test_time_can_be_added_in_no_other_status(session: Session) -> None:
    with pytest.raises(SessionNotActive, match=session.status.value):
        check_session(session, NO_LIMIT)


def test_time_can_be_added_while_active_and_while_closing() -> None:
    check_session(ACTIVE_SESSION, NO_LIMIT)
    check_session(Story.paid().at_the_deadline().session, NO_LIMIT)


def test_nobody_but_the_customer_of_the_session_can_ask_and_others_do_not_learn_that_there_is_one() -> None:
    with pytest.raises(SessionNotActive) as refused:
        check(ACTIVE_SESSION, replace(ASKED, customer_id=MITRA), SOUND[2], NO_LIMIT)
    assert refused.value.message == SessionNotActive().message  # as for a session that does not exist


@pytest.mark.parametrize(("accepted", "limit", "refused"), [(0, 1, False), (1, 1, True), (0, 0, True), (19, 20, False)])
def test_the_limit_counts_accepted_extensions(accepted: int, limit: int, refused: bool) -> None:
    session = replace(ACTIVE_SESSION, extensions_accepted=accepted)
    config = LiveConfig(max_extensions_per_session=limit)
    if refused:
        with pytest.raises(ExtensionLimit) as caught:
            check_session(session, config)
        assert (caught.value.code, caught.value.status) == ("EXTENSION_LIMIT", 409)
    else:
        check_session(session, config)


@pytest.mark.parametrize(
    ("minutes", "price", "payment_request_id", "fields"),
    [
        (None, 5, EXTENSION_PAYMENT, ["duration_minutes"]),
        (0, 5, EXTENSION_PAYMENT, ["duration_minutes"]),
        (-1, 5, EXTENSION_PAYMENT, ["duration_minutes"]),
        (1441, 5, EXTENSION_PAYMENT, ["duration_minutes"]),
        (10**40, 5, EXTENSION_PAYMENT, ["duration_minutes"]),
        (5, None, EXTENSION_PAYMENT, ["price"]),
        (5, -1, EXTENSION_PAYMENT, ["price"]),
        (5, 10**15 + 1, EXTENSION_PAYMENT, ["price"]),
        (5, 5, None, ["extension_payment_request_id"]),
        (5, 5, "", ["extension_payment_request_id"]),
        (5, 5, "not an id", ["extension_payment_request_id"]),
        (5, 5, EXTENSION_PAYMENT + "\n", ["extension_payment_request_id"]),
        (None, None, None, ["duration_minutes", "price", "extension_payment_request_id"]),
    ],
)
def test_what_is_missing_or_absurd_is_named_field_by_field(
    minutes: int | None, price: int | None, payment_request_id: str | None, fields: list[str]
) -> None:
    with pytest.raises(ValidationFailed) as caught:
        check_input(minutes, price, payment_request_id)
    assert [error["field"] for error in caught.value.errors] == fields


def test_the_bounds_themselves_are_sane() -> None:
    assert check_input(1, 0, EXTENSION_PAYMENT) == (1, 0, EXTENSION_PAYMENT)
    assert check_input(1440, 10**15, EXTENSION_PAYMENT) == (1440, 10**15, EXTENSION_PAYMENT)


@pytest.mark.parametrize("status", sorted(set(PaymentStatus) - {PaymentStatus.CONFIRMED}))
def test_a_payment_that_is_not_confirmed_is_refused_naming_its_status(status: PaymentStatus) -> None:
    with pytest.raises(InvalidState, match=status.value):
        check_payment(ACTIVE_SESSION, an_extension_payment(status=status), 5, 5_000)


@pytest.mark.parametrize(("minutes", "price"), [(4, 5_000), (6, 5_000), (5, 4_999), (5, 0), (5_000, 5)])
def test_what_the_client_sends_must_equal_what_was_paid(minutes: int, price: int) -> None:
    with pytest.raises(PaymentMismatch):
        check_payment(ACTIVE_SESSION, an_extension_payment(minutes=5, amount=5_000), minutes, price)


def test_a_payment_in_another_currency_is_a_mismatch() -> None:
    with pytest.raises(PaymentMismatch, match="USD"):
        check_payment(ACTIVE_SESSION, an_extension_payment(currency="USD"), 5, 5_000)


def test_a_payment_made_for_another_session_is_in_use_there() -> None:
    with pytest.raises(PaymentInUse):
        check_payment(ACTIVE_SESSION, an_extension_payment(session_id=str(UUID(int=77))), 5, 5_000)


def test_a_payment_made_for_no_session_in_particular_may_pay_for_this_one() -> None:
    payment = an_extension_payment(session_id=None)
    assert check_payment(ACTIVE_SESSION, payment, 5, 5_000) is payment


def test_the_policy_in_force_is_copied_onto_the_request() -> None:
    config = LiveConfig(
        extension_timeout_seconds=33,
        extension_default_action_on_timeout=TimeoutAction.AUTO_REJECT,
        extension_refusal=RefusalOutcome.CLOSE,
        version=9,
    )
    made = request(ACTIVE_SESSION, an_extension_payment(minutes=7, amount=700), EXTENSION, NOON, config)
    assert (made.extension_id, made.session_id, made.payment_request_id) == (EXTENSION, SESSION, EXTENSION_PAYMENT)
    assert (made.status, made.duration_minutes, made.price, made.currency) == (ExtensionStatus.PENDING, 7, 700, "IDR")
    assert (made.requested_at, made.deadline_at, made.timeout_seconds) == (NOON, NOON + 33 * SECOND, 33)
    assert (made.default_action_on_timeout, made.refusal_outcome) == (TimeoutAction.AUTO_REJECT, RefusalOutcome.CLOSE)
    assert made.config_version == 9
