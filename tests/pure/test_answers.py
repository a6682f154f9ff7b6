"""What each decision about a request for more time is written down to rest on."""

from typing import Any

import pytest

from halo.clock import rfc3339
from halo.config import RefusalOutcome, TimeoutAction
from tests.pure.story import CUSTOMER, EXTENSION, EXTENSION_PAYMENT, MINUTE, MITRA, NOON, SECOND, THERE, Story

ASKED_AT = NOON + 4 * MINUTE
DECIDED_AT = ASKED_AT + 15 * SECOND
DEADLINE_AT = ASKED_AT + 60 * SECOND

GROUNDS = {
    "extension_id": EXTENSION,
    "payment_request_id": EXTENSION_PAYMENT,
    "asked_at": "2026-11-24T12:04:00.000Z",
    "deadline_at": "2026-11-24T12:05:00.000Z",
    "default_action_on_timeout": "auto_approve",
    "refusal_outcome": "resume",
    "config_version": 7,
    "remaining_ms": 6 * MINUTE,
}
"""What was known of the request when it was decided, whoever did."""


def asked(**settings: Any) -> Story:
    return Story.paid(minutes=10, version=7, **settings).after(minutes=4).asks()


def test_a_request_names_its_payment_and_the_policy_that_was_copied_onto_it() -> None:
    story = asked()
    assert story.step.cause == "customer"
    assert story.step.evidence == {
        "by": "customer",
        "extension_id": EXTENSION,
        "payment_request_id": EXTENSION_PAYMENT,
        "payment_status": "confirmed",
        "duration_minutes": 5,
        "price": 5_000,
        "deadline_at": rfc3339(DEADLINE_AT),
        "timeout_seconds": 60,
        "default_action_on_timeout": "auto_approve",
        "refusal_outcome": "resume",
        "config_version": 7,
    }


@pytest.mark.parametrize(("accepted", "cause"), [(True, "mitra_accepted"), (False, "mitra_refused")])
def test_an_answer_names_who_gave_it_when_and_the_payment_that_it_is_about(accepted: bool, cause: str) -> None:
    story = asked().after(seconds=15).answers(accepted=accepted)
    assert story.step.cause == cause
    assert story.step.evidence == {
        **GROUNDS,
        "by": "mitra",
        "mitra_id": MITRA,
        "decided_at": rfc3339(DECIDED_AT),
        "payment_status": "confirmed",
    }


def test_a_cancellation_names_the_customer_and_the_payment_that_is_free_again() -> None:
    story = asked().after(seconds=15).cancels()
    assert story.step.cause == "customer"
    assert story.step.evidence == {
        **GROUNDS,
        "by": "customer",
        "customer_id": CUSTOMER,
        "decided_at": rfc3339(DECIDED_AT),
    }


def test_a_request_whose_money_was_taken_back_names_the_payment_and_that_it_failed() -> None:
    story = asked().after(seconds=15).payment_fails()
    assert story.step.cause == "payment_failed"
    assert story.step.evidence == {
        **GROUNDS,
        "by": "payment provider",
        "decided_at": rfc3339(DECIDED_AT),
        "payment_status": "failed",
    }


@pytest.mark.parametrize(
    ("action", "seen", "by"),
    [
        (TimeoutAction.AUTO_APPROVE, THERE, "policy"),
        (TimeoutAction.AUTO_REJECT, THERE, "policy"),
        (TimeoutAction.AUTO_APPROVE, None, "safeguard"),
    ],
)
def test_silence_names_the_policy_or_the_safeguard_and_what_was_seen(action: TimeoutAction, seen: Any, by: str) -> None:
    story = asked(extension_default_action_on_timeout=action).at_the_deadline(late_ms=250, reachability=seen)
    assert story.step.evidence == {
        **GROUNDS,
        "by": by,
        "default_action_on_timeout": action.value,
        "decided_at": rfc3339(DEADLINE_AT + 250),
        "payment_status": "confirmed",
        **({} if seen is None else seen.evidence()),
    }


def test_a_decision_in_the_grace_says_how_much_of_the_grace_was_left() -> None:
    story = Story.paid(closure_grace_seconds=120, extension_refusal=RefusalOutcome.CLOSE).at_the_deadline()
    story.after(seconds=50).asks().after(seconds=9).answers(accepted=False)
    story.because("mitra_refused", grace_left_ms=70 * SECOND, remaining_ms=0, refusal_outcome="close")
