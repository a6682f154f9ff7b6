"""Figures: what was measured, round by round, against its goal. PURE.

A figure is never one number: it has rounds, and the median is what counts, because the machine does other things too. Read next:
`scripts/measuring/page.py`, which prints them.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One measured quantity: a value for each round, and the goal that its median should not pass."""

    name: str
    unit: str
    rounds: tuple[float, ...]
    goal: float | None = None
    """At most this, or None when nobody has set one."""

    def __post_init__(self) -> None:
        if not self.rounds:
            raise ValueError(f"{self.name} was not measured")

    @property
    def median(self) -> float:
        return median(self.rounds)

    @property
    def verdict(self) -> str:
        """`met`, `missed` or `–`: the median against the goal."""
        if self.goal is None:
            return "–"
        return "met" if self.median <= self.goal else "missed"

    def record(self) -> dict[str, Any]:
        """For programs."""
        spread = {"min": min(self.rounds), "median": self.median, "max": max(self.rounds)}
        return asdict(self) | spread | {"verdict": self.verdict}


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawing:
    """Figures as a picture: the name of its file without the ending, what it shows for those who do not see it, and the SVG."""

    name: str
    shows: str
    svg: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """One part of the whole: its figures, and what a reader must know to believe them."""

    title: str
    figures: tuple[Figure, ...]
    notes: tuple[str, ...] = ()
    drawings: tuple[Drawing, ...] = ()

    def record(self) -> dict[str, Any]:
        """For programs."""
        return {"title": self.title, "notes": list(self.notes), "figures": [figure.record() for figure in self.figures]}


def percentile(values: Sequence[float], part: float) -> float:
    """The smallest value that `part` (0 to 1) of all do not exceed. Raises ValueError when there is none."""
    if not values:
        raise ValueError("there is no percentile of nothing")
    position = math.ceil(round(part * len(values), 9))  # 0.07 of 100 is a hair more than 7
    return sorted(values)[max(0, position - 1)]
