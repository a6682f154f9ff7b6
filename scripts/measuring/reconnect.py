"""Everybody comes back at once: sockets of living sessions, `kill -9`, a new server, and how long until all of them talk again.

The storm is the hardest there is: every socket is opened at the same instant, that of the ready line. A server that has no hand free says so, and
whoever was told tries again within a second. A socket counts as resumed when it was welcomed with no message missing and a message that it sent
then was acknowledged. Read next:
`scripts/measuring/guests.py`.
"""

import math
import random
import time
from collections.abc import Callable
from functools import partial
from typing import Final

import trio

from halo.session import Party
from scripts.measuring.figures import Figure, Measurement, percentile
from scripts.measuring.guests import Guest, NotYet, Seat, open_guest, seats
from scripts.measuring.sessions import count_messages, insert_living_sessions, require_whole
from scripts.measuring.talker import SocketLost
from scripts.measuring.theatre import open_theatre

SOCKETS: Final = 2_000
GOAL_SECONDS: Final = 10.0
AT_MOST_SECONDS: Final = 60.0
"""For either: what is not back by then is lost, and there is no figure."""
RETRY_SECONDS: Final = 1.0
"""What the server's Retry-After says; each tries at a moment of its own within it."""
PARTIES: Final = (Party.CUSTOMER, Party.MITRA)


class StormLost(Exception):
    """Somebody did not come back, or came back to fewer messages than were acknowledged."""


async def measure(say: Callable[[str], None], rounds: int = 1, sockets: int = SOCKETS) -> Measurement:
    storms, started = [], []
    for number in range(1, rounds + 1):
        back, start = await _storm(sockets)
        storms.append(back)
        started.append(start)
        say(f"reconnect: round {number} of {rounds}: {sockets:,} sockets back {max(back.acks):.2f} s after ready")

    def figure(name: str, value: Callable[[Return], float], unit: str = "s", goal: float | None = None) -> Figure:
        return Figure(name=name, unit=unit, rounds=tuple(value(back) for back in storms), goal=goal)

    return Measurement(
        title="Reconnect storm",
        figures=(
            figure("ready to the last socket resumed", lambda back: max(back.acks), goal=GOAL_SECONDS),
            figure("ready to the last welcome", lambda back: max(back.welcomes)),
            figure("ready to half of the sockets resumed", lambda back: percentile(back.acks, 0.5)),
            figure("tries that were told to come again", lambda back: float(back.told_to_wait), unit="tries"),
            Figure(name="kill to ready, beside", unit="s", rounds=tuple(started)),
        ),
        notes=(
            f"{sockets:,} sockets of {sockets // 2:,} sessions, all opened again at the ready line after kill -9, limits of the handshake lifted.",
            "Resumed means welcomed with every acknowledged message, and a message of one's own acknowledged.",
        ),
    )


async def _storm(sockets: int) -> tuple["Return", float]:
    """Who came back when, and the seconds from the kill to ready."""
    async with open_theatre() as theatre:
        sessions = await theatre.prepare(partial(insert_living_sessions, count=math.ceil(sockets / 2)))
        await theatre.stage.start()
        people = seats(sessions, theatre.token_secret, PARTIES)[:sockets]
        before: dict[str, int] = {}
        async with trio.open_nursery() as nursery:
            with trio.fail_after(AT_MOST_SECONDS):
                for seat in people:
                    before[seat.session_id] = await nursery.start(_stay, theatre.stage.ready["ws"], seat)
            acknowledged = await theatre.with_database(count_messages)
            killed_at = time.time()
            await theatre.stage.kill()
            nursery.cancel_scope.cancel()
        await theatre.stage.start()
        ready_at = time.time()
        back = Return(theatre.stage.ready["ws"], before, ready_at)
        await back.run(people)
        stored = await theatre.with_database(count_messages) - acknowledged
        if stored != len(people):
            raise StormLost(f"{len(people)} messages were acknowledged after the storm, and {stored} are stored")
        await theatre.with_database(require_whole)
    return back, ready_at - killed_at


async def _stay(ws: str, seat: Seat, *, task_status: trio.TaskStatus[int]) -> None:
    """Come, say one thing, and be there when the server dies; started with the `seq` of what was said."""
    async with open_guest(ws, seat, 0) as guest:
        task_status.started(await _say(guest, f"before-{seat.party}"))
        await trio.sleep_forever()


class Return:
    """Everybody on the way back, and when each was there, in seconds after the ready line."""

    def __init__(self, ws: str, before: dict[str, int], ready_at: float) -> None:
        self._ws = ws
        self._before = before
        self._ready_at = ready_at
        self._everybody = trio.Event()
        self.welcomes: list[float] = []
        self.acks: list[float] = []
        self.told_to_wait = 0

    async def run(self, people: list[Seat]) -> None:
        """Raises StormLost."""
        try:
            with trio.fail_after(AT_MOST_SECONDS):
                async with trio.open_nursery() as nursery:
                    for seat in people:
                        nursery.start_soon(self._come_back, seat, len(people))
        except trio.TooSlowError as slow:
            raise StormLost(f"{len(people) - len(self.acks)} of {len(people)} sockets were not back in time") from slow

    async def _come_back(self, seat: Seat, people: int) -> None:
        while True:
            try:
                async with open_guest(self._ws, seat, self._before[seat.session_id]) as guest:
                    await self._resume(guest)
                    if len(self.acks) == people:
                        self._everybody.set()
                    await self._everybody.wait()  # with a full house: nobody makes room for others
                    return
            except NotYet:
                self.told_to_wait += 1
                await trio.sleep(random.uniform(0, RETRY_SECONDS))  # noqa: S311  # jitter, not a secret

    async def _resume(self, guest: Guest) -> None:
        known = self._before[guest.seat.session_id]
        if guest.last_seq < known:
            raise StormLost(f"a session came back with {guest.last_seq} messages of {known}")
        self.welcomes.append(guest.welcomed_at - self._ready_at)
        await _say(guest, f"after-{guest.seat.party}")
        self.acks.append(time.time() - self._ready_at)


async def _say(guest: Guest, message_id: str) -> int:
    """The `seq` of a message that this one sends. Raises SocketLost."""
    await guest.say(message_id)
    while True:
        for frame in await guest.hear():
            if frame.type == "refused":
                raise SocketLost("a message was refused")
            if frame.type == "ack" and frame.id == message_id and frame.seq is not None:
                return frame.seq
