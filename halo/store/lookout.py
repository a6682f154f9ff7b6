"""What the status page reads of Postgres beyond the operators' API: searches, counts by reason, the trail of operators.

Reading only, a page or a sum at a time; each method is one statement, so that a page that renews itself for ten people costs Postgres
a few. Moments stay numbers here. It must never read the text of a message, nor list without a bound. Read next:
`halo/store/sql/queries/lookout.sql`, `halo/store/operators.py`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Final, TypeVar

from halo.clock import Moment
from halo.oversight import OperatedSession
from halo.store.operators import Rows, struct_of
from halo.store.queries import load_queries
from halo.store.values import Value

SQL: Final = load_queries("lookout")
PREFIX_CHARACTERS_MIN: Final = 4
"""Of an id that is searched by its beginning: one of 65,000, so that what is found stays short."""

_HEX_DIGITS: Final = 32

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Waiting:
    """Rows of the outbox that are due or dead."""

    kind: str
    status: str
    count: int
    oldest_due_at: Moment | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Census:
    """Every mitra once, by why she is available or is not; as Postgres knows, which hears of heartbeats up to a minute late. And what failed
    and what waits."""

    available: int
    full: int
    silent: int
    offline: int
    deactivated: int
    failures: Mapping[str, int]
    """Searches of the last 24 hours that came to nothing, by cause; extensions are not among them."""
    outbox: tuple[Waiting, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionFilter:
    """Which sessions are listed; None means any."""

    status: str | None = None
    end_reason: str | None = None
    topic: str | None = None
    since: Moment | None = None
    beginning: str | None = None
    """The first characters of the id of a session, a customer, a mitra, a payment, a refund, an extension, a search or an offer, at least
    `PREFIX_CHARACTERS_MIN`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SeenMitra:
    """A mitra, and why she is available or is not (`state`, as in `Census`)."""

    mitra_id: str
    display_name: str
    state: str
    last_heartbeat_at: Moment | None
    capacity: int
    max_sessions: int
    created_at: Moment


@dataclass(frozen=True, slots=True, kw_only=True)
class Counted:
    """How often something came out so."""

    name: str
    decided_by: str | None
    day: int
    week: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Failed:
    """One search that came to nothing, as it was written down."""

    failure_id: int
    cause: str
    pairing_id: str | None
    session_id: str | None
    extension_id: str | None
    customer_id: str
    mitra_id: str | None
    evidence: Mapping[str, Any]
    at: Moment


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """One extension that was decided."""

    extension_id: str
    session_id: str
    status: str
    decided_by: str
    duration_minutes: int
    price: int
    currency: str
    requested_at: Moment
    responded_at: Moment
    failure_id: int | None
    """Its row among the failures, if it has one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RefundSum:
    """Refunds of one status and currency; of the delivered ones those of the last 30 days."""

    status: str
    currency: str
    count: int
    amount: int


@dataclass(frozen=True, slots=True, kw_only=True)
class OperatorAction:
    """Who did what to whom."""

    action_id: int
    operator: str
    action: str
    subject: str
    details: Mapping[str, Any]
    at: Moment
    outcome: str = "done"
    """`attempted`, `done` or `refused`; what stayed attempted, died on the way or had no answer from a store."""
    code: str | None = None
    """Of the refusal."""
    times: int = 1
    """Equal refusals of one minute are one row."""
    trace_id: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Thing:
    """Whatever has an id and is neither a session nor a customer."""

    kind: str
    """`payment`, `refund`, `extension`, `search`, `offer` or `mitra`."""
    thing_id: str
    status: str
    customer_id: str | None
    mitra_id: str | None
    session_id: str | None
    """To which it belongs; a payment whose search failed has none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfigStep:
    """One key of one change of the live configuration. `old` is None when it was the default until then."""

    version: int
    changed_by: str
    changed_at: Moment
    key: str
    old: Any
    new: Any


