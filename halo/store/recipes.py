"""How Postgres and Valkey are run by halo itself: their options, each with its reason, when they are ready and how they end.

Nothing listens on TCP, and nothing that a person wrote reaches a log. Who follows these recipes: `halo/store/child.py`.
"""

import signal
from pathlib import Path
from typing import Final

import trio

from halo.store.directory import DataDirectory

_SOCKET: Final = ".s.PGSQL.5432"
_READY_LINE: Final = 7
"""Of postmaster.pid, counted from 0, where Postgres itself says how far it has come."""

_POSTGRES_OPTIONS: Final = {
    "listen_addresses": "",
    "unix_socket_permissions": "0700",
    "max_connections": "60",  # the pool takes a third of it; the rest is for migrations, psql and the tools
    "shared_buffers": "64MB",  # a first run shares a laptop with everything else
    "jit": "off",  # costs tens of milliseconds a plan, for queries that take one
    "max_wal_size": "512MB",
    "timezone": "UTC",
    "log_timezone": "UTC",
    # No message text and no name in a log line (spec 5, X5): neither statements, nor parameters, nor the rows of a DETAIL.
    "log_min_error_statement": "panic",
    "log_parameter_max_length": "0",
    "log_parameter_max_length_on_error": "0",
    "log_error_verbosity": "terse",
}

_NOT_DURABLE: Final = {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"}
"""For tests alone, which throw the database away."""


class _Server:
    """What both recipes have in common."""

    name: str

    def __init__(self, directory: DataDirectory) -> None:
        self.directory = directory
        self.account = directory.account
        self.mark = directory.mark
        self.log = directory.log_of(self.name)


class PostgresRecipe(_Server):
    """The recipe of Postgres."""

    name = "postgres"
    farewell = ((signal.SIGINT, 5.0), (signal.SIGQUIT, 2.0), (signal.SIGKILL, 2.0))
    """Fast shutdown; immediate, which recovers at the next start; and the end, for one that hangs."""
    start_seconds = 60.0
    """Recovery after a crash replays at most `max_wal_size`, which is some seconds on a slow disk."""

    def __init__(self, directory: DataDirectory, programs: Path, durable: bool) -> None:
        super().__init__(directory)
        self._programs = programs
        self._durable = durable

    def command(self) -> list[str]:
        listed = str(self.directory.sockets).replace('"', '""')  # a list, in which quotes protect spaces
        options = (
            _POSTGRES_OPTIONS | {"unix_socket_directories": f'"{listed}"'} | ({} if self._durable else _NOT_DURABLE)
        )
        settings = [word for name, value in options.items() for word in ("-c", f"{name}={value}")]
        # In the title of every one of its processes, which is how orphans are known.
        mark = ["-c", f"cluster_name={self.mark}"]
        return [str(self._programs / "postgres"), "-D", str(self.directory.database), *settings, *mark]

    def clear(self) -> None:
        """Stale pid files name processes that may meanwhile be somebody else, for whom Postgres would wait."""
        (self.directory.database / "postmaster.pid").unlink(missing_ok=True)
        for name in (_SOCKET, f"{_SOCKET}.lock"):
            (self.directory.sockets / name).unlink(missing_ok=True)

    async def answers(self) -> bool:
        """What Postgres says of itself: the file is its own, since `clear` removed that of its predecessor."""
        return self._says_ready()

    def _says_ready(self) -> bool:
        try:
            lines = (self.directory.database / "postmaster.pid").read_text(encoding="utf-8").splitlines()
        except FileNotFoundError:
            return False
        return len(lines) > _READY_LINE and lines[_READY_LINE].strip() == "ready"


class ValkeyRecipe(_Server):
    """The recipe of Valkey."""

    name = "valkey-server"
    farewell = ((signal.SIGTERM, 1.0), (signal.SIGKILL, 2.0))
    """Nothing is lost with it, so it gets little time."""
    start_seconds = 10.0

    def __init__(self, directory: DataDirectory, program: Path) -> None:
        super().__init__(directory)
        self._program = program
        self.socket = directory.sockets / "valkey.sock"

    def command(self) -> list[str]:
        options = {
            "port": "0",
            "unixsocket": str(self.socket),
            "unixsocketperm": "700",
            "dir": str(self.directory.sockets),
            "save": "",  # a mirror: halo fills it from Postgres at every start, and an old copy would only have to be corrected
            "appendonly": "no",
            "daemonize": "no",
            "proc-title-template": f"{{title}} {self.mark}",
        }
        return [str(self._program), *(word for name, value in options.items() for word in (f"--{name}", value))]

    def clear(self) -> None:
        self.socket.unlink(missing_ok=True)

    async def answers(self) -> bool:
        try:
            stream = await trio.open_unix_socket(str(self.socket))
        except OSError:
            return False  # not listening yet
        async with stream:
            await stream.send_all(b"PING\r\n")
            return (await stream.receive_some(64)).startswith(b"+PONG")
