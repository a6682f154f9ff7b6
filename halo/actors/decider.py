"""The session as it stands, and the one way in which it changes: facts, rule, commit, and only then speech.

Whoever wants a change (`halo/actors/requests.py` for people, `halo/actors/duties.py` for what nobody asks for) brings a function that
gathers the facts and names the event; it is called anew whenever the step was overtaken. Must never speak before the commit, never
decide before owed downtime is credited, and never guess: when the outcome of a commit is unknown the row is read again before anything
else (`reload`). Read next: `halo/rules.py`, whose `step` it calls, and `halo/store/sessions.py`, which commits.
"""

import uuid
from collections.abc import Awaitable, Callable
from dataclasses import replace
from time import perf_counter
from typing import TypeAlias

import structlog

from halo import notices, protocol
from halo.actors.alarm import Alarm
from halo.actors.audience import Audience
from halo.actors.commands import View
from halo.actors.conversation import Conversation
from halo.actors.ports import Ports
from halo.clock import Moment
from halo.effects import CloseSearch, OpenSearch, PushIfAbsent, Send, Step, WinOffer
from halo.errors import Busy, OwnershipLost, Refusal, StepOvertaken, StoreUnavailable
from halo.events import DeadlineReached, DowntimeCredited, Event, PaymentFailed
from halo.payment import PaymentStatus
from halo.push import receipt
from halo.rules import step
from halo.session import Party, Session, SessionStatus

log = structlog.get_logger(__name__)

OVERTAKEN_MAX = 5
"""A step that is overtaken so often in a row meets a fault, not a competitor."""
CLOSE_DONE = 1000
CLOSE_GONE = 4404
LOBBY_FRAMES = (protocol.ExtensionRequest, protocol.SessionStarted, protocol.SessionRerouting)
"""What a participant who is not on this chat hears in the lobby (spec 4)."""

Gather: TypeAlias = Callable[[], Awaitable[Event | None]]
"""The facts as they are now, as an event; None when they say that there is nothing to decide any more."""


