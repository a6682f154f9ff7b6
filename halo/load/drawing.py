"""Plots of a run as plain SVG: figures over time, work over time, and latency by percentile, on paper of a fixed size. PURE.

Latency is drawn on a logarithmic scale, because a storm and its quiet lie a thousandfold apart; work from nought. What is not known is a gap,
never a nought. The same numbers stand beside as a table. Read next: `halo/load/page.py`, which puts them on the page.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Final, NamedTuple

from halo.load.hdr import Hdr
from halo.load.record import Record, Slice
from halo.net.status.charts import number, round_up

WIDTH: Final = 640
HEIGHT: Final = 240
LEFT, RIGHT, TOP, BOTTOM = 66, 628, 14, 206
TICKS_ACROSS: Final = 6
POINTS_MOST: Final = 600
"""More than the paper has room for; of more seconds the worst of several is drawn."""
DECADES_LEAST: Final = 1
BESIDE: Final = frozenset({"ack", "delivery", "connect", "resume", "lateness"})
"""Figures that are drawn over time beside the scenario's own, where they lasted longer than a second."""
NINES: Final = (0.0, 90.0, 99.0, 99.9, 99.99, 99.999)


class Tick(NamedTuple):
    """A number beside an axis, and where."""

    place: float
    label: str


class Line(NamedTuple):
    """One line, in unbroken pieces of points, with the number of its colour and its name."""

    colour: int
    name: str
    pieces: tuple[str, ...]


class Plot(NamedTuple):
    """One picture."""

    title: str
    unit: str
    lines: tuple[Line, ...]
    across: tuple[Tick, ...]
    up: tuple[Tick, ...]
    marks: tuple[Tick, ...]
    """What happened, and when."""
    under: str
    about: str
    """One sentence for those who do not see the lines."""


def plots_of(record: Record, other: Record | None) -> tuple[Plot, ...]:
    """All pictures of a run, the other's lines beside where there is one."""
    plots = [latency_over_time(record, record.figure)] if record.figure in record.figures else []
    plots.append(work_over_time(record))
    plots += [latency_by_percentile(record, other)] if record.figures else []
    plots += [
        latency_over_time(record, name)
        for name in record.figures
        if name in BESIDE and name != record.figure and sum(name in row.max_ms for row in record.slices) > 1
    ]
    return tuple(plots)


def latency_over_time(record: Record, figure: str) -> Plot:
    """Median, 99th percentile and greatest, second by second."""
    rows = _thinned(record.slices)
    greatest = [row.max_ms.get(figure) for row in rows]
    known = [value for value in greatest if value]
    scale, up = _logarithmic(
        min((row.p50_ms[figure] for row in rows if row.p50_ms.get(figure)), default=1), max(known, default=1)
    )
    across, ticks = _seconds(record.slices)
    kinds: tuple[tuple[str, Callable[[Slice], float | None]], ...] = (
        ("median", lambda row: row.p50_ms.get(figure)),
        ("p99", lambda row: row.p99_ms.get(figure)),
        ("greatest", lambda row: row.max_ms.get(figure)),
    )
    lines = tuple(
        Line(
            colour,
            name,
            _pieces([(across(row.at + 0.5), value and scale(value)) for row in rows for value in (read(row),)]),
        )
        for colour, (name, read) in enumerate(kinds, 1)
    )
    worst = max(known, default=0)
    return Plot(
        f"{figure} over time", "ms", lines, ticks, up, _marks(record, across), "seconds",
        f"{figure} in ms, second by second: the worst took {number(worst)} ms.",
    )  # fmt: skip


def work_over_time(record: Record) -> Plot:
    """How much was done each second."""
    rows = record.slices
    across, ticks = _seconds(rows)
    top = round_up(max((row.counts.get(record.counted, 0) for row in rows), default=0))
    points = [(across(row.at + 0.5), _linear(row.counts.get(record.counted, 0), top)) for row in rows]
    up = tuple(Tick(_linear(top * part, top), number(top * part)) for part in (0.0, 0.5, 1.0))
    return Plot(
        f"{record.counted} over time", "per second", (Line(1, record.counted, _pieces(points)),), ticks, up,
        _marks(record, across), "seconds", f"{record.counted} each second; {number(record.per_second)} a second over all.",
    )  # fmt: skip


