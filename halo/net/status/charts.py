"""Small charts as plain SVG: numbers to points on a paper of fixed size, with axes that end in round numbers.

Pure; the template `charts.html` draws what comes out, and the same numbers stand beside it as a table. What is not known is a gap in the
line, never a nought. Read next: `halo/actors/history.py`, where the figures come from.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from halo.actors.history import Sample
from halo.clock import Moment, rfc3339

WIDTH, HEIGHT = 360, 150
LEFT, RIGHT, TOP, BOTTOM = 44, 352, 10, 126
"""The paper, and the frame in which the line runs; the rest is for the numbers beside it."""
HOUR_MS: Final = 3_600_000
QUARTER_MS: Final = 900_000
GAP_MS: Final = 25_000
"""Two samples that are further apart had one between them that is missing."""
ROWS: Final = 12
"""Of the table: five minutes each."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """One figure: what it is called, its unit, and where it stands in a sample."""

    id: str
    title: str
    unit: str
    read: Callable[[Sample], float | None]


SERIES: Final = (
    Series(id="sessions", title="Living sessions of this node", unit="sessions", read=lambda s: s.sessions),
    Series(id="messages", title="Messages stored", unit="per second", read=lambda s: s.messages_per_second),
    Series(id="commit", title="A commit of messages takes", unit="ms on average", read=lambda s: s.commit_ms),
    Series(id="postgres", title="Postgres answers in", unit="ms", read=lambda s: s.postgres_ms),
    Series(id="lag", title="Event loop late by at most", unit="ms", read=lambda s: s.lag_ms),
    Series(id="available", title="Mitras available", unit="mitras", read=lambda s: s.mitras_available),
)


@dataclass(frozen=True, slots=True)
class Tick:
    """A number beside an axis, and where."""

    place: float
    label: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Chart:
    """One figure over the last hour, ready to be drawn."""

    id: str
    title: str
    unit: str
    lines: tuple[str, ...]
    """Points of each unbroken piece."""
    across: tuple[Tick, ...]
    up: tuple[Tick, ...]
    latest: str
    about: str
    """One sentence for those who do not see the line."""


@dataclass(frozen=True, slots=True)
class Row:
    """Five minutes of all figures, each its greatest; None where nothing is known."""

    at: str
    values: tuple[str | None, ...]


def draw(samples: Sequence[Sample], now: Moment) -> tuple[Chart, ...]:
    """All figures over the hour before `now`."""
    return tuple(_draw(series, samples, now) for series in SERIES)


def tabulate(samples: Sequence[Sample], now: Moment) -> tuple[Row, ...]:
    """The same in steps of five minutes, the latest first."""
    step, rows = HOUR_MS // ROWS, []
    for number in range(ROWS):
        until = now - number * step
        inside = [sample for sample in samples if until - step < sample.at <= until]
        if inside:
            rows.append(Row(rfc3339(until - step), tuple(_greatest(series, inside) for series in SERIES)))
    return tuple(rows)


def _greatest(series: Series, samples: Sequence[Sample]) -> str | None:
    known = [value for value in map(series.read, samples) if value is not None]
    return number(max(known)) if known else None


def _draw(series: Series, samples: Sequence[Sample], now: Moment) -> Chart:
    since = now - HOUR_MS
    points = [(sample.at, series.read(sample)) for sample in samples if since <= sample.at <= now]
    known = [value for _, value in points if value is not None]
    top = round_up(max(known, default=0))
    lines: list[list[str]] = [[]]
    before: Moment | None = None
    for at, value in points:
        if value is None or (before is not None and at - before > GAP_MS):
            lines.append([])
        if value is not None:
            x = LEFT + (at - since) / HOUR_MS * (RIGHT - LEFT)
            lines[-1].append(f"{x:.1f},{BOTTOM - value / top * (BOTTOM - TOP):.1f}")
        before = at
    latest = "–" if not points or points[-1][1] is None else number(points[-1][1])
    about = f"{series.title}, {series.unit}, over the last hour. "
    about += (
        f"Now {latest}; least {number(min(known))}, greatest {number(max(known))}."
        if known
        else "Nothing is known yet."
    )
    return Chart(
        id=series.id,
        title=series.title,
        unit=series.unit,
        lines=tuple(" ".join(line if len(line) > 1 else line * 2) for line in lines if line),
        across=_quarters(since, now),
        up=tuple(Tick(BOTTOM - part * (BOTTOM - TOP), number(top * part)) for part in (0.0, 0.5, 1.0)),
        latest=latest,
        about=about,
    )


def _quarters(since: Moment, now: Moment) -> tuple[Tick, ...]:
    """The quarters of an hour, by the clock."""
    first = -(-since // QUARTER_MS) * QUARTER_MS
    return tuple(
        Tick(LEFT + (at - since) / HOUR_MS * (RIGHT - LEFT), rfc3339(at)[11:16])
        for at in range(first, now + 1, QUARTER_MS)
    )


def round_up(value: float) -> float:
    """The next of 1, 2, 4, 6, 8, 10, 20, …, that is not less, so that half of it is round, too; never 0, so that nought has a place."""
    if value <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(value))
    return float(next(step * power for step in (1, 2, 4, 6, 8, 10) if step * power >= value * (1 - 1e-9)))


def number(value: float) -> str:
    """With as many digits as tell something: `0.25`, `7.5`, `12`, `1 250`."""
    if value == round(value) or abs(value) >= 100:
        return f"{round(value):,}".replace(",", "\N{NARROW NO-BREAK SPACE}")
    return f"{value:.1f}" if abs(value) >= 1 else f"{value:.2f}"
