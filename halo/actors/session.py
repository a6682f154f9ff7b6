"""The actor of one living session: a Trio task with its own nursery, a mailbox, and one deadline.

It takes what waits, gathers the facts that a decision needs, calls `halo.rules.step`, commits, and only then speaks. Messages take
the short way through `halo/actors/conversation.py`. It must never speak before the commit, never touch another session, and never
guess: when the outcome of a commit is unknown it reads the row again before it acts (`_reload`). What crashes here is caught by
`halo/actors/supervisor.py`; who may call what is in `halo/actors/registry.py`.
"""

import uuid
from collections.abc import Awaitable, Callable
from dataclasses import replace
from math import inf
from typing import assert_never

import structlog
import trio

from halo import extension as asking
from halo import notices, protocol
from halo.actors.audience import Audience
from halo.actors.commands import (
    AnswerExtension,
    CancelExtension,
    Command,
    Due,
    Ear,
    End,
    Item,
    RequestExtension,
    Said,
    SettlePayment,
    Stop,
    View,
)
from halo.actors.conversation import Conversation, TailUnknown
from halo.actors.mailbox import Mailbox
from halo.actors.ports import Ports
from halo.clock import Moment
from halo.effects import ResolveExtension, Send, Step
from halo.errors import (
    ActorFault,
    Busy,
    ExtensionResolved,
    IdReused,
    NotFound,
    OwnershipLost,
    Refusal,
    SessionNotActive,
    StepOvertaken,
    StoreUnavailable,
)
from halo.events import (
    DeadlineReached,
    DowntimeCredited,
    EndRequested,
    Event,
    ExtensionAnswered,
    ExtensionCancelled,
    ExtensionRequested,
    PaymentConfirmed,
    PaymentFailed,
)
from halo.payment import PaymentStatus
from halo.rules import step, timer_frame
from halo.session import Extension, Party, Session, SessionStatus
from halo.timers import next_timer

log = structlog.get_logger(__name__)

OVERTAKEN_MAX = 5
"""A step that is overtaken so often in a row meets a fault, not a competitor."""
AWAY_RETRY_MS = 250
"""How soon a deadline that met an unreachable store is tried again: recovery must show within 2 s."""
TURN_PATIENCE_SECONDS = 0.5
"""How long a session's mailbox may stand still for work that nobody asked for."""
TURN_RETRY_MS = 1_000
CLOSE_DONE, CLOSE_COME_BACK = 1000, 4000
LOBBY_FRAMES = (protocol.ExtensionRequest, protocol.SessionStarted)
"""What a participant who is not on this chat hears in the lobby (spec 4)."""


