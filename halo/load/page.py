"""The report as one HTML page: plots, figures, checks, cost and plan, in one file that needs nothing else, not even a network.

Everything printed is escaped. It must never load anything: it is mailed around, and opened years later. Read next: `halo/load/drawing.py`
and `halo/load/report.html`.
"""

from importlib import resources
from typing import Final

import msgspec
from jinja2 import Environment, StrictUndefined

from halo.load.compare import compare
from halo.load.drawing import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, plots_of
from halo.load.plan import SCENARIOS
from halo.load.record import Record
from halo.load.telling import ABOUT, HEADS, OWN, SHOWN, summary

ROWS_MOST: Final = 120
"""Of the table of seconds; the JSON has them all."""


def page_of(record: Record, other: Record | None) -> str:
    """The whole page; beside `other`, where there is one."""
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string((resources.files("halo.load") / "report.html").read_text(encoding="utf-8"))
    return template.render(
        record=record,
        plan=msgspec.to_builtins(record.plan),
        about=SCENARIOS[record.plan.scenario].about if record.plan.scenario in SCENARIOS else "",
        summary=summary(record),
        plots=plots_of(record, other),
        comparison=None if other is None else compare(record, other),
        names=sorted(record.figures, key=lambda name: (name != record.figure, name in OWN, name)),
        rows=record.slices[:: max(1, -(-len(record.slices) // ROWS_MOST))],
        figure_about=ABOUT,
        shown=list(zip(SHOWN, HEADS, strict=True)),
        paper={"width": WIDTH, "height": HEIGHT, "left": LEFT, "right": RIGHT, "top": TOP, "bottom": BOTTOM},
    )
