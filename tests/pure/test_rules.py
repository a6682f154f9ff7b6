"""The rules table, row by row of the specification's second page."""

from dataclasses import replace
from itertools import product
from typing import Any, get_args
from uuid import UUID

import pytest

from halo.clock import rfc3339
from halo.config import LiveConfig
from halo.effects import (
    CloseSearch,
    ConsumePayment,
    Effect,
    FailPayment,
    FailUnusedPayments,
    LedgerType,
    MoveExtensionDeadline,
    OpenExtension,
    OpenSearch,
    PushIfAbsent,
    RecordFailure,
    RefundTimeLeft,
    ResolveExtension,
    WinOffer,
)
from halo.errors import ExtensionResolved, Refusal, SessionIsPaused, SessionNotActive
from halo.events import (
    DeadlineReached,
    DowntimeCredited,
    EndedBy,
    EndRequested,
    Event,
    LostBy,
    PaymentConfirmed,
    PaymentFailed,
    Reachability,
)
from halo.payment import PaymentStatus
from halo.rules import EVENT_NAMES, RULES, DeadlineNotReached, open_session, refuse_message, step, timer_frame
from halo.session import DecidedBy, EndReason, ExtensionStatus, FailureCause, Party, SessionStatus
from tests.pure.story import (
    ACTIVE,
    AUTO_REJECT,
    CLOSE,
    CLOSING,
    ENDED,
    EXTENDING,
    EXTENSION,
    EXTENSION_PAYMENT,
    MINUTE,
    MITRA,
    NOON,
    OFFER,
    OTHER_MITRA,
    PAIRING,
    PAYMENT,
    PENDING_PAYMENT,
    REROUTING,
    SECOND,
    SESSION,
    THERE,
    Story,
    a_session,
)

ANOTHER_EXTENSION = str(UUID(int=31))
NOTHING_UNUSED = FailUnusedPayments(session_id=SESSION)


def reached(status: SessionStatus, **settings: Any) -> Story:
    """A story that has come to `status` by the shortest way, with paid time left where that is possible."""
    match status:
        case SessionStatus.PENDING_PAYMENT:
            return Story.unpaid(**settings)
        case SessionStatus.ACTIVE:
            return Story.paid(**settings).after(minutes=4)
        case SessionStatus.EXTENDING:
            return Story.paid(**settings).after(minutes=4).asks().after(seconds=20)
        case SessionStatus.CLOSING:
            return Story.paid(**settings).at_the_deadline().after(seconds=30)
        case SessionStatus.REROUTING:
            return Story.paid(**settings).after(minutes=4).loses_its_mitra().after(seconds=20)
        case SessionStatus.ENDED:
            return Story.paid(**settings).after(minutes=4).is_ended_by(EndedBy.CUSTOMER)


def every_event(story: Story) -> list[Event]:
    """At least one event of every kind, and of each kind those that may lead to different places."""
    now, config = story.now, story.config
    late = max(now, story.session.deadline_at or now)
    return [
        PaymentConfirmed(at=now),
        PaymentFailed(at=now, config=config),
        DeadlineReached(at=late, config=config),
        DeadlineReached(at=late, config=config, reachability=THERE),
        story.asking(),
        story.answering(accepted=True),
        story.answering(accepted=False),
        story.cancelling(),
        *(EndRequested(at=now, by=who) for who in EndedBy),
        *(story.losing_its_mitra(cause=cause) for cause in LostBy),
        story.finding_another(),
        story.finding_nobody(),
        DowntimeCredited(at=now, downtime_ms=5 * SECOND, not_before=now + 10 * SECOND),
    ]


# ---- the table as a whole


def test_every_status_has_its_row_and_every_event_its_name() -> None:
    assert set(RULES) == set(SessionStatus)
    assert set(EVENT_NAMES) == set(get_args(Event))
    assert len(set(EVENT_NAMES.values())) == len(EVENT_NAMES)
    assert {type(event) for event in every_event(reached(ACTIVE))} == set(get_args(Event))


@pytest.mark.parametrize("status", SessionStatus)
def test_every_event_in_every_status_follows_its_rule_or_is_refused_by_name_and_changes_nothing(
    status: SessionStatus,
) -> None:
    story = reached(status).is_(status)
    for event in every_event(story):
        rule = RULES[status].get(type(event))
        before, known = story.session, repr(story.session)
        if rule is None:
            with pytest.raises(Refusal) as refused:
                step(before, event)
            assert (refused.value.code, refused.value.status) in {
                ("SESSION_NOT_ACTIVE", 409),
                ("EXTENSION_RESOLVED", 409),
            }
        else:
            assert step(before, event).session.status in rule.leads_to
        assert repr(before) == known


def test_every_arrow_of_the_table_is_walked_by_some_event() -> None:
    """A table that promises more than its rules do would draw a diagram that lies."""
    stories = [reached(status) for status in SessionStatus]
    stories += [reached(EXTENDING, **CLOSE), Story.paid().at_the_deadline().asks()]
    walked = {
        (story.session.status, type(event), step(story.session, event).session.status)
        for story in stories
        for event in every_event(story)
        if type(event) in RULES[story.session.status]
    }
    promised = {
        (status, event, to) for status, row in RULES.items() for event, rule in row.items() for to in rule.leads_to
    }
    assert walked == promised


