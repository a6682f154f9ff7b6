"""A halo that kills itself, with SIGKILL, before or after the n-th thing that it makes durable.

Run as a program, it imports halo once and then forks a server for each connection to its socket, so that a start costs a fifth of
what a new interpreter does. On its connection a server reads one line (its settings, and where to die), then tells what it does,
a line each: when it is ready, and each commit before it is sent, by name. It dies with its connection.

Wrapped is where bytes leave for Postgres: COMMIT, the journal's INSERT, and statements that write without a transaction.
"""

import contextlib
import gc
import json
import os
import signal
import socket
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

import trio
import trio_asyncio  # noqa: F401  # before psycopg, which otherwise binds asyncio's loop before it is patched (spec 6, traps)
from psycopg.pq import TransactionStatus

import halo.cli  # noqa: F401  # everything that a server needs, before the first fork
from halo.log import configure_logging
from halo.net.status.rendering import Renderer
from halo.server import open_server
from halo.settings import Settings
from halo.store import idempotency
from halo.store.connection import Result, Statement, TrioConnection, Values
from halo.store.queries import Query

T = TypeVar("T")

BACKGROUND = {"beat", "insert_node", "delete_dead_nodes", "take_up", "record_heartbeats", "save", "hold_lock"}
"""What a server writes though nobody asks it to, at moments of its own: its lease, the mirror's heartbeats. And the test's own change
of the configuration."""
RECOVERY = {"take_up"}
"""Of these, what a server does once at its start with what another has left behind, and then every few seconds for nothing."""
WRITES = ("INSERT", "UPDATE", "DELETE", "WITH")
TAKEOVER_MS = 200
"""Who held an Idempotency-Key here was killed, so its repeat need not wait for as long as a slow request might take."""


class Commits:
    """Counts what becomes durable, and dies at the right one."""

    def __init__(self, at: int, side: str, uncounted: set[str], tell: Callable[[dict[str, Any]], None]) -> None:
        self._at = at
        self._side = side
        self._uncounted = uncounted
        self._tell = tell
        self._count = 0
        self._statements: dict[TrioConnection, list[str]] = {}
        """What was run in the transaction that is open on a connection."""

    async def durable(self, label: str, send: Awaitable[T]) -> T:
        """`send` makes something durable."""
        self._count += 1
        mine = self._count == self._at
        self._tell({"commit": self._count, "label": label, "dies": mine and self._side})
        if mine and self._side == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        answer = await send
        if mine:
            os.kill(os.getpid(), signal.SIGKILL)
        return answer

    def install(self) -> None:
        """From now on every connection goes through here."""
        run, run_all, control, run_binary = (
            TrioConnection.run,
            TrioConnection.run_all,
            TrioConnection.control,
            TrioConnection.run_binary,
        )
        commits = self

        async def counted_run(self: TrioConnection, query: Query | str, values: Values = {}) -> Result:  # noqa: B006  # as it is
            name = query if isinstance(query, str) else query.name
            text = query if isinstance(query, str) else query.sql.decode()
            if self.pgconn.transaction_status != TransactionStatus.IDLE:
                commits._statements.setdefault(self, []).append(name)
            elif name not in commits._uncounted and text.lstrip().startswith(WRITES):
                return await commits.durable(name, run(self, query, values))
            return await run(self, query, values)

        async def counted_run_all(self: TrioConnection, statements: list[Statement]) -> list[Result]:
            names = [query if isinstance(query, str) else query.name for query, _ in statements]
            if self.pgconn.transaction_status == TransactionStatus.IDLE:
                commits._statements[self] = []
            commits._statements.setdefault(self, []).extend(names)
            return await run_all(self, statements)

        async def counted_control(self: TrioConnection, command: bytes) -> bytes:
            names = commits._statements.pop(self, []) if command in {b"COMMIT", b"ROLLBACK"} else []
            if command == b"COMMIT" and not commits._uncounted.intersection(names):
                label = " ".join(name for name in names[1:] if name != "insert_operation")
                return await commits.durable(label, control(self, command))
            return await control(self, command)

        async def counted_run_binary(self: TrioConnection, name: bytes, parameters: list[bytes | None]) -> int:
            return await commits.durable("journal", run_binary(self, name, parameters))

        for name, wrapped in {
            "run": counted_run,
            "run_all": counted_run_all,
            "control": counted_control,
            "run_binary": counted_run_binary,
        }.items():
            setattr(TrioConnection, name, wrapped)


def serve(connection: socket.socket) -> None:
    """One server, until its connection ends or it dies."""
    with connection.makefile("r") as lines:
        request = json.loads(lines.readline())

    def tell(what: dict[str, Any]) -> None:
        connection.sendall(json.dumps(what).encode() + b"\n")

    log = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 2)
    configure_logging("info", "console")
    idempotency.TAKEOVER_MS = TAKEOVER_MS  # type: ignore[misc]
    uncounted = BACKGROUND - RECOVERY if request["counts_recovery"] else BACKGROUND
    commits = Commits(request["at"], request["side"], uncounted, tell)
    settings = Settings.read(request["environment"], {})

    async def die_with_connection() -> None:
        await trio.lowlevel.wait_readable(connection)
        os.kill(os.getpid(), signal.SIGKILL)

    async def run() -> None:
        async with open_server(settings) as (server, _), trio.open_nursery() as nursery:
            nursery.start_soon(die_with_connection)
            commits.install()
            await server.run(lambda addresses: tell({"ready": addresses}))

    trio.run(run)


def main(path: str) -> None:
    """Fork a server for each connection; ends with its standard input."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the dead
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(f"{path}.new")
    listener.listen(64)
    Renderer()  # every template is compiled once a process: two thirds of what a start costs, here paid for all
    gc.collect()
    gc.freeze()
    Path(f"{path}.new").rename(path)  # who sees it may connect
    while True:
        connection, _ = listener.accept()
        if os.fork() == 0:
            listener.close()
            with contextlib.suppress(OSError):
                serve(connection)
            os._exit(1)
        connection.close()


if __name__ == "__main__":
    main(sys.argv[1])
