"""Drawings of figures: lines over scales of powers of ten, as an SVG that can be read on white and on black. PURE.

No script, no font of its own, no address: a picture is for everybody, and for a page that shows it as a file. Every line has its name at its
end, so that nobody needs to tell colours apart. Read next: `scripts/measuring/growth.py`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from math import ceil, floor, log10
from typing import Final

WIDTH: Final = 860
HEIGHT: Final = 440
LEFT, RIGHT, TOP, BOTTOM = 64, 300, 48, 52
LABEL_PIXELS: Final = 16
"""Names at the ends of lines are never closer."""
COLOURS: Final = ("a", "b", "c", "d", "e")
STYLE: Final = """
text{font:13px system-ui,sans-serif;fill:#24292f}.title{font-weight:600;font-size:15px}.grid{stroke:#d0d7de}.linear{stroke:#6e7781;stroke-dasharray:3 5}
path{fill:none;stroke-width:2}.a{stroke:#0550ae}.b{stroke:#953800}.c{stroke:#116329}.d{stroke:#8250df}.e{stroke:#a40e26}
.pa{fill:#0550ae}.pb{fill:#953800}.pc{fill:#116329}.pd{fill:#8250df}.pe{fill:#a40e26}
@media(prefers-color-scheme:dark){text{fill:#e6edf3}.grid{stroke:#30363d}.linear{stroke:#8b949e}
.a{stroke:#79c0ff}.b{stroke:#ffa657}.c{stroke:#7ee787}.d{stroke:#d2a8ff}.e{stroke:#ff7b72}
.pa{fill:#79c0ff}.pb{fill:#ffa657}.pc{fill:#7ee787}.pd{fill:#d2a8ff}.pe{fill:#ff7b72}}
"""


@dataclass(frozen=True, slots=True)
class Line:
    """A name and its points, from left to right."""

    name: str
    points: tuple[tuple[float, float], ...]


class _Scale:
    """Powers of ten over so many pixels."""

    def __init__(self, values: Sequence[float], begin: float, end: float) -> None:
        self.low = floor(log10(min(values)))
        self.high = max(self.low + 1, ceil(log10(max(values))))
        self._begin, self._end = begin, end

    def at(self, value: float) -> float:
        return self._begin + (log10(value) - self.low) / (self.high - self.low) * (self._end - self._begin)

    def powers(self) -> list[float]:
        return [10.0**power for power in range(self.low, self.high + 1)]


def draw(title: str, below: str, lines: Sequence[Line]) -> str:
    """An SVG. Points whose value is not above zero are left out: a power of ten cannot show them.

    Raises:
        ValueError: there is nothing to draw, or more lines than colours.
    """
    seen = [Line(line.name, tuple(point for point in line.points if point[1] > 0)) for line in lines]
    points = [point for line in seen for point in line.points]
    if not points or len(lines) > len(COLOURS):
        raise ValueError("nothing can be drawn")
    across = _Scale([x for x, _ in points], LEFT, WIDTH - RIGHT)
    up = _Scale([y for _, y in points], HEIGHT - BOTTOM, TOP)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">',
        f"<style>{STYLE}</style>",
        f'<text class="title" x="{LEFT}" y="24">{escape(title)}</text>',
        *_grid(across, up, below),
        *_curves(seen, across, up),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def _grid(across: _Scale, up: _Scale, below: str) -> list[str]:
    parts: list[str] = []
    for value in across.powers():
        x = across.at(value)
        parts.append(f'<line class="grid" x1="{x:.1f}" y1="{TOP}" x2="{x:.1f}" y2="{HEIGHT - BOTTOM}"/>')
        parts.append(f'<text x="{x:.1f}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{value:,g}</text>')
    for value in up.powers():
        y = up.at(value)
        parts.append(f'<line class="grid" x1="{LEFT}" y1="{y:.1f}" x2="{WIDTH - RIGHT}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{value:,g}</text>')
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(
        f'<text x="{middle:.0f}" y="{HEIGHT - 12}" text-anchor="middle">{escape(below)} (dotted: linear growth)</text>'
    )
    decades = min(across.high - across.low, up.high - up.low)
    first, last = (
        (across.at(10.0**across.low), up.at(10.0**up.low)),
        (
            across.at(10.0 ** (across.low + decades)),
            up.at(10.0 ** (up.low + decades)),
        ),
    )
    line = f'x1="{first[0]:.1f}" y1="{first[1]:.1f}" x2="{last[0]:.1f}" y2="{last[1]:.1f}"'
    parts.append(f'<line class="linear" {line}><title>linear growth</title></line>')
    return parts


def _curves(lines: Sequence[Line], across: _Scale, up: _Scale) -> list[str]:
    parts: list[str] = []
    ends: list[tuple[float, str, str]] = []
    for colour, line in zip(COLOURS, lines, strict=False):
        placed = [(across.at(x), up.at(y)) for x, y in line.points]
        if not placed:
            continue
        parts.append(f'<path class="{colour}" d="M{" L".join(f"{x:.1f},{y:.1f}" for x, y in placed)}"/>')
        parts += [f'<circle class="p{colour}" cx="{x:.1f}" cy="{y:.1f}" r="3.5"/>' for x, y in placed]
        ends.append((placed[-1][1], colour, line.name))
    lowest = 0.0
    for end, colour, name in sorted(ends):
        lowest = max(end, lowest + LABEL_PIXELS)
        parts.append(f'<text class="p{colour}" x="{WIDTH - RIGHT + 12}" y="{lowest + 4:.1f}">{escape(name)}</text>')
    return parts
