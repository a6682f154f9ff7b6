"""What a heartbeat costs, through the lobby socket and over HTTP: mitras who are online, each with one connection, beating as fast as they
are taken.

Through the lobby every twentieth asks for its ack; frames are taken in order, so an ack proves those before it. The server's CPU is its own process's, and so is
Valkey's. How many statements Postgres got meanwhile is read from the server's own counters: the daemons' looks go on, whoever beats. Read
next: `halo/net/lobby.py`, `halo/store/mirror.py`.
"""

import re
import time
import uuid
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import trio

from halo.clock import SystemClock
from halo.load.frames import TEXT, client_frame
from halo.net.tokens import Tokens
from halo.session import Party
from halo.store.postgres import Postgres
from scripts.measuring.crowd import CrowdLost
from scripts.measuring.figures import Figure, Measurement
from scripts.measuring.processes import cpu_seconds, family_cpu_seconds
from scripts.measuring.theatre import TOKEN_SECONDS, Theatre, open_theatre

MITRAS: Final = 500
HTTP_CONNECTIONS: Final = 100
"""Enough to keep the server busy; of 500 each would wait half a second for its turn, and the server gives up on what waits too long."""
BURST: Final = 20
ROUNDS: Final = 3
SECONDS: Final = 8.0
WARM_UP_SECONDS: Final = 2.0
CONNECTING: Final = 50
"""Handshakes under way at once."""
GOAL_US, GOAL_PER_CORE = 60.0, 15_000
GOAL_STATEMENTS = 0.005
"""None: less than what one round's look more or less of a daemon comes to, over HTTP."""
ACK: Final = b'"heartbeat_ack"'
_BURST = client_frame(TEXT, b'{"type":"heartbeat"}') * (BURST - 1) + client_frame(
    TEXT, b'{"type":"heartbeat","id":"1"}'
)


_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)


class Tally:
    """What all of them have had acknowledged."""

    beats = 0


async def measure(say: Callable[[str], None]) -> Measurement:
    mitra_ids = [str(uuid.uuid4()) for _ in range(MITRAS)]

    async def insert(db: Postgres) -> None:
        await db.execute(
            """INSERT INTO mitras (mitra_id, is_online, last_heartbeat_at, idle_since)
               SELECT id, true, now(), now() FROM unnest(%(ids)s::uuid[]) AS id""",
            {"ids": mitra_ids},
        )

    measured: dict[str, list[dict[str, float]]] = {}
    async with open_theatre() as theatre:
        await theatre.prepare(insert)
        await theatre.stage.start()
        await trio.sleep(WARM_UP_SECONDS)
        idle = await _count_idle(theatre)
        for way, connect in (("lobby", _connect), ("HTTP", _connect_http)):
            tally = Tally()
            async with trio.open_nursery() as nursery:
                await connect(theatre, mitra_ids, tally, nursery)
                say(f"heartbeats: connected, {way}")
                await trio.sleep(WARM_UP_SECONDS)
                readings = [await _read(theatre, tally)]
                for number in range(1, ROUNDS + 1):
                    await trio.sleep(SECONDS)
                    readings.append(await _read(theatre, tally))
                    cost = _between(readings[-2], readings[-1], idle)["server"]
                    say(f"heartbeats: {way}, round {number} of {ROUNDS}: {cost:.0f} µs each")
                nursery.cancel_scope.cancel()
            measured[way] = [_between(before, after, idle) for before, after in pairwise(readings)]

    def figures(way: str, goal: float | None) -> tuple[Figure, ...]:
        def figure(key: str, name: str, unit: str, goal: float | None = None) -> Figure:
            return Figure(name=f"{way}: {name}", unit=unit, rounds=tuple(one[key] for one in measured[way]), goal=goal)

        return (
            figure("server", "CPU of the server a heartbeat", "µs", goal),
            figure("per_core", "heartbeats on one core of server", "1/s"),
            figure("rate", "heartbeats taken", "1/s"),
            figure("valkey", "CPU of Valkey a heartbeat", "µs"),
            figure("postgres", "CPU of Postgres a heartbeat", "µs"),
            figure("statements", "statements on Postgres a second", "1/s"),
            figure("share", "statements on Postgres a heartbeat, beyond those of the idle server", "", GOAL_STATEMENTS),
        )

    return Measurement(
        title="Heartbeats",
        figures=(
            *figures("lobby", GOAL_US),
            *figures("HTTP", None),
            Figure(name="idle server: statements on Postgres a second", unit="1/s", rounds=(idle,)),
        ),
        notes=(
            f"{MITRAS} lobby sockets and {HTTP_CONNECTIONS} HTTP connections that stay open, each beating as fast as it is answered.",
            f"Through the lobby {BURST} beats share an ack.",
            f"The goal for one core of server is at least {GOAL_PER_CORE:,}/s through the lobby, which 60 µs more than give.",
            "HTTP has no goal of its own: each beat is a whole request with its token.",
        ),
    )


