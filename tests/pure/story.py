"""A small language for the life of a session: what happens, where it leads, what is written, what is said.

    Story.paid(minutes=10).after(minutes=4).asks(minutes=5).is_(EXTENDING).said("mitra extension_request", "both session_paused")

Every step that a story takes is also held to what must hold in *every* step: the accounts add up (T1), the row passes the checks of
the table `chat_sessions`, the status is one that the rules table promised (S1), and the version rises by one (S3).
"""

from dataclasses import replace
from typing import Any, Self
from uuid import UUID

import pytest

from halo import extension as asking
from halo.config import LiveConfig, RefusalOutcome, TimeoutAction
from halo.effects import Effect, PushIfAbsent, Send, Step
from halo.errors import Refusal
from halo.events import (
    DeadlineReached,
    DowntimeCredited,
    EndedBy,
    EndRequested,
    Event,
    ExtensionAnswered,
    ExtensionCancelled,
    ExtensionRequested,
    LostBy,
    MitraAssigned,
    MitraLost,
    PaymentConfirmed,
    PaymentFailed,
    Reachability,
    SearchFailed,
)
from halo.outcomes import OUTCOMES
from halo.payment import Payment, PaymentStatus
from halo.protocol import Frame
from halo.rules import RULES, open_session, step
from halo.session import Extension, FailureCause, Session, SessionStatus

NOON = 1_795_521_600_000
"""2026-11-24T12:00:00Z, in milliseconds."""
SECOND = 1000
MINUTE = 60 * SECOND

CUSTOMER = str(UUID(int=1))
MITRA = str(UUID(int=2))
OTHER_MITRA = str(UUID(int=3))
SESSION = str(UUID(int=10))
PAYMENT = str(UUID(int=20))
EXTENSION = str(UUID(int=30))
EXTENSION_PAYMENT = str(UUID(int=40))
PAIRING = str(UUID(int=50))
OFFER = str(UUID(int=60))

THERE = Reachability(
    online=True,
    heartbeat_age_ms=12_000,
    heartbeat_fresh=True,
    connected=True,
    socket_answered_age_ms=3_000,
    source="mirror",
)
"""A mitra who is reachable by the mirror and connected."""

PENDING_PAYMENT = SessionStatus.PENDING_PAYMENT
ACTIVE = SessionStatus.ACTIVE
EXTENDING = SessionStatus.EXTENDING
CLOSING = SessionStatus.CLOSING
REROUTING = SessionStatus.REROUTING
ENDED = SessionStatus.ENDED


def a_session(*, minutes: int = 10, price: int = 10_000, minute_ms: int = MINUTE) -> Session:
    """A session that a mitra has just accepted, before its first step."""
    return Session(
        session_id=SESSION,
        customer_id=CUSTOMER,
        mitra_id=MITRA,
        payment_request_id=PAYMENT,
        topic_sensitivity="sensitive",
        status=PENDING_PAYMENT,
        duration_minutes=minutes,
        minute_ms=minute_ms,
        price=price,
        currency="IDR",
    )


def an_extension_payment(*, minutes: int = 5, amount: int = 5_000, **changes: Any) -> Payment:
    """A confirmed payment that may pay for an extension of the session above."""
    payment = Payment(
        payment_request_id=EXTENSION_PAYMENT,
        customer_id=CUSTOMER,
        session_id=SESSION,
        status=PaymentStatus.CONFIRMED,
        amount=amount,
        currency="IDR",
        duration_minutes=minutes,
        is_extension=True,
        is_first_session_discount=False,
        failure_cause=None,
        created_at=NOON,
    )
    return replace(payment, **changes)


