"""The table of what is watched, the alarms that are kept of it, and the histogram of the event loop."""

import re

import pytest

from halo.watch import LAG_BOUNDS_SECONDS, SUBJECTS_AT_MOST, WATCHES, LagHistogram, Repair, WatchReport

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