def test_an_ended_session_accepts_no_event_at_all() -> None:
    assert RULES[ENDED] == {}


def test_every_living_status_can_be_ended_and_has_a_deadline_and_gets_its_downtime_back() -> None:
    for status in set(SessionStatus) - {ENDED}:
        assert {EndRequested, DeadlineReached, DowntimeCredited} <= set(RULES[status])


@pytest.mark.parametrize("status", sorted(set(SessionStatus) - {ENDED}))
def test_a_deadline_one_millisecond_early_is_the_callers_fault(status: SessionStatus) -> None:
    session = reached(status).session
    assert session.deadline_at is not None
    with pytest.raises(DeadlineNotReached):
        step(session, DeadlineReached(at=session.deadline_at - 1, config=LiveConfig(), reachability=THERE))
    assert step(session, DeadlineReached(at=session.deadline_at, config=LiveConfig())).at == session.deadline_at


def test_a_deadline_is_not_a_refusal_of_a_user() -> None:
    assert not issubclass(DeadlineNotReached, Refusal)


@pytest.mark.parametrize(
    ("status", "refusal"),
    [
        (PENDING_PAYMENT, SessionNotActive),
        (ACTIVE, None),
        (EXTENDING, SessionIsPaused),
        (CLOSING, None),
        (REROUTING, SessionIsPaused),
        (ENDED, SessionNotActive),
    ],
)
def test_messages_flow_while_active_or_closing_and_pause_while_extending_or_rerouting(
    status: SessionStatus, refusal: type[Refusal] | None
) -> None:
    refused = refuse_message(status)
    assert (type(refused) if refused else None) is refusal


# ---- from the pairing to the running clock


def test_a_mitra_who_accepts_after_the_payment_starts_the_clock_and_both_are_told() -> None:
    story = Story.paid(minutes=10)
    story.is_(
        ACTIVE,
        started_at=NOON,
        expires_at=NOON + 10 * MINUTE,
        deadline_at=NOON + 10 * MINUTE,
        version=1,
        paid_amount=10_000,
    )
    story.keeps(paid=10, remaining=10)
    story.wrote(ConsumePayment(payment_request_id=PAYMENT, type=LedgerType.SESSION)).said("both session_started")
    story.because("payment_confirmed")
    assert story.step.event == "mitra_accepted"
    assert story.frame("session_started").mitra_id == MITRA


def test_a_mitra_who_accepts_before_the_payment_waits_for_it_and_only_the_customer_is_told() -> None:
    story = Story.unpaid(payment_hold_seconds=120)
    story.is_(PENDING_PAYMENT, deadline_at=NOON + 120 * SECOND, started_at=None, version=1).keeps()
    story.wrote().said("customer payment_pending").because("payment_pending")
    assert story.frame("payment_pending").deadline_at == rfc3339(NOON + 120 * SECOND)


def test_a_payment_that_is_confirmed_in_time_is_charged_and_the_clock_starts_then() -> None:
    story = Story.unpaid(minutes=10).after(seconds=50).confirmed()
    story.is_(ACTIVE, started_at=NOON + 50 * SECOND, expires_at=NOON + 50 * SECOND + 10 * MINUTE, version=2)
    story.keeps(paid=10, remaining=10)
    story.wrote(ConsumePayment(payment_request_id=PAYMENT, type=LedgerType.SESSION)).said("both session_started")


def test_the_length_of_a_minute_is_the_one_of_the_opening() -> None:
    step_ = open_session(a_session(minutes=3, minute_ms=1500), NOON, LiveConfig(), confirmed=True)
    assert step_.session.expires_at == NOON + 4500


def test_a_payment_that_fails_ends_the_session_uncharged() -> None:
    story = Story.unpaid().after(seconds=5).payment_fails().is_(ENDED, end_reason=EndReason.PAYMENT_FAILED).keeps()
    story.wrote(
        FailPayment(payment_request_id=PAYMENT, cause=FailureCause.PAYMENT_FAILED),
        RecordFailure(cause=FailureCause.PAYMENT_FAILED, extension_id=None),
        NOTHING_UNUSED,
    ).said("both session_ended")


def test_a_hold_that_is_over_ends_the_session_uncharged() -> None:
    story = Story.unpaid().at_the_deadline().is_(ENDED, end_reason=EndReason.PAYMENT_TIMEOUT).keeps()
    story.wrote(
        FailPayment(payment_request_id=PAYMENT, cause=FailureCause.PAYMENT_EXPIRED, expected=PaymentStatus.PENDING),
        RecordFailure(cause=FailureCause.PAYMENT_EXPIRED, extension_id=None),
        NOTHING_UNUSED,
    ).said("both session_ended")
    assert story.frame("session_ended").end_reason == "payment_timeout"


# ---- the end of the paid time


def test_time_up_opens_the_grace_and_both_are_told_how_long_it_lasts() -> None:
    story = Story.paid(minutes=10, closure_grace_seconds=90).at_the_deadline()
    story.is_(CLOSING, deadline_at=NOON + 10 * MINUTE + 90 * SECOND).keeps(paid=10, served=10)
    story.wrote().said("both session_closing").because("time_up")
    frame = story.frame("session_closing")
    assert (frame.reason, frame.grace_seconds, frame.closes_at) == ("time_up", 90, rfc3339(NOON + 690 * SECOND))


