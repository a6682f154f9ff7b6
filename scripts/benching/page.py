"""docs/benchmarks.md, out of the book: the goals with their verdicts, where the time goes, and every cell. PURE.

It may name neither a path nor the name of a machine: a page is for everybody. What a person has to say about a missed goal stands in a file of
its own, so that the page can be written anew at any time. Read next: `scripts/benching/goals.py`, `scripts/benching/where_the_time_goes.md`.
"""

import re
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Final

from scripts.benching.book import Book, Run
from scripts.benching.cells import CELLS, Cell, Row
from scripts.benching.goals import Goal, Judgement, judge
from scripts.measuring.page import number

ROUNDS_ASKED_FOR: Final = 5
"""The goals are those of medians of at least so many."""
METHOD: Final = (
    (
        "* Each run has a Postgres, a Valkey and a server of its own; fsync and synchronous_commit are on. The targets of a cell follow one another, in "
        "each round from another beginning. A figure is the median of its rounds, with the smallest and the largest behind it; a ratio is that of two "
        "medians."
    ),
    (
        "* halo runs with the limits lifted that would refuse the load, which comes from one address. The peers have none; they check no signed tokens, "
        "keep a session's status in memory, and recover no timer after a crash. Each of these favours them."
    ),
    (
        "* `ceiling` compares acknowledged messages a second of the server process's own CPU, under one client for all, with one frame out for each that "
        "came in at the echo and two at halo; Postgres is beside it and has a goal of its own."
    ),
)
_SECTION = re.compile(r"^## +(\S+)[ \t]*\n(.*?)(?=^## |\Z)", re.MULTILINE | re.DOTALL)


def page(
    book: Book, circumstances: Mapping[str, str], quiet_cores: float, attempts: int, explanations: Mapping[str, str]
) -> str:
    """The whole page, as Markdown."""
    cells = [cell for cell in CELLS.values() if any(run.cell == cell.name for run in book.runs)]
    judged = judge(book)
    parts = [
        "# Benchmarks",
        "",
        "Written by `scripts/bench`; run it to get your own. Ratios of one run on one machine mean something, figures of two days do not.",
        "",
        "| circumstance | |",
        "|---|---|",
        *(f"| {name} | {value} |" for name, value in circumstances.items()),
        "",
        *_goals(book, judged),
        *_missed(judged, explanations),
        *_method(book, quiet_cores, attempts),
    ]
    for cell in cells:
        parts += _cell(book, cell)
    return "\n".join(parts).rstrip("\n") + "\n"


def parse_explanations(text: str) -> dict[str, str]:
    """Sections of the file of explanations, by the goal that they are named after."""
    return {name: body.strip() for name, body in _SECTION.findall(text) if body.strip()}


def _goals(book: Book, judged: Sequence[Judgement]) -> list[str]:
    lines = ["## Goals", "", "| goal | figure | asked for | verdict |", "|---|---:|---:|---|"]
    lines += [f"| {one.goal.what} | {told(one.figure, one.goal)} | {asked(one)} | {one.verdict} |" for one in judged]
    fewest = min(
        (len(book.of(cell, "halo")) for one in judged if one.figure is not None for cell in one.goal.cells), default=0
    )
    if 0 < fewest < ROUNDS_ASKED_FOR:
        lines += ["", f"Some of these have fewer rounds than the {ROUNDS_ASKED_FOR} that the goals ask for: {fewest}."]
    return [*lines, ""]


def told(figure: float | None, goal: Goal) -> str:
    return "–" if figure is None else f"{number(figure)} {goal.unit}"


def asked(one: Judgement) -> str:
    if one.limit is None:
        return "–"
    return f"{'≥' if one.goal.at_least else '≤'} {number(one.limit)} {one.goal.unit}"


def _missed(judged: Sequence[Judgement], explanations: Mapping[str, str]) -> list[str]:
    missed = [one for one in judged if one.verdict == "missed"]
    if not missed:
        return []
    lines = ["## Missed, and where the time goes", ""]
    for one in missed:
        words = explanations.get(
            one.goal.name,
            f"Nobody has written yet where the time goes: `## {one.goal.name}` in `scripts/benching/where_the_time_goes.md`.",
        )
        fault = f" In halo's own runs: {one.faults}." if one.faults else ""
        lines.append(f"* {one.goal.what}: {told(one.figure, one.goal)}, {asked(one)} asked for.{fault} {words}")
    return [*lines, ""]


def _method(book: Book, quiet_cores: float, attempts: int) -> list[str]:
    again = sum(run.attempts - 1 for run in book.runs)
    noisy = [run for run in book.runs if (run.others_cores or 0.0) > quiet_cores]
    quiet = (
        f"* A run is made again while everything else on the machine used more than {quiet_cores:g} cores during it, at most {attempts} times in all; "
        f"the quietest counts. Runs made again: {again}; of {len(book.runs)} runs {len(noisy)} stayed above."
    )
    lines = ["## How it was measured", "", *METHOD, quiet]
    lines += [
        f"* Not quiet: {_place(run)}, others used {run.others_cores:.2f} cores." for run in noisy if run.others_cores
    ]
    lines += [f"* Failed: {_place(run)}: {_one_line(run.failure)}." for run in book.runs if run.failure]
    return [*lines, ""]


def _place(run: Run) -> str:
    return f"`{run.cell}` of {run.target}, round {run.round + 1}"


def _one_line(words: str) -> str:
    return " ".join(words.split()).rstrip(".")


def _cell(book: Book, cell: Cell) -> list[str]:
    targets = [target for target in cell.targets if book.of(cell.name, target)]
    counts = ", ".join(
        f"{target} {len([run for run in book.of(cell.name, target) if not run.failure])}" for target in targets
    )
    ratios = f" In bold the ratio to {cell.reference}." if cell.reference in targets and len(targets) > 1 else ""
    lines = [f"## {cell.name}", "", f"{cell.what} Rounds: {counts}.{ratios}", ""]
    lines += [f"| | {' | '.join(targets)} |", "|---" + "|---:" * len(targets) + "|"]
    for row in cell.rows:
        shown = [_shown(book, cell, target, row) for target in targets]
        if any(one != "–" for one in shown):
            lines.append(f"| {row.name} | {' | '.join(shown)} |")
    faults = [
        sorted({"failed" if run.failure else run.faults for run in book.of(cell.name, target)} - {""})
        for target in targets
    ]
    lines.append(f"| lost, repeated, refused | {' | '.join('; '.join(one) or 'nothing' for one in faults)} |")
    return [*lines, ""]


def _shown(book: Book, cell: Cell, target: str, row: Row) -> str:
    values = book.values(cell.name, target, *row.paths)
    if not values:
        return "–"
    spread = f" ({number(min(values))}–{number(max(values))})" if len(values) > 1 else ""
    ratio = None if target == cell.reference else book.ratio(cell.name, target, cell.reference, *row.paths)
    return number(median(values)) + spread + ("" if ratio is None or "others" in row.name else f" **{ratio:.2f}×**")
