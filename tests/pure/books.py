"""An independent account of one session: money as the effects write it, time as a wall clock saw it.

Not the machine again: `Books` interprets effects as a store would, with the unique indexes as assertions, and `WallClock` adds up who had
which minutes from the intervals between events. What the machine says of itself is then compared with both (M1 to M6, T1 to T3,
S1, S2).
"""

from dataclasses import dataclass, field, replace
from typing import assert_never
from uuid import UUID

from halo.accounts import Charge, spread
from halo.config import TimeoutAction
from halo.effects import (
    CloseSearch,
    ConsumePayment,
    Effect,
    FailPayment,
    FailUnusedPayments,
    LedgerType,
    MoveExtensionDeadline,
    OpenExtension,
    OpenSearch,
    PushIfAbsent,
    RecordFailure,
    RefundTimeLeft,
    ResolveExtension,
    Send,
    Step,
    WinOffer,
)
from halo.events import DeadlineReached, DowntimeCredited, Event
from halo.payment import Payment, PaymentStatus
from halo.protocol import SessionEnded
from halo.rules import RULES
from halo.session import EndReason, Extension, ExtensionStatus, FailureCause, Session, SessionStatus
from tests.pure.story import an_extension_payment

CAUSE_OF = {
    ExtensionStatus.REJECTED: {FailureCause.EXTENSION_REJECTED},
    ExtensionStatus.TIMEOUT: {FailureCause.EXTENSION_TIMED_OUT, FailureCause.EXTENSION_SAFEGUARD_TRIPPED},
}


@dataclass(frozen=True)
class LedgerRow:
    payment_request_id: str
    amount: int
    minutes: int
    type: LedgerType


@dataclass(frozen=True)
class Refund:
    payment_request_id: str
    kind: str
    amount: int


