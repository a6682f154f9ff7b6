"""What the doctor looks at in the stores: Postgres, its schema, the nodes, Valkey, the clocks, and what must always hold.

Judging only: what is read is read in `halo/store/vitals.py`. It must never write, and never show a URL's password. Read next:
`halo/checks.py`, the machine around them.
"""

import math
from collections.abc import AsyncIterator, Callable
from typing import Final

import psycopg

from halo.checks import Finding, fail, ok, warn
from halo.clock import Clock
from halo.errors import StoreUnavailable
from halo.store import vitals
from halo.store.database_url import database_of, unreachable
from halo.store.nodes import SKEW_MAX_MS
from halo.store.postgres import Postgres
from halo.store.watchdog import open_look
from halo.watch import WATCHES

CONNECTIONS_OF_A_NODE: Final = 16
"""The pool's eight, the dedicated ones (lease, journals, watchdog), and some for errands beside it."""
POSTGRES_AT_LEAST: Final = 140_000
SLOW_STORE_MS: Final = 5.0
"""A step is three journeys, and people wait for it."""
SKEW_WARN_MS: Final = 500.0
SKEW_FAIL_MS: Final = SKEW_MAX_MS
"""Beyond this a node refuses to start."""
SILENT_SECONDS: Final = 3.0
"""Three beats missed."""
LOOKS_BACK_MS: Final = 2 * 24 * 3600 * 1000


def stopped(check: str) -> Finding:
    return warn(check, "embedded, and not running", "It runs while halo does; start halo to have it looked at.")


# ---- Postgres


async def postgres(db: Postgres, url: str, clock: Clock) -> AsyncIterator[Finding]:
    """Raises StoreUnavailable when it goes away meanwhile; what was found before stands."""
    try:
        seen = await vitals.read_postgres(db, clock)
    except StoreUnavailable as away:
        yield fail("postgres", str(unreachable(url, away.__cause__)), "Nothing works without it.")
        return
    where = f"{database_of(url)}, version {seen.version}, median of a statement {seen.latency_ms:.2f} ms"
    if seen.version_number < POSTGRES_AT_LEAST:
        yield fail("postgres", where, "halo wants Postgres 14 or later.")
    elif seen.is_standby:
        yield fail("postgres", f"{where}; a standby, which takes no writes", "Name the primary in HALO_DATABASE_URL.")
    elif seen.encoding != "UTF8":
        yield fail(
            "postgres",
            f"{where}, encoding {seen.encoding}",
            "Make the database with ENCODING 'UTF8': people write in all scripts.",
        )
    elif seen.latency_ms > SLOW_STORE_MS:
        yield warn("postgres", where, "Bring halo and Postgres closer together, or look what Postgres is busy with.")
    else:
        yield ok("postgres", where)
    durability = f"fsync {_on(seen.fsync)}, synchronous_commit {seen.synchronous_commit}, full_page_writes {_on(seen.full_page_writes)}"
    if not seen.fsync or not seen.full_page_writes or seen.synchronous_commit == "off":
        yield fail("durability", durability, "Switch all three on: an acknowledged message must survive a power cut.")
    else:
        yield ok("durability", durability)
    free = seen.connections_at_most - seen.connections_used
    connections = f"{seen.connections_used} of {seen.connections_at_most} connections in use"
    if seen.connections_at_most < CONNECTIONS_OF_A_NODE:
        yield fail("connections", connections, f"A node uses up to {CONNECTIONS_OF_A_NODE}: raise max_connections.")
    elif free < CONNECTIONS_OF_A_NODE:
        yield warn(
            "connections", connections, f"One more node takes up to {CONNECTIONS_OF_A_NODE}: raise max_connections."
        )
    else:
        yield ok("connections", connections)
    yield skew("clock_postgres", seen.skew_ms, "Postgres'")


async def schema(db: Postgres) -> Finding:
    seen = await vitals.read_schema(db)
    if seen.unknown or seen.changed:
        wrong = ", ".join((*seen.unknown, *seen.changed))
        return fail(
            "migrations",
            f"not of this version: {wrong}",
            "Run the version of halo that made this database, or a later one.",
        )
    fact = f"{seen.applied} applied, "
    fact += f"{len(seen.pending)} to be applied: {', '.join(seen.pending)}" if seen.pending else "none pending"
    if not seen.may_be_made:
        advice = (
            "Make it the owner of the database, which may be written: `halo serve` looks to its tables at its start."
        )
        return fail("migrations", f"{fact}; the user of HALO_DATABASE_URL may make no tables there", advice)
    if seen.pending:
        return warn("migrations", fact, "Run `halo migrate`; `halo serve` does it at its start.")
    return ok("migrations", fact)


