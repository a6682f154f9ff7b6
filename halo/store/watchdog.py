"""The watchdog's side of the stores: the invariants asked through windows, and the repairs that are rows.

A look uses one connection of its own beside the pool, one query at a time, each with a timeout of its own and without parallel
workers, so that people's work is never behind it. A repair is one transaction that looks at the breach again under locks, mends it and
records itself, or does nothing. It must never mend what has no repair in `halo/watch.py`. Read next: `halo/store/windows.sql`,
`halo/store/watched_mirror.py`.
"""

import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from importlib import resources
from typing import Final
from uuid import uuid4

from halo.clock import Clock, Moment
from halo.session import FailureCause
from halo.store import pairings
from halo.store.hot import Dedicated
from halo.store.invariants import INVARIANTS
from halo.store.mirror import Mirror
from halo.store.payments import fail_payment
from halo.store.postgres import Postgres, Transaction
from halo.store.queries import Query, load_queries, parse_queries
from halo.store.values import Value
from halo.store.watched_mirror import WatchedMirror
from halo.watch import WATCHES, Repair

SQL = load_queries("watchdog")

STATEMENT_MS: Final = 3_000
"""Less than a call's five seconds: Postgres ends a query that is too dear before we hang up on it."""
FOUND_AT_MOST: Final = 100
"""Counted of one breach; what is beyond is as bad."""

_MONEY: Final = ("chat_sessions", "customer_transactions", "session_extensions", "payment_requests")

WINDOWS: Final[Mapping[str, tuple[str, ...]]] = {
    "m1_charged_at_most_once": _MONEY,
    "m2_accepted_means_charged": _MONEY,
    "m3_payment_bound_once": ("chat_sessions", "session_extensions"),
    "m4_amounts_agree": _MONEY,
    "m5_ledger_append_only": (),  # asks the catalogue
    "m6_refused_means_refunded": ("chat_sessions", "session_extensions", "payment_requests", "refunds_of_payments"),
    "refunds_within_charges": ("chat_sessions", "customer_transactions", "payment_requests", "refunds_of_payments"),
    "m7_nothing_left_undecided": ("chat_sessions", "payment_requests"),  # what is pending has an index of its own
    "t1_time_adds_up": ("chat_sessions", "customer_transactions", "refunds_of_sessions"),
    "t2_never_before_its_deadline": ("chat_sessions", "session_timeline"),
    "s1_history_follows_the_rules": ("chat_sessions", "session_timeline"),
    "s2_one_pending_extension": ("chat_sessions", "session_extensions"),
    "s3_writes_are_ordered": ("chat_sessions", "session_timeline"),
    "s4_everybody_has_an_owner": (),  # these ask of the living only
    "s5_deadlines_fire": (),
    "c2_seq_is_dense": ("chat_sessions", "messages"),
    "c3_ids_are_unique": ("chat_sessions", "messages_of_ended"),
    "c6_nothing_after_the_end": ("chat_sessions", "messages_of_ended"),  # messages of no session at all: only in full
    "a5_capacity_is_kept": (),
    "pairing_matched_once": ("pairings", "offers"),
    "reroute_has_one_search": (),
    "search_has_a_keeper": (),
}
"""The blocks of `windows.sql` through which each invariant is asked; what follows `_of_` in a name tells two windows on a table apart."""

_STREAMED: Final = frozenset({"messages", "messages_of_ended"})
"""Too many rows to keep beside. All other windows are worked out once, so that no search by index is repeated inside a comparison."""


def windowed(name: str) -> Query:
    """The invariant as the watchdog asks it: of what lives and what has changed since `since`."""
    invariant = INVARIANTS[name]
    hiding = []
    for block in WINDOWS[name]:
        table, kept = block.partition("_of_")[0], b"NOT " if block in _STREAMED else b""
        hiding.append(table.encode() + b" AS " + kept + b"MATERIALIZED (" + _BLOCKS[block].sql + b")")
    opening = b"WITH " + b",\n".join(hiding) + b"\n" if hiding else b""
    values = ("since", "after") if hiding else ("after",)
    order = b' GROUP BY subject ORDER BY subject COLLATE "C" <= $%d, subject COLLATE "C"' % len(values)
    text = b"SELECT subject FROM (\n" + invariant.sql + b"\n) AS broken" + order + b" LIMIT %d" % FOUND_AT_MOST
    return Query(name, opening + text, values)


def _load_blocks() -> Mapping[str, Query]:
    source = resources.files("halo.store") / "windows.sql"
    return parse_queries(source.read_text(encoding="utf-8"), "windows.sql")


_BLOCKS: Final = _load_blocks()
_QUEUES: Final = {
    "refunds_are_delivered": SQL["refunds_are_delivered"],
    "refunds_have_an_address": SQL["refunds_have_an_address"],
    "refunds_are_sent": SQL["refunds_are_sent"],
    "outbox_is_sent": SQL["outbox_is_sent"],
}
_WINDOWED: Final = {name: windowed(name) for name in INVARIANTS}


class Look:
    """One round's questions, on one connection, one after the other."""

    def __init__(self, connection: Dedicated, has_refund_url: bool) -> None:
        self._connection = connection
        self._has_refund_url = has_refund_url

    async def ask(self, name: str, *, since: Moment, now: Moment, after: str = "") -> list[str]:
        """The subjects of what is broken, at most `FOUND_AT_MOST`; none when it holds. Of an invariant each once, those behind `after`
        first: more than are named at once are all named in turn.

        Raises:
            StoreUnavailable: Postgres is away, or the query took longer than `STATEMENT_MS`; the look is over.
        """
        if WATCHES[name].source == "invariant":
            rows = await self._connection.fetch_all(_WINDOWED[name], {"since": since, "after": after})
        else:
            asked: dict[str, Value] = {
                "now": now,
                "limit": FOUND_AT_MOST,
                "has_refund_url": self._has_refund_url,
            }
            rows = await self._connection.fetch_all(_QUEUES[name], asked)
        return [row.subject for row in rows]