class SessionActor:
    """The one task that may change a session while it lives.

    Resource handling: `run` holds nothing but its nursery; sockets belong to their connections.
    Error handling: a `Refusal` goes to the asker; `OwnershipLost` and everything unexpected leave `run`.
    """

    __slots__ = ("_alarm", "_alarm_at", "_in_hand", "_last_timer_at", "_owed_ms", "_owed_until", "_payment_unseen",
                 "_ports", "_retry_at", "_stepped_at", "_uncertain", "_unspoken", "audience", "conversation", "mailbox",
                 "retired", "session")  # fmt: skip

    def __init__(self, session: Session, last_seq: int, ports: Ports, stepped_at: Moment = 0) -> None:
        self.session = session
        self.audience = Audience()
        self.conversation = Conversation(session.session_id, last_seq, self.audience, ports)
        self.mailbox: Mailbox[Item] = Mailbox()
        self.retired: type[Refusal] | None = None
        """Why nothing is taken any more: it has ended, was stopped, or is parked."""
        self._ports = ports
        self._alarm: trio.CancelScope | None = None
        self._alarm_at = inf
        self._retry_at: int | None = None
        """Set while something waits for the store to come back: a deadline, a credit, or the outcome of a commit."""
        self._owed_ms: int | None = None
        """Downtime that is not credited yet; nothing else is decided before it is (T3)."""
        self._owed_until: Moment = 0
        """The end of what was owed last: two who tell of the same outage must not make it two."""
        self._stepped_at = stepped_at
        """When the last step was decided here: what no clock was kept for before is on the session's accounts already."""
        self._payment_unseen = session.status in {SessionStatus.PENDING_PAYMENT, SessionStatus.EXTENDING}
        """A payment may have been settled while nobody looked: at a start, or while the store was away."""
        self._last_timer_at = ports.clock.now()
        self._in_hand: list[Item] = []
        self._uncertain = False
        """The row or the tail in Postgres may be ahead of what is known here."""
        self._unspoken: Step | None = None
        """A step whose commit did not answer: spoken if the row turns out to have moved."""

    # ---- for the sockets: synchronous, so that what is seen and what is heard fit together without a gap

    def join(self, ear: Ear) -> View:
        """From now on `ear` hears everything; the view is the moment before the first thing that it will hear.

        Who comes after the last word hears it now: the handshake took its time.
        """
        self.audience.join(ear)
        if self.session.status is SessionStatus.ENDED:
            ear.send(protocol.encode(notices.ended(self.session)))
            ear.close(CLOSE_DONE)
        elif self.retired is not None and not self.is_parked:
            ear.send(protocol.encode(protocol.Reconnect(after_ms=0, reason="moved")))
            ear.close(CLOSE_COME_BACK)
        return self.view()

    def view(self) -> View:
        return View(session=self.session, last_seq=self.conversation.last_seq)

    def hand_in(self, item: Item) -> None:
        """Put `item` into the mailbox.

        Raises:
            Busy, SessionNotActive, ExtensionResolved, Draining, ActorFault: it was not taken.
        """
        if self.retired is not None:
            raise _too_late(item, self.retired())
        self.mailbox.put(item)

    def owe_downtime(self, since: Moment, until: Moment) -> None:
        """Nobody kept this session's clock meanwhile: credit it before anything else, whatever waits already."""
        known_until = self._stepped_at if self._owed_ms is None else max(self._stepped_at, self._owed_until)
        self._owed_ms = (self._owed_ms or 0) + max(0, until - max(since, known_until))
        self._owed_until = max(until, known_until)
        self.mailbox.put(Due(), urgent=True)

    @property
    def owes_downtime(self) -> bool:
        return self._owed_ms is not None

    @property
    def is_parked(self) -> bool:
        return self.retired is ActorFault

    # ---- the task

    async def run(self) -> None:
        """Until the session has ended or `Stop` is taken.

        Raises:
            OwnershipLost: another node owns the session.
        """
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._ring, name=f"alarm of {self.session.session_id}")
            self._set_alarm()
            if self._payment_unseen:
                self.mailbox.put(Due(), urgent=True)
            await self._work()
            nursery.cancel_scope.cancel()

    async def _work(self) -> None:
        while self.session.status is not SessionStatus.ENDED:
            if not self._in_hand:
                self._in_hand = await self.mailbox.take_all()
            item = self._in_hand[0]
            if isinstance(item, Stop):
                return
            if isinstance(item, Said):
                await self._store_messages()
            else:
                await self._take(item)
                del self._in_hand[0]

    async def _store_messages(self) -> None:
        """Everything said up to the next command goes into one journal entry."""
        said: list[Said] = []
        for item in self._in_hand:
            if not isinstance(item, Said):
                break
            said.append(item)
        try:
            if self._uncertain:
                await self._reload()
            await self.conversation.store(said, self.session)
        except TailUnknown as unknown:
            self._uncertain = True
            self._ring_soon()  # what turns out to be durable is heard soon, also when nobody says anything more
            if isinstance(unknown.__cause__, StepOvertaken):
                del self._in_hand[: len(said)]  # already answered
                await self._try_reload()
                return
        except StoreUnavailable as away:  # from the reload: nobody was answered yet
            for item in said:
                item.not_stored(away)
        del self._in_hand[: len(said)]

    async def recover(self) -> None:
        """After a crash: what was in hand is refused, never replayed, and the row is read again, now or when the store is back.

        What nobody asked for and would be lost for ever (a stop) stays in hand, unless it was the one that crashed.

        Raises:
            OwnershipLost
        """
        unasked: list[Item] = [item for item in self._in_hand[1:] if isinstance(item, SettlePayment | Stop)]
        self._refuse_in_hand(ActorFault)
        self._in_hand = unasked
        self._uncertain = True
        self.conversation.forget_ids()
        self._ring_soon()  # for what is owed
        await self._try_reload()

    def _refuse_in_hand(self, refusal: Callable[[], Refusal]) -> None:
        items, self._in_hand = self._in_hand, []
        for item in items:
            _refuse(item, refusal())

    def retire(self, refusal: type[Refusal]) -> None:
        """Nothing is taken any more, and nobody waits for ever: who waits, and who comes later, is told `refusal`.

        With `ActorFault` it is parked: its sockets stay, and an operator has to look.
        """
        self.retired = refusal
        self._refuse_in_hand(refusal)
        for item in self.mailbox.drain():
            _refuse(item, refusal())

    # ---- commands

    async def _take(self, item: Command | SettlePayment | Due) -> None:
        try:
            match item:
                case Due():
                    await self._on_alarm()
                case SettlePayment():
                    await self._settle_payment(at_deadline=False)
                case RequestExtension():
                    item.asker.resolved(await self._request_extension(item))
                case AnswerExtension():
                    item.asker.resolved(await self._answer_extension(item))
                case CancelExtension():
                    item.asker.resolved(await self._cancel_extension(item))
                case End():
                    item.asker.resolved(await self._end(item))
                case _:
                    assert_never(item)
        except Refusal as refusal:
            if isinstance(item, Due | SettlePayment):
                if not isinstance(refusal, StoreUnavailable):
                    raise  # nobody asked: a refusal here is a fault
                self._payment_unseen |= isinstance(item, SettlePayment)
                self._ring_soon()
            else:
                item.asker.refused(refusal)
                if (
                    self._uncertain
                ):  # it may have been done: a deadline of it must not wait for the next thing that happens
                    self._ring_soon()

    def _ring_soon(self, after_ms: int = AWAY_RETRY_MS) -> None:
        """The store is away: a deadline, a credit, a payment or a commit must not be lost to that (spec 2)."""
        self._retry_at = self._ports.clock.now() + after_ms
        self._set_alarm()

    async def _request_extension(self, item: RequestExtension) -> Extension:
        extension_id = item.extension_id or str(uuid.uuid4())
        if item.extension_id is not None:
            earlier = await self._ports.rows.find_extension(self.session.session_id, extension_id)
            if earlier is not None:  # asked before, and the answer was lost on its way
                if (item.asked.customer_id, item.asked.payment_request_id) != (
                    self.session.customer_id,
                    earlier.payment_request_id,
                ):
                    raise IdReused
                return earlier

        async def gather() -> Event:
            config = self._ports.facts.config()
            named = item.asked.payment_request_id
            found = await self._ports.facts.find_payment(named) if named else None
            payment = asking.check(self.session, item.asked, found, config)
            now = self._ports.clock.now()
            return ExtensionRequested(
                at=now, extension=asking.request(self.session, payment, extension_id, now, config)
            )

        _, decided = await self._decide_now(gather)
        assert decided.session.extension is not None  # the rule put it there
        return decided.session.extension

    async def _answer_extension(self, item: AnswerExtension) -> Extension:
        async def gather() -> Event:
            if item.mitra_id != self.session.mitra_id:
                raise NotFound
            now = self._ports.clock.now()
            return ExtensionAnswered(
                at=now, extension_id=item.extension_id, accepted=item.accepted, config=self._ports.facts.config()
            )

        return await self._resolve_extension(gather, item.extension_id)

    async def _cancel_extension(self, item: CancelExtension) -> Extension:
        async def gather() -> Event:
            if item.customer_id != self.session.customer_id:
                raise NotFound
            now = self._ports.clock.now()
            return ExtensionCancelled(at=now, extension_id=item.extension_id, config=self._ports.facts.config())

        return await self._resolve_extension(gather, item.extension_id)

    async def _resolve_extension(self, gather: Callable[[], Awaitable[Event]], extension_id: str) -> Extension:
        try:
            before, decided = await self._decide_now(gather)
        except ExtensionResolved:
            if await self._ports.rows.find_extension(self.session.session_id, extension_id) is None:
                raise NotFound("This session has no such extension.") from None
            raise
        assert before.extension is not None  # the rule resolved it
        status = next(effect.status for effect in decided.effects if isinstance(effect, ResolveExtension))
        return replace(before.extension, status=status)

    async def _end(self, item: End) -> View:
        async def gather() -> Event:
            if item.user_id is not None and item.user_id not in {self.session.customer_id, self.session.mitra_id}:
                raise NotFound
            return EndRequested(at=self._ports.clock.now(), by=item.by)

        await self._decide(gather)
        return self.view()

    # ---- deadlines

    async def _on_alarm(self) -> None:
        self._retry_at = None
        if (
            self._uncertain or self._owed_ms is not None or self._payment_unseen or self._is_due()
        ) and not await self._take_turn():
            return
        timer = next_timer(self.session, self._last_timer_at, self._ports.facts.config())
        now = self._ports.clock.now()
        if timer is not None and now >= timer and not self._is_due():
            self._last_timer_at = now
            self.audience.send(timer_frame(self.session, now))
        self._set_alarm()

    async def _take_turn(self) -> bool:
        """Catch up when it is this session's turn; False when it has to wait, for what people ask for must not wait with it."""
        turns, lease = self._ports.turns, self._ports.lease
        with trio.move_on_after(TURN_PATIENCE_SECONDS) as patience:
            await turns.acquire()
        if patience.cancelled_caught:
            self._ring_soon(TURN_RETRY_MS)
            return False
        try:
            if (
                self._owed_ms is None and not lease.keeps_clocks()
            ):  # the store is away: the line in front of it must not be long
                self._ring_soon()
                return False
            await self._catch_up()
        finally:
            turns.release()
        return True

    def _is_due(self) -> bool:
        return self.session.deadline_at is not None and self._ports.clock.now() >= self.session.deadline_at

    async def _catch_up(self) -> None:
        """What nobody asks for, in the order in which it became true: the row, what is owed, the payment, the deadline."""
        if self._uncertain:
            await self._reload()
        await self._credit()
        if self._payment_unseen:
            await self._settle_payment(at_deadline=False)
        if not self._is_due():
            return
        if (
            not self._ports.lease.keeps_clocks()
        ):  # the store was away: the downtime is credited before anything falls due
            self._retry_at = self._ports.clock.now() + AWAY_RETRY_MS
        elif self.session.status is SessionStatus.PENDING_PAYMENT:
            await self._settle_payment(at_deadline=True)
        else:
            await self._decide(self._deadline_facts)

    async def _deadline_facts(self) -> Event | None:
        reachability = None
        if self.session.status is SessionStatus.EXTENDING:
            reachability = await self._ports.facts.reachability(self.session.mitra_id)
        now = self._ports.clock.now()
        if self.session.deadline_at is None or now < self.session.deadline_at:
            return None  # overtaken meanwhile: somebody answered first
        return DeadlineReached(at=now, config=self._ports.facts.config(), reachability=reachability)

    async def _settle_payment(self, *, at_deadline: bool) -> None:
        """What the payment of a session on hold has become; at the deadline, a pending one has expired."""

        async def gather() -> Event | None:
            if self.session.status is not SessionStatus.PENDING_PAYMENT:
                return await self._extension_unpaid()
            payment = await self._ports.facts.find_payment(self.session.payment_request_id)
            now = self._ports.clock.now()
            match payment.status if payment is not None else PaymentStatus.FAILED:
                case PaymentStatus.CONFIRMED:
                    return PaymentConfirmed(at=now)
                case PaymentStatus.FAILED:
                    return PaymentFailed(at=now, config=self._ports.facts.config())
                case _ if at_deadline and now >= (self.session.deadline_at or 0):  # a reload may have found it credited
                    return DeadlineReached(at=now, config=self._ports.facts.config())
                case _:
                    return None

        await self._decide(gather)
        self._payment_unseen = False

    async def _extension_unpaid(self) -> PaymentFailed | None:
        """Whether the payment of the pending extension was taken back by its provider: then there is nothing left to decide about."""
        pending = self.session.extension
        if pending is None:
            return None
        payment = await self._ports.facts.find_payment(pending.payment_request_id)
        if payment is not None and payment.status is not PaymentStatus.FAILED:
            return None
        return PaymentFailed(at=self._ports.clock.now(), config=self._ports.facts.config())

    async def _credit(self) -> None:
        """What is owed, if anything. A commit that did not answer may turn out to have credited it; then nothing is owed any more."""

        async def gather() -> Event | None:
            if self._owed_ms is None or self.session.status is SessionStatus.ENDED:
                return None
            now = self._ports.clock.now()
            grace_ms = self._ports.facts.config().reconnect_grace_seconds * 1000
            return DowntimeCredited(at=now, downtime_ms=self._owed_ms, not_before=now + grace_ms)

        while self._owed_ms is not None and self.session.status is not SessionStatus.ENDED:
            await self._commit(gather)

    # ---- one step

    async def _decide(self, gather: Callable[[], Awaitable[Event | None]]) -> tuple[Session, Step] | None:
        """Facts, rule, commit, speech, once nothing is owed any more; what is overtaken is decided anew on what is true now.

        Returns the session before and the step, or None when the facts say that there is nothing to decide any more.

        Raises:
            Refusal: the rules say no, or the store is away; nothing was said.
        """
        await self._credit()
        if (
            not self._ports.lease.keeps_clocks()
        ):  # the store was away, and how long is not known yet: nothing may be settled by this clock
            raise StoreUnavailable
        return await self._commit(gather)

    async def _commit(self, gather: Callable[[], Awaitable[Event | None]]) -> tuple[Session, Step] | None:
        for attempt in range(OVERTAKEN_MAX):
            if self._uncertain:
                await self._reload()
            void = await self._extension_unpaid() if attempt else None
            event = void or await gather()
            if event is None:
                return None
            before = self.session
            decided = step(before, event)
            try:
                self._uncertain, self._unspoken = True, decided
                await self._ports.rows.commit(before, decided, str(uuid.uuid4()), self.audience.parties())
            except StepOvertaken:
                self._unspoken = None
                continue
            self._uncertain, self._unspoken = False, None
            self._adopt(decided)
            if void is None:
                return before, decided
        raise Busy

    async def _decide_now(self, gather: Callable[[], Awaitable[Event]]) -> tuple[Session, Step]:
        """The same for what somebody asked for: there is always something to decide."""
        decision = await self._decide(gather)
        assert decision is not None  # gather gave an event
        return decision

    def _adopt(self, decided: Step) -> None:
        """The step is durable: it is the truth from now on, and may be spoken of."""
        before, self.session = self.session, decided.session
        self._stepped_at = decided.at
        if self.session.status is SessionStatus.ACTIVE and before.status is not SessionStatus.ACTIVE:
            self._last_timer_at = decided.at
        if decided.credited_ms is not None:
            self._owed_ms = ((self._owed_ms or 0) - decided.credited_ms) or None
            self._last_timer_at = decided.at  # the step says what the clock says; no warning of the past comes after it
        for effect in decided.effects:
            if isinstance(effect, Send):
                self._say(effect)
        for mitra_id in {before.mitra_id, self.session.mitra_id}:
            self._ports.outside.capacity_changed(mitra_id)
        self._set_alarm()
        if self.session.status is SessionStatus.ENDED:
            self.audience.close(CLOSE_DONE)

    def _say(self, effect: Send) -> None:
        self.audience.send(effect.frame, to=effect.to)
        if isinstance(effect.frame, LOBBY_FRAMES):
            for party, user_id in ((Party.CUSTOMER, self.session.customer_id), (Party.MITRA, self.session.mitra_id)):
                if effect.to in {None, party} and not self.audience.hears(party):
                    self._ports.outside.tell(user_id, effect.frame)

    async def _reload(self) -> None:
        """Read the row and the tail; what turns out to be durable is spoken of now.

        Raises:
            OwnershipLost, StoreUnavailable
        """
        stored = await self._ports.rows.load(self.session.session_id)
        if stored is None or stored.session.epoch != self.session.epoch:
            raise OwnershipLost(self.session.session_id)
        unspoken, self._unspoken = self._unspoken, None
        if unspoken is not None and stored.session.version == unspoken.session.version:
            self._adopt(unspoken)
        elif stored.session.status is SessionStatus.ENDED and self.session.status is not SessionStatus.ENDED:
            self.audience.send(notices.ended(stored.session))
            self.audience.close(CLOSE_DONE)
        self.session = stored.session
        await self.conversation.catch_up(stored.last_seq)
        self._uncertain = False
        self._set_alarm()

    async def _try_reload(self) -> None:
        try:
            await self._reload()
        except StoreUnavailable:  # still uncertain: whatever comes next reloads first
            self._ring_soon()

    # ---- the alarm

    async def _ring(self) -> None:
        while True:
            with trio.CancelScope(deadline=self._alarm_at) as self._alarm:
                await trio.sleep_forever()
            self._alarm_at = inf
            self.mailbox.put(Due(), urgent=True)

    def _set_alarm(self) -> None:
        """To the deadline or the next timer, whichever comes first."""
        moments = [self._retry_at]
        if self._retry_at is None:
            moments = [
                self.session.deadline_at,
                next_timer(self.session, self._last_timer_at, self._ports.facts.config()),
            ]
        soonest = min((moment for moment in moments if moment is not None), default=None)
        self._alarm_at = (
            inf if soonest is None else trio.current_time() + max(0, soonest - self._ports.clock.now()) / 1000
        )
        if self._alarm is not None:
            self._alarm.deadline = self._alarm_at


def _too_late(item: Item, refusal: Refusal) -> Refusal:
    """Who answers or cancels after the end is told the same as who was beaten by an answer: it is decided."""
    late = isinstance(item, AnswerExtension | CancelExtension) and isinstance(refusal, SessionNotActive)
    return ExtensionResolved() if late else refusal


def _refuse(item: Item, refusal: Refusal) -> None:
    refusal = _too_late(item, refusal)
    if isinstance(item, Said):
        item.not_stored(refusal)
    elif isinstance(item, RequestExtension | AnswerExtension | CancelExtension | End):
        item.asker.refused(refusal)
