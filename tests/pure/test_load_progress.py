import io
from collections import deque

import pytest
from rich.console import Console

from halo.load import progress
from halo.load.meter import Meter
from halo.load.plan import plan_of
from halo.load.progress import Lines, Screen, curve, table
from halo.load.record import Tally


def tally_of(acks: int) -> Tally:
    meter, tally = Meter(), Tally()
    meter.counts["acks"] = acks
    meter.observe("ack", 0.002)
    tally.add_second(meter.close_second(1.0))
    return tally


def test_a_log_gets_a_line_for_each_kind_of_work_and_not_for_each_person() -> None:
    out = io.StringIO()
    with Lines(out) as lines:
        for number in range(1, 101):
            lines.doing("admitting mitras", number, 100)
        lines.began(plan_of("steady", {}))
        lines.event(1.0, "kill -9")
    assert out.getvalue().splitlines() == ["admitting mitras: 1 of 100", "steady begins, for 30 s", "   1.0 s  kill -9"]


def test_a_log_is_told_of_the_work_every_few_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "LINE_SECONDS", -1.0)
    out = io.StringIO()
    with Lines(out) as lines:
        lines.began(plan_of("steady", {}))
        lines.second(2.0, tally_of(1200))
    assert out.getvalue().splitlines()[-1] == "   2.0 s  1,200 acks, ack p99 2.0 ms"


def test_who_wants_quiet_gets_it() -> None:
    out = io.StringIO()
    with Lines(out, is_quiet=True) as lines:
        lines.doing("admitting")
        lines.event(1.0, "kill -9")
    assert out.getvalue() == ""


def test_a_terminal_shows_work_latencies_and_events() -> None:
    out = io.StringIO()
    with Screen(Console(file=out, force_terminal=True, width=100)) as screen:
        screen.doing("admitting mitras", 3, 10)
        screen.began(plan_of("steady", {}))
        screen.second(1.0, tally_of(1200))
        screen.event(1.0, "kill -9")
        screen.refresh()
    shown = out.getvalue()
    for expected in ("steady", "1,200/s acks", "p99.9", "2.00", "kill -9"):
        assert expected in shown


def test_the_little_curve_is_as_high_as_its_highest() -> None:
    assert curve(deque([0, 5, 10])) == " ▄█"
    assert curve(deque()) == ""


def test_the_table_has_every_figure() -> None:
    assert table(tally_of(1)).row_count == 1
