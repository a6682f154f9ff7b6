"""The sender: takes what is due out of the outbox and hands it to a courier, a lane for each kind, for as long as the server lives.

Nothing waits for it: steps write rows and go on, and a provider that hangs costs a slot of its own lane. It looks once a second, or when
the next row is due if that is sooner; what became of many rows is written in one statement. It must never deliver what was
acknowledged, cancelled or has expired, and never forget a row: one whose outcome cannot be written is somebody's again when its lease is
over. Read next: `halo/outbox.py` (what becomes of a row), `halo/store/outbox.py`.
"""

import random
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final, NoReturn, Protocol

import structlog
import trio

from halo.actors.supervisor import RestartBudget, supervise
from halo.clock import Clock, Moment
from halo.errors import StoreUnavailable
from halo.outbox import Claim, Delivery, OutboxKind, OutboxReport, OutboxStatus, Outcome, conclude
from halo.trace import Trace, follow

log = structlog.get_logger(__name__)

LOOK_SECONDS: Final = 1.0
"""One indexed statement; a row is noticed so late at most."""
BREATH_SECONDS: Final = 0.05
"""When somebody else holds the row: long enough for their transaction to be committed. Nobody notices that a push is later by it."""
AWAY_SECONDS: Final = 0.5
"""The store has waited and tried again before it says that it is away."""
DELIVERY_SECONDS: Final = 25.0
"""For one row: a new access token and the message itself may take 10 s each. Less than half of the lease."""
COUNT_SECONDS: Final = 15.0
"""How often what waits is counted: it reads every row that is due or dead."""
AT_ONCE: Final = 96
"""Deliveries of one lane at the same time: as many as begin at `PACE_SECONDS` while one of a slow provider's 300 ms is under way, so that the
pace is the limit and not the provider. One that hangs holds no more than these."""
FEW: Final = 16
"""Of so few free slots a claim is put off for a breath, in which as many more become free at the pace: a claim is a transaction, and takes
longer than the pause between two deliveries."""
PACE_SECONDS: Final = 0.003
"""What a call costs us is 1.5 ms of CPU: begun all at once, thirty of them would keep everybody's messages waiting for 50 ms and more."""
NO_SECOND_TRY: Final = RestartBudget(restarts=0)


class OutboxRows(Protocol):
    """The rows; `halo.store.outbox.Outbox`."""

    async def find_next_due(self, kind: OutboxKind) -> Moment | None: ...

    async def claim(self, kind: OutboxKind, limit: int) -> Sequence[Claim]: ...

    async def record(self, outcomes: Sequence[Outcome]) -> Collection[str]: ...


class WaitingRow(Protocol):
    @property
    def kind(self) -> OutboxKind: ...

    @property
    def status(self) -> OutboxStatus: ...

    @property
    def count(self) -> int: ...

    @property
    def oldest_due_at(self) -> Moment | None: ...


class WaitingRows(Protocol):
    async def count_waiting(self) -> Sequence[WaitingRow]: ...


class Courier(Protocol):
    """Who carries a row outside. What may pass with time is told as `failure`, never raised."""

    async def deliver(self, claim: Claim) -> Delivery: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class LanePorts:
    """What every lane of a node is given."""

    rows: OutboxRows
    clock: Clock
    report: OutboxReport
    acknowledged: Callable[[str, str], bool]
    """Whether a user's socket has answered the ping that followed a frame: `(user_id, receipt)`."""
    dice: Callable[[], float] = random.random