def test_time_up_that_is_noticed_late_serves_no_more_than_was_paid() -> None:
    story = Story.paid(minutes=10).at_the_deadline(late_ms=7_300)
    story.keeps(paid=10, served=10).is_(CLOSING, deadline_at=NOON + 10 * MINUTE + 7_300 + 120 * SECOND)


def test_a_grace_that_is_over_completes_the_session() -> None:
    story = Story.paid(minutes=10).at_the_deadline().at_the_deadline()
    story.is_(ENDED, end_reason=EndReason.COMPLETED).keeps(paid=10, served=10)
    story.wrote(NOTHING_UNUSED).said("both session_ended").because("grace_over")


# ---- extension: asked


def test_asking_stops_clock_and_chat_and_binds_the_payment() -> None:
    story = Story.paid(minutes=10, extension_timeout_seconds=45).after(minutes=4).asks(minutes=5, price=5_000)
    asked_at = NOON + 4 * MINUTE
    story.is_(EXTENDING, deadline_at=asked_at + 45 * SECOND, expires_at=None, grace_left_ms=None)
    story.keeps(paid=10, served=4, remaining=6)
    story.wrote(
        OpenExtension(extension=story.extension),
        PushIfAbsent(
            party=Party.MITRA,
            template="extension_request",
            expires_at=asked_at + 45 * SECOND,
            collapse_key=f"extension:{EXTENSION}",
        ),
    )
    story.said("mitra extension_request", "both session_paused").because("customer", config_version=0)
    request = story.frame("extension_request")
    assert (request.duration_minutes, request.price, request.currency) == (5, 5_000, "IDR")
    assert (request.timeout_seconds, request.topic_sensitivity) == (45, "sensitive")
    paused = story.frame("session_paused")
    assert (paused.reason, paused.extension_id, paused.deadline_at) == (
        "extension_pending",
        EXTENSION,
        rfc3339(asked_at + 45 * SECOND),
    )


def test_the_grace_stands_still_while_a_request_waits_and_goes_on_with_what_was_left() -> None:
    story = Story.paid(minutes=10, closure_grace_seconds=120).at_the_deadline().after(seconds=50).asks()
    story.is_(EXTENDING, grace_left_ms=70 * SECOND)
    story.after(seconds=30).cancels().is_(CLOSING, deadline_at=story.now + 70 * SECOND).said(
        "both extension_response", "both session_closing"
    )
    assert story.frame("session_closing").grace_seconds == 70
    story.after(seconds=20).asks().is_(EXTENDING, grace_left_ms=50 * SECOND)


def test_a_request_in_a_grace_that_should_be_over_has_nothing_left_to_go_back_to() -> None:
    story = Story.paid(closure_grace_seconds=120).at_the_deadline().after(seconds=121).asks()
    story.is_(EXTENDING, grace_left_ms=0).answers(accepted=False).is_(CLOSING, deadline_at=story.now)
    story.at_the_deadline().is_(ENDED, end_reason=EndReason.COMPLETED)


# ---- extension: answered


def test_a_yes_charges_once_and_adds_the_minutes_to_the_time_left() -> None:
    story = (
        Story.paid(minutes=10).after(minutes=4).asks(minutes=5, price=5_000).after(seconds=30).answers(accepted=True)
    )
    expires_at = story.now + 6 * MINUTE + 5 * MINUTE
    story.is_(
        ACTIVE,
        expires_at=expires_at,
        deadline_at=expires_at,
        duration_minutes=15,
        extensions_accepted=1,
        paid_amount=15_000,
    )
    story.keeps(paid=15, served=4, remaining=11)
    story.wrote(
        ResolveExtension(extension_id=EXTENSION, status=ExtensionStatus.ACCEPTED, decided_by=DecidedBy.MITRA),
        ConsumePayment(payment_request_id=EXTENSION_PAYMENT, type=LedgerType.EXTENSION),
    )
    story.said("both extension_response", "both session_resumed").because("mitra_accepted", extension_id=EXTENSION)
    response = story.frame("extension_response")
    assert (response.accepted, response.reason, response.via_timeout) == (True, "answered", False)
    assert (response.expires_at, response.duration_minutes) == (rfc3339(expires_at), 5)
    assert story.frame("session_resumed").remaining_seconds == 11 * 60


def test_a_yes_in_the_grace_gives_the_bought_minutes_and_nothing_more() -> None:
    story = Story.paid(minutes=10).at_the_deadline().after(seconds=30).asks(minutes=5).after(seconds=9)
    story.answers(accepted=True).is_(ACTIVE, expires_at=story.now + 5 * MINUTE, grace_left_ms=None)
    story.keeps(paid=15, served=10, remaining=5)


def test_a_yes_after_the_deadline_still_wins_when_it_is_committed_first() -> None:
    story = Story.paid().after(minutes=4).asks().after(minutes=10)
    assert story.now > story.extension.deadline_at
    story.answers(accepted=True).is_(ACTIVE)