class Decider:
    """The truth about one session as far as it is known here, and the steps that move it.

    Error handling: a `Refusal` changed and said nothing; after `StoreUnavailable` the row may have moved all the same, and is read
    before the next step.
    """

    __slots__ = ("_alarm", "_audience", "_conversation", "_owed_ms", "_owed_until", "_ports", "_stepped_at", "_unspoken",
                 "is_uncertain", "session")  # fmt: skip

    def __init__(
        self,
        session: Session,
        conversation: Conversation,
        audience: Audience,
        alarm: Alarm,
        ports: Ports,
        stepped_at: Moment,
    ) -> None:
        self.session = session
        self.is_uncertain = False
        """The row or the tail in Postgres may be ahead of what is known here."""
        self._conversation = conversation
        self._audience = audience
        self._alarm = alarm
        self._ports = ports
        self._unspoken: Step | None = None
        """A step whose commit did not answer: spoken if the row turns out to have moved."""
        self._owed_ms: int | None = None
        """Downtime that is not credited yet; nothing else is decided before it is (T3)."""
        self._owed_until: Moment = 0
        """The end of what was owed last: two who tell of the same outage must not make it two."""
        self._stepped_at = stepped_at
        """When the last step was decided here: what no clock was kept for before is on the session's accounts already."""

    @property
    def owes_downtime(self) -> bool:
        return self._owed_ms is not None

    def view(self) -> View:
        return View(session=self.session, last_seq=self._conversation.last_seq)

    def owe_downtime(self, since: Moment, until: Moment) -> None:
        """Nobody kept this session's clock meanwhile: it is credited before anything else is decided."""
        known_until = self._stepped_at if self._owed_ms is None else max(self._stepped_at, self._owed_until)
        self._owed_ms = (self._owed_ms or 0) + max(0, until - max(since, known_until))
        self._owed_until = max(until, known_until)

    # ---- one step

    async def decide(self, gather: Gather) -> tuple[Session, Step] | None:
        """Facts, rule, commit, speech, once nothing is owed any more; what is overtaken is decided anew on what is true now.

        Returns the session before and the step, or None when the facts say that there is nothing to decide any more.

        Raises:
            Refusal: the rules say no, or the store is away; nothing was said.
        """
        await self.credit()
        # The store was away, and how long is not known yet: nothing may be settled by this clock.
        if not self._ports.lease.keeps_clocks():
            raise StoreUnavailable
        return await self._commit(gather)

    async def decide_now(self, gather: Callable[[], Awaitable[Event]]) -> tuple[Session, Step]:
        """The same for what somebody asked for: there is always something to decide."""
        decision = await self.decide(gather)
        assert decision is not None  # gather gave an event
        return decision

    async def credit(self) -> None:
        """What is owed, if anything. A commit that did not answer may turn out to have credited it; then nothing is owed any more."""

        async def gather() -> Event | None:
            if self._owed_ms is None or self.session.status is SessionStatus.ENDED:
                return None
            now = self._ports.clock.now()
            grace_ms = self._ports.facts.config().reconnect_grace_seconds * 1000
            return DowntimeCredited(at=now, downtime_ms=self._owed_ms, not_before=now + grace_ms)

        while self._owed_ms is not None and self.session.status is not SessionStatus.ENDED:
            await self._commit(gather)

    async def extension_unpaid(self) -> PaymentFailed | None:
        """Whether the payment of the pending extension was taken back by its provider: then there is nothing left to decide about."""
        pending = self.session.extension
        if pending is None:
            return None
        payment = await self._ports.facts.find_payment(pending.payment_request_id)
        if payment is not None and payment.status is not PaymentStatus.FAILED:
            return None
        return PaymentFailed(at=self._ports.clock.now(), config=self._ports.facts.config())

    async def _commit(self, gather: Gather) -> tuple[Session, Step] | None:
        for attempt in range(OVERTAKEN_MAX):
            if self.is_uncertain:
                await self.reload()
            void = await self.extension_unpaid() if attempt else None
            event = void or await gather()
            if event is None:
                return None
            before = self.session

            def decide_again(before: Session = before, event: Event = event) -> Step:
                again = self._unspoken = step(before, replace(event, at=self._ports.clock.now()))
                return again

            decided = step(before, event)
            try:
                self.is_uncertain, self._unspoken = True, decided
                began = perf_counter()
                decided = await self._ports.rows.commit(
                    before, decided, str(uuid.uuid4()), self._audience.parties(), decide_again
                )
            except StepOvertaken:
                self._unspoken = None
                continue
            except StoreUnavailable:
                raise  # nobody knows
            except Refusal:  # the rows themselves said no, and nothing was written
                self.is_uncertain, self._unspoken = False, None
                raise
            self.is_uncertain, self._unspoken = False, None
            self._observe(before, event, perf_counter() - began)
            self._adopt(decided)
            if void is None:
                return before, decided
        raise Busy

    def _observe(self, before: Session, event: Event, commit_seconds: float) -> None:
        meters = self._ports.meters
        meters.step_seconds.observe(commit_seconds)
        if isinstance(event, DeadlineReached) and before.deadline_at is not None:
            meters.deadline_lateness_seconds.observe((event.at - before.deadline_at) / 1000)

    def _adopt(self, decided: Step) -> None:
        """The step is durable: it is the truth from now on, and may be spoken of."""
        before = self.session
        log.info(
            "session_step",
            session_id=before.session_id,
            step=decided.event,
            before=before.status.value,
            after=decided.session.status.value,
            cause=decided.cause,
            version=decided.session.version,
        )
        self._become(decided.session)
        self._stepped_at = decided.at
        if self.session.status is SessionStatus.ACTIVE and before.status is not SessionStatus.ACTIVE:
            self._alarm.last_timer_at = decided.at
        if decided.credited_ms is not None:
            self._owed_ms = ((self._owed_ms or 0) - decided.credited_ms) or None
            # The step says what the clock says; no warning of the past comes after it.
            self._alarm.last_timer_at = decided.at
        for effect in decided.effects:
            match effect:
                case Send():
                    self._say(effect)
                case OpenSearch():
                    self._ports.outside.search_opened(effect.pairing_id, decided.cause)
                case WinOffer():
                    self._ports.outside.search_over("found")
                case CloseSearch():
                    self._ports.outside.search_over(decided.session.end_reason or "")
                case _:
                    pass  # written, not told
        self._ask_receipts(decided)
        for mitra_id in {before.mitra_id, self.session.mitra_id}:
            self._ports.outside.capacity_changed(mitra_id)
        self._alarm.set(self.session)
        if self.session.status is SessionStatus.ENDED:
            self._audience.close(CLOSE_DONE)

    def _become(self, session: Session) -> None:
        """Another mitra's session hears nothing of the one before her, and she nothing of it: first of all her ears are closed (X1)."""
        self.session = session
        self._audience.expel((session.customer_id, session.mitra_id), CLOSE_GONE)

    def _say(self, effect: Send) -> None:
        self._audience.send(effect.frame, to=effect.to)
        if isinstance(effect.frame, LOBBY_FRAMES):
            for party, user_id in ((Party.CUSTOMER, self.session.customer_id), (Party.MITRA, self.session.mitra_id)):
                if effect.to in {None, party} and not self._audience.hears(party):
                    self._ports.outside.tell(user_id, effect.frame)

    def _ask_receipts(self, decided: Step) -> None:
        """A ping behind the frames: whose pong comes is spared the push."""
        session = self.session
        for effect in decided.effects:
            if isinstance(effect, PushIfAbsent):
                user_id = session.mitra_id if effect.party is Party.MITRA else session.customer_id
                named = receipt(effect.collapse_key, session.version)
                self._ports.outside.ask_receipt(user_id, named, session.session_id)

    # ---- what is true when nobody answered

    def doubt(self) -> None:
        """What is stored may be ahead of what is known: it is read before anything else, and soon, also when nobody asks."""
        self.is_uncertain = True
        self._alarm.ring_soon()

    async def reload(self) -> None:
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
            self._audience.send(notices.ended(stored.session))
            self._audience.close(CLOSE_DONE)
        self._become(stored.session)
        await self._conversation.catch_up(stored.last_seq)
        self.is_uncertain = False
        self._alarm.set(self.session)

    async def try_reload(self) -> None:
        """The same, now or when the store is back.

        Raises:
            OwnershipLost
        """
        try:
            await self.reload()
        except StoreUnavailable:  # still uncertain: whatever comes next reloads first
            self._alarm.ring_soon()
