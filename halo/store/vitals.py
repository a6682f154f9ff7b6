"""The vital signs of the stores, for `halo doctor`: read once, judged elsewhere, nothing changed.

Both stores are asked directly and not through the rooms that hide their absence, for an absence is what is to be told. It must never
start, stop, migrate or write anything. Read next: `halo/doctor.py`, which judges.
"""

from halo.store.valkey_link import LINK_FAULTS, choose_link  # isort: skip  (trio_asyncio first)

import math
from collections.abc import AsyncIterator
from dataclasses import dataclass
from importlib import resources
from statistics import median
from typing import Any, Final

import trio
import trio_asyncio

from halo.clock import Clock
from halo.store.dial import SERVING, dial
from halo.store.invariants import INVARIANTS
from halo.store.migrations import list_migrations
from halo.store.nodes import LOCK_CLASS
from halo.store.postgres import Postgres
from halo.store.queries import load_queries

SQL = load_queries("vitals")

ASKED_FOR_LATENCY: Final = 9
"""Journeys of which the median is told: one that met a busy moment does not count."""
VALKEY_SECONDS: Final = 10.0
"""As long as an operator looks at a cursor: one that answers so late is told as slow, and is not away."""


class ValkeySilent(Exception):
    """Valkey did not answer; the message says why, without its password."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PostgresVitals:
    version: str
    version_number: int
    encoding: str
    fsync: bool
    synchronous_commit: str
    full_page_writes: bool
    is_standby: bool
    connections_at_most: int
    connections_used: int
    latency_ms: float
    skew_ms: float
    """This machine's clock ahead of the server's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Schema:
    """What was applied beside what this version brings."""

    applied: int
    pending: tuple[str, ...]
    unknown: tuple[str, ...]
    changed: tuple[str, ...]
    may_be_made: bool
    """Whether this user may make tables where they belong: what is pending can be applied."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeVitals:
    node_id: str
    silent_seconds: float
    sessions: int
    holds_lock: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ValkeyVitals:
    version: str
    eviction: str
    memory_at_most: int
    """Bytes; 0 for no bound."""
    keeps_files: bool
    is_replica: bool
    latency_ms: float
    skew_ms: float


async def read_postgres(db: Postgres, clock: Clock) -> PostgresVitals:
    """Raises StoreUnavailable."""
    row = await db.fetch_one(SQL["read_server"])
    assert row is not None  # one row, always
    took, skews = [], []
    for _ in range(ASKED_FOR_LATENCY):
        began, asked = trio.current_time(), clock.now()
        told = await db.fetch_one(SQL["read_clock"])
        assert told is not None
        took.append((trio.current_time() - began) * 1000)
        skews.append((asked + clock.now()) / 2 - told.now)
    return PostgresVitals(
        version=row.version,
        version_number=row.version_number,
        encoding=row.encoding,
        fsync=row.fsync,
        synchronous_commit=row.synchronous_commit,
        full_page_writes=row.full_page_writes,
        is_standby=row.is_standby,
        connections_at_most=row.connections_at_most,
        connections_used=row.connections_used,
        latency_ms=median(took),
        skew_ms=median(skews),
    )


async def read_schema(db: Postgres) -> Schema:
    """Raises StoreUnavailable, and SchemaMismatch for files of our own that are not in order."""
    known = {each.name: each.checksum for each in list_migrations(resources.files("halo.store") / "sql")}
    history = await db.fetch_one(SQL["find_history"])
    assert history is not None  # one row, always
    rows = await db.fetch_all(SQL["list_applied"]) if history.exists else []
    applied = {row.name: row.checksum for row in rows}
    return Schema(
        applied=len(applied),
        pending=tuple(name for name in known if name not in applied),
        unknown=tuple(name for name in applied if name not in known),
        changed=tuple(name for name, checksum in applied.items() if known.get(name, checksum) != checksum),
        may_be_made=history.may_be_made,
    )


async def list_nodes(db: Postgres) -> list[NodeVitals]:
    """Every node that has a row, the dead among them too. Raises StoreUnavailable."""
    rows = await db.fetch_all(SQL["list_nodes"], {"lock_class": LOCK_CLASS})
    return [
        NodeVitals(
            node_id=row.node_id, silent_seconds=row.silent_seconds, sessions=row.sessions, holds_lock=row.holds_lock
        )
        for row in rows
    ]


async def ask_in_full(url: str) -> AsyncIterator[tuple[str, list[Any]]]:
    """Every invariant of everything that is kept, each as long as it takes: its name, and a row for each breach.

    Raises psycopg.Error.
    """
    connection = await dial(url, SERVING | {"statement_timeout": 0, "transaction_timeout": 0})
    try:
        for name, query in INVARIANTS.items():
            yield name, (await connection.run(query)).rows
    finally:
        connection.close_now()


async def read_valkey(url: str, prefix: str, clock: Clock) -> ValkeyVitals:
    """Raises ValkeySilent."""
    told: ValkeyVitals | None = None
    why = f"no answer within {VALKEY_SECONDS:g} s"
    with trio.move_on_after(VALKEY_SECONDS):
        async with trio_asyncio.open_loop():
            try:
                told = await _read_valkey(url, prefix, clock)
            except LINK_FAULTS as fault:  # here, for what leaves the loop comes as a group
                why = type(fault).__name__  # its words may quote a password
    if told is None:
        raise ValkeySilent(why)
    return told


async def _read_valkey(url: str, prefix: str, clock: Clock) -> ValkeyVitals:
    link = choose_link(url, prefix)()
    await link.connect()
    try:
        (info,) = await link.exchange([("INFO",)])
        if not isinstance(info, bytes):
            raise ConnectionRefusedError("INFO is refused")
        took, skews = [], []
        for _ in range(ASKED_FOR_LATENCY):
            began, asked = trio.current_time(), clock.now()
            (told,) = await link.exchange([("TIME",)])
            took.append((trio.current_time() - began) * 1000)
            skews.append((asked + clock.now()) / 2 - _milliseconds(told))
        facts = dict(line.split(":", 1) for line in info.decode(errors="replace").splitlines() if ":" in line)
        return ValkeyVitals(
            version=facts.get("valkey_version") or facts.get("redis_version", "unknown"),
            eviction=facts.get("maxmemory_policy", "unknown"),
            memory_at_most=int(facts.get("maxmemory", 0)),
            keeps_files=facts.get("aof_enabled") == "1" or int(facts.get("rdb_saves", 0)) > 0,
            is_replica=facts.get("role", "master") != "master",
            latency_ms=median(took),
            skew_ms=median(skews),
        )
    finally:
        with trio.CancelScope(shield=True, deadline=trio.current_time() + 0.3):
            await link.close()


def _milliseconds(told: Any) -> float:
    """The reply to TIME; a service that refuses it tells no time."""
    return int(told[0]) * 1000 + int(told[1]) / 1000 if isinstance(told, list) else math.nan
