"""The cells of the benchmark: what is loaded how, who takes part, and which figures of it are shown. PURE.

A cell of the rig names the options of its load client, for the node peer, the asyncio peer and halo alike. The others are halo's own parts of
`scripts/measure`, whose goals compare halo with nobody. Read next: `scripts/benching/goals.py`, `scripts/benching/rounds.py`.
"""

from dataclasses import dataclass
from typing import Final

PEERS: Final = ("node", "asyncio")
RIG_TARGETS: Final = (*PEERS, "halo")
CEILING_TARGETS: Final = ("echo", "relay", "halo")


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One figure of a cell."""

    name: str
    paths: tuple[str, ...]
    """Summed: the CPU of a message is that of the server and of Postgres."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One kind of work."""

    name: str
    what: str
    targets: tuple[str, ...]
    rows: tuple[Row, ...]
    reference: str
    """The target that ratios are told to."""
    rig: tuple[str, ...] = ()
    """Options of the rig's load client; empty for what halo measures by itself."""
    has_window: bool = True
    """Whether warm-up and seconds mean anything to it."""


def _row(name: str, *paths: str) -> Row:
    return Row(name=name, paths=paths)


_OTHERS = _row("cores used by others", "others_cores")
_COSTS = (
    _row("CPU of server and Postgres, µs a message", "server_cpu_us", "postgres_cpu_us"),
    _row("CPU of the server, µs", "server_cpu_us"),
    _row("CPU of Postgres, µs", "postgres_cpu_us"),
    _row("CPU of Valkey, µs", "valkey_cpu_us"),
)
_MESSAGES = (
    _row("acknowledged, 1/s", "acks_per_second"),
    _row("ack p50, ms", "ack_ms.p50"),
    _row("ack p99, ms", "ack_ms.p99"),
    _row("ack p99.9, ms", "ack_ms.p999"),
    _row("delivery p99, ms", "delivery_ms.p99"),
    *_COSTS,
    _row("memory of the server, MiB", "server_rss_mib"),
    _row("statements a message", "statements_each"),
    _row("WAL bytes a message", "wal_bytes_each"),
    _row("CPU of the client, µs", "client_cpu_us"),
    _row("client late p99, ms", "client_lag_ms.p99"),
    _OTHERS,
)
PING: Final = ("server_cpu_us", "valkey_cpu_us", "postgres_cpu_us")
_PINGS = (
    _row("answers, 1/s", "requests_per_second"),
    _row("p50, ms", "latency_ms.p50"),
    _row("p99, ms", "latency_ms.p99"),
    _row("CPU of server, Valkey and Postgres, µs a ping", *PING),
    _row("CPU of the server, µs", "server_cpu_us"),
    _row("CPU of Valkey, µs", "valkey_cpu_us"),
    _row("CPU of Postgres, µs", "postgres_cpu_us"),
    _row("statements a ping", "statements_each"),
    _OTHERS,
)
_IDLE = (
    _row("connects, 1/s", "connects_per_second"),
    _row("CPU of the server, µs a connect", "server_cpu_us_per_connect"),
    _row("memory a connection, KiB", "rss_kib_per_connection"),
    _row("memory a pair with its session (halo: and a lobby), KiB", "rss_kib_per_pair_with_session"),
    _row("CPU, µs a connection and second", "idle_cpu_us_per_connection_second"),
    _OTHERS,
)
_EXTENSIONS = (
    _row("extensions, 1/s", "cycles_per_second"),
    _row("response p50, ms", "response_ms.p50"),
    _row("response p99, ms", "response_ms.p99"),
    _row("CPU of server and Postgres, µs each", "server_cpu_us", "postgres_cpu_us"),
    _row("CPU of the server, µs", "server_cpu_us"),
    _row("CPU of Postgres, µs", "postgres_cpu_us"),
    _row("statements each", "statements_each"),
    _OTHERS,
)
_CEILING = (
    _row("acknowledged, 1/s", "per_second"),
    _row("CPU of the server, µs a message", "server_cpu_us"),
    _row("CPU of Postgres, µs a message", "postgres_cpu_us"),
    _row("frames out for one in", "frames_out_each"),
    _row("ack p50, ms", "p50_ms"),
    _row("ack p99, ms", "p99_ms"),
    _row("cores used by the server", "server_cores"),
    _row("cores used by the client", "client_cores"),
    _OTHERS,
)


