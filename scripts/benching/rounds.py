"""The rounds: cell by cell, each with all of its targets in turn, again and again, into the book.

In each round the targets follow one another from another beginning, so that a slow spell of the machine falls on all of them. A run during
which others used too much of the machine is made again, a bounded number of times, and the quietest is kept. This is a supervisor: a run
that fails is written down with its reason, and the next one goes on. Read next: `scripts/benching/cells.py`, `scripts/benching/rig.py`.
"""

import ctypes
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

import trio

from scripts.benching.book import Book, Run, pick
from scripts.benching.ceiling import load_echo, load_halo
from scripts.benching.cells import CELLS, Cell
from scripts.benching.rig import LAST_WORDS, Rig, RigFailed
from scripts.measuring import memory, reconnect, timers
from scripts.measuring.circumstances import without_places
from scripts.measuring.figures import Measurement
from scripts.measuring.processes import family_cpu_seconds, machine_cpu_seconds

QUIET_CORES: Final = 0.15
"""What others may use while we measure: on two cores, 7 % of the machine."""
ATTEMPTS: Final = 3
LOOK_SECONDS: Final = 1.5
PATIENCE_SECONDS: Final = 60.0
"""How long a run waits for a quiet moment before it begins all the same."""
WARM_UP_SECONDS: Final = 3
SET_CHILD_SUBREAPER: Final = 36
"""Of prctl(2): a database whose server was killed stays in our account, instead of becoming somebody else's work."""
OWN: Final = {
    "memory": {
        "session with both sockets connected": "session_kb",
        "session restored, nobody connected": "restored_kb",
    },
    "timers": {
        "late, 99 of 100 deadlines": "late_p99_ms",
        "late, median": "late_p50_ms",
        "late, the worst": "late_max_ms",
        "heard of at a socket, 99 of 100": "heard_p99_ms",
        "early": "early",
    },
    "reconnect": {
        "ready to the last socket resumed": "resumed_s",
        "ready to half of the sockets resumed": "half_s",
        "ready to the last welcome": "welcomed_s",
        "kill to ready, beside": "restart_s",
        "tries that were told to come again": "told_to_wait",
    },
}
"""What the parts of `scripts/measure` call their figures, and what the book calls them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What is to be done."""

    cells: tuple[str, ...]
    rounds: int
    seconds: float
    quiet_cores: float = QUIET_CORES
    attempts: int = ATTEMPTS


@dataclass(frozen=True, slots=True)
class Place:
    """One run that is to be made."""

    round: int
    cell: Cell
    target: str


def plan(order: Order, *, with_rig: bool) -> list[Place]:
    """Every run in its turn; cells of the rig only where there is one."""
    places = []
    for number in range(order.rounds):
        for cell in (CELLS[name] for name in order.cells):
            if cell.rig and not with_rig:
                continue
            first = number % len(cell.targets)
            places += [Place(number, cell, target) for target in (*cell.targets[first:], *cell.targets[:first])]
    return places