REFUSED_BY = {
    DecidedBy.MITRA: (ExtensionStatus.REJECTED, FailureCause.EXTENSION_REJECTED, "answered", False, "mitra_refused"),
    DecidedBy.POLICY: (ExtensionStatus.TIMEOUT, FailureCause.EXTENSION_TIMED_OUT, "timeout", True, "policy_rejected"),
    DecidedBy.SAFEGUARD: (
        ExtensionStatus.TIMEOUT,
        FailureCause.EXTENSION_SAFEGUARD_TRIPPED,
        "safeguard",
        True,
        "safeguard_tripped",
    ),
}


def refuse(story: Story, by: DecidedBy) -> Story:
    return story.answers(accepted=False) if by is DecidedBy.MITRA else story.at_the_deadline()


def asking_policy(by: DecidedBy) -> dict[str, Any]:
    return dict(AUTO_REJECT) if by is DecidedBy.POLICY else {}


@pytest.mark.parametrize("by", REFUSED_BY)
def test_a_no_of_whatever_kind_fails_the_payment_with_its_own_cause_and_gives_the_chat_back(by: DecidedBy) -> None:
    status, cause, reason, via_timeout, why = REFUSED_BY[by]
    story = refuse(Story.paid(minutes=10, **asking_policy(by)).after(minutes=4).asks(), by)
    story.is_(ACTIVE, expires_at=story.now + 6 * MINUTE, extensions_accepted=0, paid_amount=10_000)
    story.keeps(paid=10, served=4, remaining=6)
    story.wrote(
        ResolveExtension(extension_id=EXTENSION, status=status, decided_by=by),
        FailPayment(payment_request_id=EXTENSION_PAYMENT, cause=cause, expected=PaymentStatus.CONFIRMED),
        RecordFailure(cause=cause, extension_id=EXTENSION),
    )
    story.said("both extension_response", "both session_resumed").because(why)
    response = story.frame("extension_response")
    assert (response.accepted, response.reason, response.via_timeout, response.expires_at) == (
        False,
        reason,
        via_timeout,
        None,
    )


@pytest.mark.parametrize("by", REFUSED_BY)
def test_where_the_policy_says_close_a_no_opens_the_grace_and_the_lost_minutes_are_recorded(by: DecidedBy) -> None:
    story = refuse(Story.paid(minutes=10, **asking_policy(by), **CLOSE).after(minutes=4).asks(), by)
    story.is_(CLOSING, deadline_at=story.now + 120 * SECOND).keeps(paid=10, served=4, forfeited=6)
    story.said("both extension_response", "both session_closing")
    assert story.frame("session_closing").reason == REFUSED_BY[by][1]


@pytest.mark.parametrize(("by", "settings"), list(product(REFUSED_BY, [{}, CLOSE])))
def test_a_no_in_the_grace_goes_on_with_the_grace_that_was_left(by: DecidedBy, settings: dict[str, Any]) -> None:
    story = Story.paid(minutes=10, **asking_policy(by), **settings).at_the_deadline().after(seconds=20).asks()
    refuse(story, by).is_(CLOSING, deadline_at=story.now + 100 * SECOND).keeps(paid=10, served=10)


@pytest.mark.parametrize(("by", "settings"), list(product(REFUSED_BY, [{}, CLOSE])))
def test_a_no_with_no_time_left_opens_a_whole_grace(by: DecidedBy, settings: dict[str, Any]) -> None:
    """The request came in the very moment in which the time was up, before the deadline was acted on."""
    story = Story.paid(minutes=10, **asking_policy(by), **settings).after(minutes=10).asks()
    refuse(story, by).is_(CLOSING, deadline_at=story.now + 120 * SECOND).keeps(paid=10, served=10)


def test_an_answer_to_another_request_than_the_one_that_waits_comes_too_late() -> None:
    story = Story.paid().after(minutes=4).asks()
    story.refuses(story.answering(accepted=True, extension_id=ANOTHER_EXTENSION), ExtensionResolved)
    story.refuses(story.cancelling(extension_id=ANOTHER_EXTENSION), ExtensionResolved)


def test_whoever_comes_second_is_told_that_it_is_decided() -> None:
    story = Story.paid().after(minutes=4).asks().answers(accepted=True)
    story.refuses(story.answering(accepted=False), ExtensionResolved).refuses(story.cancelling(), ExtensionResolved)


def test_a_second_request_while_one_waits_is_refused() -> None:
    story = Story.paid().after(minutes=4).asks()
    story.refuses(story.asking(), SessionNotActive)


def test_a_cancelled_request_frees_its_payment_and_goes_back_with_all_the_time_left() -> None:
    story = Story.paid(minutes=10, **CLOSE).after(minutes=4).asks().after(seconds=15).cancels()
    story.is_(ACTIVE, expires_at=story.now + 6 * MINUTE).keeps(paid=10, served=4, remaining=6)
    story.wrote(
        ResolveExtension(extension_id=EXTENSION, status=ExtensionStatus.CANCELLED, decided_by=DecidedBy.CUSTOMER)
    )
    story.said("both extension_response", "both session_resumed").because("customer", extension_id=EXTENSION)
    response = story.frame("extension_response")
    assert (response.accepted, response.reason, response.via_timeout) == (False, "cancelled", False)


