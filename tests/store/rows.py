"""Rows that tests of the store stand on: people, payments, sessions, put there by plain SQL, so that no room under test makes its own ground."""

from dataclasses import dataclass
from typing import Any
from uuid import uuid4

from halo.clock import Moment
from halo.store.postgres import Postgres

NOW: Moment = 1_795_464_900_123


@dataclass
class SetClock:
    """A clock that stands until a test moves it."""

    moment: Moment = NOW

    def now(self) -> Moment:
        return self.moment


def new_id() -> str:
    return str(uuid4())


async def add_customer(db: Postgres) -> str:
    customer_id = new_id()
    await db.execute("INSERT INTO customers (customer_id) VALUES (%(id)s)", {"id": customer_id})
    return customer_id


async def add_mitra(db: Postgres, *, is_online: bool = False) -> str:
    mitra_id = new_id()
    await db.execute(
        "INSERT INTO mitras (mitra_id, is_online, idle_since) VALUES (%(id)s, %(on)s, at(%(at)s))",
        {"id": mitra_id, "on": is_online, "at": NOW - 1000},
    )
    return mitra_id


async def add_payment(db: Postgres, customer_id: str, status: str = "pending", **columns: Any) -> str:
    """An extension's payment unless `is_extension` says otherwise: 5 minutes for 5000 IDR."""
    payment_request_id = new_id()
    values = {
        "id": payment_request_id,
        "customer_id": customer_id,
        "status": status,
        "is_extension": columns.get("is_extension", True),
        "is_discount": columns.get("is_first_session_discount", False),
        "session_id": columns.get("session_id"),
        "amount": columns.get("amount", 5_000),
        "cause": "payment_failed" if status == "failed" else None,
        "confirmed_at": NOW if status in {"confirmed", "consumed"} else None,
        "consumed_at": NOW if status == "consumed" else None,
    }
    await db.execute(
        """INSERT INTO payment_requests (payment_request_id, customer_id, session_id, status, amount, currency, duration_minutes,
                                         is_extension, is_first_session_discount, failure_cause, confirmed_at, consumed_at)
           VALUES (%(id)s, %(customer_id)s, %(session_id)s, %(status)s, %(amount)s, 'IDR', 5, %(is_extension)s, %(is_discount)s,
                   %(cause)s, at(%(confirmed_at)s), at(%(consumed_at)s))""",
        values,
    )
    return payment_request_id


async def add_session(
    db: Postgres, customer_id: str, mitra_id: str, status: str = "closing", payment_request_id: str | None = None
) -> str:
    """A session with nothing on its accounts; it has started unless it is on hold for its payment."""
    session_id = new_id()
    payment_request_id = payment_request_id or await add_payment(db, customer_id, "pending", is_extension=False)
    values = {
        "id": session_id,
        "customer_id": customer_id,
        "mitra_id": mitra_id,
        "payment": payment_request_id,
        "status": status,
        "end_reason": "completed" if status == "ended" else None,
        "deadline_at": None if status == "ended" else NOW + 60_000,
        "started_at": None if status == "pending_payment" else NOW,
        "running_since": NOW if status == "active" else None,
    }
    await db.execute(
        """INSERT INTO chat_sessions (session_id, customer_id, mitra_id, payment_request_id, status, end_reason, duration_minutes,
                                      minute_ms, price, currency, deadline_at, started_at, running_since, expires_at)
           VALUES (%(id)s, %(customer_id)s, %(mitra_id)s, %(payment)s, %(status)s, %(end_reason)s, 5, 60000, 5000, 'IDR',
                   at(%(deadline_at)s), at(%(started_at)s), at(%(running_since)s), at(%(running_since)s))""",
        values,
    )
    return session_id


async def add_extension(db: Postgres, session_id: str, payment_request_id: str) -> str:
    """A pending extension."""
    extension_id = new_id()
    await db.execute(
        """INSERT INTO session_extensions (extension_id, session_id, payment_request_id, duration_minutes, price, currency,
                                           requested_at, deadline_at, timeout_seconds, default_action_on_timeout,
                                           refusal_outcome, config_version)
           VALUES (%(id)s, %(session_id)s, %(payment)s, 5, 5000, 'IDR', at(%(at)s), at(%(at)s), 60, 'auto_reject', 'resume', 0)""",
        {"id": extension_id, "session_id": session_id, "payment": payment_request_id, "at": NOW},
    )
    return extension_id


async def add_pairing(db: Postgres, customer_id: str, payment_request_id: str) -> str:
    """A pairing that searches."""
    pairing_id = new_id()
    await db.execute(
        """INSERT INTO pairings (pairing_id, customer_id, payment_request_id, deadline_at, created_at)
           VALUES (%(id)s, %(customer_id)s, %(payment)s, at(%(at)s), at(%(at)s))""",
        {"id": pairing_id, "customer_id": customer_id, "payment": payment_request_id, "at": NOW},
    )
    return pairing_id


async def add_offer(db: Postgres, pairing_id: str, mitra_id: str, status: str = "open") -> str:
    offer_id = new_id()
    await db.execute(
        """INSERT INTO offers (offer_id, pairing_id, mitra_id, wave, status, deadline_at, created_at)
           VALUES (%(id)s, %(pairing_id)s, %(mitra_id)s, 1, %(status)s, at(%(at)s), at(%(at)s))""",
        {"id": offer_id, "pairing_id": pairing_id, "mitra_id": mitra_id, "status": status, "at": NOW},
    )
    return offer_id


async def count(db: Postgres, table: str, where: str = "true", **values: Any) -> int:
    """How many rows of `table` there are."""
    row = await db.fetch_one(f"SELECT count(*) AS n FROM {table} WHERE {where}", values)
    assert row is not None
    return int(row.n)