class Rounds:
    """The work of one benchmark."""

    def __init__(
        self, order: Order, rig: Rig | None, book: Book, say: Callable[[str], None], keep: Callable[[], None]
    ) -> None:
        self._order = order
        self._rig = rig
        self._book = book
        self._say = say
        self._keep = keep

    async def run(self) -> None:
        """Until every run is in the book; what is there already is not made again."""
        become_subreaper()
        places = plan(self._order, with_rig=self._rig is not None)
        left = [place for place in places if not self._book.has(place.round, place.cell.name, place.target)]
        began = time.monotonic()
        for done, place in enumerate(left):
            run = await self._quiet_run(place)
            self._book.add(run)
            self._keep()
            self._say(sentence(run, self._order.rounds) + remaining(time.monotonic() - began, done + 1, len(left)))

    async def _quiet_run(self, place: Place) -> Run:
        best: dict[str, Any] = {}
        attempt = 0
        for attempt in range(1, self._order.attempts + 1):
            await self._wait_quiet()
            result = await self._try(place)
            if not best or noise(result) < noise(best):
                best = result
            if noise(best) <= self._order.quiet_cores:
                break
            if attempt < self._order.attempts and "failed" not in result:
                self._say(f"{place.cell.name} {place.target}: others used {noise(result):.2f} cores; once more")
        return Run(
            round=place.round,
            cell=place.cell.name,
            target=place.target,
            result=best,
            attempts=attempt,
            at=f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}",
        )

    async def _try(self, place: Place) -> dict[str, Any]:
        began, mine, machine = time.monotonic(), family_cpu_seconds(os.getpid()), machine_cpu_seconds()
        try:
            result = await self._load(place)
        except Exception as fault:  # noqa: BLE001  # the supervisor of runs: a target's fault must not end the others
            words = without_places(str(first_of(fault)))[-LAST_WORDS:]
            self._say(f"{place.cell.name} {place.target} failed: {type(first_of(fault)).__name__}: {words}")
            return {"failed": f"{type(first_of(fault)).__name__}: {words}"}
        if pick(result, "others_cores") is None:
            others = machine_cpu_seconds() - machine - (family_cpu_seconds(os.getpid()) - mine)
            result["others_cores"] = max(0.0, others / (time.monotonic() - began))
        return result

    async def _load(self, place: Place) -> dict[str, Any]:
        cell, seconds = place.cell, self._order.seconds
        if cell.rig:
            if self._rig is None:
                raise RigFailed("there is no rig")
            window = ("--warmup", str(WARM_UP_SECONDS), "--seconds", f"{seconds:g}") if cell.has_window else ()
            return await self._rig.load(place.target, (*cell.rig, *window))
        match cell.name:
            case "ceiling":
                if place.target == "halo":
                    return await load_halo(_silent, seconds)
                return await load_echo(place.target, seconds)
            case "memory":
                return named(cell.name, await memory.measure(_silent, sizes=memory.SIZES[-1:]))
            case "timers":
                return named(cell.name, await timers.measure(_silent))
            case "reconnect":
                return named(cell.name, await reconnect.measure(_silent))
            case _:
                raise ValueError(f"nobody knows how to measure {cell.name}")

    async def _wait_quiet(self) -> None:
        if self._order.quiet_cores >= (os.cpu_count() or 1):
            return  # nothing is too loud
        with trio.move_on_after(PATIENCE_SECONDS):
            while await busy_cores(LOOK_SECONDS) > self._order.quiet_cores:
                pass


async def busy_cores(seconds: float) -> float:
    """Of the whole machine, looked at for so long while we do nothing."""
    before = machine_cpu_seconds()
    await trio.sleep(seconds)
    return (machine_cpu_seconds() - before) / seconds


def noise(result: dict[str, Any]) -> float:
    """Cores that others used; a run that failed is worse than any noise."""
    if "failed" in result:
        return float("inf")
    return pick(result, "others_cores") or 0.0


def named(part: str, measured: Measurement) -> dict[str, Any]:
    """A part's figures under the book's names. Raises KeyError when the part does not measure one of them."""
    medians = {figure.name: figure.median for figure in measured.figures}
    return {ours: medians[theirs] for theirs, ours in OWN[part].items()}


def sentence(run: Run, rounds: int) -> str:
    """What a run has shown, in a line."""
    where = f"round {run.round + 1} of {rounds} · {run.cell} · {run.target}"
    if run.failure:
        return f"{where} · failed"
    rates = ("acks_per_second", "requests_per_second", "cycles_per_second", "connects_per_second", "per_second")
    told = [f"{rate:,.0f}/s" for name in rates if (rate := pick(run.result, name)) is not None][:1]
    own = OWN.get(run.cell, {})
    told += [f"{ours} {pick(run.result, ours):.3g}" for ours in list(own.values())[:1]]
    cpu = pick(run.result, "server_cpu_us")
    told += [] if cpu is None else [f"server {cpu:.0f} µs"]
    told += [f"others {run.others_cores:.2f}"] if run.others_cores is not None else []
    return " · ".join((where, *told, run.faults or "clean"))


def remaining(seconds: float, done: int, of: int) -> str:
    """How far the work is, by what the runs so far have taken."""
    return f" · {done} of {of} runs, about {seconds / done * (of - done) / 60:.0f} min to go"


def become_subreaper() -> None:
    """Grandchildren whose parent was killed become our children, and their CPU is ours, not that of others."""
    ctypes.CDLL(None, use_errno=True).prctl(SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def first_of(fault: BaseException) -> BaseException:
    """The first of a group's faults, out of its nurseries."""
    while isinstance(fault, BaseExceptionGroup):
        fault = fault.exceptions[0]
    return fault


def _silent(_: str) -> None:
    """The parts talk of their rounds; here they have one."""


def cells_of(names: str) -> tuple[str, ...]:
    """Names with commas between them. Raises KeyError with the first that nobody knows."""
    found: Sequence[str] = [name.strip() for name in names.split(",") if name.strip()]
    for name in found:
        if name not in CELLS:
            raise KeyError(name)
    return tuple(found)
