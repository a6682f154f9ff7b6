from collections import Counter

from prometheus_client.exposition import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from halo.histogram import Histogram
from halo.metrics import Distribution, Figure, Figures, Report, Source, Tally, counted, new_registry, one
from halo.reports import sweep_metrics
from halo.sweep import SweepReport


def scrape(*sources: Source) -> list[str]:
    page = generate_latest(new_registry(Figures(sources))).decode()
    assert list(text_string_to_metric_families(page))
    return page.splitlines()


def scrape_sweep(report: SweepReport) -> list[str]:
    return scrape(Report(lambda: sweep_metrics([report])))


def test_a_counter_is_called_total_and_a_gauge_is_not() -> None:
    lines = scrape(Figure("seen", "Things seen.", lambda: 3, is_counter=True), Figure("now", "Things.", lambda: 2))
    assert "halo_seen_total 3.0" in lines
    assert "# HELP halo_seen_total Things seen." in lines
    assert "# TYPE halo_now gauge" in lines
    assert "halo_now 2.0" in lines


def test_what_rooms_count_by_word_is_read_when_somebody_looks() -> None:
    faults: Counter[str] = Counter()
    registry = new_registry(Figures([Tally("faults", "Faults.", ("fault",), counted(faults))]))
    assert b"halo_faults_total{" not in generate_latest(registry)
    faults["BrokenPipe"] += 2
    assert b'halo_faults_total{fault="BrokenPipe"} 2.0' in generate_latest(registry)


def test_a_distribution_has_cumulative_buckets_a_sum_and_a_count() -> None:
    seen = Histogram((0.5, 1.0))
    for value in (0.25, 0.75, 3.0):
        seen.observe(value)
    lines = scrape(
        Distribution("wait_seconds", "Waits.", one(seen)),
        Distribution("work_seconds", "Work.", lambda: [(("a",), seen)], ("by",)),
    )
    assert [line for line in lines if line.startswith("halo_wait_seconds")] == [
        'halo_wait_seconds_bucket{le="0.5"} 1.0',
        'halo_wait_seconds_bucket{le="1.0"} 2.0',
        'halo_wait_seconds_bucket{le="+Inf"} 3.0',
        "halo_wait_seconds_count 3.0",
        "halo_wait_seconds_sum 4.0",
    ]
    assert "# TYPE halo_wait_seconds histogram" in lines
    assert 'halo_work_seconds_bucket{by="a",le="+Inf"} 3.0' in lines


def test_the_process_tells_of_itself() -> None:
    assert [line for line in scrape() if line.startswith("process_resident_memory_bytes ")]


def test_a_sweep_tells_its_runs_its_failures_its_duration_its_rows_and_what_it_found() -> None:
    report = SweepReport(
        name="reseed",
        interval_seconds=300,
        runs=4,
        failures=1,
        last_run_at=5_000,
        duration_ms=250,
        rows=7,
        found={"online": 2},
    )
    lines = scrape_sweep(report)
    for line in (
        'halo_sweep_runs_total{sweep="reseed"} 4.0',
        'halo_sweep_failures_total{sweep="reseed"} 1.0',
        'halo_sweep_last_run_timestamp_seconds{sweep="reseed"} 5.0',
        'halo_sweep_duration_seconds{sweep="reseed"} 0.25',
        'halo_sweep_rows{sweep="reseed"} 7.0',
        'halo_sweep_found{kind="online",sweep="reseed"} 2.0',
    ):
        assert line in lines


def test_a_sweep_that_waits_says_for_what_and_one_that_never_ran_claims_no_moment() -> None:
    lines = scrape_sweep(SweepReport(name="auto_offline", interval_seconds=30, waits_for="second_opinion"))
    assert 'halo_sweep_waits{for="second_opinion",sweep="auto_offline"} 1.0' in lines
    assert not [line for line in lines if line.startswith("halo_sweep_last_run_timestamp_seconds{")]
