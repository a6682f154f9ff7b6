"""What the status page asks beyond the operators' API: rows to search in, and the inside of the node that answers.

`halo/wiring.py` lays the real ones on it, tests lay fakes. It must never hold state of its own. Read next: `halo/net/desk.py`,
`halo/store/lookout.py`, `halo/actors/history.py`.
"""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from halo.actors.history import Sample
from halo.actors.upkeep import Upkeep
from halo.clock import Moment
from halo.outbox import DeadLetter, OutboxKind
from halo.oversight import OperatedSession
from halo.store.lookout import (
    Census,
    ConfigStep,
    Counted,
    Failed,
    OperatorAction,
    Outcome,
    RefundSum,
    SeenMitra,
    SessionFilter,
    Thing,
)
from halo.watch import WatchReport


class Lookout(Protocol):
    """Postgres; `halo.store.lookout.Lookout`."""

    async def load_census(self, now: Moment, heard_since: Moment) -> Census: ...

    async def list_sessions(
        self, wanted: SessionFilter, limit: int, cursor: str | None
    ) -> Sequence[OperatedSession]: ...

    async def list_things(self, beginning: str, limit: int = ...) -> Sequence[Thing]: ...

    async def list_mitras(
        self, state: str | None, search: str | None, heard_since: Moment, limit: int, cursor: str | None
    ) -> Sequence[SeenMitra]: ...

    async def list_living_of(self, mitra_id: str, limit: int) -> Sequence[OperatedSession]: ...

    async def count_failures(self, now: Moment) -> Sequence[Counted]: ...

    async def list_failures(self, cause: str | None, limit: int, cursor: int | None) -> Sequence[Failed]: ...

    async def count_outcomes(self, now: Moment) -> Sequence[Counted]: ...

    async def list_outcomes(self, status: str | None, limit: int, cursor: str | None) -> Sequence[Outcome]: ...

    async def sum_refunds(self, now: Moment) -> Sequence[RefundSum]: ...

    async def list_actions(
        self, operator: str | None, subject: str | None, outcome: str | None, limit: int, cursor: int | None
    ) -> Sequence[OperatorAction]: ...

    async def list_watchdog_actions(self, session_id: str, limit: int = ...) -> Sequence[OperatorAction]: ...

    async def list_config_steps(self, limit: int) -> Sequence[ConfigStep]: ...


class DeadLetters(Protocol):
    """The outbox as operators see it; `halo.store.outbox.Outbox`."""

    async def list_dead(
        self, limit: int = ..., cursor: str | None = None, kind: OutboxKind | None = None
    ) -> Sequence[DeadLetter]: ...

    async def replay(self, outbox_id: str, operator: str) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Parked:
    """A session whose actor stands still on this node."""

    session_id: str
    since: Moment | None
    last_error: str | None
    """The kind of the fault."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Insight:
    """All of it."""

    lookout: Lookout
    letters: DeadLetters
    samples: Callable[[], Sequence[Sample]]
    daemons: Callable[[], Sequence[Upkeep]]
    crashed: Callable[[], Sequence[Upkeep]]
    """Living sessions of this node that have crashed, running again or not, by session id."""
    parked: Callable[[], Sequence[Parked]]
    revive: Callable[[str], Awaitable[bool]]
    """One more attempt for a parked session; whether it runs again. Raises StoreUnavailable."""
    watch: WatchReport
    """The watchdog of this node."""
    heard_since: Callable[[], Moment]
    """A heartbeat that Postgres knows and that is older makes a mitra silent."""