def _open(rate: int) -> Cell:
    return Cell(
        name=f"open{rate}",
        what=f"Messages that arrive by chance, {rate:,} a second over 1,000 pairs; latency from the intended moment.",
        targets=RIG_TARGETS,
        reference="node",
        rows=_MESSAGES,
        rig=("--mode", "open", "--pairs", "1000", "--rate", str(rate)),
    )


def _heartbeats(transport: str, what: str) -> Cell:
    return Cell(
        name=f"hb_{transport}",
        what=what,
        targets=RIG_TARGETS,
        reference="node",
        rows=_PINGS,
        rig=("--mode", "heartbeat", "--transport", transport, "--conns", "50"),
    )


OPEN_RATES: Final = (500, 1_500, 3_000)
CELLS: Final = {
    cell.name: cell
    for cell in (
        Cell(
            name="closed50",
            what="Durable messages of 120 characters: 50 pairs, each participant with one in flight.",
            targets=RIG_TARGETS,
            reference="node",
            rows=_MESSAGES,
            rig=("--mode", "closed", "--pairs", "50"),
        ),
        *(_open(rate) for rate in OPEN_RATES),
        Cell(
            name="idle2000",
            what="2,000 pairs connect and stay silent; one whole period of keepalive is watched.",
            targets=RIG_TARGETS,
            reference="node",
            rows=_IDLE,
            rig=("--mode", "idle", "--pairs", "2000", "--hold", "20"),
            has_window=False,
        ),
        _heartbeats("http", "Heartbeats of mitras over HTTP: 50 connections, one in flight each."),
        _heartbeats("ws", "Heartbeats of mitras as frames of the lobby: 50 sockets, one in flight each."),
        Cell(
            name="extension",
            what="200 pairs buy time 20 times each: request, accept, resumed.",
            targets=RIG_TARGETS,
            reference="node",
            rows=_EXTENSIONS,
            rig=("--mode", "extension", "--pairs", "200", "--cycles", "20"),
            has_window=False,
        ),
        Cell(
            name="ceiling",
            what="Stock trio-websocket with nothing behind it, and halo, under one lean client: 50 pairs, one in flight each. "
            "`echo` sends one frame out for one in, `relay` two, as halo must.",
            targets=CEILING_TARGETS,
            reference="echo",
            rows=_CEILING,
        ),
        Cell(
            name="memory",
            what="What 1,000 living sessions with both sockets connected add to the memory of a server, after a whole period of keepalive.",
            targets=("halo",),
            reference="halo",
            rows=(
                _row("a session with both sockets, KB", "session_kb"),
                _row("a session restored, nobody connected, KB", "restored_kb"),
                _OTHERS,
            ),
            has_window=False,
        ),
        Cell(
            name="timers",
            what="10,000 sessions end within one minute, their second of goodbyes in it: 20,000 deadlines, 2,000 sockets that listen.",
            targets=("halo",),
            reference="halo",
            rows=(
                _row("late p99, ms", "late_p99_ms"),
                _row("late p50, ms", "late_p50_ms"),
                _row("late, the worst, ms", "late_max_ms"),
                _row("heard of at a socket p99, ms", "heard_p99_ms"),
                _row("early", "early"),
                _OTHERS,
            ),
            has_window=False,
        ),
        Cell(
            name="reconnect",
            what="2,000 sockets, kill -9, and all of them back at once at the ready line; resumed is a message acknowledged again.",
            targets=("halo",),
            reference="halo",
            rows=(
                _row("ready to the last resumed, s", "resumed_s"),
                _row("ready to half resumed, s", "half_s"),
                _row("ready to the last welcome, s", "welcomed_s"),
                _row("kill to ready, s", "restart_s"),
                _row("tries told to come again", "told_to_wait"),
                _OTHERS,
            ),
            has_window=False,
        ),
    )
}
