"""What a run looks like while it lasts: a live table on a terminal, plain lines anywhere else.

It is drawn in the conductor's process, which makes no load. It must never print more than once a second into a log. Read next:
`halo/load/telling.py`, what is said at the end.
"""

import time
from collections import deque
from types import TracebackType
from typing import Final, Self, TextIO

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from halo.load.judging import unit_of
from halo.load.plan import SCENARIOS, Plan
from halo.load.record import Tally

LINE_SECONDS: Final = 5.0
"""Between two plain lines about the same work."""
BARS: Final = " ▁▂▃▄▅▆▇█"
WIDTH: Final = 60
"""Seconds in the little curve."""


class Lines:
    """For logs and pipes."""

    def __init__(self, out: TextIO, *, is_quiet: bool = False) -> None:
        self._out = out
        self._is_quiet = is_quiet
        self._said = ""
        self._said_at = 0.0
        self._plan: Plan | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, fault: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._out.flush()

    def doing(self, what: str, done: int = 0, of: int = 0) -> None:
        if what != self._said or time.monotonic() - self._said_at > LINE_SECONDS:
            self._said, self._said_at = what, time.monotonic()
            self._line(f"{what} …" if done in {0, of} else f"{what}: {done:,} of {of:,}")

    def began(self, plan: Plan) -> None:
        self._plan = plan
        self._line(f"{plan.scenario} begins, for {plan.seconds:g} s")

    def second(self, at: float, tally: Tally) -> None:
        if self._plan is not None and time.monotonic() - self._said_at > LINE_SECONDS:
            self._said, self._said_at = "", time.monotonic()
            unit, figure = unit_of(self._plan), SCENARIOS[self._plan.scenario].figure
            latest = tally.latest.get(figure)
            p99 = f", {figure} p99 {latest.percentile(99) / 1000:.1f} ms" if latest else ""
            self._line(f"{at:6.1f} s  {tally.counts[unit]:,} {unit}{p99}")

    def event(self, at: float, what: str) -> None:
        self._line(f"{at:6.1f} s  {what}")

    def _line(self, text: str) -> None:
        if not self._is_quiet:
            print(text, file=self._out, flush=True)  # progress belongs to the terminal of who asked


class Screen:
    """For a terminal: what is done, how far, and the latencies so far."""

    def __init__(self, console: Console | None = None) -> None:
        self._live = Live(console=console or Console(stderr=True), refresh_per_second=4, transient=True)
        self._plan: Plan | None = None
        self._doing = ""
        self._at = 0.0
        self._tally: Tally | None = None
        self._rates: deque[int] = deque(maxlen=WIDTH)
        self._before = 0
        self._events: list[str] = []

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, fault: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()

    def doing(self, what: str, done: int = 0, of: int = 0) -> None:
        self._doing = what if not of else f"{what}  {done:,} of {of:,}"
        self._draw()

    def began(self, plan: Plan) -> None:
        self._plan, self._doing = plan, ""
        self._draw()

    def second(self, at: float, tally: Tally) -> None:
        self._at, self._tally = at, tally
        if self._plan is not None:
            now = tally.counts[unit_of(self._plan)]
            self._rates.append(now - self._before)
            self._before = now
        self._draw()

    def event(self, at: float, what: str) -> None:
        self._events.append(f"{at:.1f} s {what}")
        self._draw()

    def refresh(self) -> None:
        """Show it now, not at the next quarter of a second."""
        self._live.refresh()

    def _draw(self) -> None:
        parts: list[Text | Table] = []
        if self._plan is not None:
            head = f"{self._plan.scenario}  {min(self._at, self._plan.seconds):.0f} of {self._plan.seconds:g} s"
            parts.append(Text(head, style="bold"))
        if self._tally is not None and self._plan is not None:
            parts += [
                Text(f"{curve(self._rates)}  {self._rates[-1] if self._rates else 0:,}/s {unit_of(self._plan)}"),
                table(self._tally),
            ]
        parts += [Text(event, style="yellow") for event in self._events[-3:]]
        if self._doing:
            parts.append(Text(f"{self._doing} …", style="dim"))
        self._live.update(Group(*parts))


def curve(values: deque[int]) -> str:
    """The last minute in one line."""
    most = max(values, default=0) or 1
    return "".join(BARS[round(value / most * (len(BARS) - 1))] for value in values)


def table(tally: Tally) -> Table:
    """All figures so far, in ms."""
    drawn = Table(box=None, pad_edge=False)
    drawn.add_column("ms")
    for head in ("count", "p50", "p99", "p99.9", "max"):
        drawn.add_column(head, justify="right")
    for name, histogram in sorted(tally.latest.items()):
        cells = [histogram.percentile(part) / 1000 for part in (50, 99, 99.9)] + [histogram.highest / 1000]
        drawn.add_row(name, f"{histogram.total:,}", *(f"{cell:.2f}" for cell in cells))
    return drawn
