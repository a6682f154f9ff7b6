"""Living sessions for a measurement, put into the database at once instead of through the front door.

They are as halo itself would have written them: `find_violations` is asked before anything is measured on them, so that no
figure rests on rows that could not exist. Read next: `scripts/measuring/living_sessions.sql`.
"""

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from halo.store.invariants import find_violations
from halo.store.postgres import Postgres, Transaction
from halo.store.queries import parse_queries
from halo.store.values import Value

SQL = parse_queries(Path(__file__).with_name("living_sessions.sql").read_text(encoding="utf-8"), "living_sessions.sql")

MINUTES = 240
"""What each session has paid for, in real minutes: none of them ends while it is measured."""
PRICE_PER_MINUTE = 1_000
MESSAGES_BEFORE = 4
"""Messages that each session has already: a restore finds out the last `seq` of a session that was in use."""
SESSIONS_AT_ONCE = 2_000


class RowsBroken(Exception):
    """The rows that were made up, or what the server made of them, break an invariant of the specification."""


@dataclass(frozen=True, slots=True)
class LivingSession:
    """One session and its two people."""

    session_id: str
    customer_id: str
    mitra_id: str


async def insert_living_sessions(db: Postgres, count: int, minutes: int = MINUTES) -> list[LivingSession]:
    """`count` active sessions of so many paid minutes whose owner is a node that does not live any more.

    Raises:
        RowsBroken: an invariant does not hold afterwards.
    """
    sessions = [LivingSession(str(uuid.uuid4()), str(uuid.uuid4()), str(uuid.uuid4())) for _ in range(count)]
    for first in range(0, count, SESSIONS_AT_ONCE):
        await _insert(db, sessions[first : first + SESSIONS_AT_ONCE], minutes)
    await db.execute(SQL["gather_statistics"])
    await require_whole(db)
    return sessions


async def _insert(db: Postgres, sessions: Sequence[LivingSession], minutes: int) -> None:
    node_id = str(uuid.uuid4())  # a node for each piece, so that a statement finds its own sessions by their owner
    values: dict[str, Value] = {
        "node_id": node_id,
        "session_ids": [session.session_id for session in sessions],
        "customer_ids": [session.customer_id for session in sessions],
        "mitra_ids": [session.mitra_id for session in sessions],
        "payment_request_ids": [str(uuid.uuid4()) for _ in sessions],
        "minutes": minutes,
        "price": minutes * PRICE_PER_MINUTE,
        "messages": MESSAGES_BEFORE,
    }
    names: tuple[str, ...] = (
        "insert_dead_node",
        "insert_customers",
        "insert_mitras",
        "insert_payments",
        "insert_sessions",
        "bind_payments",
    )
    names += ("insert_ledger", "insert_timeline", "insert_messages")

    async def write(tx: Transaction) -> None:
        for name in names:
            await tx.execute(SQL[name], values)

    await db.transact(write)


async def require_whole(db: Postgres) -> None:
    """Raises RowsBroken when an invariant of spec 5 does not hold."""
    _, violations = await find_violations(db)
    if violations:
        raise RowsBroken("; ".join(violations))


async def count_messages(db: Postgres) -> int:
    """All messages in the database."""
    return await _count(db, "count_messages")


async def count_uncredited(db: Postgres) -> int:
    """Sessions that were taken up and whose downtime is not credited yet."""
    return await _count(db, "count_waiting")


async def _count(db: Postgres, name: str) -> int:
    row: Any = await db.fetch_one(SQL[name])
    return int(row.count)
