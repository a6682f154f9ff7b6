"""What the status page costs with 10,000 living sessions: a load, its CPU, and how long it keeps the event loop from everybody else.

The real server in this process, so that each turn of its event loop can be timed: by its own CPU, which is what the page is to blame for on
a machine that others use as well, and by the clock, as people feel it. The browsers are a process of their own. The same is measured
without browsers, for a machine that pauses by itself. Read next:
`halo/net/status/overview.py`, `scripts/measuring/onlookers.py`.
"""

import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

import httpx
import trio

from halo.collector import spare_the_old
from halo.server import Server, open_server
from halo.settings import Settings
from halo.store.live_config import LiveConfigStore
from scripts.measuring.figures import Figure, Measurement, percentile
from scripts.measuring.sessions import insert_living_sessions
from scripts.measuring.theatre import UNLIMITED
from scripts.measuring.turns import Turns

SESSIONS: Final = 10_000
BROWSERS: Final = 5
EVERY_SECONDS: Final = 5.0
ROUNDS: Final = 3
ROUND_SECONDS: Final = 12.0
ALONE_EVERY_SECONDS: Final = 2.5
"""Further apart than the overview's answer is kept: each of these loads asks the stores."""
GOAL_PAUSE_MS: Final = 20.0
SETTLE_SECONDS: Final = 15.0
"""What a start leaves to do (credits, the mirror's seed) is done, and the first figures of the last hour are there."""
QUIET: Final = {"session_timer_interval_seconds": 3600, "reroute_after_seconds": 86_400}
"""The sessions were put there at one moment and without their people, so all their timers would ring at one moment, and all their mitras be
missed at one: pauses that no page makes."""
PASSWORD: Final = "a password of the measurement"  # noqa: S105  # of a server that is gone afterwards
_TOKEN: Final = re.compile(r'name="csrf_token" value="([0-9a-f]+)"')


class PageWrong(Exception):
    """The page was not shown, or does not show what was measured."""


async def measure(say: Callable[[str], None]) -> Measurement:
    with tempfile.TemporaryDirectory(prefix="halo-measure-") as directory:
        await trio.Path(directory).chmod(0o711)  # the embedded Postgres of a root user passes through
        environment = {
            **UNLIMITED,
            "HALO_DATA_DIR": str(Path(directory) / "halo"),
            "HALO_ADMIN_PASSWORD": PASSWORD,
            "HALO_WS_BIND": "127.0.0.1:0",
            "HALO_API_BIND": "127.0.0.1:0",
            "HALO_ADMIN_BIND": "127.0.0.1:0",
        }
        async with open_server(Settings.read(environment, {})) as (server, _), trio.open_nursery() as nursery:
            say(f"status: inserting {SESSIONS:,} living sessions")
            await insert_living_sessions(server.parts.db, SESSIONS)
            await LiveConfigStore(server.parts.db).change(QUIET, "measurement")
            addresses = await nursery.start(_run, server)
            spare_the_old()  # as `halo serve` does when it is ready
            await trio.sleep(SETTLE_SECONDS)
            measured = await _measure(say, addresses["admin"])
            server.stop.set()
        return measured


async def _run(server: Server, *, task_status: trio.TaskStatus[Mapping[str, str]]) -> None:
    await server.run(task_status.started)


