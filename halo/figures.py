"""The figures of one server: which numbers of which rooms are shown, under which names.

A figure belongs here when somebody would act on it. Reading must be cheap and must never wait: a scrape walks over the sessions of this
node once, and everything else is there already. Whoever adds a line adds it to the dashboard (`halo/dashboard.py`), or has a reason.
Read next: `halo/metrics.py`, the forms; `halo/reports.py`, what rooms tell as a whole.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from prometheus_client.core import GaugeMetricFamily, Metric

from halo import __version__
from halo.actors.pairing import PairingDesk
from halo.actors.ports import Meters
from halo.actors.registry import Registry
from halo.actors.search import SearchMeters
from halo.actors.upkeep import Upkeeps
from halo.events import LostBy
from halo.metrics import Distribution, Figure, Figures, Report, Source, Tally, counted, one
from halo.net.connections import Connections
from halo.net.guard import Door
from halo.net.http_meter import HttpMeter
from halo.outbox import OutboxReport
from halo.reports import outbox_metrics, sweep_metrics, watch_metrics
from halo.session import EndReason, SessionStatus
from halo.store.available import AvailableMitras
from halo.store.journal import Journal
from halo.store.mirror import Mirror
from halo.store.nodes import NodeLease
from halo.store.postgres import Postgres
from halo.sweep import SweepReport
from halo.watch import WatchReport


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """The rooms that are read."""

    registry: Registry
    pairings: PairingDesk
    connections: Connections
    doors: Mapping[str, Door]
    http: HttpMeter
    handshakes_refused: Counter[str]
    meters: Meters
    searches: SearchMeters
    reroutes: Counter[str]
    daemons: Upkeeps
    db: Postgres
    journal: Journal
    mirror: Mirror
    available: AvailableMitras
    lease: NodeLease
    sweeps: Callable[[], Sequence[SweepReport]]
    watch: WatchReport
    outbox: OutboxReport


def new_figures(rooms: Measured) -> Figures:
    """Everything that is shown of these rooms."""
    return Figures(
        [
            Tally(
                "build_info",
                "1, with the version that runs.",
                ("version",),
                lambda: [((__version__,), 1)],
                is_counter=False,
            ),
            Report(partial(_sessions, rooms.registry)),
            *_actors(rooms),
            *_sockets(rooms),
            *_http(rooms.http),
            *_messages(rooms),
            *_pairings(rooms),
            *_postgres(rooms),
            *_valkey(rooms),
            Report(lambda: sweep_metrics(rooms.sweeps())),
            Report(lambda: watch_metrics(rooms.watch)),
            Report(lambda: outbox_metrics(rooms.outbox)),
        ]
    )


def _sessions(registry: Registry) -> Iterator[Metric]:
    """One walk for all that is asked of every session."""
    counts: Counter[SessionStatus] = Counter()
    parked = deepest = 0
    for actor in registry:
        counts[actor.session.status] += 1
        parked += actor.is_parked
        deepest = max(deepest, len(actor.mailbox))
    sessions = GaugeMetricFamily("halo_sessions", "Living sessions of this node by status.", labels=["status"])
    for status in SessionStatus:
        if status is not SessionStatus.ENDED:
            sessions.add_metric([status.value], counts[status])
    yield sessions
    yield GaugeMetricFamily("halo_actors_parked", "Sessions whose actor spent its restart budget.", value=parked)
    yield GaugeMetricFamily("halo_mailbox_depth_max", "Items in the fullest mailbox.", value=deepest)


def _actors(rooms: Measured) -> Iterator[Source]:
    meters, upkeeps = rooms.meters, rooms.registry.upkeeps
    yield Tally(
        "crashes",
        "Crashes that a supervisor caught.",
        ("of",),
        lambda: [(("session",), upkeeps.crashes), (("daemon",), rooms.daemons.crashes)],
    )
    yield Distribution("mailbox_taken_items", "Items that waited when an actor looked.", one(meters.taken_items))
    yield Distribution("step_commit_duration_seconds", "The transaction of a session's step.", one(meters.step_seconds))
    yield Distribution(
        "timer_lateness_seconds",
        "From the moment of a deadline to its decision, of a session_timer to its frame.",
        lambda: [
            (("deadline",), meters.deadline_lateness_seconds),
            (("session_timer",), meters.timer_lateness_seconds),
        ],
        ("timer",),
    )
    yield from _reroutes(rooms.reroutes)


def _reroutes(counts: Counter[str]) -> Iterator[Source]:
    """Sessions that lost their mitra, by why, and what became of them."""
    begun, not_found = "Sessions that began to seek another mitra: ", EndReason.NO_MITRA.value
    yield Figure("reroutes_silent", f"{begun}theirs was silent.", lambda: counts[LostBy.SILENT], is_counter=True)
    yield Figure("reroutes_transfer", f"{begun}an operator's wish.", lambda: counts[LostBy.TRANSFER], is_counter=True)
    yield Figure("reroutes_found", "Sessions that another mitra took over.", lambda: counts["found"], is_counter=True)
    yield Figure("reroutes_not_found", "Sessions that none took over.", lambda: counts[not_found], is_counter=True)


def _sockets(rooms: Measured) -> Iterator[Source]:
    connections, doors = rooms.connections, rooms.doors
    yield Figure("connections", "Open app sockets.", lambda: len(connections))
    yield Figure(
        "sockets_cut_as_dead", "Sockets that did not answer a ping.", lambda: connections.cut_as_dead, is_counter=True
    )
    yield Tally("frames_refused", "Frames that were refused, by code.", ("code",), counted(connections.refusals))
    yield Tally(
        "sockets_closed",
        "Sockets that are gone, by the code that halo closed them with, or client.",
        ("code",),
        counted(connections.closes),
    )
    yield Tally(
        "handshakes_refused", "WebSocket handshakes refused, by code.", ("code",), counted(rooms.handshakes_refused)
    )
    yield Tally(
        "connections_turned_away",
        "Connections that were not admitted, by why.",
        ("listener", "cause"),
        lambda: _by_listener({name: door.turned_away for name, door in doors.items()}),
    )
    yield Tally(
        "connection_faults",
        "Faults that a connection's guard caught.",
        ("listener", "fault"),
        lambda: _by_listener({name: door.faults for name, door in doors.items()}),
    )


def _by_listener(counts: Mapping[str, Counter[str]]) -> Iterator[tuple[tuple[str, str], float]]:
    for listener, counter in counts.items():
        for word, times in counter.items():
            yield (listener, word), times


def _http(meter: HttpMeter) -> Iterator[Source]:
    yield Distribution(
        "http_request_duration_seconds",
        "From a whole request to its answer, by the route's template.",
        meter.seconds.items,
        ("listener", "method", "route"),
    )
    yield Tally("http_responses", "Answers by status.", ("listener", "method", "route", "status"), meter.answers.items)


def _messages(rooms: Measured) -> Iterator[Source]:
    journal = rooms.journal
    yield Figure("messages_stored", "Messages made durable.", lambda: journal.rows, is_counter=True)
    yield Figure("journal_commits", "Commits that made them so.", lambda: journal.commits, is_counter=True)
    yield Distribution("journal_commit_rows", "Messages in one commit.", one(journal.commit_rows))
    yield Distribution("journal_commit_duration_seconds", "One commit of messages.", one(journal.commit_seconds))
    yield Distribution(
        "ack_latency_seconds",
        "From a decoded message to its ack in the socket's buffer.",
        one(rooms.meters.ack_seconds),
    )


def _pairings(rooms: Measured) -> Iterator[Source]:
    pairings, meters, available = rooms.pairings, rooms.searches, rooms.available
    yield Figure("searches", "Searching pairings of this node.", lambda: len(pairings))
    yield Tally("pairings", "Pairings that are over: matched, or why not.", ("outcome",), counted(meters.outcomes))
    yield Distribution(
        "pairing_time_to_match_seconds", "From a customer's wish to a mitra's yes.", one(meters.match_seconds)
    )
    yield Figure(
        "availability_counts",
        "Counts of all available mitras, for the whole cluster.",
        lambda: available.counts,
        is_counter=True,
    )


def _postgres(rooms: Measured) -> Iterator[Source]:
    db, lease = rooms.db, rooms.lease
    yield Figure("postgres_connections_open", "Connections to Postgres.", lambda: db.pool.connections_open)
    yield Figure("postgres_waiting", "Callers who wait for one.", lambda: db.pool.waiting)
    yield Figure("postgres_statements", "Statements sent.", lambda: db.pool.statements, is_counter=True)
    yield Figure("postgres_retries", "Statements and transactions tried again.", lambda: db.retries, is_counter=True)
    yield Figure(
        "postgres_unknown_commits", "Commits whose answer was lost.", lambda: db.unknown_commits, is_counter=True
    )
    yield Figure("clock_skew_seconds", "This node's clock ahead of Postgres'.", lambda: lease.skew_ms / 1000)


def _valkey(rooms: Measured) -> Iterator[Source]:
    mirror, valkey = rooms.mirror, rooms.mirror.valkey
    yield Figure("mirror_trusted", "1 while Valkey's answers may be believed.", lambda: mirror.trusted)
    yield Figure(
        "mirror_standing_since_timestamp_seconds",
        "Since when Valkey's answers may be believed without a break; 0 while they may not.",
        lambda: (mirror.standing_since or 0) / 1000,
    )
    yield Figure(
        "mirror_fallbacks", "Questions that Postgres answered for Valkey.", lambda: mirror.fallbacks, is_counter=True
    )
    yield Distribution(
        "valkey_round_trip_duration_seconds",
        "One pipeline to Valkey and back, also those that failed.",
        one(valkey.round_trip_seconds),
    )
    yield Figure("valkey_calls", "Calls of Valkey.", lambda: valkey.calls, is_counter=True)
    yield Figure("valkey_failures", "Calls that got no answer.", lambda: valkey.failures, is_counter=True)
    yield Figure("valkey_breaker_open", "1 while Valkey is taken to be away.", lambda: valkey.breaker == "open")
