"""What a living session with both sockets connected adds to the server's memory.

Two real servers, one with nobody and one with the sessions, each after a whole period of keepalive; the difference of their resident memory,
divided by the sessions. Postgres and Valkey are processes of their own and not in it. Read next: `scripts/measuring/talk.py`.
"""

from collections.abc import Callable, Sequence
from functools import partial

import trio

from halo.net.connections import PING_SECONDS
from scripts.measuring.crowd import open_crowd
from scripts.measuring.figures import Figure, Measurement
from scripts.measuring.processes import resident_bytes
from scripts.measuring.sessions import insert_living_sessions
from scripts.measuring.theatre import Theatre, open_theatre

SIZES = (500, 1_000, 1_000)
GOAL_KB = 80.0
SETTLE_SECONDS = PING_SECONDS + 5.0
"""A whole period of keepalive, so that what a ping allocates has been allocated."""
STEADY_SECONDS = 1.0
STEADY_PART = 0.001
STEADY_AT_MOST_SECONDS = 60.0


class SocketsMissing(Exception):
    """The server does not hold the sockets that were opened: its memory would mean nothing."""


async def measure(say: Callable[[str], None], sizes: Sequence[int] = SIZES) -> Measurement:
    empty = await _empty_server(say)
    alone, whole = [], []
    for sessions in sizes:
        restored, connected = await _with_sessions(say, sessions)
        alone.append((restored - empty) / sessions / 1000)
        whole.append((connected - empty) / sessions / 1000)
    return Measurement(
        title="Memory",
        figures=(
            Figure(name="session with both sockets connected", unit="KB", rounds=tuple(whole), goal=GOAL_KB),
            Figure(name="session restored, nobody connected", unit="KB", rounds=tuple(alone)),
            Figure(name="server without sessions", unit="KB", rounds=(empty / 1000,)),
        ),
        notes=(
            f"Rounds with {', '.join(f'{sessions:,}' for sessions in sizes)} sessions; 1 KB is 1,000 bytes of resident memory.",
        ),
    )


async def _empty_server(say: Callable[[str], None]) -> int:
    async with open_theatre() as theatre:
        await theatre.stage.start()
        await theatre.stage.stop()  # the first start makes the database, and its memory is not that of a usual one
        await theatre.stage.start()
        resident = await _steady(theatre)
        say(f"memory: the empty server holds {resident / 1e6:.1f} MB")
        return resident


async def _with_sessions(say: Callable[[str], None], count: int) -> tuple[int, int]:
    """Resident bytes with the sessions restored, and with all their people connected and silent."""
    async with open_theatre() as theatre:
        sessions = await theatre.prepare(partial(insert_living_sessions, count=count))
        await theatre.stage.start()
        restored = await _steady(theatre)
        async with open_crowd(theatre.stage.ready["ws"], theatre.token_secret, sessions):
            await trio.sleep(SETTLE_SECONDS)
            connected = await _steady(theatre)
            open_sockets = (await theatre.figures())["halo_connections"]
        if open_sockets != 2 * count:
            raise SocketsMissing(f"{open_sockets:.0f} of {2 * count} sockets were open while memory was measured")
        say(f"memory: {count:,} sessions hold {restored / 1e6:.1f} MB, with their sockets {connected / 1e6:.1f} MB")
        return restored, connected


async def _steady(theatre: Theatre) -> int:
    """Resident bytes once they have not moved for a second."""
    resident = resident_bytes(theatre.server_pid)
    with trio.move_on_after(STEADY_AT_MOST_SECONDS):
        while True:
            await trio.sleep(STEADY_SECONDS)
            before, resident = resident, resident_bytes(theatre.server_pid)
            if abs(resident - before) <= before * STEADY_PART:
                break
    return resident
