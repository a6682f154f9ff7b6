"""`scripts/measure`: the figures that halo is judged by, each from real processes, with its goal and a verdict.

Progress goes to standard error, the table to standard output. Everything is bounded in time. A part that fails says so in
place of its figures, and the exit status is 1, as it is when a goal is missed: a missing figure must not look like a good one. Read next: `scripts/measuring/messages.py`.
"""

import json
import os
import resource
import sys
from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import click
import trio
import trio_asyncio  # noqa: F401 - before psycopg, as in halo/cli.py

from halo.demo.stage import ServerDidNotStart
from halo.log import configure_logging
from scripts.measuring import (
    demo,
    fairness,
    growth,
    heartbeats,
    memory,
    messages,
    metrics,
    mirror,
    outbox,
    pairings,
    reconnect,
    start,
    status,
    storms,
    sweeps,
    timers,
)
from scripts.measuring.circumstances import circumstances
from scripts.measuring.crowd import CrowdLost
from scripts.measuring.demo import StepFailed
from scripts.measuring.figures import Measurement
from scripts.measuring.memory import SocketsMissing
from scripts.measuring.messages import MessagesWrong
from scripts.measuring.metrics import SwitchDidNotWork
from scripts.measuring.mirror import AnswerWrong
from scripts.measuring.outbox import RowsLeft
from scripts.measuring.page import page, table
from scripts.measuring.pairings import PairingLost
from scripts.measuring.reconnect import StormLost
from scripts.measuring.sessions import RowsBroken
from scripts.measuring.start import ServerDidNotStop
from scripts.measuring.status import PageWrong
from scripts.measuring.storms import StormNotOver
from scripts.measuring.sweeps import SweepFailed
from scripts.measuring.talker import SocketLost
from scripts.measuring.timers import DeadlinesLost

ROOT = Path(__file__).resolve().parents[2]
Part = Callable[[Callable[[str], None]], Awaitable[Measurement]]
PARTS: dict[str, tuple[Part, ...]] = {
    "start": (partial(start.measure, sessions=0), partial(start.measure, sessions=start.MANY)),
    "memory": (memory.measure,),
    "messages": (messages.measure,),
    "metrics": (metrics.measure,),
    "mirror": (mirror.measure,),
    "heartbeats": (heartbeats.measure,),
    "sweeps": (sweeps.measure,),
    "pairings": (pairings.measure,),
    "outbox": (outbox.measure,),
    "fairness": (fairness.measure,),
    "timers": (timers.measure,),
    "reconnect": (reconnect.measure,),
    "status": (status.measure,),
    "growth": (growth.measure,),
    "storms": (storms.measure,),
    "demo": (partial(demo.measure, repository=ROOT),),
}
FAULTS = (
    AnswerWrong,
    ServerDidNotStart,
    ServerDidNotStop,
    CrowdLost,
    DeadlinesLost,
    MessagesWrong,
    PageWrong,
    PairingLost,
    RowsBroken,
    RowsLeft,
    SocketLost,
    SocketsMissing,
    StepFailed,
    StormLost,
    StormNotOver,
    SweepFailed,
    SwitchDidNotWork,
)
"""What the server can do wrong while it is measured: then there is no figure, and one sentence says why."""
AT_MOST_SECONDS = 900.0
"""For one part: the longest, the start with 10,000 sessions, takes some minutes."""


def say(sentence: str) -> None:
    click.echo(f"{datetime.now(UTC):%H:%M:%S}  {sentence}", err=True)


async def measure(names: list[str]) -> tuple[list[Measurement], int]:
    """What could be measured, and how many parts could not."""
    measurements, faults = [], 0
    for name in names:
        for part in PARTS[name]:
            load = os.getloadavg()[0]
            try:
                with trio.fail_after(AT_MOST_SECONDS):
                    measured = await part(say)
                note = f"Load of the machine: {load:.1f} before, {os.getloadavg()[0]:.1f} after, on {os.cpu_count()} cores."
                measurements.append(replace(measured, notes=(*measured.notes, note)))
            except (*FAULTS, ExceptionGroup) as raised:
                fault = find_fault(raised)
                if fault is None:
                    raise
                say(f"{type(fault).__name__}: {fault}")
                note = f"Not measured: {type(fault).__name__}. {(type(fault).__doc__ or '').strip()}"
                measurements.append(Measurement(title=f"{name.capitalize()} failed", figures=(), notes=(note,)))
                faults += 1
    return measurements, faults


def find_fault(raised: Exception) -> Exception | None:
    """The fault of the server in what a part has raised, out of its nurseries; None when there is anything else in it."""
    if not isinstance(raised, ExceptionGroup):
        return raised
    faults, others = raised.split(FAULTS)
    found: Exception | None = faults
    while isinstance(found, ExceptionGroup):
        found = found.exceptions[0]
    return None if others is not None else found


def _lift_file_limit() -> None:
    """Two sockets a session, on both sides."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


@click.command(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120})
@click.argument("part", type=click.Choice([*PARTS, "all"]), default="all")
@click.option(
    "--json",
    "json_file",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write the figures here too, for programs.",
)
@click.option(
    "--page",
    "page_file",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write the page docs/measurements.md is.",
)
@click.option(
    "--images",
    "images_dir",
    type=click.Path(file_okay=False, exists=True, path_type=Path),
    help="Write the drawings into this directory.",
)
def main(part: str, json_file: Path | None, page_file: Path | None, images_dir: Path | None) -> None:
    """Measure what issue and specification ask for: start, memory, messages, metrics, mirror, heartbeats, sweeps, pairings, outbox, fairness, timers, reconnect, status, growth, storms, demo, or all of them (some half an hour)."""
    configure_logging("error", "console")
    os.chdir(ROOT)
    _lift_file_limit()
    measurements, faults = trio.run(measure, list(PARTS) if part == "all" else [part])
    told = circumstances(f"scripts/measure {part}")
    if json_file is not None:
        record = {"circumstances": told, "measurements": [measurement.record() for measurement in measurements]}
        json_file.write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    if page_file is not None:
        page_file.write_text(page(measurements, told), encoding="utf-8")
    if images_dir is not None:
        for drawing in (drawing for measurement in measurements for drawing in measurement.drawings):
            (images_dir / f"{drawing.name}.svg").write_text(drawing.svg, encoding="utf-8")
    click.echo(table(measurements))
    missed = [
        figure.name for measurement in measurements for figure in measurement.figures if figure.verdict == "missed"
    ]
    if missed:
        say(f"missed: {', '.join(missed)}")
    sys.exit(1 if missed or faults else 0)


if __name__ == "__main__":
    main()
