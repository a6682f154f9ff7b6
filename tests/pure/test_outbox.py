from collections.abc import Iterator

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from halo.outbox import (
    BACKOFFS,
    GIVE_UP_MS,
    RETRY_AFTER_MAX_MS,
    Backoff,
    Claim,
    Delivery,
    OutboxKind,
    OutboxReport,
    OutboxStatus,
    Outcome,
    conclude,
)
from halo.reports import outbox_metrics

NOW = 1_795_464_900_000


class Scraped(Collector):
    def __init__(self, report: OutboxReport) -> None:
        self._report = report

    def collect(self) -> Iterator[Metric]:
        return outbox_metrics(self._report)


def a_claim(kind: OutboxKind = OutboxKind.PUSH, **columns: object) -> Claim:
    given: dict[str, object] = {
        "outbox_id": "o-1",
        "kind": kind,
        "user_id": "u-1",
        "template": "offer",
        "collapse_key": "offer:1",
        "attempts": 1,
        "tries": 1,
        "first_attempt_at": NOW,
    }
    return Claim(**(given | columns))  # type: ignore[arg-type]  # the fields that a test names


def test_waits_double_up_to_the_longest_and_are_spread_over_their_second_half() -> None:
    backoff = Backoff(first_ms=1_000, longest_ms=30_000)
    assert [backoff.wait_ms(tries, 0.0) for tries in (1, 2, 3, 6, 7, 10_000)] == [
        500, 1_000, 2_000, 15_000, 15_000, 15_000,
    ]  # fmt: skip
    assert [backoff.wait_ms(1, dice) for dice in (0.0, 0.5, 0.999)] == [500, 750, 1_000]


def test_what_failed_is_tried_again_and_says_why() -> None:
    outcome = conclude(a_claim(tries=2), Delivery(failure="no answer in time"), NOW, 0.0)
    assert (outcome.status, outcome.due_at, outcome.error) == (OutboxStatus.DUE, NOW + 1_000, "no answer in time")


def test_a_server_that_names_its_time_is_heeded_within_reason() -> None:
    asked = conclude(a_claim(), Delivery(failure="429", retry_after_ms=120_000), NOW, 0.0)
    assert asked.due_at == NOW + 120_000
    too_long = conclude(a_claim(), Delivery(failure="429", retry_after_ms=10**12), NOW, 0.0)
    assert too_long.due_at == NOW + RETRY_AFTER_MAX_MS
    too_soon = conclude(a_claim(), Delivery(failure="429", retry_after_ms=0), NOW, 0.0)
    assert too_soon.due_at == NOW + 500


def test_a_retry_that_would_come_too_late_is_none() -> None:
    outcome = conclude(a_claim(expires_at=NOW + 500), Delivery(failure="503"), NOW, 0.0)
    assert (outcome.status, outcome.due_at, outcome.error) == (OutboxStatus.EXPIRED, None, "503")


@pytest.mark.parametrize("kind", OutboxKind)
def test_after_a_day_of_failures_it_is_a_dead_letter(kind: OutboxKind) -> None:
    day_old = a_claim(kind, tries=500, first_attempt_at=NOW - GIVE_UP_MS + BACKOFFS[kind].longest_ms // 2)
    assert conclude(day_old, Delivery(failure="503"), NOW, 0.0).status is OutboxStatus.DUE
    assert conclude(day_old, Delivery(failure="503"), NOW + 1, 0.0).status is OutboxStatus.DEAD


def test_a_refusal_is_final() -> None:
    outcome = conclude(a_claim(), Delivery(refusal="FCM 403 PERMISSION_DENIED"), NOW, 0.0)
    assert (outcome.status, outcome.error) == (OutboxStatus.DEAD, "FCM 403 PERMISSION_DENIED")


def test_what_one_phone_has_is_sent_whatever_became_of_the_others() -> None:
    for other in (Delivery(reached=("a-1",), refusal="400"), Delivery(reached=("a-1",), nobody="no device any more")):
        assert conclude(a_claim(), other, NOW, 0.0).status is OutboxStatus.SENT
    again = conclude(a_claim(reached=frozenset({"a-1"})), Delivery(nobody="no device any more"), NOW, 0.0)
    assert again.status is OutboxStatus.SENT


def test_what_some_phones_have_and_others_may_still_get_is_tried_again_and_remembers_both() -> None:
    outcome = conclude(a_claim(), Delivery(reached=("a-1",), dropped=("t-2",), failure="503"), NOW, 0.0)
    assert (outcome.status, outcome.reached, outcome.dropped) == (OutboxStatus.DUE, ("a-1",), ("t-2",))


def test_without_a_phone_there_is_nobody_to_push_to() -> None:
    assert conclude(a_claim(), Delivery(nobody="no device"), NOW, 0.0).status is OutboxStatus.CANCELLED


def test_a_strangers_words_are_kept_short_and_printable() -> None:
    outcome = conclude(a_claim(), Delivery(refusal="a\0b\ud800\n" + "x" * 1_000), NOW, 0.0)
    assert outcome.error is not None
    assert outcome.error.startswith("a?b??x")
    assert len(outcome.error) == 200


def test_no_record_shows_a_token() -> None:
    outcome = conclude(a_claim(), Delivery(dropped=("phone-secret",), nobody="no device any more"), NOW, 0.0)
    assert "phone-secret" not in repr(outcome)


def test_the_metrics_say_what_was_finished_what_waits_and_how_late_the_oldest_is() -> None:
    report = OutboxReport()
    push = {"outbox_id": "o-1", "kind": OutboxKind.PUSH, "attempts": 1}
    for status in (OutboxStatus.SENT, OutboxStatus.SENT, OutboxStatus.EXPIRED, OutboxStatus.DUE):
        report.note(Outcome(**push, status=status))  # type: ignore[arg-type]
    report.waiting = {(OutboxKind.REFUND, OutboxStatus.DUE): 3, (OutboxKind.REFUND, OutboxStatus.DEAD): 1}
    report.oldest_due_at, report.counted_at = {OutboxKind.REFUND: NOW - 90_000}, NOW
    registry = CollectorRegistry()
    registry.register(Scraped(report))
    shown = generate_latest(registry).decode()
    assert 'halo_outbox_finished_total{kind="push",status="sent"} 2.0' in shown
    assert 'halo_outbox_finished_total{kind="push",status="expired"} 1.0' in shown
    assert 'halo_outbox_retries_total{kind="push"} 1.0' in shown
    assert 'halo_outbox_waiting{kind="refund",status="due"} 3.0' in shown
    assert 'halo_outbox_waiting{kind="refund",status="dead"} 1.0' in shown
    assert 'halo_outbox_oldest_due_age_seconds{kind="refund"} 90.0' in shown
    assert 'halo_outbox_oldest_due_age_seconds{kind="push"} 0.0' in shown