def test_a_cancelled_request_with_no_time_left_opens_the_grace() -> None:
    story = Story.paid(minutes=10).after(minutes=10).asks().cancels().is_(CLOSING).keeps(paid=10, served=10)
    assert story.frame("session_closing").reason == "extension_cancelled"


@pytest.mark.parametrize("settings", [{}, CLOSE])
def test_money_that_is_taken_back_voids_the_request_and_nobody_loses_a_minute(settings: dict[str, Any]) -> None:
    """The payment has failed already, with its own cause: the step must not fail it a second time."""
    story = Story.paid(minutes=10, **settings).after(minutes=4).asks().after(seconds=15).payment_fails()
    story.is_(ACTIVE, expires_at=story.now + 6 * MINUTE).keeps(paid=10, served=4, remaining=6)
    story.wrote(
        ResolveExtension(extension_id=EXTENSION, status=ExtensionStatus.CANCELLED, decided_by=DecidedBy.PAYMENT),
        RecordFailure(cause=FailureCause.PAYMENT_FAILED, extension_id=EXTENSION),
    )
    story.said("both extension_response", "both session_resumed").because("payment_failed", extension_id=EXTENSION)
    response = story.frame("extension_response")
    assert (response.accepted, response.reason, response.via_timeout) == (False, "cancelled", False)


def test_money_that_is_taken_back_in_the_grace_gives_the_rest_of_the_grace_back() -> None:
    story = Story.paid(closure_grace_seconds=120).at_the_deadline().after(seconds=50).asks().after(seconds=9)
    story.payment_fails().is_(CLOSING, deadline_at=story.now + 70 * SECOND)
    assert story.frame("session_closing").reason == "payment_failed"


# ---- extension: the deadline


@pytest.mark.parametrize("status", sorted(set(SessionStatus) - {ENDED}))
def test_the_deadline_that_was_acted_upon_stands_in_the_evidence(status: SessionStatus) -> None:
    story = reached(status)
    due = story.session.deadline_at
    assert due is not None
    story.at_the_deadline(late_ms=250)
    assert story.step.evidence["deadline_at"] == rfc3339(due)


@pytest.mark.parametrize(("online", "fresh", "connected"), list(product([True, False], repeat=3)))
def test_silence_is_a_yes_only_from_a_mitra_who_is_online_and_fresh_and_connected(
    online: bool, fresh: bool, connected: bool
) -> None:
    seen = replace(THERE, online=online, heartbeat_fresh=fresh, connected=connected)
    story = Story.paid(minutes=10).after(minutes=4).asks(minutes=5).at_the_deadline(reachability=seen)
    if online and fresh and connected:
        story.is_(ACTIVE, extensions_accepted=1).keeps(paid=15, served=4, remaining=11).because("policy_approved")
        story.wrote(
            ResolveExtension(extension_id=EXTENSION, status=ExtensionStatus.ACCEPTED, decided_by=DecidedBy.POLICY),
            ConsumePayment(payment_request_id=EXTENSION_PAYMENT, type=LedgerType.EXTENSION),
        )
        response = story.frame("extension_response")
        assert (response.accepted, response.reason, response.via_timeout) == (True, "timeout", True)
    else:
        story.is_(ACTIVE, extensions_accepted=0).keeps(paid=10, served=4, remaining=6).because("safeguard_tripped")
        cause = FailureCause.EXTENSION_SAFEGUARD_TRIPPED
        assert FailPayment(payment_request_id=EXTENSION_PAYMENT, cause=cause, expected=PaymentStatus.CONFIRMED) in (
            story.step.effects
        )
        assert not any(isinstance(effect, ConsumePayment) for effect in story.step.effects)


def test_not_knowing_anything_of_the_mitra_trips_the_safeguard() -> None:
    story = Story.paid().after(minutes=4).asks().at_the_deadline(reachability=None).because("safeguard_tripped")
    assert "mitra_online" not in story.step.evidence


def test_a_policy_that_rejects_does_so_whoever_is_there() -> None:
    Story.paid(**AUTO_REJECT).after(minutes=4).asks().at_the_deadline(reachability=THERE).because("policy_rejected")


def test_the_policy_is_the_one_of_the_request_not_the_one_of_the_deadline() -> None:
    story = Story.paid(version=7).after(minutes=4).asks()
    story.config = LiveConfig(**AUTO_REJECT, **CLOSE, version=8)
    story.at_the_deadline(reachability=THERE).is_(ACTIVE, extensions_accepted=1).because(
        "policy_approved", config_version=7
    )


def test_what_is_done_after_a_refusal_is_the_policy_of_the_request_too() -> None:
    story = Story.paid(**AUTO_REJECT).after(minutes=4).asks()
    story.config = LiveConfig(**CLOSE)
    story.at_the_deadline().is_(ACTIVE)


