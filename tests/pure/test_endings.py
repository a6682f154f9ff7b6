"""What each end of a session is written down to rest on."""

from halo.events import EndedBy
from tests.pure.story import EXTENSION, EXTENSION_PAYMENT, MINUTE, PAIRING, PAYMENT, Story


def test_an_end_says_how_much_time_was_left_and_who_got_it() -> None:
    story = Story.paid(minutes=10, price=10_000).after(minutes=4).is_ended_by(EndedBy.MITRA)
    assert story.step.evidence == {
        "remaining_ms": 6 * MINUTE,
        "time_left": "refunded",
        "refund_amount": 6_000,
        "currency": "IDR",
    }
    story = Story.paid(minutes=10).after(minutes=4).is_ended_by(EndedBy.CUSTOMER)
    assert story.step.evidence == {"remaining_ms": 6 * MINUTE, "time_left": "forfeited"}


def test_an_end_names_the_request_that_it_cancels_and_its_payment() -> None:
    story = Story.paid(minutes=10).after(minutes=4).asks().is_ended_by(EndedBy.ADMIN)
    story.because("admin", extension_id=EXTENSION, payment_request_id=EXTENSION_PAYMENT, remaining_ms=6 * MINUTE)


def test_an_end_before_the_money_came_names_the_payment() -> None:
    assert Story.unpaid().payment_fails().step.evidence == {"payment_request_id": PAYMENT}


def test_an_end_without_another_mitra_names_the_search_and_the_time_left() -> None:
    story = Story.paid(minutes=10).after(minutes=4).loses_its_mitra().finds_nobody()
    story.because("all_declined", pairing_id=PAIRING, remaining_ms=6 * MINUTE, time_left="refunded")


def test_a_session_that_was_served_to_the_end_leaves_nothing_to_tell() -> None:
    story = Story.paid(minutes=10).at_the_deadline().at_the_deadline()
    assert set(story.step.evidence) == {"deadline_at"}