class Lane:
    """The rows of one kind; see the module.

    Error handling: a courier that raises is a fault of ours: its row is dead, with an ERROR, and the others go on.
    """

    def __init__(self, kind: OutboxKind, courier: Courier, ports: LanePorts, pace_seconds: float = 0.0) -> None:
        self.kind = kind
        self._courier = courier
        self._rows = ports.rows
        self._clock = ports.clock
        self._report = ports.report
        self._acknowledged = ports.acknowledged
        self._dice = ports.dice
        self._pace_seconds = pace_seconds
        """Between the beginnings of two deliveries, whatever waits."""
        self._begins_at = 0.0
        """Trio's clock when the last delivery was to begin."""
        self._free = trio.Semaphore(AT_ONCE, max_value=AT_ONCE)
        self._concluded: list[Outcome] = []
        self._to_record = trio.Event()

    async def serve(self) -> NoReturn:
        # What a crash left in hand is nobody's here any more: its lease runs out, and it is sent again.
        self._free = trio.Semaphore(AT_ONCE, max_value=AT_ONCE)
        self._concluded.clear()
        self._report.in_hand[self.kind] = 0
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._record, name=f"outbox {self.kind} record")
            while True:
                try:
                    await self._wait_due()
                    await self._take(nursery)
                except StoreUnavailable:
                    await trio.sleep(AWAY_SECONDS)
        raise AssertionError("the loop does not end")

    async def _wait_due(self) -> None:
        """Until a row is due, as far as can be known."""
        while True:
            due_at = await self._rows.find_next_due(self.kind)
            wait_seconds = LOOK_SECONDS
            if due_at is not None:
                wait_seconds = min(LOOK_SECONDS, (due_at - self._clock.now()) / 1000)
                if wait_seconds <= 0:
                    return
            await trio.sleep(wait_seconds)

    async def _take(self, nursery: trio.Nursery) -> None:
        """Claim and deliver until there is no more; only as many as can be delivered at once, or leases would run out in the queue."""
        while True:
            await self._free.acquire()
            self._free.release()
            if self._free.value < FEW:
                await trio.sleep(BREATH_SECONDS)  # one claim a row is what a slow provider would be waited for with
            wanted = self._free.value
            claims = await self._rows.claim(self.kind, wanted)
            for claim in claims:
                self._free.acquire_nowait()
                self._report.in_hand[self.kind] += 1
                nursery.start_soon(self._handle, claim, name=f"outbox {claim.outbox_id}")
                await self._keep_pace()
            if not claims:
                await trio.sleep(BREATH_SECONDS)
            if len(claims) < wanted:
                return

    async def _keep_pace(self) -> None:
        """Until the next delivery may begin. What was late is not made up for, or what a busy moment held up would begin all at once."""
        self._begins_at = max(self._begins_at + self._pace_seconds, trio.current_time())
        await trio.sleep_until(self._begins_at)

    async def _handle(self, claim: Claim) -> None:
        """One row, to its outcome, whatever happens."""
        follow(None if claim.traceparent is None else Trace.parsed(claim.traceparent))

        def fault() -> None:
            self._conclude(claim, Delivery(refusal="fault of halo, see its log"))

        async def recover(error: Exception) -> None:
            raise error  # never called: there is no second try

        await supervise(
            partial(self._deliver, claim),
            name=f"outbox {self.kind}",
            recover=recover,
            parked=fault,
            budget=NO_SECOND_TRY,
            outbox_id=claim.outbox_id,
            session_id=claim.session_id,
        )

    async def _deliver(self, claim: Claim) -> None:
        if claim.is_expired:
            self._end(claim, OutboxStatus.EXPIRED)
        elif claim.receipt is not None and self._acknowledged(claim.user_id, claim.receipt):
            self._end(claim, OutboxStatus.CANCELLED, "acknowledged")
        else:
            delivery, began = Delivery(failure="no answer in time"), trio.current_time()
            with trio.move_on_after(DELIVERY_SECONDS):
                delivery = await self._courier.deliver(claim)
            took_seconds = trio.current_time() - began
            self._report.sent(claim.kind, self._conclude(claim, delivery), took_seconds)

    def _end(self, claim: Claim, status: OutboxStatus, error: str | None = None) -> None:
        self._add(
            Outcome(outbox_id=claim.outbox_id, kind=claim.kind, attempts=claim.attempts, status=status, error=error)
        )

    def _conclude(self, claim: Claim, delivery: Delivery) -> OutboxStatus:
        outcome = conclude(claim, delivery, self._clock.now(), self._dice())
        if outcome.status is OutboxStatus.DEAD:
            log.warning(
                "outbox_dead_letter",
                outbox_id=claim.outbox_id,
                session_id=claim.session_id,
                template=claim.template,
                why=outcome.error,
            )
        elif outcome.status is OutboxStatus.DUE:
            log.info(
                "outbox_retry",
                outbox_id=claim.outbox_id,
                session_id=claim.session_id,
                template=claim.template,
                attempts=claim.attempts,
                why=outcome.error,
            )
        self._add(outcome)
        return outcome.status

    def _add(self, outcome: Outcome) -> None:
        self._concluded.append(outcome)
        self._to_record.set()

    async def _record(self) -> NoReturn:
        """Write outcomes down, all that there are at a time. A slot is free only then, so that a store that is away bounds what is in hand."""
        while True:
            await self._to_record.wait()
            self._to_record = trio.Event()
            while outcomes := tuple(self._concluded):
                try:
                    busy = await self._rows.record(outcomes)
                except StoreUnavailable:
                    await trio.sleep(AWAY_SECONDS)
                    continue
                self._concluded[: len(outcomes)] = [outcome for outcome in outcomes if outcome.outbox_id in busy]
                for outcome in outcomes:
                    if outcome.outbox_id not in busy:
                        self._report.note(outcome)
                        self._report.in_hand[self.kind] -= 1
                        self._free.release()
                if busy:
                    await trio.sleep(BREATH_SECONDS)
        raise AssertionError("the loop does not end")


class OutboxSender:
    """All lanes of this node, and the count of what waits in the whole cluster; the daemon `outbox`."""

    def __init__(self, lanes: Sequence[Lane], rows: WaitingRows, clock: Clock, report: OutboxReport) -> None:
        self.lanes = tuple(lanes)
        """A kind without an address has none: its rows wait."""
        self.report = report
        self._rows = rows
        self._clock = clock

    async def serve(self) -> NoReturn:
        async with trio.open_nursery() as nursery:
            for lane in self.lanes:
                nursery.start_soon(lane.serve, name=f"outbox {lane.kind}")
            while True:
                await self._count()
                await trio.sleep(COUNT_SECONDS)
        raise AssertionError("the loop does not end")

    async def _count(self) -> None:
        try:
            waiting = await self._rows.count_waiting()
        except StoreUnavailable:
            return  # the last count stands until the next one
        self.report.waiting = {(row.kind, row.status): row.count for row in waiting}
        self.report.oldest_due_at = {row.kind: row.oldest_due_at for row in waiting if row.oldest_due_at is not None}
        self.report.counted_at = self._clock.now()
