"""What a session does although nobody asks: its deadline, its payment, the downtime that is owed, its timers.

The alarm or a nudge brings a duty into the mailbox; what is due is read from the session and the facts, never from the nudge, so that
one too many changes nothing and one too few is made up for at the deadline. Must never hold up what people ask for: it waits its turn
among the sessions of the node for a moment only. A new duty is a struct in `halo/actors/commands.py`, its name in `Nudge`, a line in
`do`, and a function here. Read next: `halo/actors/decider.py`.
"""

from typing import TypeAlias, assert_never

import trio

from halo.actors import rerouting
from halo.actors.alarm import Alarm
from halo.actors.audience import Audience
from halo.actors.commands import Due, MitraSilent, SearchOver, SettlePayment, Sighting
from halo.actors.decider import Decider
from halo.actors.ports import Ports
from halo.errors import StoreUnavailable
from halo.events import DeadlineReached, Event, PaymentConfirmed, PaymentFailed
from halo.payment import PaymentStatus
from halo.rules import timer_frame
from halo.session import SessionStatus

TURN_PATIENCE_SECONDS = 0.5
"""How long a session's mailbox may stand still for work that nobody asked for."""

Nudge: TypeAlias = SettlePayment
"""Somebody told of it once; after a crash only the mailbox still knows."""
Duty: TypeAlias = Due | Nudge | Sighting


class Duties:
    """What one session has to do by itself.

    Error handling: what the store's absence kept from being done is tried again soon; any other refusal leaves `do`, as a fault.
    """

    __slots__ = ("_alarm", "_audience", "_decider", "_payment_unseen", "_ports")

    def __init__(self, decider: Decider, alarm: Alarm, audience: Audience, ports: Ports) -> None:
        self._decider = decider
        self._alarm = alarm
        self._audience = audience
        self._ports = ports
        self._payment_unseen = decider.session.status in {SessionStatus.PENDING_PAYMENT, SessionStatus.EXTENDING}
        """A payment may have been settled while nobody looked: at a start, or while the store was away."""

    @property
    def are_waiting(self) -> bool:
        """Whether there is something to do before the alarm rings."""
        return self._payment_unseen

    async def do(self, duty: Duty) -> None:
        """
        Raises:
            OwnershipLost
            Refusal: nobody asked, so a refusal by the rules is a fault.
        """
        try:
            match duty:
                case Due():
                    await self._on_alarm()
                case SettlePayment():
                    await self._settle_payment(at_deadline=False)
                case MitraSilent() | SearchOver():
                    await self._heed(duty)
                case _:
                    assert_never(duty)
        except StoreUnavailable:
            self._payment_unseen |= isinstance(duty, SettlePayment)
            self._alarm.ring_soon()

    async def _heed(self, sighting: Sighting) -> None:
        """In its turn; where that does not come in time, the next look will tell again."""
        turns = self._ports.bell.turns
        with trio.move_on_after(TURN_PATIENCE_SECONDS) as patience:
            await turns.acquire()
        if patience.cancelled_caught:
            return
        try:
            match sighting:
                case MitraSilent():
                    await rerouting.lose_silent(sighting, self._decider, self._ports)
                case SearchOver():
                    await rerouting.give_up(sighting, self._decider, self._ports)
                case _:
                    assert_never(sighting)
        finally:
            self._alarm.turn_over()

    async def _on_alarm(self) -> None:
        self._alarm.retrying()
        decider = self._decider
        behind = decider.is_uncertain or decider.owes_downtime or self._payment_unseen or self._is_due()
        if not behind:
            self._alarm.stand_back()
        elif not await self._catch_up_in_turn():
            return
        timer = self._alarm.next_timer(decider.session)
        now = self._ports.clock.now()
        if timer is not None and now >= timer and not self._is_due():
            self._alarm.last_timer_at = now
            self._audience.send(timer_frame(decider.session, now))
            self._ports.meters.timer_lateness_seconds.observe((now - timer) / 1000)
        self._alarm.set(decider.session)

    async def _catch_up_in_turn(self) -> bool:
        """False when this session has to wait; it is rung again, and its mailbox goes on meanwhile."""
        if not self._alarm.take_turn():
            return False
        try:
            # The store is away: the line in front of it must not be long.
            if not self._decider.owes_downtime and not self._ports.lease.keeps_clocks():
                self._alarm.ring_soon()
                return False
            await self._catch_up()
        finally:
            self._alarm.turn_over()
        return True

    def _is_due(self) -> bool:
        deadline_at = self._decider.session.deadline_at
        return deadline_at is not None and self._ports.clock.now() >= deadline_at

    async def _catch_up(self) -> None:
        """What nobody asks for, in the order in which it became true: the row, what is owed, the payment, the deadline."""
        decider = self._decider
        if decider.is_uncertain:
            await decider.reload()
        await decider.credit()
        if self._payment_unseen:
            await self._settle_payment(at_deadline=False)
        if not self._is_due():
            return
        # The store was away: the downtime is credited before anything falls due.
        if not self._ports.lease.keeps_clocks():
            self._alarm.ring_soon()
        elif decider.session.status is SessionStatus.PENDING_PAYMENT:
            await self._settle_payment(at_deadline=True)
        else:
            await decider.decide(self._deadline_facts)

    async def _deadline_facts(self) -> Event | None:
        reachability = None
        if self._decider.session.status is SessionStatus.EXTENDING:
            reachability = await self._ports.facts.reachability(self._decider.session.mitra_id)
        now = self._ports.clock.now()
        deadline_at = self._decider.session.deadline_at
        if deadline_at is None or now < deadline_at:
            return None  # overtaken meanwhile: somebody answered first
        return DeadlineReached(at=now, config=self._ports.facts.config(), reachability=reachability)

    async def _settle_payment(self, *, at_deadline: bool) -> None:
        """What the payment of a session on hold has become; at the deadline, a pending one has expired."""
        decider, facts = self._decider, self._ports.facts

        async def gather() -> Event | None:
            if decider.session.status is not SessionStatus.PENDING_PAYMENT:
                return await decider.extension_unpaid()
            payment = await facts.find_payment(decider.session.payment_request_id)
            now = self._ports.clock.now()
            match payment.status if payment is not None else PaymentStatus.FAILED:
                case PaymentStatus.CONFIRMED:
                    return PaymentConfirmed(at=now)
                case PaymentStatus.FAILED:
                    return PaymentFailed(at=now, config=facts.config())
                # A reload may have found it credited.
                case _ if at_deadline and now >= (decider.session.deadline_at or 0):
                    return DeadlineReached(at=now, config=facts.config())
                case _:
                    return None

        await decider.decide(gather)
        self._payment_unseen = False
