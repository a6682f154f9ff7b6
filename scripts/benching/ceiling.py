"""How much of the bare ceiling halo keeps: trio-websocket with nothing behind it, and halo, under one and the same client.

Both have 100 sockets with one frame of the same 120 characters in flight each, for as long. What is compared is acknowledged messages a second
of the server process's own CPU; Postgres is beside it for halo, and has its own goal. The `echo` sends one frame out for one that came in,
where halo must send two, the ack and the delivery: it is the stricter of two readings of "the same frames", and the one that is judged. `relay` sends
two, and is shown. Read next: `scripts/benching/echo_server.py`.
"""

import json
import subprocess
import sys
from collections.abc import Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Final

import trio

from scripts.measuring import messages

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

SOCKETS: Final = 2 * messages.PAIRS
TIMEOUT_SECONDS: Final = 60.0
"""Beyond what was asked for: to start, to connect a hundred sockets, and to end."""
NAMES: Final = {
    "messages acknowledged": "per_second",
    "CPU of the server a message": "server_cpu_us",
    "CPU of Postgres a message": "postgres_cpu_us",
    "time to the ack, median": "p50_ms",
    "time to the ack, 99 of 100": "p99_ms",
    "cores used by the server": "server_cores",
    "cores used by the client": "client_cores",
    "cores used by everything else": "others_cores",
}
"""What the part `messages` calls its figures, and what the book calls them."""


class EchoLost(Exception):
    """The echo or its client ended without a figure."""


async def load_echo(kind: str, seconds: float, warm_up_seconds: float = messages.WARM_UP_SECONDS) -> dict[str, Any]:
    """One run against a bare server of `kind`. Raises EchoLost."""
    async with _open_server(kind) as (process, port):
        arguments = [str(port), str(SOCKETS), str(process.pid), str(warm_up_seconds), str(seconds)]
        try:
            with trio.fail_after(warm_up_seconds + seconds + TIMEOUT_SECONDS):
                done = await trio.run_process(
                    [sys.executable, "-m", "scripts.benching.echo_client", *arguments], capture_stdout=True
                )
        except (subprocess.CalledProcessError, trio.TooSlowError) as lost:
            raise EchoLost(f"the client of the {kind} gave no figure") from lost
    return figures_of(json.loads(done.stdout))


def figures_of(counted: dict[str, Any]) -> dict[str, Any]:
    """What was counted, by the second and by the message."""
    seconds, acks = counted["seconds"], counted["acks"]
    return {
        "per_second": acks / seconds,
        "server_cpu_us": counted["server_cpu_seconds"] / acks * 1e6,
        "postgres_cpu_us": 0.0,
        "frames_out_each": (acks + counted["deliveries"]) / acks,
        "p50_ms": counted["p50_ms"],
        "p99_ms": counted["p99_ms"],
        "server_cores": counted["server_cpu_seconds"] / seconds,
        "client_cores": counted["client_cpu_seconds"] / seconds,
        "others_cores": counted["others_cpu_seconds"] / seconds,
    }


async def load_halo(say: Callable[[str], None], seconds: float) -> dict[str, Any]:
    """One run against halo, by the part `messages` of `scripts/measure`: it raises what that raises."""
    measured = await messages.measure(say, rounds=1, seconds=seconds)
    found = {NAMES[figure.name]: figure.median for figure in measured.figures if figure.name in NAMES}
    return found | {"frames_out_each": 2.0}  # `messages` has checked that deliveries equal acks


@asynccontextmanager
async def _open_server(kind: str) -> "AsyncIterator[tuple[trio.Process, int]]":
    process = await trio.lowlevel.open_process(
        [sys.executable, "-m", "scripts.benching.echo_server", kind], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE
    )
    assert process.stdout is not None  # a pipe was asked for
    try:
        line = b""
        with trio.move_on_after(TIMEOUT_SECONDS):
            while not line.endswith(b"\n"):
                piece = await process.stdout.receive_some()
                if not piece:
                    break
                line += piece
        if not line.endswith(b"\n"):
            raise EchoLost(f"the {kind} did not start")
        yield process, int(line)
    finally:
        with trio.CancelScope(shield=True):
            process.kill()
            await process.wait()
