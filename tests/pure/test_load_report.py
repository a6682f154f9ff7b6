"""The report: JSON that comes back, words, ratios, pictures and the page."""

import re
from html.parser import HTMLParser

import msgspec
import pytest

from halo.load.compare import compare, told_comparison
from halo.load.drawing import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, plots_of
from halo.load.meter import Meter
from halo.load.page import page_of
from halo.load.plan import plan_of
from halo.load.record import RecordStrange, Tally, decode, encode
from halo.load.telling import told
from halo.load.verdict import Check, Outcome, Verdict
from tests.pure.load_records import changed, record_of


def test_a_report_comes_back_from_its_json() -> None:
    record = record_of()
    assert decode(encode(record)) == record


@pytest.mark.parametrize("text", [b"", b"{}", b"[1]", b'{"format":1}'])
def test_what_is_no_report_is_told(text: bytes) -> None:
    with pytest.raises(RecordStrange, match="no report of halo load"):
        decode(text)


def test_a_report_of_another_format_is_told() -> None:
    with pytest.raises(RecordStrange, match="format 2"):
        decode(encode(changed(record_of(), format=2)))


def test_a_report_holds_no_key_and_no_token() -> None:
    names = set(re.findall(r'"(\w+)":', encode(record_of()).decode()))
    assert not {name for name in names if "token" in name or "key" in name or "secret" in name}


def test_seconds_of_two_processes_become_one() -> None:
    tally = Tally()
    for seconds in (0.001, 0.003):
        meter = Meter()
        meter.observe("ack", seconds)
        meter.counts["acks"] += 1
        tally.add_second(meter.close_second(1.0))
    [slice_] = tally.slices()
    assert slice_.counts == {"acks": 2}
    assert slice_.max_ms["ack"] == pytest.approx(3.0, rel=0.002)
    assert tally.figures()["ack"].percentiles_ms["50"] == pytest.approx(1.0, rel=0.002)


def test_a_second_tells_only_what_is_new_and_the_whole_has_all() -> None:
    meter = Meter()
    meter.counts["acks"] += 2
    assert meter.close_second(1.0).counts == {"acks": 2}
    meter.counts["acks"] += 1
    meter.observe("ack", 0.5)
    second = meter.close_second(2.0)
    assert second.counts == {"acks": 1}
    assert meter.close_second(3.0).histograms == {}
    assert meter.whole() == second.histograms


def test_figures_and_costs_are_told() -> None:
    text = told(record_of())
    assert "30 acks in 3 s, 10.0/s, open loop at 10/s" in text
    assert "16,667 µs of CPU each" in text
    assert "10,000 µs each" in text  # the server
    assert "1.5 s: kill -9" in text
    assert text.endswith("Everything held.")


def test_a_failed_check_is_told_with_its_examples() -> None:
    failed = Check(name="nothing twice", outcome=Outcome.FAILED, fact="1 times not", examples=("session s: twice",))
    text = told(changed(record_of(), verdict=Verdict(checks=(failed,), is_whole=True)))
    assert "FAILED  nothing twice: 1 times not" in text
    assert "session s: twice" in text
    assert text.splitlines()[-1].startswith("A check FAILED")


@pytest.mark.parametrize(
    ("verdict", "says"),
    [
        (Verdict(checks=(), is_whole=False), "Ended early"),
        (Verdict(checks=(), is_whole=True, harness_bound=("late",)), "the figures are the harness' own: late"),
    ],
)
def test_what_the_figures_are_worth_is_told(verdict: Verdict, says: str) -> None:
    assert says in told(changed(record_of(), verdict=verdict))


def test_a_run_twice_as_slow_has_ratios_of_two_and_is_worse() -> None:
    rows = {row.name: row for row in compare(record_of(2.0), record_of()).rows}
    assert rows["ack p50"].ratio == pytest.approx(2.0, rel=0.01)
    assert rows["ack p50"].verdict == "worse"
    assert rows["acks"].verdict == "alike"
    assert "lateness p99" not in rows
    assert compare(record_of(), record_of(2.0)).rows[1].verdict == "better"


def test_more_work_a_second_is_better() -> None:
    [first, *_] = compare(changed(record_of(), per_second=20.0), record_of()).rows
    assert (first.ratio, first.verdict) == (2.0, "better")


def test_runs_of_different_plans_are_called_different() -> None:
    comparison = compare(
        record_of(), changed(record_of(), plan=plan_of("steady", {"pairs": 3, "seconds": 3.0, "rate": 10.0}))
    )
    assert comparison.differences == ("pairs: 2 here, 3 there",)
    assert "not the same: pairs: 2 here, 3 there" in told_comparison(comparison)


def test_every_point_lies_on_the_paper() -> None:
    for plot in plots_of(record_of(), record_of(500.0)):
        assert plot.lines
        for line in plot.lines:
            for piece in line.pieces:
                for point in piece.split():
                    x, y = map(float, point.split(","))
                    assert LEFT <= x <= RIGHT <= WIDTH
                    assert TOP <= y <= BOTTOM <= HEIGHT


def test_a_second_without_any_is_a_gap_and_not_a_nought() -> None:
    record = record_of()
    first, _, third = record.slices
    gap = msgspec.structs.replace(record.slices[1], p50_ms={}, p99_ms={}, max_ms={})
    latency = plots_of(changed(record, slices=(first, gap, third)), None)[0]
    assert [len(line.pieces) for line in latency.lines] == [2, 2, 2]


def test_a_run_in_which_nothing_happened_still_has_its_page() -> None:
    empty = changed(record_of(), figures={}, slices=(), counts={}, events=())
    assert "halo load: steady" in page_of(empty, None)


class Page(HTMLParser):
    """Which elements a page has, and what they would load."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.loads: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.loads += [f"{tag} {name}" for name, _ in attrs if name in {"src", "href", "srcset", "action"}]


def test_the_page_is_whole_and_loads_nothing() -> None:
    text = page_of(record_of(), record_of(2.0))
    page = Page()
    page.feed(text)
    assert page.loads == []
    assert not {"script", "link", "img", "iframe"} & set(page.tags)
    assert "url(" not in text
    assert "@import" not in text
    assert page.tags.count("polyline") > 5
    assert "Compared with steady of 2026-11-24" in text


def test_what_the_page_prints_is_escaped() -> None:
    page = page_of(changed(record_of(), target="<script>x</script>"), None)
    assert "<script>" not in page
    assert "&lt;script&gt;" in page
