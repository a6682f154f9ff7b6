"""Every "no" has its code, its status, its sentence and says whether trying again can help."""

import inspect

import pytest

from halo import errors
from halo.errors import Busy, NotFound, OwnershipLost, RateLimited, Refusal, SessionNotActive, StepOvertaken

REFUSALS = [
    cls for _, cls in inspect.getmembers(errors, inspect.isclass) if issubclass(cls, Refusal) and cls is not Refusal
]

CONTRACT = {
    "VALIDATION_ERROR": 422,
    "NOT_FOUND": 404,
    "FORBIDDEN": 403,
    "INVALID_STATE": 409,
    "SESSION_NOT_ACTIVE": 409,
    "SESSION_PAUSED": 409,
    "FIRST_SESSION_DISCOUNT_NOT_ALLOWED": 400,
    "FIRST_SESSION_DISCOUNT_USED": 409,
    "PAYMENT_MISMATCH": 409,
    "PAYMENT_IN_USE": 409,
    "EXTENSION_RESOLVED": 409,
    "EXTENSION_LIMIT": 409,
    "OFFER_RESOLVED": 409,
    "MITRA_DEACTIVATED": 403,
    "MITRA_OFFLINE": 409,
    "IDEMPOTENCY_MISMATCH": 422,
    "RATE_LIMITED": 429,
}
"""The codes whose status the specification states."""


def test_the_codes_of_the_contract_have_their_status() -> None:
    known = {cls.code: cls.status for cls in REFUSALS}
    assert {code: known[code] for code in CONTRACT} == CONTRACT


@pytest.mark.parametrize("refusal", REFUSALS)
def test_a_refusal_says_one_sentence_unless_the_raiser_knows_better(refusal: type[Refusal]) -> None:
    said = refusal()
    assert said.message == str(said) == refusal.__doc__
    assert said.message.endswith(".")
    assert refusal("Because of this.").message == "Because of this."
    assert refusal.code == refusal.code.upper()
    assert 400 <= refusal.status < 600


def test_no_two_refusals_share_a_code() -> None:
    assert len({cls.code for cls in REFUSALS}) == len(REFUSALS)


def test_only_what_may_pass_by_itself_is_retryable() -> None:
    retryable = {cls.code for cls in REFUSALS if cls.retryable}
    assert retryable == {"SESSION_PAUSED", "RATE_LIMITED", "BUSY", "STORE_UNAVAILABLE", "DRAINING", "INTERNAL"}
    assert all(cls.status in {409, 429, 500, 503} for cls in REFUSALS if cls.retryable)


def test_a_refusal_carries_what_is_wrong_and_when_to_come_back() -> None:
    assert NotFound(errors=[{"field": "a", "message": "b"}]).errors == ({"field": "a", "message": "b"},)
    assert RateLimited(retry_after_ms=250).retry_after_ms == 250
    assert (Busy().errors, Busy().retry_after_ms) == ((), None)


def test_a_lost_race_is_no_refusal_of_a_user() -> None:
    assert not issubclass(StepOvertaken, Refusal)
    assert not issubclass(OwnershipLost, Refusal)
    assert issubclass(SessionNotActive, Refusal)
