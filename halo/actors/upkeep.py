"""Upkeep: since when each supervised task runs, how often it crashed, and of what; for people to look at.

The supervisor notes here what it also logs, so that a page can show it without reading logs. It must never hold the text of an error,
which may quote what was said, nor grow: what is over is forgotten. Read next: `halo/actors/supervisor.py`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from halo.clock import Clock, Moment


@dataclass(slots=True, kw_only=True)
class Upkeep:
    """One supervised task."""

    name: str
    since: Moment
    """When it was first started; a restart changes nothing."""
    crashes: int = 0
    last_crash_at: Moment | None = None
    last_error: str | None = None
    """The kind of the last fault: the names of its classes, never its text."""


class Upkeeps:
    """All of one kind, by name."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._kept: dict[str, Upkeep] = {}
        self.crashes = 0
        """Of all, also of those that are over."""

    def begun(self, name: str) -> None:
        self._kept[name] = Upkeep(name=name, since=self._clock.now())

    def crashed(self, name: str, fault: Exception) -> None:
        """Also of one that nobody has told of before: of ten thousand only those that crashed need be known."""
        now = self._clock.now()
        upkeep = self._kept.setdefault(name, Upkeep(name=name, since=now))
        upkeep.crashes += 1
        self.crashes += 1
        upkeep.last_crash_at = now
        upkeep.last_error = kind_of(fault)

    def over(self, name: str) -> None:
        self._kept.pop(name, None)

    def find(self, name: str) -> Upkeep | None:
        return self._kept.get(name)

    def list(self) -> Sequence[Upkeep]:
        """By name."""
        return [self._kept[name] for name in sorted(self._kept)]


def kind_of(fault: BaseException) -> str:
    """`ValueError`; of a group, the kinds inside it."""
    return ", ".join(sorted(_kinds(fault)))


def _kinds(fault: BaseException) -> set[str]:
    if isinstance(fault, BaseExceptionGroup):
        return set().union(*map(_kinds, fault.exceptions))
    return {type(fault).__name__}
