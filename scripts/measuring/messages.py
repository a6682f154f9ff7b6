"""What an acknowledged message costs: 50 pairs, each participant with one message of 120 characters in flight.

The server's CPU is its own process's, Postgres' that of its whole family; both are divided by the messages that became durable in the
window. Afterwards the rows in Postgres must equal the acks, in order and without repetition, or there is no figure. Read next:
`scripts/measuring/talk.py`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import trio

from scripts.measuring.crowd import CrowdProcess, open_crowd
from scripts.measuring.figures import Figure, Measurement
from scripts.measuring.processes import cpu_seconds, family_cpu_seconds, machine_cpu_seconds
from scripts.measuring.sessions import MESSAGES_BEFORE, count_messages, insert_living_sessions, require_whole
from scripts.measuring.theatre import Theatre, open_theatre

PAIRS = 50
ROUNDS = 3
SECONDS = 10.0
WARM_UP_SECONDS = 3.0
GOAL_SERVER_US, GOAL_POSTGRES_US = 120.0, 12.0


class MessagesWrong(Exception):
    """What Postgres holds is not what was acknowledged, or somebody heard it out of order."""


@dataclass(frozen=True, slots=True)
class Reading:
    """All accounts at one moment."""

    server: float
    postgres: float
    machine: float
    rows: float
    commits: float
    client: dict[str, Any]


async def measure(say: Callable[[str], None], rounds: int = ROUNDS, seconds: float = SECONDS) -> Measurement:
    async with open_theatre() as theatre:
        sessions = await theatre.prepare(partial(insert_living_sessions, count=PAIRS))
        await theatre.stage.start()
        async with open_crowd(theatre.stage.ready["ws"], theatre.token_secret, sessions) as crowd:
            await crowd.ask("go")
            await trio.sleep(WARM_UP_SECONDS)
            readings = [await read(theatre, crowd)]
            for number in range(1, rounds + 1):
                await trio.sleep(seconds)
                readings.append(await read(theatre, crowd))
                say(
                    f"messages: round {number} of {rounds}: {round_of(*readings[-2:])['server']:.0f} µs a message in the server"
                )
            last = await crowd.ask("hush")
        stored = await theatre.with_database(count_messages) - PAIRS * MESSAGES_BEFORE
        await theatre.with_database(require_whole)
    require_same(last, stored)
    measured = [round_of(before, after) for before, after in pairwise(readings)]

    def figure(key: str, name: str, unit: str, goal: float | None = None) -> Figure:
        return Figure(name=name, unit=unit, rounds=tuple(one[key] for one in measured), goal=goal)

    return Measurement(
        title="Messages",
        figures=(
            figure("server", "CPU of the server a message", "µs", GOAL_SERVER_US),
            figure("postgres", "CPU of Postgres a message", "µs", GOAL_POSTGRES_US),
            figure("rate", "messages acknowledged", "1/s"),
            figure("p50", "time to the ack, median", "ms"),
            figure("p99", "time to the ack, 99 of 100", "ms"),
            figure("rows", "rows in one commit", "rows"),
            figure("server_cores", "cores used by the server", "cores"),
            figure("client_cores", "cores used by the client", "cores"),
            figure("others_cores", "cores used by everything else", "cores"),
        ),
        notes=(
            f"{PAIRS} pairs, one message in flight each way, rounds of {seconds:g} s.",
            f"{stored:,} messages were acknowledged, and as many are in Postgres, each once and heard in order by both.",
        ),
    )


async def read(theatre: Theatre, crowd: CrowdProcess) -> Reading:
    counters = await theatre.figures()
    client = await crowd.ask("mark")
    return Reading(
        server=cpu_seconds(theatre.server_pid),
        postgres=family_cpu_seconds(theatre.postmaster_pid),
        machine=machine_cpu_seconds(),
        rows=counters["halo_messages_stored_total"],
        commits=counters["halo_journal_commits_total"],
        client=client,
    )


def round_of(before: Reading, after: Reading) -> dict[str, float]:
    acks, seconds = after.client["acks"], after.client["seconds"]
    server, postgres = after.server - before.server, after.postgres - before.postgres
    client = after.client["cpu_seconds"] - before.client["cpu_seconds"]
    return {
        "server": server / acks * 1e6,
        "postgres": postgres / acks * 1e6,
        "rate": acks / seconds,
        "p50": after.client["p50_ms"],
        "p99": after.client["p99_ms"],
        "rows": (after.rows - before.rows) / (after.commits - before.commits),
        "server_cores": server / seconds,
        "client_cores": client / seconds,
        "others_cores": max(0.0, (after.machine - before.machine - server - postgres - client) / seconds),
    }


def require_same(last: dict[str, Any], stored: int) -> None:
    acks, deliveries = last["acks_ever"], last["deliveries_ever"]
    if not acks == deliveries == stored or last["refusals_ever"] or last["disorders_ever"]:
        raise MessagesWrong(
            f"{acks} acks, {deliveries} deliveries, {stored} rows, {last['refusals_ever']} refusals, {last['disorders_ever']} out of order"
        )
