"""What operators read of everybody's sessions and money, and the trail of what they did.

Reading only, straight into the structs of `halo/oversight.py`, except for the three `record_…`, which keep `operator_actions`: an attempt is
written down before it is made and its outcome afterwards, so a crash in between leaves `attempted`. It must never read the text of a message. Several statements make one record, so a row may move between them; nothing is decided here, so
that does no harm. Read next: `halo/net/operators.py`, `halo/store/sql/queries/operators.sql`.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final, Protocol, TypeVar

import msgspec

from halo.clock import Moment, rfc3339, rfc3339_or_none
from halo.errors import NotFound
from halo.oversight import (
    Accounts,
    LedgerEntry,
    OperatedExtension,
    OperatedRefund,
    OperatedRefunds,
    OperatedSession,
    OperatedSessions,
    Overview,
    PairingFailure,
    PairingFailures,
    SessionRecord,
    TimelineEntry,
)
from halo.resources import PaymentState
from halo.session import SessionStatus
from halo.store.queries import Query, load_queries
from halo.store.values import Value
from halo.trace import current_trace_id

SQL = load_queries("operators")

REFUSALS_MAX: Final = 20
"""More in a minute than a person who is refused will try."""
OTHERS: Final = "and others"

S = TypeVar("S", bound=msgspec.Struct)


class Rows(Protocol):
    """The part of `halo.store.postgres.Postgres` that is needed here."""

    async def fetch_all(self, query: Query, values: Mapping[str, Value] = ...) -> Sequence[Any]: ...

    async def fetch_one(self, query: Query, values: Mapping[str, Value] = ...) -> Any: ...


class Operators:
    """The operators' view of Postgres. Every method raises `StoreUnavailable` when it does not answer."""

    def __init__(self, postgres: Rows) -> None:
        self._postgres = postgres

    async def load_overview(self, now: Moment, *, online: int, available: int, degraded: bool) -> Overview:
        """Counts as Postgres sees them, beside those that only the mirror's readers know: mitras `online` and `available`."""
        row = await self._postgres.fetch_one(SQL["load_overview"], {"now": now})
        return Overview(
            server_time=rfc3339(now),
            sessions={status.value: row.sessions.get(status.value, 0) for status in SessionStatus},
            mitras_total=row.mitras_total,
            mitras_online=online,
            mitras_deactivated=row.mitras_deactivated,
            mitras_available=available,
            pairings_searching=row.pairings_searching,
            pairing_failures_24h=row.pairing_failures_24h,
            refunds_due=row.refunds_due,
            degraded=degraded,
        )

    async def list_sessions(self, status: str | None, limit: int, cursor: str | None) -> OperatedSessions:
        """One page, newest first; `status` is one of `halo.routes.SESSION_FILTERS`."""
        rows = await self._page(SQL["list_sessions"], status, limit, cursor)
        sessions = tuple(struct_of(OperatedSession, row) for row in rows)
        return OperatedSessions(sessions=sessions, next_cursor=sessions[-1].session_id if len(rows) == limit else None)

    async def load_session(self, session_id: str) -> SessionRecord:
        """One session with its history and its money.

        Raises:
            NotFound
        """
        fetch_all, of_session = self._postgres.fetch_all, {"session_id": session_id}
        row = await self._postgres.fetch_one(SQL["find_session"], of_session)
        if row is None:
            raise NotFound
        return SessionRecord(
            session=struct_of(OperatedSession, row),
            accounts=struct_of(Accounts, row),
            messages_count=row.messages_count,
            timeline=tuple(
                struct_of(TimelineEntry, entry) for entry in await fetch_all(SQL["list_timeline"], of_session)
            ),
            payments=tuple(_payment(payment) for payment in await fetch_all(SQL["list_payments"], of_session)),
            extensions=tuple(
                struct_of(OperatedExtension, asked) for asked in await fetch_all(SQL["list_extensions"], of_session)
            ),
            ledger=tuple(struct_of(LedgerEntry, entry) for entry in await fetch_all(SQL["list_ledger"], of_session)),
            refunds=tuple(
                struct_of(OperatedRefund, owed) for owed in await fetch_all(SQL["list_session_refunds"], of_session)
            ),
        )

    async def list_failures(self, limit: int, cursor: int | None) -> PairingFailures:
        """Why searches came to nothing, one page, newest first; extensions are not among them."""
        rows = await self._postgres.fetch_all(SQL["list_failures"], {"limit": limit, "cursor": cursor})
        failures = tuple(struct_of(PairingFailure, row) for row in rows)
        return PairingFailures(
            pairing_failures=failures, next_cursor=str(failures[-1].failure_id) if len(rows) == limit else None
        )

    async def list_refunds(self, status: str | None, limit: int, cursor: str | None) -> OperatedRefunds:
        """One page, newest first; `status` is one of `halo.routes.REFUND_FILTERS`."""
        rows = await self._page(SQL["list_refunds"], status, limit, cursor)
        refunds = tuple(struct_of(OperatedRefund, row) for row in rows)
        return OperatedRefunds(refunds=refunds, next_cursor=refunds[-1].refund_id if len(rows) == limit else None)

    async def record_attempt(self, operator: str, action: str, subject: str, details: Mapping[str, Any]) -> int:
        """Append to the trail who is about to do what to whom: its id. `details` must be JSON, and hold no message text and no token."""
        values: dict[str, Value] = {
            "operator": operator,
            "action": action,
            "subject": subject,
            "details": msgspec.json.encode(details).decode(),
            "trace_id": current_trace_id(),
        }
        row = await self._postgres.fetch_one(SQL["record_attempt"], values)
        return int(row.action_id)

    async def record_outcome(self, action_id: int, code: str | None) -> None:
        """What became of it: refused with this code, or done."""
        await self._postgres.fetch_all(SQL["record_outcome"], {"action_id": action_id, "code": code})

    async def record_refusal(self, operator: str, action: str, subject: str, code: str) -> None:
        """What was refused before it was begun; equal ones of one minute are one row, which counts them, and so are those of an operator
        who has `REFUSALS_MAX` rows in it."""
        values: dict[str, Value] = {"operator": operator, "action": action, "subject": subject, "code": code}
        values |= {"most": REFUSALS_MAX, "others": OTHERS}
        await self._postgres.fetch_all(SQL["record_refusal"], values | {"trace_id": current_trace_id()})

    async def _page(self, query: Query, status: str | None, limit: int, cursor: str | None) -> Sequence[Any]:
        return await self._postgres.fetch_all(query, {"status": status, "limit": limit, "cursor": cursor})


MOMENTS = frozenset({
    "at", "created_at", "started_at", "expires_at", "deadline_at", "ended_at", "requested_at", "responded_at",
    "delivered_at",
})  # fmt: skip
"""Columns that are moments here and RFC 3339 on the wire; the loader gives both as plain numbers, so the name must tell."""


def struct_of(kind: type[S], row: Any) -> S:
    """The columns of `row` that `kind` has, under the same names, with moments as the wire has them."""
    values = {field: getattr(row, field) for field in kind.__struct_fields__}
    for name in MOMENTS & values.keys():
        values[name] = rfc3339_or_none(values[name])
    return kind(**values)


def _payment(row: Any) -> PaymentState:
    return PaymentState(
        id=row.payment_request_id,
        status=row.status,
        amount=row.amount,
        currency=row.currency,
        duration_minutes=row.duration_minutes,
        is_extension=row.is_extension,
        is_first_session_discount=row.is_first_session_discount,
        session_id=row.session_id,
        failure_cause=row.failure_cause,
        created_at=rfc3339(row.created_at),
    )
