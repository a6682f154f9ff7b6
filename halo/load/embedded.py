"""A throw-away halo for `halo load --embedded`: a real `halo serve` on real stores in a temporary directory, which may be killed.

Its limits are lifted, because one machine plays all people, and its tokens live for a day. It must never be taken for the deployment: what it
does is what this machine does, with the harness beside it. Read next: `halo/demo/stage.py`.
"""

import os
import resource
import shutil
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

from halo.demo.stage import Stage, open_stage
from halo.errands import with_database
from halo.load.target import Keys, Target
from halo.settings import Settings
from halo.store.invariants import find_violations

LIFTED: Final = {
    "HALO_MESSAGES_PER_10S": "0",
    "HALO_BYTES_PER_S": "0",
    "HALO_CONNECTIONS_PER_USER": "0",
    "HALO_CONNECTIONS_PER_ADDRESS": "0",
    "HALO_HANDSHAKES_PER_S": "0",
    "HALO_REQUESTS_PER_S": "0",
    "HALO_CREATES_PER_MINUTE": "0",
    "HALO_ACCESS_TOKEN_SECONDS": "86400",
    "HALO_DRAIN_SECONDS": "3",
}


DETACHED: Final = ("-m", "halo.load.detached")


def raise_descriptors(wanted: int) -> int:
    """Let this process and its children open as many sockets as the system allows, `wanted` at most; how many that is."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft >= wanted:
        return soft
    if hard < wanted and os.geteuid() == 0:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, wanted))
            return wanted
        except (OSError, ValueError):
            pass  # a container may not let its root do so; what it does let stands below
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(wanted, hard), hard))
    return min(wanted, hard)


@asynccontextmanager
async def open_embedded() -> AsyncIterator[Target]:
    """Raises ServerDidNotStart."""
    home = Path(tempfile.mkdtemp(prefix="halo-load-"))
    home.chmod(0o711)  # noqa: ASYNC240  # one system call, before anything else runs; the embedded Postgres of a root user passes through, and sees nothing
    try:
        async with open_stage(home / "data", LIFTED, DETACHED) as stage:
            await stage.start()
            yield target_of(stage)
    finally:
        shutil.rmtree(home, ignore_errors=True)


def target_of(stage: Stage) -> Target:
    """The halo that runs on this stage now."""

    async def restart() -> Target:
        await stage.start()
        return target_of(stage)

    async def ask_invariants() -> tuple[int, list[str]]:
        return await with_database(Settings.read({"HALO_DATA_DIR": str(stage.data_dir)}, {}), find_violations)

    return Target(
        ws=stage.ready["ws"],
        api=stage.ready["api"],
        keys=Keys(stage.secret("server_key"), stage.secret("webhook_secret"), stage.secret("admin_key")),
        is_own=True,
        server_pid=int(stage.ready["pid"]),
        find_violations=ask_invariants,
        kill=stage.kill,
        restart=restart,
    )
