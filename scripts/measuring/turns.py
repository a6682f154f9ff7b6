"""How long the event loop is away: its turns, and what the longest was made of.

A turn is what runs between two looks at sockets and timers; nobody is heard meanwhile. It is taken by the loop's own CPU, which is what halo
is to blame for on a machine that others use as well, and by the clock, as people feel it. Must never be on in a server that is not being
measured: it looks at two clocks for each step of each task. Read next: `scripts/measuring/storms.py`.
"""

import gc
import re
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import trio

_NUMBERS: Final = re.compile(r"[0-9a-f]{8}-[0-9a-f-]{27}|\d+(\.\d+)*")


class Turns(trio.abc.Instrument):
    """The longest turn of the event loop: from the return of one wait for sockets and timers to the beginning of the next."""

    def __init__(self) -> None:
        self.longest_cpu_ms = 0.0
        """Of this thread alone: what it was kept from running by others is not in it."""
        self.longest_ms = 0.0
        self.longest_step: tuple[float, str] = (0.0, "nobody")
        """Of one task at a time: its ms of CPU, and its name."""
        self.longest_parts: tuple[tuple[str, float, int], ...] = ()
        """What the longest turn was made of: kinds of tasks with their ms of CPU and their steps, the dearest first."""
        self._parts: Counter[str] = Counter()
        self._steps: Counter[str] = Counter()
        self._began: tuple[float, float] | None = None
        self._step_began: float | None = None

    def before_task_step(self, task: trio.lowlevel.Task) -> None:  # noqa: ARG002  # trio's signature, here and below
        self._step_began = time.thread_time()

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        if self._step_began is not None:  # the step that it was added in began before
            took = (time.thread_time() - self._step_began) * 1000
            self.longest_step = max(self.longest_step, (took, task.name))
            self._parts[task.name] += took  # type: ignore[assignment]  # a sum of floats
            self._steps[task.name] += 1

    def after_io_wait(self, timeout: float) -> None:  # noqa: ARG002
        self._began = time.thread_time(), time.perf_counter()
        self._parts.clear()
        self._steps.clear()

    def before_io_wait(self, timeout: float) -> None:  # noqa: ARG002
        if self._began is None:
            return
        cpu, clock = self._began
        took = (time.thread_time() - cpu) * 1000
        self.longest_ms = max(self.longest_ms, (time.perf_counter() - clock) * 1000)
        if took > self.longest_cpu_ms:
            self.longest_cpu_ms = took
            self.longest_parts = self._kinds(took)

    def _kinds(self, took: float) -> tuple[tuple[str, float, int], ...]:
        spent: Counter[str] = Counter()
        steps: Counter[str] = Counter()
        for name, ms in self._parts.items():
            kind = _NUMBERS.sub("…", name)
            spent[kind] += ms
            steps[kind] += self._steps[name]
        spent["the loop itself"] = took - sum(spent.values())  # type: ignore[assignment]
        return tuple((kind, ms, steps[kind]) for kind, ms in spent.most_common(5))


class Collections:
    """How long Python's garbage collector stops everything: the longest, and how many there were."""

    def __init__(self) -> None:
        self.longest_ms = 0.0
        self.full = 0
        self._began = 0.0

    def __call__(self, phase: str, found: dict[str, Any]) -> None:
        if phase == "start":
            self._began = time.thread_time()
            return
        self.longest_ms = max(self.longest_ms, (time.thread_time() - self._began) * 1000)
        self.full += found["generation"] == 2


@contextmanager
def watched() -> Iterator[tuple[Turns, Collections]]:
    """The turns and the collections of the block, in the thread of the loop."""
    turns, collections = Turns(), Collections()
    trio.lowlevel.add_instrument(turns)
    gc.callbacks.insert(0, collections)
    try:
        yield turns, collections
    finally:
        gc.callbacks.remove(collections)
        trio.lowlevel.remove_instrument(turns)
