"""Servers that a killed halo left running: found by what they are, and ended before a new one starts on their files.

What must never happen: a start beside a living predecessor, or a signal to a process that is not ours. A process is ours when
its user, its program and the mark in its command line say so, all three. Read next: `halo/store/child.py`.
"""

import os
import signal
from dataclasses import dataclass
from pathlib import Path

import structlog
import trio

from halo.store.recipe import Recipe, ServerFailed, until

_log = structlog.get_logger("halo.store.orphans")


@dataclass(frozen=True, slots=True)
class Orphan:
    """A process of ours that an earlier halo left behind."""

    pid: int
    leading: bool
    """Started as such, rather than forked by its leader."""


async def evict(recipe: Recipe) -> None:
    """End what an earlier halo left running.

    Adopting it would be quicker by a few hundred milliseconds, but its connections may still be at work for the dead halo: a
    COMMIT of the past must not land after the new halo has read the sessions.
    """
    for word, patience_seconds in recipe.farewell:
        orphans = list_orphans(recipe)
        leaders = [orphan for orphan in orphans if orphan.leading]
        # Without its leader nothing can be shut down in order: recovery is due anyhow, and waiting would only delay it.
        final = word is signal.SIGKILL or not leaders
        for orphan in orphans if final else leaders:
            _send(orphan.pid, signal.SIGKILL if final else word)
        with trio.move_on_after(patience_seconds):
            await until(lambda: _is_alone(recipe))
            if orphans:
                _log.warning("orphan_stopped", server=recipe.name, processes=len(orphans))
            return
    raise ServerFailed(f"A {recipe.name} that an earlier halo left running cannot be stopped.")


async def _is_alone(recipe: Recipe) -> bool:
    return not list_orphans(recipe)


def list_orphans(recipe: Recipe) -> list[Orphan]:
    """All processes of this user and this program that carry our mark.

    Read off `/proc` rather than a pid file: that names one process, may be stale, and is not there yet in the first moments.
    """
    found = (_orphan_at(entry, recipe) for entry in Path("/proc").iterdir() if entry.name.isdigit())
    return [orphan for orphan in found if orphan is not None]


def _orphan_at(entry: Path, recipe: Recipe) -> Orphan | None:
    try:
        if entry.stat().st_uid != recipe.account.uid or (entry / "comm").read_text().strip() != recipe.name:
            return None
        words = (entry / "cmdline").read_bytes().split(b"\0")
    except OSError:
        return None  # it ended while we looked
    mark = recipe.mark.encode()
    if not any(mark in word for word in words):
        return None  # somebody else's, or a zombie, which has no command line any more
    return Orphan(int(entry.name), leading=any(word.endswith(mark) for word in words))


def _send(pid: int, word: signal.Signals) -> None:
    try:
        os.kill(pid, word)
    except ProcessLookupError:
        return  # it ended by itself