async def _measure(say: Callable[[str], None], base: str) -> Measurement:
    cookie = await _sign_in(base)
    say(f"status: {BROWSERS} browsers every {EVERY_SECONDS:g} s, against none")
    quiet, watched, loads = [], [], []
    for _ in range(ROUNDS):
        quiet.append((await _watched(None))[0])
        turns, times = await _watched((base + "/", cookie, BROWSERS, EVERY_SECONDS))
        watched.append(turns)
        say("status: the longest step meanwhile, {:.1f} ms, was made by {}".format(*turns.longest_step))
        loads += times
    say("status: one load after the other")
    _, asked = await _watched((base + "/", cookie, 1, ALONE_EVERY_SECONDS))
    idle_cpu = await _cpu_seconds(None)
    shared_cpu, shared = await _cpu_of((base + "/", cookie, 1, 0.0), idle_cpu)
    tasks_turns, tasks = await _watched((base + "/tasks", cookie, 1, 1.0))
    say("status: the longest step meanwhile, {:.1f} ms, was made by {}".format(*tasks_turns.longest_step))
    return Measurement(
        title=f"Status page with {SESSIONS:,} living sessions",
        figures=(
            Figure(name="load of /, asking the stores", unit="ms", rounds=tuple(asked)),
            Figure(name="the same from the answer that is shared for 2 s", unit="ms", rounds=tuple(shared)),
            Figure(name="CPU of the server a load, shared", unit="ms", rounds=(shared_cpu,)),
            Figure(
                name=f"load of / by {BROWSERS} browsers every {EVERY_SECONDS:g} s, p99",
                unit="ms",
                rounds=(percentile(loads, 0.99),),
            ),
            *_figures("meanwhile", watched, GOAL_PAUSE_MS),
            *_figures("with nobody looking", quiet, None),
            Figure(name="load of /tasks, once a second", unit="ms", rounds=tuple(tasks)),
            *_figures("meanwhile (tasks)", [tasks_turns], GOAL_PAUSE_MS),
        ),
        notes=(
            f"Pauses are the longest of each {ROUND_SECONDS:g} s, with Postgres, Valkey and the browsers on the same cores.",
            "The goal is held against the event loop's own CPU: by the clock a pause is also what others took from it meanwhile.",
            "CPU a load is the server's alone, less what it takes when nobody looks; no sockets are open, each session has its actor.",
        ),
    )


def _figures(when: str, rounds: Sequence[Turns], goal: float | None) -> tuple[Figure, Figure]:
    cpu, clock = tuple(turns.longest_cpu_ms for turns in rounds), tuple(turns.longest_ms for turns in rounds)
    return (
        Figure(name=f"longest pause of the event loop {when}, its own CPU", unit="ms", rounds=cpu, goal=goal),
        Figure(name=f"the same by the clock {when}", unit="ms", rounds=clock),
    )


async def _sign_in(base: str) -> str:
    async with httpx.AsyncClient(
        trust_env=False, timeout=30, headers={"Accept": "text/html", "Origin": base}
    ) as client:
        page = await client.get(base + "/sign-in")
        found = _TOKEN.search(page.text)
        if found is None:
            raise PageWrong("the sign-in has no form")
        fields = {"csrf_token": found[1], "name": "admin", "password": PASSWORD}
        answer = await client.post(base + "/sign-in", data=fields)
        cookie = "; ".join(f"{name}={value}" for name, value in client.cookies.items())
        shown = await client.get(base + "/", headers={"Cookie": cookie})
    if answer.status_code != 303 or f'<dd id="living">{SESSIONS // 1000}' not in shown.text:
        raise PageWrong(f"the overview does not show {SESSIONS} living sessions")
    return cookie


Look = tuple[str, str, int, float]
"""URL, cookie, how many, how often in seconds."""


async def _watched(look: Look | None) -> tuple[Turns, list[float]]:
    """The turns of one round, and the ms of each load."""
    turns = Turns()
    trio.lowlevel.add_instrument(turns)
    try:
        return turns, await _look(look)
    finally:
        trio.lowlevel.remove_instrument(turns)


async def _look(look: Look | None) -> list[float]:
    if look is None:
        await trio.sleep(ROUND_SECONDS)
        return []
    command = [sys.executable, "-m", "scripts.measuring.onlookers", *map(str, look), str(ROUND_SECONDS)]
    done = await trio.run_process(command, stdin=subprocess.DEVNULL, capture_stdout=True, check=False)
    if done.returncode != 0:
        raise PageWrong("a browser was refused")
    times: list[float] = json.loads(done.stdout)
    return times


async def _cpu_seconds(look: Look | None) -> float:
    began = time.process_time()
    await _look(look)
    return time.process_time() - began


async def _cpu_of(look: Look, idle_seconds: float) -> tuple[float, list[float]]:
    """CPU of the server for each load in ms, and the ms of each."""
    began = time.process_time()
    times = await _look(look)
    spent = time.process_time() - began - idle_seconds
    return max(0.0, spent) * 1000 / len(times), times
