"""How long `halo serve` takes from spawn to its ready line, with nobody to restore and with many.

The database exists already, as it does at every start but the first. Where the time goes is read from outside: from what Postgres and
halo write into their logs. After the ready line the sessions that were restored are credited with the downtime; how long that takes
is a figure of its own, since it is work that competes with the people who come back. Read next: `scripts/measuring/theatre.py`.
"""

import json
import re
import time
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from itertools import pairwise
from pathlib import Path

import trio

from halo.demo.stage import Stage
from halo.store.postgres import Postgres
from scripts.measuring.figures import Figure, Measurement
from scripts.measuring.sessions import count_uncredited, insert_living_sessions, require_whole
from scripts.measuring.theatre import Theatre, open_theatre

ROUNDS = 5
MANY = 10_000
GOAL_SECONDS = {0: 1.5, MANY: 5.0}
SETTLE_SECONDS = 120.0
POSTGRES_BEGINS = re.compile(r"^(\S+ \S+) UTC \[\d+\] LOG:  starting PostgreSQL", re.MULTILINE)
POSTGRES_ANSWERS = re.compile(
    r"^(\S+ \S+) UTC \[\d+\] LOG:  database system is ready to accept connections", re.MULTILINE
)
STAGES = ("Python and imports", "Postgres", "Valkey, schema, lease, sessions", "listeners")


class ServerDidNotStop(Exception):
    """SIGTERM did not end the server in order: what the next start restores would be another case."""


async def measure(say: Callable[[str], None], sessions: int, rounds: int = ROUNDS) -> Measurement:
    async with open_theatre() as theatre:
        say(f"start: preparing a database with {sessions:,} living sessions")
        await theatre.stage.start()  # the first start makes the database and compiles what is imported
        await theatre.stage.stop()
        await theatre.with_database(partial(insert_living_sessions, count=sessions))
        seconds, settled, parts = [], [], []
        for number in range(1, rounds + 1):
            measured = await _start(theatre, sessions)
            seconds.append(measured[0])
            settled.append(measured[1])
            parts.append(measured[2])
            say(f"start: {sessions:,} sessions, round {number} of {rounds}: ready after {measured[0]:.2f} s")
        await theatre.with_database(require_whole)
    figures = [Figure(name="spawn to the ready line", unit="s", rounds=tuple(seconds), goal=GOAL_SECONDS[sessions])]
    if sessions:
        figures.append(Figure(name="until all of them are credited, after that", unit="s", rounds=tuple(settled)))
    figures += [
        Figure(name=f"of it: {stage}", unit="s", rounds=column)
        for stage, column in zip(STAGES, zip(*parts, strict=True), strict=True)
    ]
    return Measurement(title=f"Start with {sessions:,} living sessions", figures=tuple(figures))


async def _start(theatre: Theatre, sessions: int) -> tuple[float, float, list[float]]:
    """Seconds until ready, seconds from there until every session is credited, and the first split into its stages."""
    logs = [theatre.stage.data_dir / "postgres.log", theatre.stage.log]
    lengths = [log.stat().st_size for log in logs]
    spawned_at, began = time.time(), time.perf_counter()
    await theatre.stage.start()
    ready = time.perf_counter() - began
    moments = split(*(_written(log, length) for log, length in zip(logs, lengths, strict=True)))
    edges = [spawned_at, *moments, spawned_at + ready]
    credited_after = await _wait_credited(theatre) - began - ready if sessions else 0.0
    await _stop(theatre.stage)
    return ready, max(0.0, credited_after), [later - earlier for earlier, later in pairwise(edges)]


def split(postgres_log: str, server_log: str) -> list[float]:
    """When Postgres began, when it answered, and when the sessions were restored, in seconds since 1970. Raises ValueError."""
    found = [POSTGRES_BEGINS.search(postgres_log), POSTGRES_ANSWERS.search(postgres_log)]
    restored = next(
        (
            event
            for line in server_log.splitlines()
            if line.startswith("{") and (event := json.loads(line))["event"] == "restored"
        ),
        None,
    )
    if found[0] is None or found[1] is None or restored is None:
        raise ValueError("the logs do not tell when Postgres and the sessions were there")
    moments = [datetime.fromisoformat(match[1]).replace(tzinfo=UTC) for match in found if match is not None]
    return [moment.timestamp() for moment in (*moments, datetime.fromisoformat(restored["at"]))]


def _written(log: Path, since: int) -> str:
    with log.open("rb") as file:
        file.seek(since)
        return file.read().decode(errors="replace")


async def _wait_credited(theatre: Theatre) -> float:
    """The moment when no session waits for its credit any more, or `SETTLE_SECONDS` are over."""

    async def watch(db: Postgres) -> float:
        with trio.move_on_after(SETTLE_SECONDS):
            while await count_uncredited(db):  # noqa: ASYNC110  # it happens in another process, which sets no event of ours
                await trio.sleep(0.1)
        return time.perf_counter()

    return await theatre.with_database(watch)


async def _stop(stage: Stage) -> None:
    status = await stage.stop()
    if status:
        raise ServerDidNotStop(f"the server ended with status {status}")
