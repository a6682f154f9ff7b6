import random
from itertools import islice, pairwise

import pytest

from halo.load import arrivals


def test_the_same_seed_intends_the_same_moments() -> None:
    one, other = (list(arrivals.poisson(50, 10, random.Random(7))) for _ in range(2))
    assert one == other
    assert one == sorted(one)
    assert all(0 < at < 10 for at in one)


def test_poisson_moments_come_at_their_rate_and_unevenly() -> None:
    moments = list(arrivals.poisson(100, 100, random.Random(1)))
    assert len(moments) == pytest.approx(10_000, rel=0.05)
    gaps = [later - earlier for earlier, later in pairwise(moments)]
    assert sum(gap > 0.02 for gap in gaps) == pytest.approx(len(gaps) * 0.1353, rel=0.1)  # e**-2 of them


def test_a_day_is_busy_in_the_evening_and_quiet_at_night() -> None:
    seconds = 240.0
    moments = list(arrivals.day(200, seconds, random.Random(1)))
    hours = [0] * 24
    for at in moments:
        hours[int(at / seconds * 24)] += 1
    assert max(hours) in {hours[20], hours[19], hours[21]}
    assert hours[4] < hours[12] < hours[20]
    assert hours[4] < hours[20] / 10


def test_nobody_is_busier_than_the_peak_and_somebody_is_always_awake() -> None:
    busy = [arrivals.activity(hour / 10) for hour in range(240)]
    assert max(busy) == pytest.approx(1.0, abs=0.01)
    assert 0.05 < min(busy) < 0.1
    assert arrivals.activity(0) == pytest.approx(arrivals.activity(24))


def test_a_rush_lies_within_its_window() -> None:
    assert arrivals.rush(3, 0.0, random.Random(1)) == [0.0, 0.0, 0.0]
    moments = arrivals.rush(1000, 2.0, random.Random(1))
    assert moments == sorted(moments)
    assert moments[0] >= 0
    assert moments[-1] <= 2.0
    assert sum(at < 1 for at in moments) == pytest.approx(500, rel=0.1)


def test_heartbeats_are_spread_over_the_interval() -> None:
    beats = list(arrivals.beats(4, 2.0, 5.0))
    assert list(islice(beats, 5)) == [(0.0, 0), (0.5, 1), (1.0, 2), (1.5, 3), (2.0, 0)]
    assert len(beats) == 10
    assert all(at < 5 for at, _ in beats)
