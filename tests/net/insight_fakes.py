"""What the status page sees, from plain lists that a test fills."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from halo.actors.history import Sample
from halo.actors.upkeep import Upkeep
from halo.clock import Moment
from halo.errors import NotFound
from halo.net.status.insight import Insight, Parked
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

HEARD_SINCE: Moment = 1_795_521_400_000


@dataclass
class FakeLookout:
    """Gives what it was given, and remembers how it was asked."""

    census: Census = field(
        default_factory=lambda: Census(available=0, full=0, silent=0, offline=0, deactivated=0, failures={}, outbox=())
    )
    asked: list[tuple[Any, ...]] = field(default_factory=list)
    sessions: list[OperatedSession] = field(default_factory=list)
    things: list[Thing] = field(default_factory=list)
    mitras: list[SeenMitra] = field(default_factory=list)
    failure_counts: list[Counted] = field(default_factory=list)
    failures: list[Failed] = field(default_factory=list)
    outcome_counts: list[Counted] = field(default_factory=list)
    outcomes: list[Outcome] = field(default_factory=list)
    refund_sums: list[RefundSum] = field(default_factory=list)
    actions: list[OperatorAction] = field(default_factory=list)
    mended: list[OperatorAction] = field(default_factory=list)
    config_steps: list[ConfigStep] = field(default_factory=list)

    async def load_census(self, now: Moment, heard_since: Moment) -> Census:
        self.asked.append(("census", heard_since))
        return self.census

    async def list_sessions(self, wanted: SessionFilter, limit: int, cursor: str | None) -> Sequence[OperatedSession]:
        self.asked.append(("sessions", wanted, limit, cursor))
        return self.sessions[:limit]

    async def list_things(self, beginning: str, limit: int = 5) -> Sequence[Thing]:
        self.asked.append(("things", beginning, limit))
        return self.things

    async def list_mitras(
        self, state: str | None, search: str | None, heard_since: Moment, limit: int, cursor: str | None
    ) -> Sequence[SeenMitra]:
        self.asked.append(("mitras", state, search, limit, cursor))
        return self.mitras[:limit]

    async def list_living_of(self, mitra_id: str, limit: int) -> Sequence[OperatedSession]:
        return [session for session in self.sessions if session.mitra_id == mitra_id][:limit]

    async def count_failures(self, now: Moment) -> Sequence[Counted]:
        return self.failure_counts

    async def list_failures(self, cause: str | None, limit: int, cursor: int | None) -> Sequence[Failed]:
        self.asked.append(("failures", cause, limit, cursor))
        return self.failures[:limit]

    async def count_outcomes(self, now: Moment) -> Sequence[Counted]:
        return self.outcome_counts

    async def list_outcomes(self, status: str | None, limit: int, cursor: str | None) -> Sequence[Outcome]:
        self.asked.append(("outcomes", status, limit, cursor))
        return self.outcomes[:limit]

    async def sum_refunds(self, now: Moment) -> Sequence[RefundSum]:
        return self.refund_sums

    async def list_actions(
        self, operator: str | None, subject: str | None, outcome: str | None, limit: int, cursor: int | None
    ) -> Sequence[OperatorAction]:
        self.asked.append(("actions", operator, subject, outcome, limit, cursor))
        return self.actions[:limit]

    async def list_watchdog_actions(self, session_id: str, limit: int = 50) -> Sequence[OperatorAction]:
        return self.mended[:limit]

    async def list_config_steps(self, limit: int) -> Sequence[ConfigStep]:
        return self.config_steps[:limit]


@dataclass
class FakeLetters:
    """Dead letters."""

    dead: list[DeadLetter] = field(default_factory=list)
    replayed: list[tuple[str, str]] = field(default_factory=list)
    asked: list[tuple[int, str | None, OutboxKind | None]] = field(default_factory=list)

    async def list_dead(
        self, limit: int = 50, cursor: str | None = None, kind: OutboxKind | None = None
    ) -> Sequence[DeadLetter]:
        self.asked.append((limit, cursor, kind))
        return self.dead[:limit]

    async def replay(self, outbox_id: str, operator: str) -> None:
        if all(letter.outbox_id != outbox_id for letter in self.dead):
            raise NotFound
        self.replayed.append((outbox_id, operator))


@dataclass
class FakeInside:
    """The inside of the node."""

    lookout: FakeLookout = field(default_factory=FakeLookout)
    letters: FakeLetters = field(default_factory=FakeLetters)
    samples: list[Sample] = field(default_factory=list)
    daemons: list[Upkeep] = field(default_factory=list)
    crashed: list[Upkeep] = field(default_factory=list)
    parked: list[Parked] = field(default_factory=list)
    revived: list[str] = field(default_factory=list)
    can_revive: bool = True
    watch: WatchReport = field(default_factory=lambda: WatchReport(60.0))

    async def _revive(self, session_id: str) -> bool:
        self.revived.append(session_id)
        return self.can_revive

    def insight(self) -> Insight:
        return Insight(
            lookout=self.lookout,
            letters=self.letters,
            samples=lambda: self.samples,
            daemons=lambda: self.daemons,
            crashed=lambda: self.crashed,
            parked=lambda: self.parked,
            revive=self._revive,
            watch=self.watch,
            heard_since=lambda: HEARD_SINCE,
        )