async def _connect(theatre: Theatre, mitra_ids: list[str], tally: Tally, nursery: trio.Nursery) -> None:
    tokens, slots = Tokens(theatre.token_secret, TOKEN_SECONDS, SystemClock()), trio.Semaphore(CONNECTING)
    address = urlsplit(theatre.stage.ready["ws"])
    host, port = str(address.hostname), int(address.port or 0)

    async def connect(mitra_id: str) -> None:
        async with slots:
            stream = await trio.open_tcp_stream(host, port)
            request = (
                f"GET /v1/lobby HTTP/1.1\r\nHost: {host}:{port}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                "Sec-WebSocket-Key: bWVhc3VyaW5nIGhhbG8uLg==\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Protocol: halo.v1\r\n"
                f"Authorization: Bearer {tokens.issue(Party.MITRA, mitra_id, mitra_id)}\r\n\r\n"
            )
            await stream.send_all(request.encode())
            said = b""
            while b'"welcome"' not in said:
                more = await stream.receive_some()
                if not more:
                    raise CrowdLost(f"a lobby socket was refused: {said[:100]!r}")
                said += more
        nursery.start_soon(_beat, stream, tally)

    async with trio.open_nursery() as connecting:
        for mitra_id in mitra_ids:
            connecting.start_soon(connect, mitra_id)


async def _beat(stream: trio.SocketStream, tally: Tally) -> None:
    async with stream:
        while True:
            await stream.send_all(_BURST)
            said = b""
            while ACK not in said:
                more = await stream.receive_some()
                if not more or b'"refused"' in more:
                    raise CrowdLost(f"a heartbeat was not taken: {more[:200]!r}")
                said += more
            tally.beats += BURST


async def _connect_http(theatre: Theatre, mitra_ids: list[str], tally: Tally, nursery: trio.Nursery) -> None:
    tokens = Tokens(theatre.token_secret, TOKEN_SECONDS, SystemClock())
    address = urlsplit(theatre.stage.ready["api"])
    host, port = str(address.hostname), int(address.port or 0)
    for mitra_id in mitra_ids[:HTTP_CONNECTIONS]:
        request = (
            f"POST /api/mitra/status/heartbeat HTTP/1.1\r\nHost: {host}:{port}\r\nContent-Length: 0\r\n"
            f"Authorization: Bearer {tokens.issue(Party.MITRA, mitra_id, mitra_id)}\r\n\r\n"
        )
        nursery.start_soon(_beat_http, host, port, request.encode(), tally)


async def _beat_http(host: str, port: int, request: bytes, tally: Tally) -> None:
    """One after the other; the server closes a connection after some thousand requests, and then there is another."""
    while True:
        async with await trio.open_tcp_stream(host, port) as stream:
            said = b"x"
            while said:
                await stream.send_all(request)
                said = await _answer(stream)
                tally.beats += bool(said)


async def _answer(stream: trio.SocketStream) -> bytes:
    """A whole answer; empty when the connection was closed before it. Raises CrowdLost for a refusal."""
    said = b""
    while True:
        more = await stream.receive_some()
        if not more:
            return b""
        said += more
        head, end, body = said.partition(b"\r\n\r\n")
        if not end:
            continue
        if not head.startswith((b"HTTP/1.1 200", b"HTTP/1.1 204")):
            raise CrowdLost(f"a heartbeat was not taken: {said[:300]!r}")
        length = _LENGTH.search(head)
        if len(body) >= (int(length[1]) if length else 0):
            return said


async def _read(theatre: Theatre, tally: Tally) -> dict[str, float]:
    figures = await theatre.figures()
    return {
        "at": time.perf_counter(),
        "beats": tally.beats,
        "server": cpu_seconds(theatre.server_pid),
        "valkey": cpu_seconds(_valkey_of(theatre.server_pid)),
        "postgres": family_cpu_seconds(theatre.postmaster_pid),
        "statements": figures["halo_postgres_statements_total"],
    }


async def _count_idle(theatre: Theatre) -> float:
    """Statements a second that the daemons send while nobody is there."""
    before, began = (await theatre.figures())["halo_postgres_statements_total"], time.perf_counter()
    await trio.sleep(SECONDS)
    return ((await theatre.figures())["halo_postgres_statements_total"] - before) / (time.perf_counter() - began)


def _between(before: dict[str, float], after: dict[str, float], idle: float) -> dict[str, float]:
    grown = {key: after[key] - before[key] for key in before}
    beyond = max(0.0, grown["statements"] - idle * grown["at"])
    return {
        "server": grown["server"] / grown["beats"] * 1e6,
        "valkey": grown["valkey"] / grown["beats"] * 1e6,
        "postgres": grown["postgres"] / grown["beats"] * 1e6,
        "per_core": grown["beats"] / grown["server"],
        "rate": grown["beats"] / grown["at"],
        "statements": grown["statements"] / grown["at"],
        "share": beyond / grown["beats"],
    }


def _valkey_of(server_pid: int) -> int:
    """The child of the server that is Valkey. Raises CrowdLost."""
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            text = stat.read_text(encoding="utf-8", errors="replace")
        except OSError:
            continue  # it has ended meanwhile
        if "(valkey-server)" in text and int(text.rpartition(")")[2].split()[1]) == server_pid:
            return int(text.partition(" ")[0])
    raise CrowdLost("the server has no Valkey of its own")
