"""Who hears by push what became of a session: those whom it concerns and who did not bring it about."""

from typing import Any

import pytest

from halo.config import TimeoutAction
from halo.effects import PushIfAbsent, Send
from halo.events import EndedBy
from halo.outcomes import NEWS_MS
from halo.push import Template
from tests.pure.story import SESSION, THERE, Story, is_outcome


def told(story: Story) -> dict[str, str]:
    """The outcome that each party is told by the last step."""
    pushes = [effect for effect in story.step.effects if isinstance(effect, PushIfAbsent) and is_outcome(effect)]
    assert len({push.party for push in pushes}) == len(pushes)
    return {push.party.value: push.template for push in pushes}


BOTH = ("customer", "mitra")


def test_a_mitra_who_accepts_needs_no_push_to_know() -> None:
    assert told(Story.paid()) == {"customer": "session_started"}
    assert told(Story.unpaid()) == {"customer": "payment_pending"}


def test_when_the_money_comes_later_both_hear_that_it_starts() -> None:
    assert told(Story.unpaid().confirmed()) == dict.fromkeys(BOTH, "session_started")


def test_when_the_time_is_up_both_hear_it() -> None:
    assert told(Story.paid().at_the_deadline()) == dict.fromkeys(BOTH, "session_closing")


def test_a_customer_hears_what_became_of_an_extension() -> None:
    def asked(**settings: Any) -> Story:
        return Story.paid(**settings).after(minutes=1).asks()

    assert told(asked()) == {}  # the mitra is asked by the rule itself
    assert told(asked().answers(accepted=True)) == {"customer": "extension_accepted"}
    assert told(asked().answers(accepted=False)) == {"customer": "extension_refused"}
    assert told(asked().payment_fails()) == {"customer": "extension_unpaid"}
    assert told(asked(extension_default_action_on_timeout=TimeoutAction.AUTO_REJECT).at_the_deadline()) == {
        "customer": "extension_timed_out"
    }
    by_policy = asked(extension_default_action_on_timeout=TimeoutAction.AUTO_APPROVE)
    assert told(by_policy.at_the_deadline(reachability=THERE)) == {"customer": "extension_accepted"}
    by_safeguard = asked(extension_default_action_on_timeout=TimeoutAction.AUTO_APPROVE)
    assert told(by_safeguard.at_the_deadline()) == {"customer": "extension_timed_out"}
    assert told(asked().cancels()) == {}, "it was the customer's own doing"


def test_a_customer_hears_that_another_mitra_is_sought_and_found_or_not() -> None:
    assert told(Story.paid().loses_its_mitra()) == {"customer": "session_rerouting"}
    assert told(Story.paid().loses_its_mitra().finds_another()) == {"customer": "session_rerouted"}
    assert told(Story.paid().loses_its_mitra().finds_nobody()) == {"customer": "session_ended"}
    assert told(Story.paid().loses_its_mitra().at_the_deadline()) == {"customer": "session_ended"}


@pytest.mark.parametrize(
    ("by", "parties"),
    [
        (EndedBy.CUSTOMER, {"mitra"}),
        (EndedBy.MITRA, {"customer"}),
        (EndedBy.ADMIN, {"customer", "mitra"}),
        (EndedBy.DEACTIVATION, {"customer"}),
    ],
)
def test_whoever_ends_a_session_is_not_told(by: EndedBy, parties: set[str]) -> None:
    assert told(Story.paid().is_ended_by(by)) == dict.fromkeys(parties, "session_ended")


def test_an_end_that_nobody_brought_about_is_told_to_both() -> None:
    ended = [
        Story.paid().at_the_deadline().at_the_deadline(),
        Story.unpaid().at_the_deadline(),
        Story.unpaid().payment_fails(),
    ]
    assert [told(story) for story in ended] == [dict.fromkeys(BOTH, "session_ended")] * 3


def test_downtime_that_is_credited_is_no_news() -> None:
    assert told(Story.paid().was_down_for(seconds=5)) == {}


def test_a_push_is_wanted_until_the_next_deadline_and_the_end_for_an_hour() -> None:
    closing = Story.paid().at_the_deadline()
    [push, _] = [effect for effect in closing.step.effects if isinstance(effect, PushIfAbsent)]
    assert push.expires_at == closing.session.deadline_at
    ended = closing.at_the_deadline()
    [push, _] = [effect for effect in ended.step.effects if isinstance(effect, PushIfAbsent)]
    assert push.expires_at == ended.now + NEWS_MS


def test_pushes_of_a_session_replace_each_other_for_each_party_and_fit_into_an_apns_header() -> None:
    story = Story.unpaid().confirmed()
    keys = [effect.collapse_key for effect in story.step.effects if isinstance(effect, PushIfAbsent)]
    assert keys == [f"session:{SESSION}:customer", f"session:{SESSION}:mitra"]
    assert max(map(len, keys)) <= 64


def test_every_outcome_stands_beside_a_frame_that_says_it_too() -> None:
    """A push is for those whom the frame does not reach; one without a frame could not be spared by a pong."""
    for story in (Story.paid(), Story.unpaid(), Story.paid().at_the_deadline(), Story.paid().loses_its_mitra()):
        assert any(isinstance(effect, Send) for effect in story.step.effects)


def test_every_template_is_used() -> None:
    """`offer`, `extension_request` and `pairing_failed` are written elsewhere: by a wave, by a rule, by a search that failed."""
    asked = Story.paid().after(minutes=1)
    used = {"offer", "extension_request", "pairing_failed"}
    for story in (
        Story.paid(),
        Story.unpaid(),
        asked.asks().answers(accepted=True),
        Story.paid().asks().answers(accepted=False),
        Story.paid().asks().payment_fails(),
        Story.paid(extension_default_action_on_timeout=TimeoutAction.AUTO_REJECT).asks().at_the_deadline(),
        Story.paid().loses_its_mitra(),
        Story.paid().loses_its_mitra().finds_another(),
        Story.paid().at_the_deadline(),
        Story.paid().is_ended_by(EndedBy.ADMIN),
    ):
        used |= set(told(story).values())
    assert used == set(Template)
