"""How late deadlines are kept: thousands of sessions whose paid time, and whose time for goodbyes, end within one minute.

The server writes with each deadline when it fell and when it was acted upon; that is every one of them. Beside it, customers of some of the
sessions sit at a real socket and take the time at which they hear of it, which has the commit and the way to them in it. A deadline that was kept
early is a fault of its own: it has a figure, and its goal is none. Read next: `scripts/measuring/timers.sql`.
"""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from time import time
from typing import Any, Final

import trio

from halo.session import Party
from halo.store.live_config import LiveConfigStore
from halo.store.postgres import Postgres
from halo.store.queries import parse_queries
from scripts.measuring.figures import Figure, Measurement, percentile
from scripts.measuring.guests import Guest, Seat, open_guest, seats
from scripts.measuring.sessions import LivingSession, insert_living_sessions, require_whole
from scripts.measuring.talker import BEYOND_ALL, SocketLost
from scripts.measuring.theatre import Theatre, open_theatre

QUERIES: Final = parse_queries(Path(__file__).with_name("timers.sql").read_text(encoding="utf-8"), "timers.sql")
SESSIONS: Final = 10_000
SOCKETS: Final = 2_000
"""Customers who listen; more would measure how fast this process reads."""
LEAD_SECONDS: Final = 30.0
"""From the rows to the first deadline, without the server's downtime, which is credited: time to connect those who listen."""
SPAN_SECONDS: Final = 60.0
GRACE_SECONDS: Final = 1
"""The shortest time for goodbyes: a session ends within the same minute, and the minute has twice as many deadlines."""
PATIENCE_SECONDS: Final = 30.0
"""After the last deadline; who has not ended by then is lost."""
GOAL_MS: Final = 50.0
CLOSING, ENDED = "session_closing", "session_ended"


class DeadlinesLost(Exception):
    """Not every session ended, or not everybody who listened heard of it."""


class Listening:
    """When each session's customer heard of its two ends, in ms since 1970."""

    def __init__(self) -> None:
        self.heard: dict[tuple[str, str], float] = {}

    async def sit(self, ws: str, seat: Seat, *, task_status: trio.TaskStatus[None]) -> None:
        async with open_guest(ws, seat, BEYOND_ALL) as guest:
            task_status.started()
            await self._listen(guest)

    async def _listen(self, guest: Guest) -> None:
        while (guest.seat.session_id, ENDED) not in self.heard:
            try:
                frames = await guest.hear()
            except SocketLost:
                return  # whoever was not told of the end is missing below
            for frame in frames:
                if frame.type in {CLOSING, ENDED}:
                    self.heard[guest.seat.session_id, frame.type] = time() * 1000


async def measure(
    say: Callable[[str], None],
    sessions: int = SESSIONS,
    sockets: int = SOCKETS,
    lead_seconds: float = LEAD_SECONDS,
    span_seconds: float = SPAN_SECONDS,
) -> Measurement:
    listening = Listening()
    async with open_theatre() as theatre:
        prepared = partial(_prepare, sessions=sessions, lead_seconds=lead_seconds, span_seconds=span_seconds)
        living = await theatre.prepare(prepared)
        say(
            f"timers: {sessions:,} sessions end within {span_seconds:g} s, {sockets:,} of them with somebody who listens"
        )
        await theatre.stage.start()
        async with trio.open_nursery() as nursery:
            for seat in seats(living[:sockets], theatre.token_secret, (Party.CUSTOMER,)):
                await nursery.start(listening.sit, theatre.stage.ready["ws"], seat)
            connected_at = time() * 1000
            await _wait_ended(theatre, lead_seconds + span_seconds + PATIENCE_SECONDS)
            await trio.sleep(1.0)  # the last frame may follow its commit by a moment
            nursery.cancel_scope.cancel()
        reached = await theatre.with_database(_list_reached)
        await theatre.with_database(require_whole)
    if connected_at > min((row.deadline_at for row in reached), default=0):
        raise DeadlinesLost("the first session ended before everybody was there who listens")
    if len(reached) != 2 * sessions or len(listening.heard) != 2 * min(sockets, sessions):
        raise DeadlinesLost(
            f"{len(reached)} of {2 * sessions} deadlines were kept, {len(listening.heard)} were heard of"
        )
    late = [float(row.at - row.deadline_at) for row in reached]
    heard = heard_ms(reached, listening.heard)
    say(
        f"timers: decided after {percentile(late, 0.99):.1f} ms, heard of after {percentile(heard, 0.99):.1f} ms, of 99 in 100"
    )
    return Measurement(
        title=f"Timers: {sessions:,} sessions end within {span_seconds:g} s",
        figures=(
            Figure(name="late, 99 of 100 deadlines", unit="ms", rounds=(percentile(late, 0.99),), goal=GOAL_MS),
            Figure(name="early", unit="deadlines", rounds=(float(sum(one < 0 for one in late)),), goal=0),
            Figure(name="late, median", unit="ms", rounds=(percentile(late, 0.5),)),
            Figure(name="late, the worst", unit="ms", rounds=(max(late),)),
            Figure(name="heard of at a socket, 99 of 100", unit="ms", rounds=(percentile(heard, 0.99),)),
            Figure(name="heard of at a socket, median", unit="ms", rounds=(percentile(heard, 0.5),)),
        ),
        notes=(
            f"{len(reached):,} deadlines: each session's paid time, and {GRACE_SECONDS} s later its time for goodbyes.",
            "Late is from the deadline to the moment at which the session's actor acted upon it; heard of includes the commit and the way to the socket.",
        ),
    )


def heard_ms(reached: Sequence[Any], heard: dict[tuple[str, str], float]) -> list[float]:
    """From each deadline to the moment at which its frame came to a socket."""
    frame_of = {"active": CLOSING, "closing": ENDED}
    moments = ((heard.get((row.session_id, frame_of[row.from_status])), row.deadline_at) for row in reached)
    return [moment - deadline for moment, deadline in moments if moment is not None]


async def _prepare(db: Postgres, sessions: int, lead_seconds: float, span_seconds: float) -> list[LivingSession]:
    await LiveConfigStore(db).change({"closure_grace_seconds": GRACE_SECONDS}, "scripts/measure")
    living = await insert_living_sessions(db, sessions)
    await db.execute(QUERIES["spread_ends"], {"lead_ms": int(lead_seconds * 1000), "span_ms": int(span_seconds * 1000)})
    return living


async def _wait_ended(theatre: Theatre, seconds: float) -> None:
    async def watch(db: Postgres) -> None:
        while True:
            row: Any = await db.fetch_one(QUERIES["count_living"])
            if not row.count:
                return
            await trio.sleep(1.0)

    try:
        with trio.fail_after(seconds):
            await theatre.with_database(watch)
    except trio.TooSlowError as slow:
        raise DeadlinesLost(f"after {seconds:.0f} s there are still living sessions") from slow


async def _list_reached(db: Postgres) -> list[Any]:
    return list(await db.fetch_all(QUERIES["list_reached"]))
