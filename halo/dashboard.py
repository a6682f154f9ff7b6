"""The Grafana dashboard as a table of panels: `python -m halo.docs` writes it to `docs/grafana-dashboard.json`.

Each panel is one question of an operator, with the unit that its answer has. A test holds the names in it against those that a running
server shows, in both directions, so that neither side goes on without the other. It must never name a data source: whoever imports it
chooses one. Read next: `halo/panels.py`, the forms; `halo/figures.py`.
"""

from typing import Any, Final

from halo.panels import CHOSEN, DATA_SOURCE, Panel, Query, Row, heatmap, laid_out, mean, most, now, quantiles, rate

SCHEMA_VERSION: Final = 39
"""Grafana 10.4 and later read it, and turn it into their own."""

ROWS: Final = (
    Row(
        "Overview",
        (
            Panel("Living sessions", "short", (now("halo_sessions"),), "stat", 4),
            Panel("Open sockets", "short", (now("halo_connections"),), "stat", 4),
            Panel("Messages a second", "ops", (rate("halo_messages_stored_total"),), "stat", 4),
            Panel("Time to the ack, p99", "s", quantiles("halo_ack_latency_seconds", parts=(0.99,)), "stat", 4, 0.2),
            Panel("Broken invariants", "short", (now("halo_invariant_violations"),), "stat", 4, 1),
            Panel("Dead letters", "short", (most("halo_outbox_waiting", status="dead"),), "stat", 4, 1),
            Panel("Parked actors", "short", (now("halo_actors_parked"),), "stat", 4, 1),
            Panel("Valkey is believed", "bool_yes_no", (Query(f"min (halo_mirror_trusted{{{CHOSEN}}})"),), "stat", 4),
            Panel("Event loop, longest of 1000 waits", "s", quantiles("halo_event_loop_lag_seconds", parts=(0.999,)), "stat", 4, 1),
            Panel("Sweeps with errors in the last hour", "short", (Query(f"sum (increase(halo_sweep_failures_total{{{CHOSEN}}}[1h]))"),), "stat", 4, 1),
            Panel("Clock ahead of Postgres", "s", (most("halo_clock_skew_seconds"),), "stat", 4, 2),
            Panel("Version", "short", (Query(f"halo_build_info{{{CHOSEN}}}", "{{version}}"),), "stat", 4),
        ),
    ),
    Row(
        "Messages",
        (
            heatmap("From a decoded message to its ack", "halo_ack_latency_seconds", width=12),
            Panel("From a decoded message to its ack", "s", quantiles("halo_ack_latency_seconds", parts=(0.5, 0.9, 0.99)), width=12),
            Panel(
                "Messages and commits", "ops", (rate("halo_messages_stored_total", legend="messages"), rate("halo_journal_commits_total", legend="commits"))
            ),
            Panel("Messages in one commit", "short", (mean("halo_journal_commit_rows", "mean"), *quantiles("halo_journal_commit_rows"))),
            Panel("One commit of messages", "s", quantiles("halo_journal_commit_duration_seconds")),
            Panel("Items waiting when an actor looks", "short", quantiles("halo_mailbox_taken_items")),
            Panel("Items in the fullest mailbox", "short", (most("halo_mailbox_depth_max", "instance"),), alarm_from=400),
            heatmap("How late the event loop wakes a task", "halo_event_loop_lag_seconds"),
        ),
    ),
    Row(
        "Sessions",
        (
            Panel("Living sessions by status", "short", (now("halo_sessions", "status"),)),
            Panel("The transaction of a step", "s", quantiles("halo_step_commit_duration_seconds")),
            Panel("How late deadlines and timers are", "s", quantiles("halo_timer_lateness_seconds", "timer"), alarm_from=1),
            Panel("Crashes caught", "short", (Query(f"sum by (of) (increase(halo_crashes_total{{{CHOSEN}}}[$__interval]))", "{{of}}"),)),
            Panel(
                "Sessions that lost their mitra",
                "ops",
                (
                    rate("halo_reroutes_silent_total", legend="silent"),
                    rate("halo_reroutes_transfer_total", legend="transfer"),
                    rate("halo_reroutes_found_total", legend="taken over"),
                    rate("halo_reroutes_not_found_total", legend="none found"),
                ),
                width=16,
            ),
        ),
    ),
    Row(
        "Sockets and calls",
        (
            Panel("Frames refused, by code", "ops", (rate("halo_frames_refused_total", "code"),)),
            Panel("Sockets closed, by code", "ops", (rate("halo_sockets_closed_total", "code"), rate("halo_sockets_cut_as_dead_total", legend="cut as dead"))),
            Panel("Handshakes refused, by code", "ops", (rate("halo_handshakes_refused_total", "code"),)),
            Panel("Connections turned away", "ops", (rate("halo_connections_turned_away_total", "listener, cause"),)),
            Panel("Faults of connections", "ops", (rate("halo_connection_faults_total", "listener, fault"),)),
            Panel("HTTP answers by status", "reqps", (rate("halo_http_responses_total", "listener, status"),)),
            Panel("HTTP calls by route, p99", "s", quantiles("halo_http_request_duration_seconds", "listener, method, route", (0.99,)), width=24),
        ),
    ),
    Row(
        "Pairing",
        (
            Panel("Searches under way", "short", (now("halo_searches"),)),
            Panel("Pairings that are over", "ops", (rate("halo_pairings_total", "outcome"),)),
            heatmap("From a customer's wish to a mitra's yes", "halo_pairing_time_to_match_seconds"),
            Panel("Counts of available mitras", "ops", (rate("halo_availability_counts_total", "instance"),)),
        ),
    ),
    Row(
        "Stores",
        (
            Panel("Valkey, one round trip", "s", quantiles("halo_valkey_round_trip_duration_seconds"), alarm_from=0.15),
            Panel("Valkey calls", "ops", (rate("halo_valkey_calls_total", legend="calls"), rate("halo_valkey_failures_total", legend="failed"))),
            Panel("Answered by Postgres for Valkey", "ops", (rate("halo_mirror_fallbacks_total", "instance"),)),
            Panel("Valkey was last found wanting", "s", (Query(f"time() - halo_mirror_standing_since_timestamp_seconds{{{CHOSEN}}}", "{{instance}}"),)),
            Panel("Valkey is taken to be away", "bool", (most("halo_valkey_breaker_open", "instance"),), alarm_from=1),
            Panel("Connections to Postgres", "short", (now("halo_postgres_connections_open", legend="open"), now("halo_postgres_waiting", legend="callers waiting"))),
            Panel(
                "Statements",
                "ops",
                (
                    rate("halo_postgres_statements_total", legend="sent"),
                    rate("halo_postgres_retries_total", legend="tried again"),
                    rate("halo_postgres_unknown_commits_total", legend="answer lost"),
                ),
            ),
        ),
    ),
    Row(
        "Outbox",
        (
            Panel("Rows finished", "ops", (rate("halo_outbox_finished_total", "kind, status"), rate("halo_outbox_retries_total", "kind", legend="{{kind}} tried again"))),
            Panel("Rows waiting in the cluster", "short", (most("halo_outbox_waiting", "kind, status"),)),
            Panel("How late the oldest row is", "s", (most("halo_outbox_oldest_due_age_seconds", "kind"),), alarm_from=300),
            Panel("Rows in hand", "short", (now("halo_outbox_in_hand", "kind"),)),
            Panel("How long sending takes", "s", quantiles("halo_outbox_send_duration_seconds", "kind, outcome"), width=16),
        ),
    ),
    Row(
        "Sweeps",
        (
            Panel("Since the last run", "s", (Query(f"time() - max by (sweep) (halo_sweep_last_run_timestamp_seconds{{{CHOSEN}}})", "{{sweep}}"),)),
            Panel("Runs and errors", "ops", (rate("halo_sweep_runs_total", "sweep"), rate("halo_sweep_failures_total", "sweep", legend="{{sweep}} failed"))),
            Panel("How long the last run took", "s", (most("halo_sweep_duration_seconds", "sweep"),), alarm_from=1),
            Panel("Rows written by the last run", "short", (most("halo_sweep_rows", "sweep"),)),
            Panel("What the last run found", "short", (most("halo_sweep_found", "sweep, kind"),)),
            Panel("Setting nobody offline for now", "bool", (most("halo_sweep_waits", "sweep, for"),)),
        ),
    ),
    Row(
        "Alarms",
        (
            Panel("Broken invariants", "short", (Query(f"sum by (invariant) (halo_invariant_violations{{{CHOSEN}}}) > 0", "{{invariant}}"),), alarm_from=1),
            Panel("Mended by the watchdog", "short", (Query(f"sum by (repair) (increase(halo_watchdog_repairs_total{{{CHOSEN}}}[$__interval]))", "{{repair}}"),)),
            Panel("Questions and repairs that failed", "ops", (rate("halo_watchdog_errors_total", "invariant"),)),
            Panel("Since the last round", "s", (Query(f"time() - max by (instance) (halo_watchdog_last_round_timestamp_seconds{{{CHOSEN}}})", "{{instance}}"),), alarm_from=300),
            Panel("How long the last round took", "s", (most("halo_watchdog_duration_seconds", "instance"),)),
            Panel("Rounds", "ops", (rate("halo_watchdog_rounds_total", "instance"),)),
        ),
    ),
    Row(
        "Process",
        (
            Panel("CPU", "percentunit", (rate("process_cpu_seconds_total", "instance", job="$job"),)),
            Panel("Memory", "bytes", (now("process_resident_memory_bytes", "instance", job="$job"),)),
            Panel("Open files", "short", (now("process_open_fds", "instance", job="$job"), most("process_max_fds", legend="limit", job="$job"))),
        ),
    ),
)  # fmt: skip
"""From what everybody looks at to what is looked into when something is wrong; one line a panel."""


