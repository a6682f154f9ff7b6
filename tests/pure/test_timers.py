from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from halo.config import LiveConfig
from halo.session import SessionStatus
from halo.timers import next_timer
from tests.pure.story import MINUTE, NOON, SECOND, Story

CONFIG = LiveConfig(session_timer_interval_seconds=60, session_warning_seconds=(300, 60))
RUNNING = Story.paid(minutes=10).session


def test_an_interval_after_the_last_one() -> None:
    assert next_timer(RUNNING, NOON, CONFIG) == NOON + 60 * SECOND


def test_a_warning_comes_before_the_interval_is_over() -> None:
    assert next_timer(RUNNING, NOON + 4 * MINUTE + 30 * SECOND, CONFIG) == NOON + 5 * MINUTE


def test_a_warning_that_was_given_is_not_given_again() -> None:
    assert next_timer(RUNNING, NOON + 5 * MINUTE, CONFIG) == NOON + 6 * MINUTE


def test_a_warning_longer_than_the_session_is_never_due() -> None:
    config = LiveConfig(session_timer_interval_seconds=3600, session_warning_seconds=(86_400,))
    assert next_timer(RUNNING, NOON, config) == NOON + 3600 * SECOND


def test_no_warnings_leave_the_interval() -> None:
    assert next_timer(RUNNING, NOON, LiveConfig(session_warning_seconds=())) == NOON + 60 * SECOND


def test_a_clock_that_stands_still_says_nothing() -> None:
    paused = Story.paid(minutes=10).after(minutes=1).asks().session
    assert paused.status is SessionStatus.EXTENDING
    assert next_timer(paused, NOON, CONFIG) is None


@given(
    last=st.integers(0, 10 * MINUTE),
    interval=st.integers(1, 3600),
    warnings=st.lists(st.integers(1, 86_400), max_size=10),
)
def test_the_next_one_always_lies_after_the_last_and_within_the_interval(
    last: int, interval: int, warnings: list[int]
) -> None:
    """Else an actor would send without end, or miss one."""
    config = LiveConfig(session_timer_interval_seconds=interval, session_warning_seconds=tuple(warnings))
    due = next_timer(RUNNING, NOON + last, config)
    assert due is not None
    assert NOON + last < due <= NOON + last + interval * SECOND
    missed = [w for w in warnings if NOON + last < NOON + 10 * MINUTE - w * SECOND < due]
    assert missed == []


def test_it_follows_the_end_of_the_paid_time() -> None:
    assert RUNNING.expires_at is not None
    later = replace(RUNNING, expires_at=RUNNING.expires_at + 20 * SECOND)
    assert next_timer(later, NOON + 5 * MINUTE - SECOND, CONFIG) == NOON + 5 * MINUTE + 20 * SECOND
