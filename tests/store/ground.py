"""Sessions on real Postgres as their actors leave them: opened by the rules, owned by a node that really holds its lock."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import trio

from halo.clock import SystemClock
from halo.config import LiveConfig
from halo.effects import Step
from halo.payment import PaymentStatus
from halo.rules import open_session
from halo.session import Session, SessionStatus
from halo.store.hot import Dedicated
from halo.store.journal import Journal
from halo.store.nodes import LOCK_CLASS, NodeLease
from halo.store.postgres import Postgres, Transaction
from halo.store.sessions import Sessions
from halo.store.steps import insert_session
from tests.store.rows import NOW, add_customer, add_mitra, add_payment, new_id

CONFIG = LiveConfig()
GATE = 4711
"""The key of the advisory lock that `standing_still` holds; nothing of halo uses keys of this kind."""


@dataclass(frozen=True, slots=True)
class Line:
    """A message as an actor hands it to the journal."""

    seq: int
    sender: str = "customer"
    id: str = ""
    body: str = "hello"
    at: int = NOW


def lines(first: int, last: int, sender: str = "customer") -> list[Line]:
    return [Line(seq, sender, f"{sender}-{seq}", f"body {seq}") for seq in range(first, last + 1)]


def a_held_session(customer_id: str, mitra_id: str, payment_request_id: str) -> Session:
    """Five minutes for 5000 IDR, before its first step."""
    return Session(
        session_id=new_id(),
        customer_id=customer_id,
        mitra_id=mitra_id,
        payment_request_id=payment_request_id,
        topic_sensitivity="sensitive",
        status=SessionStatus.PENDING_PAYMENT,
        duration_minutes=5,
        minute_ms=60_000,
        price=5_000,
        currency="IDR",
    )


async def open_session_row(db: Postgres, owner: str, *, confirmed: bool = True, at: int = NOW, **people: str) -> Step:
    """A session as pairing commits it, with people and payment of its own unless they are given."""
    customer_id = people.get("customer_id") or await add_customer(db)
    mitra_id = people.get("mitra_id") or await add_mitra(db)
    status = PaymentStatus.CONFIRMED if confirmed else PaymentStatus.PENDING
    payment = await add_payment(db, customer_id, status.value, is_extension=False)
    opened = open_session(a_held_session(customer_id, mitra_id, payment), at, CONFIG, confirmed=confirmed)

    async def write(tx: Transaction) -> None:
        await insert_session(tx, opened, owner)

    await db.transact(write, new_id())
    return opened


@asynccontextmanager
async def open_journal(db: Postgres) -> AsyncIterator[Journal]:
    journal = Journal(db)
    async with trio.open_nursery() as nursery:
        await nursery.start(journal.serve)
        yield journal
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def open_node(db: Postgres, clock: Any = None) -> AsyncIterator[NodeLease]:
    """A node that holds its lock and beats; it is dead when the block was left."""
    lease = NodeLease(db, clock or SystemClock())
    await lease.open()
    async with trio.open_nursery() as nursery:
        await nursery.start(lease.serve, lambda *_: None, lambda: False, lambda: None)
        yield lease
        nursery.cancel_scope.cancel()
    with trio.fail_after(10):
        while await find_holder(db, lease) is not None:  # the server frees a lock only once it has noticed who hung up
            await trio.sleep(0.005)


async def find_holder(db: Postgres, lease: NodeLease) -> int | None:
    """The backend that holds the node's lock, by its process id."""
    row = await db.fetch_one(
        """SELECT l.pid FROM pg_locks l JOIN nodes n ON l.objid = n.lock_key
           WHERE l.locktype = 'advisory' AND l.classid = %(lock_class)s AND l.granted AND n.node_id = %(node_id)s
             AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())""",
        {"lock_class": LOCK_CLASS, "node_id": lease.node_id},
    )
    return None if row is None else int(row.pid)


async def only(db: Postgres, sql: str, **values: Any) -> Any:
    """The one row of a question."""
    (row,) = await db.fetch_all(sql, values)
    return row


def sessions_of(db: Postgres, lease: NodeLease) -> Sessions:
    return Sessions(db, lease.node_id)


@dataclass
class Held:
    """What a taking up that had stood still came back with."""

    taken: list[str] = field(default_factory=list)


@asynccontextmanager
async def standing_still(db: Postgres, take_up: Callable[[], Awaitable[list[str]]]) -> AsyncIterator[Held]:
    """`take_up` has looked and not yet locked; inside the block others may write, and behind it the taking up goes on.

    Its statement reads the node that it finds dead through a gate, which is an advisory lock that is held here.
    """
    await db.execute("ALTER TABLE nodes RENAME TO nodes_behind_the_gate")
    gated = f"SELECT n.* FROM nodes_behind_the_gate n, (SELECT pg_advisory_xact_lock({GATE})) AS gate"
    await db.execute(f"CREATE VIEW nodes AS {gated}")
    held = Held()

    async def run() -> None:
        held.taken = await take_up()

    async with trio.open_nursery() as nursery:
        async with db.dedicated() as gate:
            await gate.execute("SELECT pg_advisory_lock(%(gate)s)", {"gate": GATE})
            nursery.start_soon(run)
            with trio.fail_after(10):
                while not await db.fetch_all("SELECT FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"):
                    await trio.sleep(0.01)
            yield held
            await gate.execute("SELECT pg_advisory_unlock(%(gate)s)", {"gate": GATE})


@dataclass
class HeldInserts:
    """Inserts of messages that stand still in the middle, as on a disk that does."""

    nursery: trio.Nursery
    db: Postgres
    gate: Dedicated

    async def wait(self) -> None:
        """Until one stands still."""
        with trio.fail_after(10):
            while not await self.db.fetch_all("SELECT FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"):
                await trio.sleep(0.01)

    async def let_go(self) -> None:
        await self.gate.execute("SELECT pg_advisory_unlock(%(gate)s)", {"gate": GATE})


@asynccontextmanager
async def held_inserts(db: Postgres) -> AsyncIterator[HeldInserts]:
    """Inserts of a first message stand still until they are let go; what the block starts in the nursery has ended behind it."""
    await db.execute(
        f"""CREATE FUNCTION stand_still() RETURNS trigger LANGUAGE plpgsql
            AS $$ BEGIN PERFORM pg_advisory_xact_lock({GATE}); RETURN NEW; END $$"""
    )
    await db.execute(
        "CREATE TRIGGER gate BEFORE INSERT ON messages FOR EACH ROW WHEN (NEW.seq = 1) EXECUTE FUNCTION stand_still()"
    )
    async with db.dedicated() as gate, trio.open_nursery() as nursery:
        await gate.execute("SELECT pg_advisory_lock(%(gate)s)", {"gate": GATE})
        yield HeldInserts(nursery, db, gate)
