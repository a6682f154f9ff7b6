"""How figures are shown: a table for the terminal, a page for the documentation. PURE.

Neither may name a path or the name of a machine: a page is for everybody. Read next: `scripts/measuring/__main__.py`.
"""

from collections.abc import Mapping, Sequence

from scripts.measuring.figures import Figure, Measurement

COLUMNS = ("figure", "min", "median", "max", "goal", "verdict")


def number(value: float) -> str:
    """Three digits that mean something, whatever the size."""
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def cells(figure: Figure) -> tuple[str, ...]:
    goal = "–" if figure.goal is None else f"≤ {figure.goal:g}"
    spread = (number(value) for value in (min(figure.rounds), figure.median, max(figure.rounds)))
    return (f"{figure.name}, {figure.unit}", *spread, goal, figure.verdict)


def table(measurements: Sequence[Measurement]) -> str:
    """For the terminal: aligned columns, a title over each part."""
    lines: list[str] = []
    for measurement in measurements:
        rows = [COLUMNS, *(cells(figure) for figure in measurement.figures)]
        widths = [max(len(row[column]) for row in rows) for column in range(len(COLUMNS))]
        lines += ["", measurement.title]
        for row in rows:
            name, *rest = (
                cell.ljust(width) if not column else cell.rjust(width)
                for column, (cell, width) in enumerate(zip(row, widths, strict=True))
            )
            lines.append("  " + "  ".join((name, *rest)))
        lines += [f"  {note}" for note in measurement.notes]
    return "\n".join(lines).lstrip("\n") + "\n"


def page(measurements: Sequence[Measurement], circumstances: Mapping[str, str]) -> str:
    """For the documentation, as Markdown."""
    lines = [
        "# Measurements",
        "",
        "Written by `scripts/measure`; run it to get your own. A figure is the median of its rounds.",
        "",
    ]
    lines += ["| circumstance | |", "|---|---|", *(f"| {name} | {value} |" for name, value in circumstances.items())]
    for measurement in measurements:
        lines += ["", f"## {measurement.title}", "", f"| {' | '.join(COLUMNS)} |", "|---" + "|---:" * 4 + "|---|"]
        lines += [f"| {' | '.join(cells(figure))} |" for figure in measurement.figures]
        for drawing in measurement.drawings:
            lines += ["", f"![{drawing.shows}](images/{drawing.name}.svg)"]
        lines += [""] * bool(measurement.notes) + [f"* {note}" for note in measurement.notes]
    return "\n".join(lines) + "\n"
