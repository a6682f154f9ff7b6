"""The outside as a session's actor sees it: Protocols of one to three methods, so that any of them can be faked in a line.

The real ones are `halo.store.sessions.Sessions`, `halo.store.journal.Journal` and what `halo/server.py` puts together; the fakes of the
tests pass the same contract tests. Read next: `halo/actors/session.py`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

from halo import protocol
from halo.actors.bell import Bell
from halo.clock import Clock, Moment
from halo.config import LiveConfig
from halo.effects import Step
from halo.events import Reachability
from halo.histogram import BATCH_BOUNDS, LATENESS_BOUNDS_SECONDS, Histogram
from halo.payment import Payment
from halo.session import Extension, Party, Session

UNASKED_AT_ONCE: Final = 4
"""Half of the pool's connections; the other half is for people."""


class StoredSession(Protocol):
    @property
    def session(self) -> Session: ...

    @property
    def last_seq(self) -> int: ...


class MessageRow(Protocol):
    @property
    def seq(self) -> int: ...

    @property
    def sender(self) -> str: ...

    @property
    def id(self) -> str: ...

    @property
    def body(self) -> str: ...

    @property
    def at(self) -> Moment: ...


class SessionRows(Protocol):
    """The row of a session."""

    async def commit(
        self,
        before: Session,
        decided: Step,
        operation_id: str,
        present: frozenset[Party],
        decide_again: Callable[[], Step] | None = None,
    ) -> Step: ...

    async def load(self, session_id: str) -> StoredSession | None: ...

    async def find_extension(self, session_id: str, extension_id: str) -> Extension | None: ...


class MessageRows(Protocol):
    """The messages of a session, to read."""

    async def list_messages(self, session_id: str, after_seq: int, limit: int) -> Sequence[MessageRow]: ...

    async def list_message_ids(self, session_id: str, after_seq: int, limit: int) -> list[tuple[int, str, str]]: ...

    async def find_message(self, session_id: str, sender: str, client_id: str) -> MessageRow | None: ...


class MessageLog(Protocol):
    """The messages of a session, to write."""

    async def append(self, session_id: str, epoch: int, rows: Sequence[MessageRow]) -> None: ...


class Facts(Protocol):
    """What a decision needs to know of the outside."""

    def config(self) -> LiveConfig: ...

    async def find_payment(self, payment_request_id: str) -> Payment | None: ...

    async def reachability(self, mitra_id: str) -> Reachability: ...


class Lease(Protocol):
    """Whether this node still keeps the clocks: no deadline is acted upon while nobody can know (T3)."""

    def keeps_clocks(self) -> bool: ...


class Outside(Protocol):
    """Who else hears of a step."""

    def capacity_changed(self, mitra_id: str) -> None: ...

    def tell(self, user_id: str, frame: protocol.Frame) -> None: ...

    def ask_receipt(self, user_id: str, receipt: str, session_id: str) -> None: ...

    def search_opened(self, pairing_id: str, cause: str) -> None: ...

    def search_over(self, outcome: str) -> None: ...


@dataclass(frozen=True, slots=True)
class Meters:
    """What all actors of a node observe together; read by whoever scrapes."""

    ack_seconds: Histogram = field(default_factory=Histogram)
    """From a decoded message to its `ack` in the socket's buffer."""
    taken_items: Histogram = field(default_factory=lambda: Histogram(BATCH_BOUNDS))
    """How much waited in a mailbox when its actor looked."""
    step_seconds: Histogram = field(default_factory=Histogram)
    """The transaction of a step."""
    deadline_lateness_seconds: Histogram = field(default_factory=lambda: Histogram(LATENESS_BOUNDS_SECONDS))
    """From a session's deadline to the moment at which it was decided."""
    timer_lateness_seconds: Histogram = field(default_factory=lambda: Histogram(LATENESS_BOUNDS_SECONDS))
    """From the moment of a `session_timer` to its frame."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ports:
    """Everything an actor is given."""

    clock: Clock
    rows: SessionRows
    messages: MessageRows
    log: MessageLog
    facts: Facts
    lease: Lease
    outside: Outside
    meters: Meters = field(default_factory=Meters)
    bell: Bell = field(default_factory=lambda: Bell(UNASKED_AT_ONCE))
    """Wakes who is due; ten thousand sessions with a deadline or a credit at once must not crowd out those who ask."""
