"""The one form of a moment on the wire."""

import time
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from halo.clock import SystemClock, rfc3339, rfc3339_or_none


@pytest.mark.parametrize(
    ("moment", "text"),
    [
        (0, "1970-01-01T00:00:00.000Z"),
        (1_795_522_500_123, "2026-11-24T12:15:00.123Z"),
        (1_709_164_799_999, "2024-02-28T23:59:59.999Z"),
        (-1, "1969-12-31T23:59:59.999Z"),
    ],
)
def test_a_moment_is_written_in_utc_with_milliseconds(moment: int, text: str) -> None:
    assert rfc3339(moment) == text


@given(st.integers(0, 4_102_444_800_000))
def test_no_millisecond_is_lost_on_the_way(moment: int) -> None:
    read = datetime.fromisoformat(rfc3339(moment).replace("Z", "+00:00"))
    since = read - datetime(1970, 1, 1, tzinfo=UTC)
    assert (since.days * 86_400 + since.seconds) * 1000 + since.microseconds // 1000 == moment


def test_a_moment_that_has_not_come_is_null() -> None:
    assert rfc3339_or_none(None) is None
    assert rfc3339_or_none(0) == "1970-01-01T00:00:00.000Z"


def test_the_systems_clock_counts_milliseconds_of_utc() -> None:
    before = time.time()
    now = SystemClock().now()
    assert before * 1000 - 1 <= now <= time.time() * 1000 + 1