@asynccontextmanager
async def open_look(db: Postgres, *, has_refund_url: bool) -> AsyncIterator[Look]:
    """A look at `db`, on a connection of its own that asks nothing for longer than `STATEMENT_MS`. Raises StoreUnavailable."""
    async with db.dedicated() as connection:
        await connection.fetch_all(SQL["limit_statements"], {"milliseconds": STATEMENT_MS})
        yield Look(connection, has_refund_url)


class WatchedRows:
    """What the watchdog asks of the stores, and what it mends in them. Everything raises StoreUnavailable."""

    def __init__(self, db: Postgres, mirror: Mirror, clock: Clock, *, has_refund_url: bool) -> None:
        self.mirror = WatchedMirror(db, mirror)
        self._db = db
        self._clock = clock
        self._has_refund_url = has_refund_url
        self._mends: Mapping[Repair, Callable[[Transaction, str], Awaitable[Mapping[str, str] | None]]] = {
            Repair.FAIL_PAYMENT: self._fail_payment,
            Repair.ADD_REFUND: self._add_refund,
            Repair.CANCEL_EXTENSION: self._cancel_extension,
            Repair.REOPEN_SEARCH: self._reopen_search,
            Repair.CLOSE_SEARCH: self._close_search,
        }

    def look(self) -> AbstractAsyncContextManager[Look]:
        return open_look(self._db, has_refund_url=self._has_refund_url)

    async def mend(self, repair: Repair, subject: str, because: str) -> bool:
        """Whether there was something to mend, and now there is not: once, however many watchdogs find it. `because` names the watch."""
        mend = self._mends[repair]

        async def mend_and_record(tx: Transaction) -> bool:
            details = await mend(tx, subject)
            if details is None:
                return False
            whose = details.get(
                "payment_request_id", subject
            )  # a refund is the payment's, also where its extension was found
            await tx.execute(SQL["record_repair"], _line(repair, whose, because, details))
            return True

        return await self._db.transact(mend_and_record, str(uuid4()))

    async def record(self, repair: Repair, subject: str, because: str) -> None:
        """Write down a repair that was not one of rows."""
        await self._db.execute(SQL["record_repair"], _line(repair, subject, because, {}))

    # ---- repairs that are rows

    # Each returns what else is worth writing down of it; None when there was nothing to mend.

    async def _fail_payment(self, tx: Transaction, subject: str) -> Mapping[str, str] | None:
        found = await tx.fetch_one(SQL["find_undecided_payment"], {"subject": subject})
        if found is None:
            return None
        if not await fail_payment(tx, found.payment_request_id, FailureCause.SESSION_ENDED.value, self._clock.now()):
            return None
        return {"was": found.status}

    async def _add_refund(self, tx: Transaction, subject: str) -> Mapping[str, str] | None:
        added = await tx.fetch_one(SQL["add_refund"], {"subject": subject, "at": self._clock.now()})
        return None if added is None else {"refund_id": added.refund_id, "payment_request_id": added.payment_request_id}

    async def _cancel_extension(self, tx: Transaction, subject: str) -> Mapping[str, str] | None:
        found = await tx.fetch_one(SQL["find_stray_extension"], {"subject": subject})
        if found is None:
            return None
        at, over = self._clock.now(), found.status == "ended"
        cause = FailureCause.SESSION_ENDED if over else FailureCause.EXTENSION_SAFEGUARD_TRIPPED
        cancelled: dict[str, Value] = {
            "subject": subject,
            "extension_id": found.extension_id,
            "customer_id": found.customer_id,
            "mitra_id": found.mitra_id,
            "cause": cause.value,
            "decided_by": "session_ended" if over else "safeguard",
            "at": at,
        }
        if await tx.execute(SQL["cancel_extension"], cancelled) != 1:
            return None
        await fail_payment(tx, found.payment_request_id, cause.value, at)
        if not over:
            noted: dict[str, Value] = {
                "subject": subject,
                "version": found.version,
                "at": at,
                "cause": "extension_without_its_session",
                "evidence": json.dumps({"extension_id": found.extension_id}),
            }
            await tx.execute(SQL["note_on_timeline"], noted)
        return {"extension_id": found.extension_id, "status": found.status}

    async def _reopen_search(self, tx: Transaction, subject: str) -> Mapping[str, str] | None:
        opened = await tx.fetch_one(SQL["reopen_search"], {"subject": subject, "at": self._clock.now()})
        return None if opened is None else {"pairing_id": opened.pairing_id}

    async def _close_search(self, tx: Transaction, subject: str) -> Mapping[str, str] | None:
        if await tx.fetch_one(SQL["lock_stray_search"], {"subject": subject}) is None:
            return None
        await pairings.withdraw(tx, subject, FailureCause.SESSION_ENDED, self._clock.now())
        return {}


def _line(repair: Repair, subject: str, because: str, details: Mapping[str, str]) -> Mapping[str, Value]:
    """Of `operator_actions`; the session to which it belongs is looked up as it is written."""
    return {"action": repair.value, "subject": subject, "because": because, "details": json.dumps(dict(details))}
