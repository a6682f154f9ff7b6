"""The worker processes as the conductor sees them: started, told what to do, and heard, one line of JSON each way.

Resource handling: the processes are ours; leaving the block closes their input, which ends them, and by force those that it does not. Keys
never go to them, and tokens only through the pipe. Read next: `halo/load/worker.py`.
"""

import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Final

import msgspec
import trio

from halo.load.orders import Order, Orders, Ready, Report, Settled, Told

END_SECONDS: Final = 5.0
_decode: Final[Callable[[bytes], Report]] = msgspec.json.Decoder(Report).decode


class WorkerLost(Exception):
    """A worker process ended before it had told what it saw; the message says how."""


class Worker:
    """One process."""

    def __init__(self, process: trio.Process, number: int) -> None:
        self._process = process
        self.number = number
        self.told: Told | None = None
        self.is_ready = False
        self.is_settled = False

    async def say(self, order: Order) -> None:
        assert self._process.stdin is not None  # a pipe was asked for
        try:
            await self._process.stdin.send_all(msgspec.json.encode(order) + b"\n")
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            return  # it has ended, which `hear` tells

    async def hear(self, take: Callable[[Report], None]) -> None:
        """Everything it says, to the end. Raises WorkerLost."""
        assert self._process.stdout is not None  # a pipe was asked for
        assert self._process.stderr is not None
        complaints = bytearray()

        async def listen(errors: trio.abc.ReceiveStream) -> None:
            async for more in errors:
                complaints.extend(more)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(listen, self._process.stderr)
            waiting = bytearray()
            async for more in self._process.stdout:
                waiting += more
                *whole, left = bytes(waiting).split(b"\n")
                waiting[:] = left
                for line in whole:
                    report = _decode(line)
                    if isinstance(report, Told):
                        self.told = report
                    self.is_ready = self.is_ready or isinstance(report, Ready)
                    self.is_settled = self.is_settled or isinstance(report, Settled)
                    take(report)
        status = await self._process.wait()
        if self.told is None:
            last = bytes(complaints).decode(errors="replace").strip().splitlines()
            raise WorkerLost(f"A load process ended with status {status}: {last[-1] if last else 'it said nothing'}")

    async def end(self) -> None:
        if self._process.stdin is not None:
            await self._process.stdin.aclose()
        with trio.move_on_after(END_SECONDS):
            await self._process.wait()
        if self._process.poll() is None:
            self._process.kill()
            await self._process.wait()


class Crew:
    """All workers."""

    def __init__(self, workers: Sequence[Worker]) -> None:
        self.workers = tuple(workers)

    async def say(self, order: Order) -> None:
        """To everybody."""
        for worker in self.workers:
            await worker.say(order)

    async def hear(self, take: Callable[[Report], None]) -> None:
        """Everything that anybody says, until all have told what they saw. Raises WorkerLost."""
        async with trio.open_nursery() as nursery:
            for worker in self.workers:
                nursery.start_soon(worker.hear, take)


@asynccontextmanager
async def open_crew(shares: Sequence[Orders]) -> AsyncIterator[Crew]:
    """A process for each share, which has begun to prepare."""
    workers: list[Worker] = []
    try:
        for number, orders in enumerate(shares):
            process = await trio.lowlevel.open_process(
                [sys.executable, "-m", "halo.load.worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                start_new_session=True,  # Ctrl-C is for the conductor, which asks them to come to an end
            )
            workers.append(Worker(process, number))
            await workers[-1].say(orders)
        yield Crew(workers)
    finally:
        with trio.CancelScope(shield=True):
            for worker in workers:
                await worker.end()
