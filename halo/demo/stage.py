"""The stage: a real `halo serve` in a process of its own, which can be killed and started again.

Resource handling: the process is ours and is ended by its pid when the block is left, also by force.
"""

import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import trio

START_SECONDS = 60.0
"""A first start makes a database: 2 s here, and a slow disk may take its time."""
STOP_SECONDS = 30.0
HALO_SERVE = ("-m", "halo", "serve")
"""What Python is to run; a measurement may put something of its own around it."""


class ServerDidNotStart(Exception):
    """`halo serve` ended or stayed silent instead of getting ready."""


class Stage:
    """One server at a time, on one data directory."""

    def __init__(self, data_dir: Path, settings: Mapping[str, str], program: Sequence[str] = HALO_SERVE) -> None:
        self.data_dir = data_dir
        self._program = tuple(program)
        self.log = data_dir.parent / "server.log"
        self.ready: dict[str, Any] = {}
        self._environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("HALO_")},
            "HALO_DATA_DIR": str(data_dir),
            "HALO_WS_BIND": "127.0.0.1:0",
            "HALO_API_BIND": "127.0.0.1:0",
            "HALO_ADMIN_BIND": "127.0.0.1:0",
            "HALO_SANDBOX": "1",
            **settings,
        }
        self._process: trio.Process | None = None

    async def start(self) -> None:
        """Returns when the server is ready. Raises ServerDidNotStart."""
        with self.log.open("ab") as log:
            self._process = await trio.lowlevel.open_process(
                [sys.executable, *self._program],
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
            )
        assert self._process.stdout is not None  # a pipe was asked for
        line = b""
        with trio.move_on_after(START_SECONDS):
            while not line.endswith(b"\n"):
                more = await self._process.stdout.receive_some()
                if not more:
                    break
                line += more
        if not line.endswith(b"\n"):
            await self.stop()
            raise ServerDidNotStart(f"halo serve did not get ready; its log ends with: {self.log.read_text()[-1500:]}")
        self.ready = json.loads(line)

    async def kill(self) -> None:
        """SIGKILL: no goodbye, no flush."""
        assert self._process is not None  # started before
        self._process.kill()
        await self._process.wait()

    async def stop(self) -> int:
        """SIGTERM, and by force when that does not help; the exit status."""
        process = self._process
        if process is None:
            return 0
        with trio.CancelScope(shield=True):
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
                with trio.move_on_after(STOP_SECONDS):
                    await process.wait()
            if process.poll() is None:
                process.kill()
            await process.wait()
        return process.returncode or 0

    def secret(self, name: str) -> str:
        """A secret that the server made up for itself, such as `server_key`."""
        return (self.data_dir / "secrets" / name).read_text().strip()


@asynccontextmanager
async def open_stage(
    data_dir: Path, settings: Mapping[str, str], program: Sequence[str] = HALO_SERVE
) -> AsyncIterator[Stage]:
    stage = Stage(data_dir, settings, program)
    try:
        yield stage
    finally:
        await stage.stop()
