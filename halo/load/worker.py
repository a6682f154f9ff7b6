"""One process that makes load: it takes its orders from standard input, plays its share, and tells what it saw, one line of JSON each.

The load is never made in the process that draws the progress, so that neither waits for the other. It ends when its input does: a conductor
that was killed leaves nobody behind. Read next: `halo/load/playbill.py`, what is played.
"""

import os
import sys
import time
from collections.abc import Callable
from typing import Final

import msgspec
import trio

from halo.load.house import House
from halo.load.orders import Away, Cut, Go, Moved, Order, Orders, Ready, Report, Settled, Stop, Told
from halo.load.playbill import SCENES
from halo.load.speech import watch_lateness

SECOND: Final = 1.0
_decode: Final[Callable[[bytes], Order]] = msgspec.json.Decoder(Order).decode


def say(report: Report) -> None:
    """One line, whole, at once."""
    os.write(sys.stdout.fileno(), msgspec.json.encode(report) + b"\n")


async def listen(house: House, lines: trio.abc.ReceiveStream, rest: bytes) -> None:
    """Orders, until the input ends, which ends everything."""
    waiting = bytearray(rest)
    while True:
        while b"\n" in waiting:
            line, _, after = bytes(waiting).partition(b"\n")
            waiting[:] = after
            match _decode(line):
                case Go(at=at):
                    house.start = at
                    house.go.set()
                case Cut():
                    house.cut()
                case Away():
                    house.away()
                case Moved(ws=ws, api=api):
                    house.moved(ws, api)
                case Stop():
                    house.stop.set()
                case Orders():
                    raise AssertionError("orders come once")
        more = await lines.receive_some()
        if not more:
            raise KeyboardInterrupt
        waiting += more


async def tell_seconds(house: House) -> None:
    """What happened, second by second from the start."""
    await house.go.wait()
    while True:
        await trio.sleep(SECOND)
        say(house.meter.close_second(time.monotonic() - house.start))


async def run() -> None:
    lines = trio.lowlevel.FdStream(os.dup(sys.stdin.fileno()))
    first = bytearray()
    while b"\n" not in first:
        more = await lines.receive_some()
        if not more:
            return
        first += more
    line, _, rest = bytes(first).partition(b"\n")
    orders = _decode(line)
    assert isinstance(orders, Orders)  # the conductor begins with them
    house = House(orders, say)
    with house.wires:
        await play(house, lines, rest)


async def play(house: House, lines: trio.abc.ReceiveStream, rest: bytes) -> None:
    """The whole share, and what it told."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(listen, house, lines, rest)
        nursery.start_soon(house.wires.serve)
        scene = SCENES[house.plan.scenario](house)
        nursery.start_soon(house.chats.bring_back)
        nursery.start_soon(house.chats.try_again)
        nursery.start_soon(house.hosts.bring_back)
        await scene.prepare()
        say(Ready())
        await house.go.wait()
        began, cpu = time.monotonic(), time.process_time()
        async with trio.open_nursery() as watching:
            watching.start_soon(tell_seconds, house)
            watching.start_soon(watch_lateness, house.meter)
            with trio.CancelScope() as playing:
                watching.start_soon(house.stopped, playing)
                await scene.play()
            await scene.settle()
            watching.cancel_scope.cancel()
        say(Settled())
        wall, used = time.monotonic() - began, time.process_time() - cpu
        settled_at = time.monotonic() - house.start
        say(house.meter.close_second(settled_at))
        await scene.verify()
        say(house.meter.close_second(settled_at))  # what was counted meanwhile belongs to no second of the run
        say(
            Told(
                counts=dict(house.meter.counts),
                histograms=house.meter.whole(),
                findings=dict(house.findings.counts),
                examples=house.findings.examples,
                cpu_seconds=used,
                wall_seconds=wall,
                is_whole=not playing.cancelled_caught,
            )
        )
        nursery.cancel_scope.cancel()


def main() -> None:
    try:
        trio.run(run)
    except* KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
