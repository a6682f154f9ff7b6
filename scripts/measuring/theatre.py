"""Where measurements take place: a data directory of its own, its database prepared, and real servers on it, one after the other.

The server is `halo serve` with embedded stores and every limit lifted that would refuse the load, in a process of its own. Everything is
in a temporary directory that goes with the block. Read next: `halo/demo/stage.py`, which starts and stops the process.
"""

import re
import shutil
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TypeVar

import httpx

from halo.demo.stage import HALO_SERVE, Stage, open_stage
from halo.errands import migrate_schema, with_database
from halo.settings import Settings
from halo.store.postgres import Postgres

T = TypeVar("T")

TOKEN_SECONDS = 3_600
"""No token ends while something is measured."""
UNLIMITED = {
    "HALO_MESSAGES_PER_10S": "0",
    "HALO_BYTES_PER_S": "0",
    "HALO_CONNECTIONS_PER_ADDRESS": "0",
    "HALO_HANDSHAKES_PER_S": "0",
    "HALO_REQUESTS_PER_S": "0",
    "HALO_CREATES_PER_MINUTE": "0",
    "HALO_ACCESS_TOKEN_SECONDS": str(TOKEN_SECONDS),
    "HALO_DRAIN_SECONDS": "3",
}
_SAMPLE = re.compile(r"^(halo_\w+) ([0-9.e+-]+)$", re.MULTILINE)


class Theatre:
    """One data directory, and the stage in it."""

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        self._settings = Settings.read({"HALO_DATA_DIR": str(stage.data_dir)}, {})

    async def with_database(self, work: Callable[[Postgres], Awaitable[T]]) -> T:
        """`work` on the database, whether a server runs on it or not; without one its stores are started for this."""
        return await with_database(self._settings, work)

    async def prepare(self, work: Callable[[Postgres], Awaitable[T]]) -> T:
        """`work` on a database whose schema is current, before any server has seen it."""
        await migrate_schema(self._settings)
        return await self.with_database(work)

    @property
    def token_secret(self) -> str:
        return self._settings.token_secret

    @property
    def server_pid(self) -> int:
        return int(self.stage.ready["pid"])

    @property
    def postmaster_pid(self) -> int:
        """The father of all processes of the database."""
        return int((self.stage.data_dir / "postgres" / "postmaster.pid").read_text(encoding="utf-8").split("\n", 1)[0])

    async def figures(self) -> dict[str, float]:
        """The server's own counters, those without labels."""
        async with httpx.AsyncClient(trust_env=False) as client:
            answer = await client.get(self.stage.ready["admin"] + "/metrics")
        answer.raise_for_status()
        return parse_metrics(answer.text)


def parse_metrics(text: str) -> dict[str, float]:
    """Prometheus' text form, as far as halo's own unlabelled samples go."""
    return {name: float(value) for name, value in _SAMPLE.findall(text)}


@asynccontextmanager
async def open_theatre(program: Sequence[str] = HALO_SERVE) -> AsyncIterator[Theatre]:
    directory = Path(tempfile.mkdtemp(prefix="halo-measure-"))
    try:
        async with open_stage(directory / "halo", UNLIMITED, program) as stage:
            yield Theatre(stage)
    finally:
        shutil.rmtree(directory, ignore_errors=True)