class Lookout:
    """See the module. Every method raises `StoreUnavailable`; a cursor that names no row gives an empty page."""

    def __init__(self, postgres: Rows) -> None:
        self._postgres = postgres

    async def load_census(self, now: Moment, heard_since: Moment) -> Census:
        """`heard_since`: a heartbeat that is older makes a mitra `silent`."""
        row = await self._postgres.fetch_one(SQL["load_census"], {"now": now, "heard_since": heard_since})
        return Census(
            available=row.available,
            full=row.full,
            silent=row.silent,
            offline=row.offline,
            deactivated=row.deactivated,
            failures=row.failures,
            outbox=tuple(Waiting(**waiting) for waiting in row.outbox),
        )

    async def list_sessions(self, wanted: SessionFilter, limit: int, cursor: str | None) -> Sequence[OperatedSession]:
        """Newest first."""
        values: dict[str, Value] = {
            "status": wanted.status,
            "end_reason": wanted.end_reason,
            "topic": wanted.topic,
            "since": wanted.since,
            "limit": limit,
            "cursor": cursor,
        }
        name = "list_sessions"
        if wanted.beginning is not None:
            name = "find_sessions"
            values["first"], values["last"] = id_range(wanted.beginning)
        return [struct_of(OperatedSession, row) for row in await self._postgres.fetch_all(SQL[name], values)]

    async def list_things(self, beginning: str, limit: int = 5) -> Sequence[Thing]:
        """What else has an id that begins so, `limit` of each kind at most."""
        first, last = id_range(beginning)
        return await self._list(Thing, "list_things", {"first": first, "last": last, "limit": limit})

    async def list_mitras(
        self, state: str | None, search: str | None, heard_since: Moment, limit: int, cursor: str | None
    ) -> Sequence[SeenMitra]:
        """By id; `search` is a part of the name or the beginning of the id."""
        values: dict[str, Value] = {
            "state": state,
            "search": None if search is None else f"%{_literal(search)}%",
            "beginning": None if search is None else _literal(search.lower()) + "%",
            "heard_since": heard_since,
            "limit": limit,
            "cursor": cursor,
        }
        return await self._list(SeenMitra, "list_mitras", values)

    async def list_living_of(self, mitra_id: str, limit: int) -> Sequence[OperatedSession]:
        """Her living sessions, oldest first."""
        rows = await self._postgres.fetch_all(SQL["list_living_of"], {"mitra_id": mitra_id, "limit": limit})
        return [struct_of(OperatedSession, row) for row in rows]

    async def count_failures(self, now: Moment) -> Sequence[Counted]:
        """Searches that came to nothing, by cause; extensions are not among them."""
        return await self._list(Counted, "count_failures", {"now": now})

    async def list_failures(self, cause: str | None, limit: int, cursor: int | None) -> Sequence[Failed]:
        """The same, newest first."""
        return await self._list(Failed, "list_failures", {"cause": cause, "limit": limit, "cursor": cursor})

    async def count_outcomes(self, now: Moment) -> Sequence[Counted]:
        """Extensions that were decided, by how and by whom."""
        return await self._list(Counted, "count_outcomes", {"now": now})

    async def list_outcomes(self, status: str | None, limit: int, cursor: str | None) -> Sequence[Outcome]:
        """The same, the latest decision first."""
        return await self._list(Outcome, "list_outcomes", {"status": status, "limit": limit, "cursor": cursor})

    async def sum_refunds(self, now: Moment) -> Sequence[RefundSum]:
        return await self._list(RefundSum, "sum_refunds", {"now": now})

    async def list_actions(
        self, operator: str | None, subject: str | None, outcome: str | None, limit: int, cursor: int | None
    ) -> Sequence[OperatorAction]:
        """Newest first; all filters are exact."""
        values: dict[str, Value] = {
            "operator": operator,
            "subject": subject,
            "outcome": outcome,
            "limit": limit,
            "cursor": cursor,
        }
        return await self._list(OperatorAction, "list_actions", values)

    async def list_watchdog_actions(self, session_id: str, limit: int = 50) -> Sequence[OperatorAction]:
        """What the watchdog has mended of this session, newest first; `details["because"]` is the watch that found it."""
        return await self._list(OperatorAction, "list_watchdog_actions", {"session_id": session_id, "limit": limit})

    async def list_config_steps(self, limit: int) -> Sequence[ConfigStep]:
        """Every key of the latest `limit` changes, newest first."""
        return await self._list(ConfigStep, "list_config_steps", {"limit": limit})

    async def _list(self, kind: type[T], name: str, values: Mapping[str, Value]) -> list[T]:
        names = [field.name for field in fields(kind)]  # type: ignore[arg-type]  # all of them are dataclasses
        rows = await self._postgres.fetch_all(SQL[name], values)
        return [kind(**{name: getattr(row, name) for name in names}) for row in rows]


def id_range(beginning: str) -> tuple[str, str]:
    """The least and the greatest UUID that begin so; `beginning` is made of hexadecimal digits and hyphens."""
    digits = beginning.replace("-", "")
    return digits.ljust(_HEX_DIGITS, "0"), digits.ljust(_HEX_DIGITS, "f")


def _literal(text: str) -> str:
    """What LIKE takes for these very characters."""
    return text.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")