@pytest.mark.parametrize("settings", [{}, AUTO_REJECT])
def test_the_evidence_of_the_decision_goes_on_the_timeline(settings: dict[str, Any]) -> None:
    seen = Reachability(
        online=True,
        heartbeat_age_ms=91_000,
        heartbeat_fresh=False,
        connected=True,
        socket_answered_age_ms=4_000,
        source="postgres",
    )
    story = Story.paid(version=3, **settings).after(minutes=4).asks().at_the_deadline(reachability=seen)
    story.because(
        story.step.cause,
        extension_id=EXTENSION,
        mitra_online=True,
        heartbeat_age_ms=91_000,
        heartbeat_fresh=False,
        mitra_connected=True,
        socket_answered_age_ms=4_000,
        source="postgres",
        config_version=3,
    )


# ---- ended by somebody

ENDINGS = [
    (EndedBy.CUSTOMER, EndReason.ENDED_BY_CUSTOMER, False),
    (EndedBy.MITRA, EndReason.ENDED_BY_MITRA, True),
    (EndedBy.ADMIN, EndReason.ENDED_BY_ADMIN, True),
    (EndedBy.DEACTIVATION, EndReason.MITRA_DEACTIVATED, True),
]


@pytest.mark.parametrize(("who", "reason", "refunds"), ENDINGS)
def test_only_a_customer_gives_up_minutes_everybody_elses_end_refunds_them(
    who: EndedBy, reason: EndReason, refunds: bool
) -> None:
    story = Story.paid(minutes=10, price=10_000).after(minutes=4).is_ended_by(who).is_(ENDED, end_reason=reason)
    if refunds:
        story.keeps(paid=10, served=4, refunded=6)
        money = RefundTimeLeft(amount=6_000, currency="IDR", refunded_ms=6 * MINUTE)
        story.wrote(NOTHING_UNUSED, money)
    else:
        story.keeps(paid=10, served=4, forfeited=6).wrote(NOTHING_UNUSED)
    story.said("both session_ended").because(who.value)
    assert story.frame("session_ended").end_reason == reason


@pytest.mark.parametrize(("who", "reason", "refunds"), ENDINGS)
def test_an_end_while_a_request_waits_cancels_it_and_fails_its_payment(
    who: EndedBy, reason: EndReason, refunds: bool
) -> None:
    story = (
        Story.paid(minutes=10).after(minutes=4).asks().after(seconds=5).is_ended_by(who).is_(ENDED, end_reason=reason)
    )
    effects: list[Effect] = [
        ResolveExtension(extension_id=EXTENSION, status=ExtensionStatus.CANCELLED, decided_by=DecidedBy.SESSION_END),
        FailPayment(payment_request_id=EXTENSION_PAYMENT, cause=FailureCause.SESSION_ENDED),
        RecordFailure(cause=FailureCause.SESSION_ENDED, extension_id=EXTENSION),
        NOTHING_UNUSED,
    ]
    if refunds:
        effects.append(RefundTimeLeft(amount=6_000, currency="IDR", refunded_ms=6 * MINUTE))
    story.wrote(*effects).said("both session_ended")


@pytest.mark.parametrize(("who", "reason", "refunds"), ENDINGS)
def test_an_end_before_the_payment_charges_nothing_and_fails_it(who: EndedBy, reason: EndReason, refunds: bool) -> None:
    Story.unpaid().after(seconds=5).is_ended_by(who).is_(ENDED, end_reason=reason).keeps().wrote(
        FailPayment(payment_request_id=PAYMENT, cause=FailureCause.SESSION_ENDED),
        RecordFailure(cause=FailureCause.SESSION_ENDED, extension_id=None),
        NOTHING_UNUSED,
    )


@pytest.mark.parametrize(("who", "reason", "refunds"), ENDINGS)
def test_an_end_in_the_grace_has_nothing_to_give_back(who: EndedBy, reason: EndReason, refunds: bool) -> None:
    story = Story.paid(minutes=10).at_the_deadline().after(seconds=5).is_ended_by(who)
    story.is_(ENDED, end_reason=reason).keeps(paid=10, served=10).wrote(NOTHING_UNUSED)


def test_a_refund_is_pro_rata_over_everything_paid_extensions_included() -> None:
    story = Story.paid(minutes=10, price=10_000).after(minutes=4).asks(minutes=5, price=2_000).answers(accepted=True)
    story.after(minutes=1).is_ended_by(EndedBy.MITRA).keeps(paid=15, served=5, refunded=10)
    money = RefundTimeLeft(amount=8_000, currency="IDR", refunded_ms=10 * MINUTE)
    story.wrote(NOTHING_UNUSED, money)


def test_a_refund_is_rounded_in_the_customers_favour() -> None:
    story = Story.paid(minutes=3, price=100).after(minutes=2).is_ended_by(EndedBy.MITRA)
    money = RefundTimeLeft(amount=34, currency="IDR", refunded_ms=MINUTE)
    story.wrote(NOTHING_UNUSED, money)


def test_minutes_that_cost_nothing_are_refunded_as_time_but_no_money_is_due() -> None:
    story = (
        Story.paid(minutes=3, price=0).after(minutes=2).is_ended_by(EndedBy.MITRA).keeps(paid=3, served=2, refunded=1)
    )
    story.wrote(NOTHING_UNUSED)


# ---- another mitra


