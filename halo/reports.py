"""Reports as metrics: what the sweeps, the watchdog and the outbox tell of themselves as a whole.

Each room keeps its report for people and for this; here it only gets names, units and labels. Pure but for the metric families of the
client library. Read next: `halo/metrics.py`.
"""

from collections.abc import Iterator, Sequence

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

from halo.outbox import OutboxKind, OutboxReport, OutboxStatus
from halo.sweep import SweepReport
from halo.watch import WATCHES, Repair, WatchReport


def sweep_metrics(reports: Sequence[SweepReport]) -> Iterator[Metric]:
    runs = CounterMetricFamily("halo_sweep_runs", "Runs of each sweep.", labels=["sweep"])
    failures = CounterMetricFamily("halo_sweep_failures", "Runs with an error.", labels=["sweep"])
    ended = GaugeMetricFamily("halo_sweep_last_run_timestamp_seconds", "When the last run ended.", labels=["sweep"])
    duration = GaugeMetricFamily("halo_sweep_duration_seconds", "How long the last run took.", labels=["sweep"])
    rows = GaugeMetricFamily("halo_sweep_rows", "What the last run wrote.", labels=["sweep"])
    waits = GaugeMetricFamily("halo_sweep_waits", "1 while it sets nobody offline for now.", labels=["sweep", "for"])
    found = GaugeMetricFamily("halo_sweep_found", "What the last run found, by kind.", labels=["sweep", "kind"])
    for report in reports:
        runs.add_metric([report.name], report.runs)
        failures.add_metric([report.name], report.failures)
        duration.add_metric([report.name], report.duration_ms / 1000)
        rows.add_metric([report.name], report.rows)
        if report.last_run_at is not None:
            ended.add_metric([report.name], report.last_run_at / 1000)
        if report.waits_for is not None:
            waits.add_metric([report.name, report.waits_for], 1)
        for kind, count in report.found.items():
            found.add_metric([report.name, kind], count)
    yield from (runs, failures, ended, duration, rows, waits, found)


def watch_metrics(report: WatchReport) -> Iterator[Metric]:
    violations = GaugeMetricFamily(
        "halo_invariant_violations", "What the last round of the watchdog found broken.", labels=["invariant"]
    )
    errors = CounterMetricFamily(
        "halo_watchdog_errors", "Questions and repairs of the watchdog that failed.", labels=["invariant"]
    )
    for name in WATCHES:
        violations.add_metric([name], report.alarms[name].violations if name in report.alarms else 0)
        errors.add_metric([name], report.errors.get(name, 0))
    repairs = CounterMetricFamily("halo_watchdog_repairs", "What the watchdog has mended.", labels=["repair"])
    for repair in Repair:
        repairs.add_metric([repair.value], report.repaired.get(repair, 0))
    yield from (violations, errors, repairs)
    yield CounterMetricFamily("halo_watchdog_rounds", "Rounds of the watchdog.", value=report.rounds)
    yield GaugeMetricFamily(
        "halo_watchdog_duration_seconds", "How long the last round took.", value=report.duration_ms / 1000
    )
    yield GaugeMetricFamily(
        "halo_watchdog_last_round_timestamp_seconds",
        "When the last round ended.",
        value=None if report.last_round_at is None else report.last_round_at / 1000,  # shown without a value, then
    )
    lag = HistogramMetricFamily("halo_event_loop_lag_seconds", "How late the event loop wakes a task.")
    lag.add_metric([], buckets=report.lag.buckets(), sum_value=report.lag.sum)
    yield lag


def outbox_metrics(report: OutboxReport) -> Iterator[Metric]:
    finished = CounterMetricFamily(
        "halo_outbox_finished", "Rows of the outbox that this node finished.", labels=["kind", "status"]
    )
    retried = CounterMetricFamily("halo_outbox_retries", "Attempts that failed and are made again.", labels=["kind"])
    in_hand = GaugeMetricFamily("halo_outbox_in_hand", "Rows that this node is delivering.", labels=["kind"])
    waiting = GaugeMetricFamily(
        "halo_outbox_waiting", "Rows of the whole cluster that are due or dead.", labels=["kind", "status"]
    )
    oldest = GaugeMetricFamily(
        "halo_outbox_oldest_due_age_seconds", "How late the oldest row of the cluster is.", labels=["kind"]
    )
    for kind in OutboxKind:
        for status in OutboxStatus:
            if status in {OutboxStatus.DUE, OutboxStatus.DEAD}:
                waiting.add_metric([kind.value, status.value], report.waiting.get((kind, status), 0))
            if status is not OutboxStatus.DUE:
                finished.add_metric([kind.value, status.value], report.finished[kind, status])
        retried.add_metric([kind.value], report.retried[kind])
        in_hand.add_metric([kind.value], report.in_hand[kind])
        oldest.add_metric([kind.value], report.oldest_due_age_ms(kind) / 1000)
    took = HistogramMetricFamily(
        "halo_outbox_send_duration_seconds",
        "How long a courier took, by what became of the row (due: to be tried again).",
        labels=["kind", "outcome"],
    )
    for (sent, outcome), histogram in report.send_seconds.items():
        took.add_metric([sent.value, outcome.value], buckets=histogram.buckets(), sum_value=histogram.sum)
    yield from (finished, retried, in_hand, waiting, oldest, took)
