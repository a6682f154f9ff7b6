"""What grows with the number of living sessions: the cost of an idle one, of a timer and of a message, at 10, 100, 1,000 and 10,000.

A real server in a process of its own for each number; every customer has a socket, and the same ten pairs talk whatever the number. What the
server takes when nobody says anything is measured first and taken off the rest. Costs are those of the event loop's thread, to the
nanosecond as the scheduler counts them. Must never compare runs with different loads. Read next: `scripts/measuring/storms.py`, its pauses.
"""

from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

import trio

from halo.store.live_config import LiveConfigStore
from halo.store.postgres import Postgres
from scripts.measuring.crowd import CrowdProcess, open_crowd
from scripts.measuring.drawing import Line, draw
from scripts.measuring.figures import Drawing, Figure, Measurement
from scripts.measuring.processes import resident_bytes
from scripts.measuring.sessions import LivingSession, insert_living_sessions
from scripts.measuring.theatre import Theatre, open_theatre

SIZES: Final = (10, 100, 1_000, 10_000)
TALKING: Final = 10
SECONDS: Final = 10.0
"""Of each window: half a period of keepalive, which is spread evenly over its seconds."""
SETTLE_SECONDS: Final = 5.0
TIMER_SECONDS: Final = 5
GOAL_RATIO: Final = 1.25
"""What ten times as many sessions may cost beyond ten times as much: what two runs on a shared machine differ by."""
CALM: Final = {"session_timer_interval_seconds": 3_600, "reroute_after_seconds": 86_400}


@dataclass(frozen=True, slots=True)
class Cost:
    """Of one number of sessions."""

    sessions: int
    idle_ms: float
    """CPU of the server in a second in which nobody says anything."""
    timers_ms: float
    """CPU in a second of timers alone, everybody's every `TIMER_SECONDS`."""
    message_us: float
    """CPU of one acknowledged message."""
    memory_kb: float
    """Resident, of the whole server."""


async def measure(say: Callable[[str], None], sizes: Sequence[int] = SIZES, seconds: float = SECONDS) -> Measurement:
    costs = [await _cost(say, sessions, seconds) for sessions in sizes]
    return Measurement(title="Growth", figures=_figures(costs), notes=_notes(seconds), drawings=(picture(costs),))


def _notes(seconds: float) -> tuple[str, ...]:
    return (
        f"Windows of {seconds:g} s. Costs a session hold its share of the server without any, which is why they fall.",
        f"Each customer has a socket. Messages: the same {TALKING} pairs, one in flight each way, whatever the number of sessions.",
        "Growth is what each further session costs from 1,000 to 10,000, to what each cost from 100 to 1,000; 1 is linear.",
        "That of a message is its cost at the largest number to that at the smallest.",
    )


def _figures(costs: Sequence[Cost]) -> tuple[Figure, ...]:
    figures: list[Figure] = []
    for cost in costs:
        at = f"{cost.sessions:,} sessions"
        figures += [
            Figure(
                name=f"{at}: CPU of an idle session a second", unit="µs", rounds=(cost.idle_ms / cost.sessions * 1e3,)
            ),
            Figure(
                name=f"{at}: CPU of a timer", unit="µs", rounds=(cost.timers_ms / cost.sessions * 1e3 * TIMER_SECONDS,)
            ),
            Figure(name=f"{at}: CPU of a message", unit="µs", rounds=(cost.message_us,)),
            Figure(name=f"{at}: memory of a session", unit="KB", rounds=(cost.memory_kb / cost.sessions,)),
        ]
    ratios = {
        "idle sessions": growth([(cost.sessions, cost.idle_ms) for cost in costs]),
        "timers": growth([(cost.sessions, cost.timers_ms) for cost in costs]),
        "memory": growth([(cost.sessions, cost.memory_kb) for cost in costs]),
        "a message": costs[-1].message_us / costs[0].message_us,
    }
    figures += [
        Figure(name=f"growth of {name}", unit="ratio to linear", rounds=(ratio,), goal=GOAL_RATIO)
        for name, ratio in ratios.items()
    ]
    return tuple(figures)


