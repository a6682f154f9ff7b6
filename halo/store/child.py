"""A server that halo runs as its child: started, awaited, restarted when it dies, and stopped in order.

It knows nothing of Postgres or Valkey; a `Recipe` says how each is started and sent home. Every child gets a session of its own,
so that Ctrl-C in a terminal reaches halo alone, which then stops its children after its own work is done. What an earlier halo
left running is ended first: `halo/store/orphans.py`. Read next: `halo/store/embedded.py`.
"""

import os
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final, NoReturn

import structlog
import trio

from halo.store.orphans import evict
from halo.store.recipe import Recipe, ServerFailed, until

_log = structlog.get_logger("halo.store.child")

_LOG_LIMIT_BYTES: Final = 8 * 1024 * 1024
"""A server's log is put aside at the next start beyond this, so that two of them at most fill 16 MiB."""

_FIRST_PAUSE_SECONDS: Final = 0.1
_LONGEST_PAUSE_SECONDS: Final = 5.0
"""Between restarts: a server that was killed is back at once, one that cannot start does not fill the log."""


@asynccontextmanager
async def open_kept(recipe: Recipe) -> AsyncIterator[None]:
    """Inside, the server answers, and is started again whenever it dies; leaving stops it.

    What the body raises comes out as it is, rather than in the group of the nursery that stands behind this: a sentence for the
    operator must reach whoever prints it. Raises `ServerFailed`.
    """
    try:
        async with trio.open_nursery() as nursery:
            await nursery.start(_keep, recipe, name=f"embedded {recipe.name}")
            yield
            nursery.cancel_scope.cancel()
    except BaseExceptionGroup as group:
        if len(group.exceptions) != 1:
            raise
        raise group.exceptions[0] from group.exceptions[0].__cause__


async def _keep(recipe: Recipe, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> NoReturn:
    """Run the server until cancelled, and start it again whenever it dies.

    Raises `ServerFailed` when the first start fails; later ones are tried for ever, since a store that is away is a state that
    halo lives with (spec 5), and an operator may be making room on the disk.
    """
    async with _open_server(recipe) as server:
        task_status.started()
        await server.wait()
    pause_seconds = _FIRST_PAUSE_SECONDS
    while True:
        _log.error("embedded_server_died", server=recipe.name, log=str(recipe.log))
        await trio.sleep(pause_seconds)
        pause_seconds = min(pause_seconds * 2, _LONGEST_PAUSE_SECONDS)
        try:
            async with _open_server(recipe) as server:
                _log.warning("embedded_server_restarted", server=recipe.name, pid=server.pid)
                with trio.move_on_after(_LONGEST_PAUSE_SECONDS):
                    await server.wait()
                    continue
                pause_seconds = _FIRST_PAUSE_SECONDS  # it has lived long enough to be called healthy
                await server.wait()
        except ServerFailed as failed:
            _log.error("embedded_server_not_restarted", server=recipe.name, reason=str(failed))


@asynccontextmanager
async def _open_server(recipe: Recipe) -> AsyncIterator[trio.Process]:
    """A server that answers. Leaving stops it, whatever happened inside and however it was cancelled."""
    await evict(recipe)
    recipe.clear()
    server = await _spawn(recipe)
    try:
        await _wait_until_ready(recipe, server)
        yield server
    finally:
        await _stop(recipe, server)


async def _spawn(recipe: Recipe) -> trio.Process:
    log = _open_log(recipe.log)
    try:
        return await trio.lowlevel.open_process(
            recipe.command(),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd="/",
            env={"PATH": os.defpath, "LC_ALL": "C", "TZ": "UTC"},  # nothing of ours: neither PG* settings nor secrets
            start_new_session=True,
            umask=0o077,
            **recipe.account.identity,
        )
    except OSError as fault:
        raise ServerFailed(f"{recipe.name} cannot be started: {fault.strerror}.") from fault
    finally:
        os.close(log)


def _open_log(path: Path) -> int:
    if path.exists() and path.stat().st_size > _LOG_LIMIT_BYTES:
        path.replace(path.with_suffix(".log.1"))
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)


async def _wait_until_ready(recipe: Recipe, server: trio.Process) -> None:
    """Whatever comes first: it answers, it ends, or its time is over."""
    answered = False
    with trio.move_on_after(recipe.start_seconds):
        async with trio.open_nursery() as nursery:

            async def watch() -> None:
                await server.wait()
                nursery.cancel_scope.cancel()

            nursery.start_soon(watch, name=f"watch the start of {recipe.name}")
            await until(recipe.answers)
            answered = True
            nursery.cancel_scope.cancel()
    if not answered:
        raise ServerFailed(f"{recipe.name} did not start: {_last_words(recipe.log)}; its log is {recipe.log}.")


def _last_words(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()[-40:]
    fatal = [line for line in lines if "FATAL" in line or "PANIC" in line or "rror" in line]
    return (fatal or lines or ["it said nothing"])[-1].strip().rstrip(".")


async def _stop(recipe: Recipe, server: trio.Process) -> None:
    """Bounded by the patience of the farewell; shielded, since a cancelled halo must not leave its servers to themselves."""
    with trio.CancelScope(shield=True):
        for word, patience_seconds in recipe.farewell:
            if server.returncode is not None:
                return
            server.send_signal(word)
            with trio.move_on_after(patience_seconds):
                await server.wait()