def test_a_lost_mitra_stops_the_clock_opens_a_search_and_both_sides_are_told() -> None:
    """The customer waits; the mitra of a transfer must know why nothing that she writes is taken any more."""
    story = Story.paid(minutes=10).after(minutes=4).loses_its_mitra(search_seconds=90)
    story.is_(REROUTING, deadline_at=story.now + 90 * SECOND, mitra_id=MITRA).keeps(paid=10, served=4, remaining=6)
    story.wrote(OpenSearch(pairing_id=PAIRING)).said("both session_rerouting")
    story.because("mitra_silent", mitra_id=MITRA, pairing_id=PAIRING)
    assert "silent_ms" not in story.step.evidence


def test_what_was_known_of_the_silent_mitra_goes_on_the_timeline() -> None:
    gone = replace(THERE, heartbeat_fresh=False, connected=False, socket_answered_age_ms=None)
    story = Story.paid(minutes=10).after(minutes=4).loses_its_mitra(silent_ms=61_000, reachability=gone)
    story.because("mitra_silent", silent_ms=61_000, **gone.evidence())
    assert (story.step.evidence["mitra_online"], story.step.evidence["mitra_connected"]) == (True, False)


def test_a_mitra_is_not_lost_once_the_time_is_up() -> None:
    """Nobody can be asked to take over no minutes; the deadline, a moment late, leads to the grace as ever."""
    story = Story.paid(minutes=10).after(minutes=10, milliseconds=-1)
    step(story.session, story.losing_its_mitra())
    story.after(milliseconds=1).refuses(story.losing_its_mitra(), SessionNotActive)
    story.after(seconds=5).refuses(story.losing_its_mitra(), SessionNotActive).at_the_deadline().is_(CLOSING)


def test_another_mitra_gets_the_time_that_was_left() -> None:
    story = Story.paid(minutes=10).after(minutes=4).loses_its_mitra(cause=LostBy.TRANSFER).because("transfer")
    story.after(seconds=40).finds_another()
    story.is_(ACTIVE, mitra_id=OTHER_MITRA, expires_at=story.now + 6 * MINUTE, started_at=NOON)
    story.is_(ACTIVE, deadline_at=story.now + 6 * MINUTE, duration_minutes=10).keeps(paid=10, served=4, remaining=6)
    story.wrote(WinOffer(pairing_id=PAIRING, offer_id=OFFER, mitra_id=OTHER_MITRA)).said("both session_started")
    story.because("offer_accepted", pairing_id=PAIRING, **{"from": MITRA, "to": OTHER_MITRA})
    assert story.frame("session_started").mitra_id == OTHER_MITRA


def test_a_session_may_lose_one_mitra_after_the_other_and_every_minute_is_served_once() -> None:
    story = Story.paid(minutes=10).after(minutes=4).loses_its_mitra().after(minutes=1).finds_another()
    story.after(minutes=3).loses_its_mitra().keeps(paid=10, served=7, remaining=3).because(
        "mitra_silent", mitra_id=OTHER_MITRA
    )
    story.after(minutes=1).finds_another(MITRA).is_(ACTIVE, mitra_id=MITRA, expires_at=story.now + 3 * MINUTE)
    story.at_the_deadline().keeps(paid=10, served=10).is_(CLOSING)


SIX_MINUTES = RefundTimeLeft(amount=6_000, currency="IDR", refunded_ms=6 * MINUTE)


def test_a_search_that_finds_nobody_in_time_is_closed_and_refunds_the_time_left() -> None:
    story = Story.paid(minutes=10).after(minutes=4).loses_its_mitra().at_the_deadline()
    story.is_(ENDED, end_reason=EndReason.NO_MITRA).keeps(paid=10, served=4, refunded=6).because("no_mitra")
    story.wrote(CloseSearch(cause=FailureCause.TIMED_OUT), NOTHING_UNUSED, SIX_MINUTES).said("both session_ended")


@pytest.mark.parametrize("cause", [FailureCause.NO_MITRA_AVAILABLE, FailureCause.ALL_DECLINED, FailureCause.TIMED_OUT])
def test_a_search_that_has_asked_everybody_ends_the_session_at_once_with_a_refund(cause: FailureCause) -> None:
    story = Story.paid(minutes=10).after(minutes=4).loses_its_mitra().after(seconds=20).finds_nobody(cause)
    story.is_(ENDED, end_reason=EndReason.NO_MITRA).keeps(paid=10, served=4, refunded=6)
    story.wrote(CloseSearch(cause=FailureCause.TIMED_OUT), NOTHING_UNUSED, SIX_MINUTES).said("both session_ended")
    story.because(cause.value, pairing_id=PAIRING)


SEARCH_ENDS = {
    EndedBy.CUSTOMER: FailureCause.CUSTOMER_CANCELLED,
    EndedBy.MITRA: FailureCause.SESSION_ENDED,
    EndedBy.ADMIN: FailureCause.SESSION_ENDED,
    EndedBy.DEACTIVATION: FailureCause.SESSION_ENDED,
}


@pytest.mark.parametrize(("who", "reason", "refunds"), ENDINGS)
def test_an_end_while_another_mitra_is_sought_closes_the_search(who: EndedBy, reason: EndReason, refunds: bool) -> None:
    story = reached(REROUTING, minutes=10).is_ended_by(who).is_(ENDED, end_reason=reason)
    closed: list[Effect] = [CloseSearch(cause=SEARCH_ENDS[who]), NOTHING_UNUSED]
    story.wrote(*closed, SIX_MINUTES) if refunds else story.wrote(*closed)
    story.said("both session_ended")