@dataclass
class Books:
    """Payments, extensions, ledger, refunds, failures and searches, as rows that only the effects of steps may write."""

    payments: dict[str, Payment]
    extensions: dict[str, Extension] = field(default_factory=dict)
    ledger: list[LedgerRow] = field(default_factory=list)
    refunds: list[Refund] = field(default_factory=list)
    failures: list[tuple[FailureCause, str | None]] = field(default_factory=list)
    searching: str | None = None
    """The one search for another mitra that is open."""
    searched: set[str] = field(default_factory=set)
    """Every search that there was."""
    mitra_id: str | None = None
    """Whose session it is: who was there first, then whoever won the last offer."""

    def new_extension_payment(self, *, minutes: int, amount: int, status: PaymentStatus) -> Payment:
        payment = an_extension_payment(
            minutes=minutes, amount=amount, status=status, payment_request_id=str(UUID(int=1000 + len(self.payments)))
        )
        self.payments[payment.payment_request_id] = payment
        return payment

    def find(self, payment_request_id: str) -> Payment:
        """The payment with `in_use` as the partial unique index would see it (M3)."""
        bound = {
            extension.payment_request_id
            for extension in self.extensions.values()
            if extension.status in {ExtensionStatus.PENDING, ExtensionStatus.ACCEPTED}
        }
        return replace(self.payments[payment_request_id], in_use=payment_request_id in bound)

    def commit(self, step: Step) -> None:
        ledger_before, refunds_before = tuple(self.ledger), tuple(self.refunds)
        for effect in step.effects:
            self._apply(effect)
        assert tuple(self.ledger[: len(ledger_before)]) == ledger_before, "the ledger is append-only (M5)"
        assert tuple(self.refunds[: len(refunds_before)]) == refunds_before
        self._assert_money(step.session)
        self._assert_search(step.session)

    def fail_search(self) -> None:
        """The search's own task gives it up, before the session hears of it."""
        self.searching = None

    def _assert_search(self, session: Session) -> None:
        assert self.searching is None or session.status is SessionStatus.REROUTING, "nobody seeks for whom has a mitra"
        self.mitra_id = self.mitra_id or session.mitra_id
        assert session.mitra_id == self.mitra_id, "a session changes hands by a won offer only"

    def _apply(self, effect: Effect) -> None:
        match effect:
            case ConsumePayment():
                self._consume(effect)
            case FailPayment():
                self._fail(self.payments[effect.payment_request_id], effect.cause)
            case FailUnusedPayments():
                self._fail_unused(effect.session_id)
            case RefundTimeLeft():
                self._give_back(effect)
            case OpenExtension(extension=extension):
                assert extension.extension_id not in self.extensions
                assert not self.find(extension.payment_request_id).in_use, "a payment is bound once (M3)"
                self.extensions[extension.extension_id] = extension
                assert len(self.pending) == 1, "one pending extension at most (S2)"
            case ResolveExtension():
                extension = self.extensions[effect.extension_id]
                assert extension.status is ExtensionStatus.PENDING
                self.extensions[effect.extension_id] = replace(extension, status=effect.status)
            case MoveExtensionDeadline():
                extension = self.extensions[effect.extension_id]
                assert extension.status is ExtensionStatus.PENDING
                self.extensions[effect.extension_id] = replace(extension, deadline_at=effect.deadline_at)
            case RecordFailure():
                assert (effect.extension_id is None) or effect.extension_id not in {id_ for _, id_ in self.failures}
                self.failures.append((effect.cause, effect.extension_id))
            case OpenSearch() | WinOffer() | CloseSearch():
                self._move_search(effect)
            case PushIfAbsent() | Send():
                pass
            case _:
                assert_never(effect)

    def _move_search(self, effect: OpenSearch | WinOffer | CloseSearch) -> None:
        match effect:
            case OpenSearch():
                assert self.searching is None, "one search at a time"
                assert effect.pairing_id not in self.searched
                self.searching = effect.pairing_id
                self.searched.add(effect.pairing_id)
            case WinOffer():
                assert effect.pairing_id == self.searching, "only the offer of an open search can be won"
                self.searching, self.mitra_id = None, effect.mitra_id
            case CloseSearch():
                self.searching = None  # it may have failed already

    def _consume(self, effect: ConsumePayment) -> None:
        payment = self.payments[effect.payment_request_id]
        assert payment.status is PaymentStatus.CONFIRMED, "only confirmed money is charged"
        charged = {row.payment_request_id for row in self.ledger}
        assert payment.payment_request_id not in charged, "charged at most once (M1)"
        self.payments[payment.payment_request_id] = replace(payment, status=PaymentStatus.CONSUMED)
        self.ledger.append(LedgerRow(payment.payment_request_id, payment.amount, payment.duration_minutes, effect.type))

    def _fail(self, payment: Payment, cause: FailureCause) -> None:
        assert payment.status in {PaymentStatus.PENDING, PaymentStatus.CONFIRMED}, (
            "failed once, and never what is spent"
        )
        if payment.status is PaymentStatus.CONFIRMED:
            self._refund(Refund(payment.payment_request_id, "payment_failed", payment.amount))
        failed = replace(payment, status=PaymentStatus.FAILED, failure_cause=cause.value)
        self.payments[payment.payment_request_id] = failed

    def _fail_unused(self, session_id: str) -> None:
        for payment in list(self.payments.values()):
            unused = payment.status in {PaymentStatus.PENDING, PaymentStatus.CONFIRMED}
            if payment.is_extension and unused and payment.session_id == session_id:
                self._fail(payment, FailureCause.SESSION_ENDED)

    def _give_back(self, effect: RefundTimeLeft) -> None:
        assert effect.amount > 0
        charges = [Charge(row.payment_request_id, row.amount) for row in reversed(self.ledger)]
        shares = spread(effect.amount, effect.refunded_ms, charges)
        assert sum(share.refunded_ms for share in shares) == effect.refunded_ms, "to the millisecond (T1)"
        assert sum(share.amount for share in shares) == effect.amount
        for share in shares:
            charged = sum(row.amount for row in self.ledger if row.payment_request_id == share.payment_request_id)
            assert 0 < share.amount <= charged, "never more than was charged"
            self._refund(Refund(share.payment_request_id, "time_left", share.amount))

    def _refund(self, refund: Refund) -> None:
        assert (refund.payment_request_id, refund.kind) not in {(r.payment_request_id, r.kind) for r in self.refunds}
        self.refunds.append(refund)

    @property
    def pending(self) -> list[Extension]:
        return [extension for extension in self.extensions.values() if extension.status is ExtensionStatus.PENDING]

    def _assert_money(self, session: Session) -> None:
        assert session.paid_ms == sum(row.minutes for row in self.ledger) * session.minute_ms, (
            "every grant has its row (M2)"
        )
        assert session.paid_amount == sum(row.amount for row in self.ledger)
        assert self.pending == ([session.extension] if session.extension else []), (
            "the pending one is the session's (S2)"
        )
        for extension in self.extensions.values():
            payment = self.payments[extension.payment_request_id]
            rows = [row for row in self.ledger if row.payment_request_id == extension.payment_request_id]
            if extension.status is ExtensionStatus.ACCEPTED:
                assert payment.status is PaymentStatus.CONSUMED
                assert [(row.amount, row.minutes, row.type) for row in rows] == [
                    (extension.price, extension.duration_minutes, LedgerType.EXTENSION)
                ], "one row, of the right sum (M2, M4)"
            if extension.status in CAUSE_OF:
                assert not rows
                assert payment.status is PaymentStatus.FAILED
                assert payment.failure_cause in CAUSE_OF[extension.status], "exactly one cause (M6)"
                assert Refund(payment.payment_request_id, "payment_failed", payment.amount) in self.refunds
        accepted = [e for e in self.extensions.values() if e.status is ExtensionStatus.ACCEPTED]
        assert session.extensions_accepted == len(accepted)
        of_extensions = [row for row in self.ledger if row.type is LedgerType.EXTENSION]
        assert len(of_extensions) == len(accepted), "nothing else is ever charged (M2)"
        if session.status is SessionStatus.ENDED:
            assert not [p for p in self.payments.values() if p.status is PaymentStatus.CONFIRMED], "no loose money (M7)"
            paid_back = sum(refund.amount for refund in self.refunds if refund.kind == "time_left")
            assert paid_back * max(1, session.paid_ms) >= session.paid_amount * session.refunded_ms
            assert paid_back <= session.paid_amount


