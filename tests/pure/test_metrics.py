from collections import Counter

from prometheus_client.exposition import generate_latest

from halo.metrics import Figure, Figures, new_registry
from halo.session import SessionStatus
from halo.sweep import SweepReport


def scrape(*sweeps: SweepReport) -> list[str]:
    figures = Figures(
        [Figure("seen", "Things seen.", lambda: 3, is_counter=True)],
        lambda: iter([SessionStatus.ACTIVE, SessionStatus.ACTIVE]),
        {"ws": Counter({"BrokenPipe": 2})},
        lambda: sweeps,
    )
    return generate_latest(new_registry(figures)).decode().splitlines()


def test_what_the_rooms_count_is_scraped_under_the_names_of_prometheus() -> None:
    lines = scrape()
    assert "halo_seen_total 3.0" in lines
    assert 'halo_sessions{status="active"} 2.0' in lines
    assert 'halo_connection_faults_total{fault="BrokenPipe",listener="ws"} 2.0' in lines


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
    lines = scrape(report)
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
    lines = scrape(SweepReport(name="auto_offline", interval_seconds=30, waits_for="second_opinion"))
    assert 'halo_sweep_waits{for="second_opinion",sweep="auto_offline"} 1.0' in lines
    assert not [line for line in lines if line.startswith("halo_sweep_last_run_timestamp_seconds{")]
