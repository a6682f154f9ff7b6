"""Charts: where the points fall, what the axes say, and that what is not known is a gap."""

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from halo.actors.history import Sample
from halo.net.status.charts import BOTTOM, LEFT, RIGHT, TOP, draw, number, round_up, tabulate
from tests.net.desk_fakes import NOON


def sample(ago_seconds: int, value: float | None = 1.0, lag_ms: float = 1.0) -> Sample:
    return Sample(
        at=NOON - ago_seconds * 1000,
        sessions=5,
        messages_per_second=2.0,
        commit_ms=4.0,
        lag_ms=lag_ms,
        postgres_ms=value,
        mitras_available=3,
    )


def points(line: str) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in (point.split(",") for point in line.split())]


def postgres(samples: Sequence[Sample]) -> list[list[tuple[float, float]]]:
    [chart] = [chart for chart in draw(samples, NOON) if chart.id == "postgres"]
    return [points(line) for line in chart.lines]


def test_an_hour_goes_from_the_left_to_the_right_and_the_greatest_to_the_top() -> None:
    assert postgres([sample(3600, 0.0), sample(3590, 10.0)]) == [[(LEFT, BOTTOM), (44.9, TOP)]]
    assert postgres([sample(0, 5.0)])[0][0][0] == RIGHT


def test_what_is_not_known_and_what_is_missing_is_a_gap() -> None:
    lines = postgres([sample(90), sample(80), sample(70, None), sample(60), sample(20), sample(10)])
    assert [len(line) for line in lines] == [2, 2, 2]  # one point alone is drawn as a dot


def test_nothing_is_drawn_of_nothing_and_that_is_said() -> None:
    for chart in draw([], NOON):
        assert (chart.lines, chart.latest) == ((), "–")
        assert chart.about.endswith("Nothing is known yet.")


def test_what_is_older_than_an_hour_is_left_out() -> None:
    assert postgres([sample(3601)]) == []


def test_the_quarters_of_the_hour_are_told_by_the_clock() -> None:
    assert [tick.label for tick in draw([], NOON + 60_000)[0].across] == ["11:15", "11:30", "11:45", "12:00"]


def test_the_table_has_the_greatest_of_each_five_minutes_the_latest_first() -> None:
    rows = tabulate([sample(299, 1.5), sample(10, None), sample(310, None)], NOON)
    assert [(row.at[11:16], row.values[3]) for row in rows] == [("11:55", "1.5"), ("11:50", None)]


@pytest.mark.parametrize(
    ("value", "top"), [(0, 1), (0.3, 0.4), (1, 1), (1.01, 2), (5, 6), (6, 6), (9, 10), (11, 20), (9_999, 10_000)]
)
def test_an_axis_ends_in_a_round_number(value: float, top: float) -> None:
    assert round_up(value) == pytest.approx(top)


@given(st.floats(min_value=0, max_value=1e12))
def test_no_value_is_above_its_axis_nor_far_below_it(value: float) -> None:
    top = round_up(value)
    assert value <= top * (1 + 1e-6)
    assert value == 0 or top <= 2 * value * (1 + 1e-6) or value < 1e-300


@pytest.mark.parametrize(("value", "text"), [(0, "0"), (0.256, "0.26"), (7.25, "7.2"), (12.0, "12"), (1234.5, "1 234")])
def test_a_number_has_as_many_digits_as_tell_something(value: float, text: str) -> None:
    assert number(value).replace("\N{NARROW NO-BREAK SPACE}", " ") == text