@dataclass
class WallClock:
    """Who had which minutes, from the intervals between events alone."""

    at: int
    running: bool = False
    served_ms: int = 0
    left_ms: int = 0
    grace_ms: int = 0
    """Of the grace that was promised last, what is still to come."""
    path: list[SessionStatus] = field(default_factory=list)

    def passes(self, before: Session, step: Step, event: Event) -> None:
        """The time up to this step passed in the status before it; then the step happened."""
        elapsed = step.at - self.at
        if isinstance(event, DowntimeCredited):
            elapsed -= event.downtime_ms  # nobody served, nobody paid (T3)
        self.at = step.at
        if before.status is SessionStatus.ACTIVE:
            burnt = min(elapsed, self.left_ms)
            self.served_ms += burnt
            self.left_ms -= burnt
        if before.status is SessionStatus.CLOSING:
            self.grace_ms -= elapsed
        self._compare(before, step, event)

    def _compare(self, before: Session, step: Step, event: Event) -> None:
        after = step.session
        assert after.status in RULES[before.status][type(event)].leads_to, "a path of the table (S1)"
        assert before.status is not SessionStatus.ENDED
        assert (after.version, after.epoch) == (before.version + 1, before.epoch)
        granted = after.paid_ms - before.paid_ms
        assert granted >= 0
        self.left_ms += granted
        if after.status is not SessionStatus.ACTIVE:
            assert after.served_ms == self.served_ms, "served is what the wall clock saw (T1, T3)"
        if after.status in {SessionStatus.EXTENDING, SessionStatus.REROUTING}:
            assert after.remaining_ms == self.left_ms
        if after.status is SessionStatus.ACTIVE:
            assert after.remaining_ms_at(step.at) == self.left_ms
            assert after.expires_at is not None
            assert max(0, after.expires_at - step.at) == self.left_ms, "the end is as far as the time left (T2)"
        if isinstance(event, DeadlineReached):
            self._deadline(before, step, event)
        if isinstance(event, DowntimeCredited):
            self._credit(before, step, event)
        if after.end_reason is EndReason.COMPLETED:
            assert self.grace_ms <= 0, "the grace was whole (T2)"
        if after.status is SessionStatus.CLOSING and before.status is not SessionStatus.CLOSING:
            self._into_the_grace(before, step)
        if after.status is SessionStatus.ENDED:
            gone = after.paid_ms - self.served_ms - before.forfeited_ms
            forfeits = after.end_reason in {EndReason.ENDED_BY_CUSTOMER, EndReason.COMPLETED}
            assert after.forfeited_ms == before.forfeited_ms + (gone if forfeits else 0)
            assert after.refunded_ms == (0 if forfeits else gone), "only a customer gives up minutes"
            assert [e.frame for e in step.effects if isinstance(e, Send)] == [
                SessionEnded(session_id=after.session_id, end_reason=after.end_reason or "")
            ]
        self.path.append(after.status)

    def _deadline(self, before: Session, step: Step, event: DeadlineReached) -> None:
        assert before.deadline_at is not None
        assert step.at >= before.deadline_at, "nothing happens before its time (T2)"
        if before.status is SessionStatus.ACTIVE:
            assert self.left_ms == 0, "time is not up before all of it was had (T2)"
        if before.extension is not None and step.session.paid_ms > before.paid_ms:
            seen = event.reachability
            assert before.extension.default_action_on_timeout is TimeoutAction.AUTO_APPROVE
            assert seen is not None
            assert (seen.online, seen.heartbeat_fresh, seen.connected) == (True, True, True), (
                "silence of the absent is no yes"
            )

    def _credit(self, before: Session, step: Step, event: DowntimeCredited) -> None:
        assert before.deadline_at is not None
        assert step.session.deadline_at == max(before.deadline_at + event.downtime_ms, event.not_before), "(T3, S5)"
        if step.session.status is SessionStatus.CLOSING:
            self.grace_ms = max(self.grace_ms, event.not_before - step.at)  # the reconnect grace may lengthen it
        if step.session.extension is not None:
            assert step.session.extension.deadline_at == step.session.deadline_at

    def _into_the_grace(self, before: Session, step: Step) -> None:
        assert step.session.deadline_at is not None
        promised = step.session.deadline_at - step.at
        if before.grace_left_ms is None:
            self.grace_ms = promised
        else:
            assert promised == max(0, self.grace_ms), "the grace goes on with what was left"
        self.left_ms = 0