class Story:
    """A session, the time, and the last step that was taken."""

    def __init__(self, first: Step, config: LiveConfig) -> None:
        self.step = first
        self.config = config
        self.now = first.at
        self.assert_sound()

    @classmethod
    def paid(cls, *, minutes: int = 10, price: int = 10_000, **settings: Any) -> Self:
        """The payment was confirmed before the mitra accepted."""
        config = LiveConfig(**settings)
        return cls(open_session(a_session(minutes=minutes, price=price), NOON, config, confirmed=True), config)

    @classmethod
    def unpaid(cls, *, minutes: int = 10, price: int = 10_000, **settings: Any) -> Self:
        """The mitra accepted, the money has not come yet."""
        config = LiveConfig(**settings)
        return cls(open_session(a_session(minutes=minutes, price=price), NOON, config, confirmed=False), config)

    # ---- what happens

    def after(self, *, minutes: int = 0, seconds: int = 0, milliseconds: int = 0) -> Self:
        self.now += minutes * MINUTE + seconds * SECOND + milliseconds
        return self

    def at_the_deadline(self, *, late_ms: int = 0, reachability: Reachability | None = None) -> Self:
        assert self.session.deadline_at is not None
        self.now = max(self.now, self.session.deadline_at + late_ms)
        return self.happens(DeadlineReached(at=self.now, config=self.config, reachability=reachability))

    def confirmed(self) -> Self:
        return self.happens(PaymentConfirmed(at=self.now))

    def payment_fails(self) -> Self:
        return self.happens(PaymentFailed(at=self.now, config=self.config))

    def asks(self, *, minutes: int = 5, price: int = 5_000) -> Self:
        return self.happens(self.asking(minutes=minutes, price=price))

    def asking(self, *, minutes: int = 5, price: int = 5_000) -> ExtensionRequested:
        payment = an_extension_payment(minutes=minutes, amount=price)
        extension = asking.request(self.session, payment, EXTENSION, self.now, self.config)
        return ExtensionRequested(at=self.now, extension=extension)

    def answers(self, *, accepted: bool, extension_id: str = EXTENSION) -> Self:
        return self.happens(self.answering(accepted=accepted, extension_id=extension_id))

    def answering(self, *, accepted: bool, extension_id: str = EXTENSION) -> ExtensionAnswered:
        return ExtensionAnswered(at=self.now, extension_id=extension_id, accepted=accepted, config=self.config)

    def cancels(self) -> Self:
        return self.happens(self.cancelling())

    def cancelling(self, *, extension_id: str = EXTENSION) -> ExtensionCancelled:
        return ExtensionCancelled(at=self.now, extension_id=extension_id, config=self.config)

    def is_ended_by(self, who: EndedBy) -> Self:
        return self.happens(EndRequested(at=self.now, by=who))

    def loses_its_mitra(self, *, search_seconds: int = 90, **facts: Any) -> Self:
        return self.happens(self.losing_its_mitra(search_seconds=search_seconds, **facts))

    def losing_its_mitra(self, *, search_seconds: int = 90, cause: LostBy = LostBy.SILENT, **facts: Any) -> MitraLost:
        deadline_at = self.now + search_seconds * SECOND
        return MitraLost(at=self.now, deadline_at=deadline_at, cause=cause, **{"pairing_id": PAIRING, **facts})

    def finds_another(self, mitra_id: str = OTHER_MITRA) -> Self:
        return self.happens(self.finding_another(mitra_id))

    def finding_another(self, mitra_id: str = OTHER_MITRA) -> MitraAssigned:
        return MitraAssigned(at=self.now, mitra_id=mitra_id, pairing_id=PAIRING, offer_id=OFFER)

    def finds_nobody(self, cause: FailureCause = FailureCause.ALL_DECLINED) -> Self:
        return self.happens(self.finding_nobody(cause))

    def finding_nobody(self, cause: FailureCause = FailureCause.ALL_DECLINED) -> SearchFailed:
        return SearchFailed(at=self.now, pairing_id=PAIRING, cause=cause)

    def was_down_for(self, *, seconds: int, grace_seconds: int = 10) -> Self:
        """The server was away for these seconds and has just come back."""
        self.after(seconds=seconds)
        not_before = self.now + grace_seconds * SECOND
        return self.happens(DowntimeCredited(at=self.now, downtime_ms=seconds * SECOND, not_before=not_before))

    def happens(self, event: Event) -> Self:
        before = self.session
        self.step = step(before, event)
        assert self.session.status in RULES[before.status][type(event)].leads_to
        assert self.session.version == before.version + 1
        assert self.step.at == event.at
        self.assert_sound()
        return self

    # ---- what was expected

    def is_(self, status: SessionStatus, **fields: Any) -> Self:
        """The status, and any fields of the session."""
        assert self.session.status is status
        for name, value in fields.items():
            assert getattr(self.session, name) == value, name
        return self

    def keeps(
        self, *, paid: float = 0, served: float = 0, refunded: float = 0, forfeited: float = 0, remaining: float = 0
    ) -> Self:
        """All five sums, in minutes; what is not named is nothing."""
        session = self.session
        kept = (session.paid_ms, session.served_ms, session.refunded_ms, session.forfeited_ms, session.remaining_ms)
        assert tuple(sum_ / MINUTE for sum_ in kept) == (paid, served, refunded, forfeited, remaining)
        return self

    def wrote(self, *effects: Effect) -> Self:
        """Exactly these effects in the transaction, in this order; what `tests/pure/test_outcomes.py` proves is left out."""
        written = tuple(
            effect for effect in self.step.effects if not isinstance(effect, Send) and not is_outcome(effect)
        )
        assert written == effects
        return self

    def said(self, *lines: str) -> Self:
        """Exactly these frames after the commit, in this order, each as `whom type`."""
        sends = [effect for effect in self.step.effects if isinstance(effect, Send)]
        assert [f"{send.to or 'both'} {send.frame.__struct_config__.tag}" for send in sends] == list(lines)
        return self

    def because(self, cause: str, **evidence: Any) -> Self:
        """The cause on the timeline, and any part of its evidence."""
        assert self.step.cause == cause
        for name, value in evidence.items():
            assert self.step.evidence[name] == value, name
        return self

    def refuses(self, event: Event, refusal: type[Refusal]) -> Self:
        """The event is refused by name and changes nothing."""
        before, known = self.session, repr(self.session)
        with pytest.raises(refusal) as caught:
            step(before, event)
        assert type(caught.value) is refusal
        assert self.session is before
        assert repr(self.session) == known
        return self

    # ---- what there is

    @property
    def session(self) -> Session:
        return self.step.session

    @property
    def extension(self) -> Extension:
        assert self.session.extension is not None
        return self.session.extension

    def frame(self, type_: str) -> Any:
        """The one frame of this type that the last step said."""
        frames: list[Frame] = [effect.frame for effect in self.step.effects if isinstance(effect, Send)]
        (found,) = [frame for frame in frames if frame.__struct_config__.tag == type_]
        return found

    def assert_sound(self) -> None:
        """What holds in every status after every step; the CHECKs of `chat_sessions`, word by word."""
        session = self.session
        accounts = (session.served_ms, session.refunded_ms, session.forfeited_ms, session.remaining_ms)
        assert session.paid_ms == sum(accounts)
        assert min(accounts) >= 0
        assert (session.status is ENDED) == (session.end_reason is not None)
        assert (session.status is ENDED) == (session.deadline_at is None)
        assert (session.status is ACTIVE) == (session.running_since is not None)
        assert (session.status is ACTIVE) == (session.expires_at is not None)
        assert (session.status is EXTENDING) == (session.extension is not None)
        assert session.grace_left_ms is None or session.status is EXTENDING
        if session.running_since is not None and session.deadline_at is not None:
            assert session.expires_at == session.running_since + session.remaining_ms
            assert session.deadline_at >= session.expires_at


AUTO_REJECT: dict[str, Any] = {"extension_default_action_on_timeout": TimeoutAction.AUTO_REJECT}
CLOSE: dict[str, Any] = {"extension_refusal": RefusalOutcome.CLOSE}


def is_outcome(effect: Effect) -> bool:
    return isinstance(effect, PushIfAbsent) and effect.template in OUTCOMES
