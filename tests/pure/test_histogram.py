"""Histograms in plain numbers: what falls where, and what Prometheus is told of it."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from halo.histogram import (
    BATCH_BOUNDS,
    LATENCY_BOUNDS_SECONDS,
    LATENESS_BOUNDS_SECONDS,
    PATIENCE_BOUNDS_SECONDS,
    Bounds,
    Histogram,
)


def test_what_equals_a_bound_belongs_to_it_and_what_is_above_all_is_counted_too() -> None:
    seen = Histogram((1.0, 2.0))
    for value in (1.0, 1.5, 2.0, 9.0):
        seen.observe(value)
    assert seen.buckets() == [("1.0", 1.0), ("2.0", 3.0), ("+Inf", 4.0)]
    assert (seen.sum, seen.count) == (13.5, 4)


def test_nothing_observed_is_nothing_in_every_bucket() -> None:
    assert Histogram((1.0,)).buckets() == [("1.0", 0.0), ("+Inf", 0.0)]


@given(st.lists(st.floats(0, 1e6)))
def test_buckets_grow_and_the_last_one_holds_all(values: list[float]) -> None:
    seen = Histogram()
    for value in values:
        seen.observe(value)
    counts = [count for _, count in seen.buckets()]
    assert counts == sorted(counts)
    assert counts[-1] == len(values)
    assert seen.sum == pytest.approx(math.fsum(values))
    for bound, count in zip(LATENCY_BOUNDS_SECONDS, counts, strict=False):
        assert count == sum(value <= bound for value in values)


@pytest.mark.parametrize(
    "bounds", [LATENCY_BOUNDS_SECONDS, LATENESS_BOUNDS_SECONDS, PATIENCE_BOUNDS_SECONDS, BATCH_BOUNDS]
)
def test_bounds_rise(bounds: Bounds) -> None:
    assert list(bounds) == sorted(set(bounds))
