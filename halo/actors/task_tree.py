"""The tree of tasks as it really is: Trio's own, walked from the root, never one that somebody keeps beside it.

What there are thousands of is grouped: of each kind below one nursery the first few are shown, the others counted. The walk gives way
every few milliseconds, so the tree may change under it, and what has gone meanwhile is left out. It must never keep a task, only its
name. Read next: `halo/server.py`, which plants the tree.
"""

import heapq
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import trio

SHOWN_OF_A_KIND: Final = 25
"""More than there are daemons of a kind, few enough to read."""
FOUND_AT_MOST: Final = 200
LOOKED_AT_MOST: Final = 200_000
"""Tasks in one walk, at some 0.5 µs each: ten thousand sessions with both sockets have 80,000."""
SLICE_SECONDS: Final = 0.004
"""Then others go first: a fifth of the pause that nobody may make."""
DEPTH_MAX: Final = 12


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Tasks of one kind below one nursery."""

    kind: str
    count: int
    shown: tuple["Branch", ...]

    @property
    def more(self) -> int:
        return self.count - len(self.shown)


@dataclass(frozen=True, slots=True, kw_only=True)
class Branch:
    """One task and what runs below it, nursery by nursery, from the outside in."""

    name: str
    nurseries: tuple[tuple[Group, ...], ...]


@dataclass(frozen=True, slots=True)
class Found:
    """A task whose name was looked for, with the names above it, the root first."""

    name: str
    above: tuple[str, ...]


class _Pace:
    """Gives way whenever a slice of time is used up."""

    def __init__(self) -> None:
        self._until = time.perf_counter() + SLICE_SECONDS
        self.left = LOOKED_AT_MOST

    async def step(self) -> bool:
        """Whether one more task may be looked at."""
        self.left -= 1
        if time.perf_counter() > self._until:
            await self.give_way()
        return self.left >= 0

    async def give_way(self) -> None:
        await trio.lowlevel.checkpoint()
        self._until = time.perf_counter() + SLICE_SECONDS


async def draw_tree() -> Branch:
    """The whole tree, grouped."""
    root = trio.lowlevel.current_root_task()
    if root is None:
        raise RuntimeError("a running task has a root")
    pace = _Pace()
    tree = await _draw(root, pace, 0)
    await pace.give_way()  # whoever makes a page of it has a slice of its own
    return tree


async def _draw(task: trio.lowlevel.Task, pace: _Pace, depth: int) -> Branch:
    nurseries = []
    for nursery in task.child_nurseries if depth < DEPTH_MAX else ():
        kinds: dict[str, list[tuple[str, int, trio.lowlevel.Task]]] = {}
        for number, child in enumerate(nursery.child_tasks):
            if not await pace.step():
                break
            # The number stands between, because tasks cannot be compared.
            kinds.setdefault(kind_of(child.name), []).append((child.name, number, child))
        groups = []
        for kind in sorted(kinds):
            # The tasks of every other row are let go before anything below is looked at.
            first = heapq.nsmallest(SHOWN_OF_A_KIND, kinds[kind])
            await pace.give_way()  # choosing among ten thousand takes a slice of its own
            shown = [await _draw(child, pace, depth + 1) for _, _, child in first]
            groups.append(Group(kind=kind, count=len(kinds[kind]), shown=tuple(shown)))
        if groups:
            nurseries.append(tuple(groups))
    return Branch(name=task.name, nurseries=tuple(nurseries))


async def find_tasks(part: str) -> list[Found]:
    """Tasks with `part` in their name, at most `FOUND_AT_MOST`, by name."""
    root = trio.lowlevel.current_root_task()
    if root is None:
        raise RuntimeError("a running task has a root")
    found: list[Found] = []
    pace, part = _Pace(), part.lower()
    waiting: deque[tuple[trio.lowlevel.Task, tuple[str, ...]]] = deque([(root, ())])
    while waiting and len(found) < FOUND_AT_MOST and await pace.step():
        task, above = waiting.popleft()
        if part in task.name.lower():
            found.append(Found(task.name, above))
        if task.child_nurseries:
            below = (*above, task.name)
            waiting.extend((child, below) for child in _children(task))
    return sorted(found, key=lambda each: each.name)


def _children(task: trio.lowlevel.Task) -> Iterator[trio.lowlevel.Task]:
    for nursery in task.child_nurseries:
        yield from nursery.child_tasks


def kind_of(name: str) -> str:
    """`session 0f…` is a `session`; what has no name of its own is called by its function, whose last words are kept."""
    first = name.partition(" ")[0]
    return ".".join(first.split(".")[-2:]) if "." in first else first