async def nodes(db: Postgres) -> Finding:
    seen = await vitals.list_nodes(db)
    beating = [node for node in seen if node.silent_seconds <= SILENT_SECONDS]
    hanging = [node for node in seen if node.holds_lock and node.silent_seconds > SILENT_SECONDS]
    orphans = sum(node.sessions for node in seen if node not in beating)
    fact = f"{len(beating)} beating, {sum(node.sessions for node in beating)} living sessions on them"
    if hanging:
        silent = max(node.silent_seconds for node in hanging)
        return fail("nodes", f"{fact}; one holds its lock and is silent for {silent:.0f} s", "It hangs: restart it.")
    if orphans:
        return warn(
            "nodes", f"{fact}; {orphans} sessions of dead nodes wait", "A running node takes them up within 20 s."
        )
    return ok("nodes", fact)


def skew(check: str, skew_ms: float, whose: str) -> Finding:
    if math.isnan(skew_ms):
        return warn(check, f"{whose} clock cannot be read", "Compare it by hand.")
    fact = f"this machine's clock is {abs(skew_ms):.0f} ms {'ahead of' if skew_ms >= 0 else 'behind'} {whose}"
    if abs(skew_ms) > SKEW_FAIL_MS:
        return fail(check, fact, "Mend time synchronisation: beyond 2 s a node refuses to start.")
    if abs(skew_ms) > SKEW_WARN_MS:
        return warn(check, fact, "Look at time synchronisation.")
    return ok(check, fact)


def _on(is_on: bool) -> str:
    return "on" if is_on else "off"


# ---- what must always hold


async def recent_invariants(
    db: Postgres, now: int, has_refund_url: bool, progress: Callable[[str], None]
) -> AsyncIterator[Finding]:
    """Of what lives and what has changed within two days: what the watchdog asks."""
    asked = [watch.name for watch in WATCHES.values() if watch.source in {"invariant", "queue"}]
    waiting, unasked, is_whole = asked[::-1], list[str](), True
    while waiting:
        name = waiting[-1]
        try:
            async with open_look(db, has_refund_url=has_refund_url) as look:
                while waiting:
                    name = waiting[-1]
                    progress(f"asking {len(asked) - len(waiting) + 1} of {len(asked)}: {name}")
                    subjects = await look.ask(name, since=now - LOOKS_BACK_MS, now=now)
                    waiting.pop()
                    if subjects:
                        is_whole = False
                        yield _breach(name, subjects)
        except StoreUnavailable:  # this question, and with it the look
            waiting.remove(name)
            unasked.append(name)
    if unasked:
        yield warn("invariants", f"took too long: {', '.join(unasked)}", "`halo doctor --full` gives them their time.")
    elif is_whole:
        yield ok("invariants", f"all {len(asked)} hold for what changed within two days")


async def all_invariants(url: str, progress: Callable[[str], None]) -> AsyncIterator[Finding]:
    count, broken = 0, False
    try:
        async for name, rows in vitals.ask_in_full(url):
            count += 1
            progress(f"asked {count} of everything: {name}")
            if rows:
                broken = True
                yield _breach(name, [row.subject for row in rows])
    except psycopg.Error as fault:
        yield fail(
            "invariants", f"stopped after {count} ({type(fault).__name__})", "Look at Postgres' log, and try again."
        )
        return
    if not broken:
        yield ok("invariants", f"all {count} hold for everything that is kept")


def _breach(name: str, subjects: list[str]) -> Finding:
    more = f" and {len(subjects) - 3} more" if len(subjects) > 3 else ""
    return fail(name, f"broken: {', '.join(subjects[:3])}{more}", WATCHES[name].sentence)


# ---- Valkey


async def valkey(url: str, prefix: str, clock: Clock) -> AsyncIterator[Finding]:
    try:
        seen = await vitals.read_valkey(url, prefix, clock)
    except vitals.ValkeySilent as silent:
        yield fail("valkey", f"does not answer: {silent}", "halo runs on Postgres alone meanwhile, slower; mend it.")
        return
    files = "keeps files" if seen.keeps_files else "keeps no files, and need not"
    where = f"version {seen.version}, median of a call {seen.latency_ms:.2f} ms, {files}, prefix {prefix!r}"
    if seen.is_replica:
        yield fail("valkey", f"{where}; a replica, which takes no writes", "Name the primary in HALO_VALKEY_URL.")
    elif seen.latency_ms > SLOW_STORE_MS:
        yield warn("valkey", where, "Bring halo and Valkey closer together.")
    else:
        yield ok("valkey", where)
    eviction = f"{seen.eviction}, " + (
        f"at most {seen.memory_at_most >> 20} MiB" if seen.memory_at_most else "no bound"
    )
    if seen.eviction == "noeviction":
        yield ok("eviction", eviction)
    elif seen.memory_at_most:
        yield fail(
            "eviction", eviction, "Set maxmemory-policy noeviction: an evicted key is a mitra who is not offered."
        )
    else:
        yield warn("eviction", eviction, "Set maxmemory-policy noeviction before anybody bounds its memory.")
    yield skew("clock_valkey", seen.skew_ms, "Valkey's")