def growth(costs: Sequence[tuple[int, float]]) -> float:
    """What each further session costs in the last step, to what each cost in the step before. Raises ValueError with fewer than three points."""
    if len(costs) < 3:
        raise ValueError("growth needs two steps")
    (few, cheap), (more, dearer), (most, dearest) = costs[-3:]
    return (dearest - cheap) / (most - few) / max(1e-9, (dearer - cheap) / (more - few))


def picture(costs: Sequence[Cost]) -> Drawing:
    """Costs of everything together, on scales of powers of ten: linear growth is parallel to the dotted line."""
    lines = (
        Line("idle, ms of CPU a second", tuple((cost.sessions, cost.idle_ms) for cost in costs)),
        Line(
            f"timers, one in {TIMER_SECONDS} s, ms of CPU a second",
            tuple((cost.sessions, cost.timers_ms) for cost in costs),
        ),
        Line("one message, µs of CPU", tuple((cost.sessions, cost.message_us) for cost in costs)),
        Line("memory, MB", tuple((cost.sessions, cost.memory_kb / 1e3) for cost in costs)),
    )
    shows = "Cost of idle sessions, timers, a message and memory at 10 to 10,000 living sessions; none grows faster than linearly"
    return Drawing(
        name="growth", shows=shows, svg=draw("What grows with the number of living sessions", "living sessions", lines)
    )


async def _cost(say: Callable[[str], None], count: int, seconds: float) -> Cost:
    async with open_theatre() as theatre:
        sessions = await theatre.prepare(partial(insert_living_sessions, count=count))
        await theatre.prepare(partial(_configure, interval=CALM["session_timer_interval_seconds"]))
        await theatre.stage.start()
        async with AsyncExitStack() as stack:
            talking = await _connect(stack, theatre, sessions)
            await trio.sleep(SETTLE_SECONDS)
            idle = await _spent(theatre, seconds)
            memory = resident_bytes(theatre.server_pid)
            await talking.ask("go")
            await trio.sleep(1.0)
            await talking.ask("mark")
            talk = await _spent(theatre, seconds)
            acks = (await talking.ask("mark"))["acks"]
            await talking.ask("hush")
        await theatre.stage.stop()
        await theatre.prepare(partial(_configure, interval=TIMER_SECONDS))
        await theatre.stage.start()
        async with AsyncExitStack() as stack:
            await _connect(stack, theatre, sessions)
            await trio.sleep(SETTLE_SECONDS)
            ringing = await _spent(theatre, seconds)
    cost = Cost(
        sessions=count,
        idle_ms=idle / seconds * 1e3,
        timers_ms=max(0.0, ringing - idle) / seconds * 1e3,
        message_us=(talk - idle) / acks * 1e6,
        memory_kb=memory / 1e3,
    )
    say(
        f"growth: {count:,} sessions: idle {cost.idle_ms:.1f} ms/s, timers {cost.timers_ms:.1f} ms/s, "
        f"a message {cost.message_us:.1f} µs, {cost.memory_kb / 1e3:.0f} MB"
    )
    return cost


async def _configure(db: Postgres, interval: int) -> None:
    await LiveConfigStore(db).change({**CALM, "session_timer_interval_seconds": interval}, "measurement")


async def _connect(stack: AsyncExitStack, theatre: Theatre, sessions: Sequence[LivingSession]) -> CrowdProcess:
    """Both people of the first sessions, who may talk, and the customers of all others."""
    ws, secret = theatre.stage.ready["ws"], theatre.token_secret
    talking = await stack.enter_async_context(open_crowd(ws, secret, sessions[:TALKING]))
    if sessions[TALKING:]:
        await stack.enter_async_context(open_crowd(ws, secret, sessions[TALKING:], alone=True))
    return talking


async def _spent(theatre: Theatre, seconds: float) -> float:
    """Seconds of CPU that the server took in so many seconds."""
    before = running_seconds(theatre.server_pid)
    await trio.sleep(seconds)
    return running_seconds(theatre.server_pid) - before


def running_seconds(pid: int) -> float:
    """Of the thread of the event loop, as the scheduler counts it: ticks of 10 ms would hide what ten sessions cost. Linux only."""
    return int(Path(f"/proc/{pid}/schedstat").read_text(encoding="ascii").split()[0]) / 1e9
