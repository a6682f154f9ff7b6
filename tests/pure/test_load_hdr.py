import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from halo.load.hdr import HIGHEST_US, Hdr, HistogramStrange, bottom_of, slot_of, top_of

OF_THE_ORIGINAL = "HISTFAAAADR4nJNpmSzMwMAgwgABzFCaEURcm7yEwf4DVICJ6SPXDZZmUSamg8Isp72YbnswAQDmEgon"
"""1, 2, 2047, 2048, 5000, 5001, 123456, 3000000 and three hundred times 700, as HdrHistogram's own Python package writes them."""


def recorded(values: list[int]) -> Hdr:
    histogram = Hdr()
    for value in values:
        histogram.record(value)
    return histogram


VALUES = st.integers(0, HIGHEST_US)


@given(VALUES)
def test_a_slot_holds_its_value_and_is_no_wider_than_a_thousandth_of_it(value: int) -> None:
    slot = slot_of(value)
    assert bottom_of(slot) <= value <= top_of(slot)
    assert top_of(slot) - bottom_of(slot) <= value / 1000


@given(st.lists(VALUES, min_size=1), st.floats(0.001, 100))
def test_a_percentile_is_that_of_the_sorted_values_to_a_thousandth(values: list[int], part: float) -> None:
    rank = max(1, -(-round(part / 100 * len(values), 9) // 1))
    exact = sorted(values)[int(rank) - 1]
    assert exact <= recorded(values).percentile(part) <= exact * 1.001 + 1


@given(st.lists(VALUES), st.lists(VALUES))
def test_histograms_of_two_processes_add_up_to_that_of_both(one: list[int], other: list[int]) -> None:
    both = recorded(one)
    both.add(recorded(other))
    whole = recorded(one + other)
    assert (both.counts, both.total, both.highest) == (whole.counts, whole.total, whole.highest)


@given(st.lists(VALUES))
def test_what_was_encoded_comes_back_with_every_count(values: list[int]) -> None:
    histogram = recorded(values)
    back = Hdr.decoded(histogram.encoded())
    assert (back.counts, back.total) == (histogram.counts, histogram.total)


def test_the_text_form_is_that_of_hdrhistogram() -> None:
    theirs = Hdr.decoded(OF_THE_ORIGINAL)
    ours = recorded([1, 2, 2047, 2048, 5000, 5001, 123456, 3_000_000, *[700] * 300])
    assert theirs.counts == ours.counts
    assert [theirs.percentile(part) for part in (50, 90, 99, 99.9, 100)] == [700, 700, 5003, 3_000_319, 3_000_319]
    assert Hdr.decoded(ours.encoded()).counts == theirs.counts


def test_what_lies_outside_counts_at_the_edge() -> None:
    histogram = recorded([-5, 2 * HIGHEST_US])
    assert (histogram.lowest, histogram.highest) == (0, HIGHEST_US)


def test_the_percentile_of_nothing_is_nought() -> None:
    assert (Hdr().percentile(99), Hdr().mean, list(Hdr().curve())) == (0, 0.0, [])


def test_the_mean_is_near_that_of_the_values() -> None:
    dice = random.Random(4)
    values = [dice.randrange(1, 10_000_000) for _ in range(1000)]
    assert recorded(values).mean == pytest.approx(sum(values) / len(values), rel=0.001)


def test_the_curve_ends_with_all_and_the_greatest() -> None:
    assert list(recorded([10, 20, 30, 40]).curve()) == [(25.0, 10), (50.0, 20), (75.0, 30), (100.0, 40)]


@pytest.mark.parametrize("text", ["", "zz", "SElTVEZBQUFB", OF_THE_ORIGINAL[:40], "HISTFAAAAAA="])
def test_what_is_no_histogram_is_refused(text: str) -> None:
    with pytest.raises(HistogramStrange):
        Hdr.decoded(text)
