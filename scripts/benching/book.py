"""The book of a benchmark: every run that was made, so that medians, ratios and what went wrong can be read out of it. PURE.

A run that failed or that lost, repeated or reordered something is in the book and stays visible; a run that failed has no figures. Must never
mix what the same name measured in two cells. Read next: `scripts/benching/goals.py`, which judges by it.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any, Final

COUNTED_FAULTS: Final = (
    "unacked",
    "undelivered",
    "ack_twice",
    "delivered_twice",
    "out_of_order",
    "misdelivered",
    "seq_not_rising",
    "refused",
)
NAMED_FAULTS: Final = ("refusals", "closes", "errors")
"""What the rig's client counts: numbers of their own, and numbers by code. `connect_retries` is no loss."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One target under one load, once."""

    round: int
    cell: str
    target: str
    result: Mapping[str, Any]
    attempts: int
    """How often it was made until it was quiet enough, or until patience ended; the quietest is the one here."""
    at: str

    @property
    def failure(self) -> str:
        """Why there are no figures; empty when there are."""
        return str(self.result.get("failed", ""))

    @property
    def others_cores(self) -> float | None:
        """What everything else on the machine used meanwhile."""
        return pick(self.result, "others_cores")

    @property
    def faults(self) -> str:
        """What was lost, repeated, reordered, refused or closed; empty when nothing was."""
        check = self.result.get("check") or self.result
        said = [f"{name} {check[name]}" for name in COUNTED_FAULTS if check.get(name)]
        said += [f"{name} {check[name]}" for name in NAMED_FAULTS if check.get(name)]
        if check.get("clean") is False and not said:
            said.append(f"stored rows {check.get('stored')} for {check.get('acked')} acks")
        return ", ".join(said)


@dataclass(slots=True)
class Book:
    """All runs."""

    runs: list[Run] = field(default_factory=list)

    def has(self, number: int, cell: str, target: str) -> bool:
        """Whether that run was made and did not fail."""
        return any((run.round, run.cell, run.target) == (number, cell, target) for run in self.runs if not run.failure)

    def add(self, run: Run) -> None:
        """In place of one that failed."""
        place = (run.round, run.cell, run.target)
        self.runs = [other for other in self.runs if (other.round, other.cell, other.target) != place]
        self.runs.append(run)

    def of(self, cell: str, target: str) -> list[Run]:
        """In the order of the rounds."""
        return sorted((run for run in self.runs if (run.cell, run.target) == (cell, target)), key=lambda run: run.round)

    def values(self, cell: str, target: str, *paths: str) -> list[float]:
        """The sum of `paths` in each round that has all of them."""
        found = ([pick(run.result, path) for path in paths] for run in self.of(cell, target) if not run.failure)
        return [sum(one for one in row if one is not None) for row in found if all(one is not None for one in row)]

    def median(self, cell: str, target: str, *paths: str) -> float | None:
        """None when it was not measured."""
        values = self.values(cell, target, *paths)
        return median(values) if values else None

    def ratio(self, cell: str, target: str, to: str, *paths: str) -> float | None:
        """Of the medians, which stand side by side because the runs alternated; None when either was not measured."""
        mine, base = self.median(cell, target, *paths), self.median(cell, to, *paths)
        return mine / base if mine is not None and base else None

    def record(self) -> list[dict[str, Any]]:
        """For programs, and for `read_book`."""
        return [asdict(run) for run in self.runs]


def read_book(record: list[dict[str, Any]]) -> Book:
    """Raises TypeError for what `Book.record` has not made."""
    return Book([Run(**run) for run in record])


def pick(result: Mapping[str, Any], path: str) -> float | None:
    """A number deep in a result, by the names on the way: `ack_ms.p99`."""
    found: Any = result
    for name in path.split("."):
        found = found.get(name) if isinstance(found, Mapping) else None
    return float(found) if isinstance(found, int | float) and not isinstance(found, bool) else None
