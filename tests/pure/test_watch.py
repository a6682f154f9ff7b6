"""The table of what is watched, the alarms that are kept of it, and the histogram of the event loop."""

import re
from pathlib import Path

import pytest

from halo.watch import LAG_BOUNDS_SECONDS, SUBJECTS_AT_MOST, WATCHES, LagHistogram, Repair, WatchReport, next_batch

ROOT = Path(__file__).parents[2]
NAME = "s5_deadlines_fire"
MONEY_LEDGER_TIME_AND_NUMBERS = re.compile(r"m[1-5]_|t\d_|s1_|s3_|c\d_")


def test_every_watch_says_in_a_sentence_what_is_broken_and_what_to_do() -> None:
    for name, watch in WATCHES.items():
        assert watch.name == name
        assert watch.sentence.endswith("."), name
        assert len(watch.sentence.split()) > 8, name


def test_no_machine_mends_money_ledger_time_or_numbering() -> None:
    assert [
        name for name, watch in WATCHES.items() if MONEY_LEDGER_TIME_AND_NUMBERS.match(name) and watch.repairs
    ] == []


def test_every_repair_serves_some_watch() -> None:
    assert {repair for watch in WATCHES.values() for repair in watch.repairs} == set(Repair)


def test_an_alarm_is_raised_once_keeps_its_beginning_and_is_cleared_once() -> None:
    report = WatchReport(60)
    assert report.note(NAME, ["a"], 1_000) == "raised"
    assert report.note(NAME, ["a", "b"], 2_000) is None
    alarm = report.alarms[NAME]
    assert (alarm.since, alarm.violations, alarm.subjects) == (1_000, 2, ("a", "b"))
    assert alarm.sentence == WATCHES[NAME].sentence
    assert report.note(NAME, [], 3_000) == "cleared"
    assert report.note(NAME, [], 4_000) is None
    assert not report.alarms


def test_an_alarm_names_each_subject_once_and_not_all_of_many() -> None:
    report = WatchReport(60)
    report.note(NAME, ["a", "a", *(str(number) for number in range(50))], 1_000)
    assert report.alarms[NAME].violations == 52
    assert report.alarms[NAME].subjects[:2] == ("a", "0")
    assert len(report.alarms[NAME].subjects) == SUBJECTS_AT_MOST


def test_a_watch_that_is_not_in_the_table_cannot_be_noted() -> None:
    with pytest.raises(KeyError):
        WatchReport(60).note("no such thing", ["a"], 1)


def test_the_histogram_counts_what_is_at_most_as_late_as_each_bound() -> None:
    lag = LagHistogram()
    for seconds in (0.0, 0.001, 0.3, 7.0):
        lag.observe(seconds)
    buckets = dict(lag.buckets())
    assert list(buckets) == [*map(str, LAG_BOUNDS_SECONDS), "+Inf"]
    assert (buckets["0.001"], buckets["0.25"], buckets["0.5"], buckets["5.0"], buckets["+Inf"]) == (2, 2, 3, 3, 4)
    assert lag.sum == pytest.approx(7.301)


def test_the_longest_pause_is_told_once() -> None:
    lag = LagHistogram()
    lag.observe(2.0)
    lag.observe(0.1)
    assert [lag.take_longest(), lag.take_longest()] == [2.0, 0.0]
    assert [lag.take_longest_lately(), lag.take_longest_lately()] == [2.0, 0.0]


def test_refunds_are_told_before_pushes_and_in_their_own_words() -> None:
    names = list(WATCHES)
    refunds = ["refunds_are_delivered", "refunds_have_an_address", "refunds_are_sent"]
    assert [name for name in names if name in {*refunds, "outbox_is_sent"}] == [*refunds, "outbox_is_sent"]
    assert all(WATCHES[name].sentence.startswith("Refunds ") for name in refunds)
    assert WATCHES["outbox_is_sent"].sentence.startswith("Pushes ")


def test_whose_turn_it_is_comes_behind_the_last_one_and_from_the_top_again() -> None:
    assert next_batch(["b", "a", "c", "b"], "") == ("a", "b", "c")
    assert next_batch(["b", "a", "c"], "a") == ("b", "c", "a")
    assert next_batch(["b", "a", "c"], "bb") == ("c", "a", "b")
    assert next_batch([], "z") == ()
    many = [f"{number:03}" for number in range(45)]
    first = next_batch(many, "")
    second = next_batch(many, first[-1])
    third = next_batch(many, second[-1])
    assert {*first, *second, *third} == set(many)
    assert len(first) == len(second) == len(third) == SUBJECTS_AT_MOST


def test_what_no_watch_can_see_is_proven_by_tests_that_exist() -> None:
    page = (ROOT / "docs" / "decisions" / "0027-watch-what-rows-can-show.md").read_text("utf-8")
    named = re.findall(r"`(tests/\w+/\w+\.py)::(\w+)`", page)
    assert len(named) == page.count("::") > 20
    assert [(file, test) for file, test in named if f"def {test}(" not in (ROOT / file).read_text("utf-8")] == []