def latency_by_percentile(record: Record, other: Record | None) -> Plot:
    """The main figure: what part of all took at most how long, each further nine as wide as the last."""
    from_here = _curve(record)
    curves = [(1, "this run", from_here)]
    if other is not None and record.figure in other.figures:
        curves.append((2, "the other run", _curve(other)))
    values = [value for _, _, curve in curves for _, value in curve if value > 0]
    scale, up = _logarithmic(min(values, default=1), max(values, default=1))
    widest = max((_nines(part) for _, _, curve in curves for part, _ in curve), default=1.0)
    across = _span(0.0, max(1.0, widest))
    lines = tuple(
        Line(colour, name, _pieces([(across(_nines(part)), scale(value)) for part, value in curve if value > 0]))
        for colour, name, curve in curves
    )
    ticks = tuple(Tick(across(_nines(part)), f"{part:g}") for part in NINES if _nines(part) <= max(1.0, widest))
    return Plot(
        f"{record.figure} by percentile", "ms", lines, ticks, up, (), "percentile",
        f"{record.figure} in ms by percentile, from the least to the greatest.",
    )  # fmt: skip


def _curve(record: Record) -> list[tuple[float, float]]:
    """`(percentile, ms)`; the greatest stands in the middle of its rank, since nothing lies at 100 %."""
    histogram = Hdr.decoded(record.figures[record.figure].hdr)
    last = 100 - 50 / max(1, histogram.total)
    return [(min(part, last), value / 1000) for part, value in histogram.curve()]


def _nines(part: float) -> float:
    """0 at 0 %, 1 at 90 %, 2 at 99 %."""
    return -math.log10(max(1e-6, 1 - part / 100))


def _thinned(rows: Sequence[Slice]) -> list[Slice]:
    step = max(1, -(-len(rows) // POINTS_MOST))
    if step == 1:
        return list(rows)
    groups = [rows[at : at + step] for at in range(0, len(rows), step)]
    return [
        Slice(
            at=group[0].at,
            counts={},
            p50_ms=_worst(row.p50_ms for row in group),
            p99_ms=_worst(row.p99_ms for row in group),
            max_ms=_worst(row.max_ms for row in group),
        )
        for group in groups
    ]


def _worst(many: Iterable[dict[str, float]]) -> dict[str, float]:
    worst: dict[str, float] = {}
    for values in many:
        for name, value in values.items():
            worst[name] = max(value, worst.get(name, 0.0))
    return worst


def _seconds(rows: Sequence[Slice]) -> tuple[Callable[[float], float], tuple[Tick, ...]]:
    last = max((row.at + 1 for row in rows), default=1)
    across = _span(0.0, last)
    step = max(1, round(round_up(last / TICKS_ACROSS)))
    return across, tuple(Tick(across(at), str(at)) for at in range(0, last + 1, step))


def _span(least: float, most: float) -> Callable[[float], float]:
    return lambda value: LEFT + (value - least) / (most - least) * (RIGHT - LEFT)


def _linear(value: float, top: float) -> float:
    return BOTTOM - value / top * (BOTTOM - TOP)


def _logarithmic(least: float, most: float) -> tuple[Callable[[float], float], tuple[Tick, ...]]:
    """A scale of whole decades, and its ticks."""
    low = math.floor(math.log10(max(least, 1e-3)))
    high = max(low + DECADES_LEAST, math.ceil(math.log10(max(most, 1e-3))))

    def scale(value: float) -> float:
        place = (math.log10(max(value, 10.0**low)) - low) / (high - low)
        return BOTTOM - min(1.0, place) * (BOTTOM - TOP)

    return scale, tuple(Tick(scale(10.0**power), f"{10.0**power:g}") for power in range(low, high + 1))


def _pieces(points: Iterable[tuple[float, float | None]]) -> tuple[str, ...]:
    pieces: list[list[str]] = [[]]
    for x, y in points:
        if y is None:
            pieces.append([])
        else:
            pieces[-1].append(f"{x:.1f},{y:.1f}")
    return tuple(" ".join(piece if len(piece) > 1 else piece * 2) for piece in pieces if piece)


def _marks(record: Record, across: Callable[[float], float]) -> tuple[Tick, ...]:
    return tuple(Tick(across(at), what) for at, what in record.events)