@pytest.mark.parametrize("status", sorted(set(SessionStatus) - {REROUTING, ENDED}))
def test_only_a_session_that_seeks_another_mitra_closes_a_search(status: SessionStatus) -> None:
    story = reached(status).is_ended_by(EndedBy.ADMIN)
    assert not any(isinstance(effect, CloseSearch) for effect in story.step.effects)


# ---- downtime


def test_downtime_moves_the_end_of_a_running_clock_and_costs_no_minute() -> None:
    story = Story.paid(minutes=10).after(minutes=4).was_down_for(seconds=90)
    expires_at = NOON + 10 * MINUTE + 90 * SECOND
    story.is_(ACTIVE, expires_at=expires_at, deadline_at=expires_at).wrote().said("both session_timer")
    story.because("no_owner", downtime_ms=90 * SECOND)
    assert story.frame("session_timer").remaining_seconds == 6 * 60
    story.at_the_deadline().keeps(paid=10, served=10).is_(CLOSING)
    assert story.now == expires_at


@pytest.mark.parametrize("status", [PENDING_PAYMENT, CLOSING, REROUTING, EXTENDING])
def test_downtime_moves_the_deadline_of_every_status_whose_clock_stands_still(status: SessionStatus) -> None:
    story = reached(status)
    due, left = story.session.deadline_at, story.session.remaining_ms
    assert due is not None
    story.was_down_for(seconds=90).is_(status, deadline_at=due + 90 * SECOND, remaining_ms=left)
    assert story.frame("session_timer").server_time == rfc3339(story.now)


def test_downtime_moves_the_deadline_of_a_waiting_request_with_that_of_its_session() -> None:
    story = Story.paid(extension_timeout_seconds=60).after(minutes=4).asks().after(seconds=20).was_down_for(seconds=90)
    due = NOON + 4 * MINUTE + 150 * SECOND
    story.is_(EXTENDING, deadline_at=due).wrote(MoveExtensionDeadline(extension_id=EXTENSION, deadline_at=due))
    assert story.extension.deadline_at == due


@pytest.mark.parametrize("status", sorted(set(SessionStatus) - {ENDED}))
def test_a_deadline_that_is_about_to_fall_waits_for_people_to_return(status: SessionStatus) -> None:
    story = reached(status)
    assert story.session.deadline_at is not None
    story.now = story.session.deadline_at - 1
    story.was_down_for(seconds=30, grace_seconds=10).is_(status, deadline_at=story.now + 10 * SECOND)


def test_the_reconnect_grace_delays_the_deadline_but_sells_no_minutes() -> None:
    story = Story.paid(minutes=10).after(minutes=10, milliseconds=-1).was_down_for(seconds=30, grace_seconds=10)
    assert story.session.expires_at == story.now + 1
    story.at_the_deadline().keeps(paid=10, served=10).is_(CLOSING)


def test_the_reconnect_grace_does_not_shorten_a_grace_that_goes_on() -> None:
    story = Story.paid(closure_grace_seconds=120).at_the_deadline().was_down_for(seconds=30, grace_seconds=10)
    story.is_(CLOSING, deadline_at=NOON + 10 * MINUTE + 150 * SECOND)


def test_a_clock_that_steps_back_serves_nothing_twice() -> None:
    story = Story.paid(minutes=10).after(seconds=-5).asks().keeps(paid=10, remaining=10)
    story.answers(accepted=False).is_(ACTIVE, expires_at=story.now + 10 * MINUTE)


# ---- what the clock says


def test_the_timer_counts_down_rounded_up_and_stops_at_zero() -> None:
    session = Story.paid(minutes=1).session
    assert timer_frame(session, NOON).remaining_seconds == 60
    assert timer_frame(session, NOON + 1).remaining_seconds == 60
    assert timer_frame(session, NOON + 59_001).remaining_seconds == 1
    assert timer_frame(session, NOON + 61_000).remaining_seconds == 0


def test_the_timer_of_a_clock_that_stands_still_has_no_end() -> None:
    story = Story.paid(minutes=10).after(minutes=4).asks().after(minutes=1)
    frame = timer_frame(story.session, story.now)
    assert (frame.remaining_seconds, frame.expires_at, frame.server_time) == (6 * 60, None, rfc3339(story.now))


def test_apps_see_the_session_as_it_stands() -> None:
    story = Story.paid(minutes=10).after(minutes=4, milliseconds=1)
    state = story.session.state(story.now, last_seq=12)
    assert (state.status, state.end_reason, state.remaining_seconds, state.last_seq) == ("active", None, 360, 12)
    assert (state.started_at, state.expires_at) == (rfc3339(NOON), rfc3339(NOON + 10 * MINUTE))
    ended = story.is_ended_by(EndedBy.ADMIN).session.state(story.now, last_seq=12)
    assert (ended.status, ended.end_reason, ended.remaining_seconds) == ("ended", "ended_by_admin", 0)
    assert (ended.expires_at, ended.deadline_at) == (None, None)
