import pytest

from scripts.measuring.figures import Figure, Measurement, percentile
from scripts.measuring.page import number, page, table


def figure(*rounds: float, goal: float | None = None) -> Figure:
    return Figure(name="time", unit="s", rounds=rounds, goal=goal)


def test_the_median_is_judged_and_not_the_best_or_the_worst_round() -> None:
    assert figure(1.0, 2.0, 9.0, goal=2.0).verdict == "met"
    assert figure(1.0, 2.1, 2.2, goal=2.0).verdict == "missed"


def test_without_a_goal_there_is_no_verdict() -> None:
    assert figure(1.0).verdict == "–"


def test_a_figure_without_rounds_does_not_exist() -> None:
    with pytest.raises(ValueError, match="not measured"):
        figure()


def test_a_record_has_the_spread_and_the_verdict() -> None:
    record = figure(3.0, 1.0, 2.0, goal=5.0).record()
    assert (record["min"], record["median"], record["max"], record["verdict"]) == (1.0, 2.0, 3.0, "met")
    assert record["rounds"] == (3.0, 1.0, 2.0)


@pytest.mark.parametrize(("part", "expected"), [(0.0, 1), (0.5, 50), (0.501, 51), (0.99, 99), (0.999, 100), (1.0, 100)])
def test_a_percentile_is_the_smallest_value_that_so_many_do_not_exceed(part: float, expected: int) -> None:
    assert percentile(list(range(100, 0, -1)), part) == expected


def test_a_percentile_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="nothing"):
        percentile([], 0.5)


@pytest.mark.parametrize(("value", "shown"), [(0.1234, "0.12"), (12.34, "12.3"), (123.4, "123"), (12_345.6, "12,346")])
def test_numbers_show_the_digits_that_mean_something(value: float, shown: str) -> None:
    assert number(value) == shown


def test_the_table_aligns_its_columns_and_tells_the_verdict() -> None:
    shown = table([Measurement(title="Start", figures=(figure(1.0, goal=1.5), figure(100.0)), notes=("a note",))])
    title, *rows, note = shown.splitlines()
    assert title == "Start"
    assert note == "  a note"
    assert len({len(row) for row in rows}) == 1
    assert rows[1].split() == ["time,", "s", "1.00", "1.00", "1.00", "≤", "1.5", "met"]


def test_the_page_has_a_row_for_each_circumstance_and_each_figure() -> None:
    shown = page(
        [Measurement(title="Start", figures=(figure(1.0, 3.0, goal=1.5),), notes=("a note",))], {"machine": "2 cores"}
    )
    assert "| machine | 2 cores |" in shown
    assert "| time, s | 1.00 | 2.00 | 3.00 | ≤ 1.5 | missed |" in shown
    assert "* a note" in shown


def test_a_part_without_figures_still_says_why() -> None:
    assert "not reached" in page([Measurement(title="Demo", figures=(), notes=("not reached",))], {})
    assert "not reached" in table([Measurement(title="Demo", figures=(), notes=("not reached",))])
