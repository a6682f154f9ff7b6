"""How long the event loop is away, whatever storm: 10,000 sessions that start, say the time, end and are sent away together.

The real server in this process, so that each of its turns can be timed: by its own CPU, which is what halo is to blame for on a machine that
others use as well, and by the clock. Those who connect are a process of their own. The sessions were put there in groups of 2,000 of one
moment, which is as much of one age as a restart can make them. Read next: `scripts/measuring/turns.py`, `halo/actors/bell.py`.
"""

import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Final

import trio

from halo.collector import spare_the_old
from halo.server import Server, collect_often, open_server
from halo.settings import Settings
from halo.store.live_config import LiveConfigStore
from halo.store.queries import parse_queries
from scripts.measuring.crowd import open_crowd
from scripts.measuring.figures import Figure, Measurement
from scripts.measuring.sessions import LivingSession, insert_living_sessions
from scripts.measuring.theatre import UNLIMITED
from scripts.measuring.turns import watched

SQL: Final = parse_queries(Path(__file__).with_name("storms.sql").read_text(encoding="utf-8"), "storms.sql")
SESSIONS: Final = 10_000
AT_ONCE: Final = 2_000
MINUTES: Final = 2
"""Of paid time: all are connected before it is over."""
GOAL_MS: Final = 50.0
QUIET: Final = {"session_timer_interval_seconds": 10, "reroute_after_seconds": 86_400, "closure_grace_seconds": 3600}
"""Their mitras are not there, and are not to be replaced; whoever has ended says goodbye until the drain."""
TIMERS_SECONDS: Final = 22.0
"""Two rings of everybody's timer and a whole period of keepalive."""
PATIENCE_SECONDS: Final = 300.0
"""Of it up to two minutes until the first ends; some 250 a second end then."""


class StormNotOver(Exception):
    """Sessions whose time was over were still running long after."""


class Storms:
    """The longest turn of each storm so far, in ms: own CPU, by the clock, and in the garbage collector."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._figures: list[Figure] = []
        self._longest_collection_ms = 0.0

    async def watch(self, name: str, storm: Callable[[], Awaitable[object]], goal: float | None = GOAL_MS) -> None:
        with watched() as (turns, collections):
            await storm()
        self._figures += [
            Figure(name=f"{name}, own CPU", unit="ms", rounds=(turns.longest_cpu_ms,), goal=goal),
            Figure(name=f"{name}, by the clock", unit="ms", rounds=(turns.longest_ms,)),
        ]
        self._longest_collection_ms = max(self._longest_collection_ms, collections.longest_ms)
        parts = ", ".join(f"{kind} {ms:.1f}" for kind, ms, _ in turns.longest_parts[:3])
        self._say(f"storms: {name}: {turns.longest_cpu_ms:.1f} ms: {parts}; garbage {collections.longest_ms:.1f}")

    def figures(self) -> tuple[Figure, ...]:
        garbage = Figure(
            name="longest garbage collection in all of this", unit="ms", rounds=(self._longest_collection_ms,)
        )
        return (*self._figures, garbage)


async def measure(say: Callable[[str], None], sessions: int = SESSIONS) -> Measurement:
    storms = Storms(say)
    async with _open_house(say, sessions) as (server, living, start):
        addresses: dict[str, str] = {}

        async def restart() -> None:
            addresses.update(await start())

        await storms.watch(f"start with {sessions:,} sessions", restart, goal=None)
        spare_the_old()
        await _play(storms, server, living, addresses["ws"])
    return Measurement(
        title=f"Longest turn of the event loop, {sessions:,} sessions",
        figures=storms.figures(),
        notes=(
            "A turn is what runs between two looks at sockets and timers. The goal is held against the loop's own CPU.",
            "In a start nobody is connected yet. Its longest turn makes the listeners; sessions are taken up in turns of some 25 ms.",
        ),
    )


async def _play(storms: Storms, server: Server, living: list[LivingSession], ws: str) -> None:
    calm = max(1, len(living) - AT_ONCE)

    async def come(sessions: list[LivingSession], at_once: int) -> None:
        secret = server.parts.settings.token_secret
        await crowds.enter_async_context(
            open_crowd(ws, secret, sessions, alone=True, at_once=at_once, until_closed=True)
        )

    async def end() -> None:
        with trio.move_on_after(PATIENCE_SECONDS):
            while await _running(server):  # noqa: ASYNC110 - nobody tells: only the rows know
                await trio.sleep(1)
            return
        raise StormNotOver

    async def drain() -> None:
        server.stop.set()
        await server.parts.connections.wait_empty()

    async with AsyncExitStack() as crowds:
        await storms.watch("one after the other connects", lambda: come(living[:calm], 1))
        if living[calm:]:
            await storms.watch(f"{len(living) - calm:,} connect at once", lambda: come(living[calm:], AT_ONCE))
        await storms.watch("timers and keepalive", partial(trio.sleep, TIMERS_SECONDS))
        await storms.watch("all end together", end)
        await storms.watch("drain", drain)


async def _running(server: Server) -> int:
    row = await server.parts.db.fetch_one(SQL["count_running"])
    assert row is not None  # it counts
    return int(row.count)


Start = Callable[[], Awaitable[Mapping[str, str]]]


@asynccontextmanager
async def _open_house(
    say: Callable[[str], None], sessions: int
) -> AsyncIterator[tuple[Server, list[LivingSession], Start]]:
    """A server in this process that is not started yet, and sessions that wait for it."""
    with tempfile.TemporaryDirectory(prefix="halo-measure-") as directory:
        await trio.Path(directory).chmod(0o711)  # the embedded Postgres of a root user passes through
        binds = {f"HALO_{name}_BIND": "127.0.0.1:0" for name in ("WS", "API", "ADMIN")}
        environment = {**UNLIMITED, **binds, "HALO_DATA_DIR": str(Path(directory) / "halo"), "HALO_DRAIN_SECONDS": "20"}
        async with open_server(Settings.read(environment, {})) as (server, _), trio.open_nursery() as nursery:
            say(f"storms: inserting {sessions:,} living sessions")
            living = await insert_living_sessions(server.parts.db, sessions, MINUTES)
            await LiveConfigStore(server.parts.db).change(QUIET, "measurement")
            nursery.start_soon(collect_often)
            spare_the_old()  # as in a node that runs already
            over = trio.Event()

            async def run(*, task_status: trio.TaskStatus[Mapping[str, str]]) -> None:
                await server.run(task_status.started)
                over.set()

            yield server, living, lambda: nursery.start(run)
            server.stop.set()
            await over.wait()
            nursery.cancel_scope.cancel()
