"""The goals of the benchmark, in one table, and how each is judged by the book. PURE.

A goal that was not measured is neither met nor missed. Where halo's own runs lost, repeated or refused something, or failed, its figures do
not count as met, however good: fast and wrong is no result. Read next: `scripts/benching/page.py`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from scripts.benching.book import Book
from scripts.benching.cells import OPEN_RATES, PEERS, PING

CPU: Final = ("server_cpu_us", "postgres_cpu_us")
"""Of a message: a server that moves its work into Postgres has not saved it."""
Measured = Callable[[Book], float | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Goal:
    """One line of the table."""

    name: str
    """Short and lasting: sentences about where the time goes refer to it."""
    what: str
    cells: tuple[str, ...]
    """Where halo's runs must be without a fault."""
    measured: Measured
    limit: float | Measured
    unit: str
    at_least: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """What the book says of a goal."""

    goal: Goal
    figure: float | None
    limit: float | None
    faults: str

    @property
    def verdict(self) -> str:
        if self.figure is None or self.limit is None:
            return "not measured"
        reached = self.figure >= self.limit if self.goal.at_least else self.figure <= self.limit
        return "met" if reached and not self.faults else "missed"


def judge(book: Book) -> list[Judgement]:
    """Every goal, in the order of the table."""
    judged = []
    for goal in GOALS:
        limit = goal.limit if isinstance(goal.limit, int | float) else goal.limit(book)
        judged.append(Judgement(goal=goal, figure=goal.measured(book), limit=limit, faults=faults_in(book, goal.cells)))
    return judged


def faults_in(book: Book, cells: tuple[str, ...]) -> str:
    """What went wrong in halo's own runs of these cells; empty when nothing did."""
    runs = [run for cell in cells for run in book.of(cell, "halo")]
    return "; ".join(
        f"{run.cell}, round {run.round + 1}: {run.failure or run.faults}" for run in runs if run.failure or run.faults
    )


def ceiling_share(book: Book) -> float | None:
    """Acknowledged messages a second of server CPU, halo's to the bare echo's, in per cent."""
    echo, halo = book.median("ceiling", "echo", "server_cpu_us"), book.median("ceiling", "halo", "server_cpu_us")
    return 100 * echo / halo if echo is not None and halo else None


def ping_ratio(book: Book) -> float | None:
    """halo's frame of the lobby to the node peer's request."""
    halo, node = book.median("hb_ws", "halo", *PING), book.median("hb_http", "node", *PING)
    return halo / node if halo is not None and node else None


def _ratio(cell: str, to: str, *paths: str) -> Measured:
    return lambda book: book.ratio(cell, "halo", to, *paths)


def _median(cell: str, *paths: str) -> Measured:
    return lambda book: book.median(cell, "halo", *paths)


def _better(cell: str, path: str) -> Measured:
    """Of the two peers; None unless both were measured, since the better of one is not what was asked for."""

    def better(book: Book) -> float | None:
        found = [book.median(cell, peer, path) for peer in PEERS]
        known = [one for one in found if one is not None]
        return min(known) if len(known) == len(PEERS) else None

    return better


def _against(peer: str, at_least: float, at_most: float) -> tuple[Goal, ...]:
    return (
        Goal(
            name=f"closed50-rate-{peer}",
            what=f"`closed50`: acknowledged messages a second, to {peer}",
            cells=("closed50",),
            measured=_ratio("closed50", peer, "acks_per_second"),
            limit=at_least,
            unit="×",
            at_least=True,
        ),
        Goal(
            name=f"closed50-cpu-{peer}",
            what=f"`closed50`: CPU of server and Postgres a message, to {peer}",
            cells=("closed50",),
            measured=_ratio("closed50", peer, *CPU),
            limit=at_most,
            unit="×",
        ),
    )


def _open_goals(rate: int) -> tuple[Goal, ...]:
    cell = f"open{rate}"
    late = tuple(
        Goal(
            name=f"{cell}-{path.rpartition('.')[2]}",
            what=f"`{cell}`: {said} of the ack, the better of node and asyncio",
            cells=(cell,),
            measured=_median(cell, path),
            limit=_better(cell, path),
            unit="ms",
        )
        for path, said in (("ack_ms.p99", "p99"), ("ack_ms.p999", "p99.9"))
    )
    cpu = Goal(
        name=f"{cell}-cpu",
        what=f"`{cell}`: CPU of server and Postgres a message, to node",
        cells=(cell,),
        measured=_ratio(cell, "node", *CPU),
        limit=0.8,
        unit="×",
    )
    return (*late, cpu)


def _postgres(cell: str) -> Goal:
    return Goal(
        name=f"{cell}-postgres",
        what=f"`{cell}`: CPU of Postgres a message, to node",
        cells=(cell,),
        measured=_ratio(cell, "node", "postgres_cpu_us"),
        limit=0.2,
        unit="×",
    )


GOALS: Final = (
    *_against("node", 1.3, 0.65),
    *_against("asyncio", 1.7, 0.5),
    Goal(
        name="ceiling",
        what="`ceiling`: acknowledged messages a second of server CPU, to the bare echo of trio-websocket",
        cells=("ceiling",),
        measured=ceiling_share,
        limit=60.0,
        unit="%",
        at_least=True,
    ),
    *(goal for rate in OPEN_RATES for goal in _open_goals(rate)),
    *(_postgres(cell) for cell in ("closed50", *(f"open{rate}" for rate in OPEN_RATES))),
    Goal(
        name="ping",
        what="CPU of server, Valkey and Postgres a heartbeat: `hb_ws` of halo, to `hb_http` of node",
        cells=("hb_ws",),
        measured=ping_ratio,
        limit=0.5,
        unit="×",
    ),
    Goal(
        name="memory",
        what="`memory`: a connected idle session, both sockets",
        cells=("memory",),
        measured=_median("memory", "session_kb"),
        limit=80.0,
        unit="KB",
    ),
    Goal(
        name="timers",
        what="`timers`: lateness, 99 of 100 deadlines",
        cells=("timers",),
        measured=_median("timers", "late_p99_ms"),
        limit=50.0,
        unit="ms",
    ),
    Goal(
        name="timers-early",
        what="`timers`: deadlines that were kept early, of all rounds",
        cells=("timers",),
        measured=lambda book: max(book.values("timers", "halo", "early"), default=None),
        limit=0.0,
        unit="deadlines",
    ),
    Goal(
        name="reconnect",
        what="`reconnect`: 2,000 sockets after kill -9, ready to the last resumed",
        cells=("reconnect",),
        measured=_median("reconnect", "resumed_s"),
        limit=10.0,
        unit="s",
    ),
)