def dashboard() -> dict[str, Any]:
    """As Grafana imports it."""
    return {
        "uid": "halo",
        "title": "halo",
        "description": "Paid, timed, one-to-one chat: what the server halo tells of itself. Generated by `python -m halo.docs`.",
        "tags": ["halo"],
        "schemaVersion": SCHEMA_VERSION,
        "editable": True,
        "graphTooltip": 1,
        "refresh": "30s",
        "time": {"from": "now-1h", "to": "now"},
        "timezone": "browser",
        "templating": {"list": _variables()},
        "annotations": {"list": []},
        "links": [],
        "panels": [panel | {"id": number} for number, panel in enumerate(laid_out(ROWS), 1)],
    }


def _variables() -> list[dict[str, Any]]:
    def of_label(label: str, title: str) -> dict[str, Any]:
        query = f"label_values(halo_build_info, {label})"
        return {
            "name": label,
            "label": title,
            "type": "query",
            "datasource": DATA_SOURCE,
            "query": {"query": query, "refId": label},
            "definition": query,
            "refresh": 2,
            "sort": 1,
            "multi": label == "instance",
            "includeAll": label == "instance",
            "allValue": ".*" if label == "instance" else None,
        }

    source = {"name": "datasource", "label": "Data source", "type": "datasource", "query": "prometheus", "refresh": 1}
    return [source, of_label("job", "Job"), of_label("instance", "Node")]
