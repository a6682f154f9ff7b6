"""The registry: every living session's actor on this node, and the one door to them.

It starts actors under its nursery, each supervised on its own; restores all living sessions at start; and answers for sessions
that have ended or live elsewhere from their rows. It must never reach into a session: whatever changes one goes through its
mailbox. Read next: `halo/actors/session.py`.
"""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol, TypeVar

import structlog
import trio

from halo import protocol
from halo.actors.commands import (
    Answer,
    AnswerExtension,
    AssignMitra,
    CancelExtension,
    Command,
    End,
    RequestExtension,
    SettlePayment,
    Sighting,
    Stop,
    Transfer,
    View,
)
from halo.actors.ports import Ports, StoredSession
from halo.actors.session import CLOSE_COME_BACK, SessionActor
from halo.actors.supervisor import RestartBudget, supervise
from halo.actors.upkeep import Upkeeps
from halo.clock import Moment
from halo.effects import Step
from halo.errors import (
    ActorFault,
    Draining,
    ExtensionResolved,
    NotFound,
    OfferResolved,
    OwnershipLost,
    SessionNotActive,
    StepOvertaken,
    StoreUnavailable,
)
from halo.events import DowntimeCredited, EndedBy
from halo.extension import Asked
from halo.rules import step
from halo.session import Extension, Session, SessionStatus
from halo.trace import forget

log = structlog.get_logger(__name__)
T = TypeVar("T")

LATE_MS = 1_000
"""An actor that starts so long after its session was opened makes up for it; what is less is the way of a commit."""
TAKE_UP_PAGE = 2_000
"""Sessions taken up in one statement: some 50 ms, so that a large restore never holds the event loop for long."""


class TakenUp(Protocol):
    """A session that this node now owns, and until when somebody kept its clock."""

    @property
    def stored(self) -> StoredSession: ...

    @property
    def last_kept_at(self) -> Moment: ...


class Ownership(Protocol):
    """Where sessions without a living owner come from, and who took part in what."""

    async def take_up(self, limit: int) -> Sequence[TakenUp]: ...

    async def list_strays(self, kept: Collection[str]) -> Sequence[TakenUp]: ...

    async def commit_credits(self, owed: Sequence[Step]) -> None: ...

    async def list_living_of(self, user_id: str) -> list[str]: ...


class Registry:
    """All sessions of this node.

    Resource handling: actors run in `nursery`, which the caller owns; `drain` stops them all.
    Error handling: every public method raises `Refusal`s only.
    """

    def __init__(
        self, nursery: trio.Nursery, ports: Ports, ownership: Ownership, budget: RestartBudget | None = None
    ) -> None:
        self._nursery = nursery
        self._ports = ports
        self._ownership = ownership
        self._budget = budget or RestartBudget()
        self._actors: dict[str, SessionActor] = {}
        self._running = 0
        """Actors with a task; a parked one has none any more, and stays listed."""
        self._parked_at: dict[str, Moment] = {}
        self.upkeeps = Upkeeps(ports.clock)
        """Of those sessions only that have crashed here."""
        self._all_gone = trio.Event()
        self.draining = False

    def __iter__(self) -> Iterator[SessionActor]:
        return iter(tuple(self._actors.values()))

    def __len__(self) -> int:
        return len(self._actors)

    def find(self, session_id: str) -> SessionActor | None:
        return self._actors.get(session_id)

    # ---- life

    async def restore(self) -> int:
        """Take up every living session that nobody keeps; returns how many. Safe to call again and again.

        Raises:
            StoreUnavailable: those that were taken up are kept; call again for the others.
        """
        count = await self._keep_strays()
        while page := await self._ownership.take_up(TAKE_UP_PAGE):
            for stored, credited_at in await self._credited(page):
                self._start_late(stored, credited_at)
                self._mark_mitras(stored.session)
                await trio.lowlevel.checkpoint()
            count += len(page)
        return count

    async def _credited(self, page: Sequence[TakenUp]) -> list[tuple[StoredSession, Moment]]:
        """The sessions of `page` with their downtime made good, in one transaction: nobody is connected yet who could be told.

        Where that cannot be had each is started as it is, and owes it.
        """
        now = self._ports.clock.now()
        not_before = now + self._ports.facts.config().reconnect_grace_seconds * 1000
        owed = [
            step(
                taken.stored.session,
                DowntimeCredited(at=now, downtime_ms=max(0, now - taken.last_kept_at), not_before=not_before),
            )
            for taken in page
        ]
        try:
            await self._ownership.commit_credits(owed)
        except (StepOvertaken, StoreUnavailable):
            await self._keep_strays()  # it may have been done all the same: only the rows know what is still owed
            return []
        return [(_Taken(credit.session, taken.stored.last_seq), now) for credit, taken in zip(owed, page, strict=True)]

    async def _keep_strays(self) -> int:
        """Start who is ours and has no actor; each owes the downtime since its row was written."""
        count = 0
        for stray in await self._ownership.list_strays(self._actors.keys()):
            if stray.stored.session.session_id not in self._actors:  # `opened` may have come meanwhile
                self._start(stray.stored).owe_downtime(stray.last_kept_at, self._ports.clock.now())
                self._mark_mitras(stray.stored.session)
                count += 1
        return count

    def _mark_mitras(self, session: Session) -> None:
        """Who kept it may have died between a step's commit and the mirror's hearing that a mitra has one session more, or one less."""
        for mitra_id in (session.mitra_id, *session.former_mitra_ids):
            self._ports.outside.capacity_changed(mitra_id)

    async def opened(self, decided: Step) -> None:
        """Start the actor of a session that has just been committed."""
        if decided.session.session_id not in self._actors:
            self._start_late(_Taken(decided.session, 0), decided.at)
        self._ports.outside.capacity_changed(decided.session.mitra_id)

    def _start_late(self, stored: StoredSession, stepped_at: Moment) -> None:
        """Start an actor some time after the step that it begins with: what the commit or its lost answer took long is made up for."""
        actor = self._start(stored, stepped_at)
        if (late := self._ports.clock.now()) - stepped_at > LATE_MS:
            actor.owe_downtime(stepped_at, late)

    def _start(self, stored: StoredSession, stepped_at: Moment = 0) -> SessionActor:
        actor = SessionActor(stored.session, stored.last_seq, self._ports, stepped_at)
        earlier = self._actors.get(actor.session.session_id)
        if (
            earlier is not None
        ):  # taken from ourselves after the lease was lost: the older incarnation has a stale epoch
            earlier.audience.send(protocol.Reconnect(after_ms=0, reason="moved"))
            earlier.audience.close(CLOSE_COME_BACK)
            earlier.mailbox.put(Stop(), urgent=True)
        self._actors[actor.session.session_id] = actor
        self._parked_at.pop(actor.session.session_id, None)
        if self.draining:  # it was committed while the others were told to stop
            actor.mailbox.put(Stop(), urgent=True)
        self._running += 1
        self._nursery.start_soon(self._keep, actor, name=f"session {actor.session.session_id}")
        return actor

    async def _keep(self, actor: SessionActor) -> None:
        session_id = actor.session.session_id
        # Started by whoever opened the session, which ends long before: from here on each step belongs to whoever asks for it.
        structlog.contextvars.clear_contextvars()
        structlog.contextvars.bind_contextvars(session_id=session_id)
        forget()
        lost = False

        async def run() -> None:
            nonlocal lost
            try:
                if not lost:
                    await actor.run()
            except* OwnershipLost:
                lost = True
            if lost:
                log.warning("session_ownership_lost", session_id=session_id)
                actor.audience.send(protocol.Reconnect(after_ms=0, reason="moved"))
                actor.audience.close(CLOSE_COME_BACK)

        async def recover(_: Exception) -> None:
            nonlocal lost
            try:
                await actor.recover()
            except OwnershipLost:
                lost = True

        def parked() -> None:
            actor.retire(ActorFault)
            self._parked_at[session_id] = self._ports.clock.now()

        try:
            await supervise(
                run,
                name="session",
                recover=recover,
                parked=parked,
                budget=self._budget,
                crashed=partial(self.upkeeps.crashed, session_id),
                session_id=session_id,
            )
        finally:
            if not actor.is_parked:
                self.upkeeps.over(session_id)
                actor.retire(SessionNotActive if actor.session.status is SessionStatus.ENDED else Draining)
                if self._actors.get(session_id) is actor:
                    del self._actors[session_id]
            self._running -= 1
            if self.draining and not self._running:
                self._all_gone.set()

    def parked_at(self, session_id: str) -> Moment | None:
        """Since when this session's actor stands still, or None when it does not."""
        actor = self._actors.get(session_id)
        return self._parked_at.get(session_id) if actor is not None and actor.is_parked else None

    async def revive(self, session_id: str) -> bool:
        """One more attempt for a parked actor: from its row, with a fresh budget, and the time that it stood still credited.

        Returns whether it runs again. Raises StoreUnavailable; then it is parked as before.
        """
        actor = self._actors.get(session_id)
        if actor is None or not actor.is_parked:
            return False
        stored = await self._ports.rows.load(session_id)
        if self._actors.get(session_id) is not actor or self.draining:
            return False  # taken from ourselves meanwhile, or nobody starts any more
        parked_at = self._parked_at[session_id]
        if (
            stored is None
            or stored.session.epoch != actor.session.epoch
            or stored.session.status is SessionStatus.ENDED
        ):
            actor.audience.close(CLOSE_COME_BACK)  # another node has it, or had it to its end
            del self._actors[session_id], self._parked_at[session_id]
            self.upkeeps.over(session_id)
            return False
        self._start(stored).owe_downtime(parked_at, self._ports.clock.now())
        return True

    def credit_downtime(self, since: Moment, until: Moment) -> None:
        """No clock was kept on this node meanwhile: every session of it gets the time back."""
        for actor in self:
            actor.owe_downtime(since, until)

    def owes_downtime(self) -> bool:
        """Whether some credit is not written down yet."""
        return any(actor.owes_downtime and not actor.is_parked for actor in self)

    async def drain(self) -> None:
        """Every actor finishes the step in hand and returns; the caller bounds the time."""
        self.draining = True
        for actor in self:
            actor.mailbox.put(Stop(), urgent=True)
        if self._running:
            await self._all_gone.wait()

    # ---- the door

    async def view(self, session_id: str, *, user_id: str | None) -> View:
        """The session as it stands, also after its end.

        Raises:
            NotFound: there is none, or `user_id` is no participant of it.
        """
        actor = self._actors.get(session_id)
        view = actor.view() if actor is not None else await self._load(session_id)
        if user_id is not None and user_id not in {view.session.customer_id, view.session.mitra_id}:
            raise NotFound
        return view

    async def living_of(self, user_id: str) -> list[View]:
        """Her living sessions. One that is being handed on to her at this moment is missing: she hears of it when it is hers."""
        views: list[View] = []
        for session_id in await self._ownership.list_living_of(user_id):
            try:
                views.append(await self.view(session_id, user_id=user_id))
            except (
                NotFound
            ):  # the rows are ahead of the actor, or were handed on behind our back: the others are hers all the same
                continue
        return views

    async def request_extension(
        self,
        session_id: str,
        *,
        customer_id: str,
        duration_minutes: int | None,
        price: int | None,
        payment_request_id: str | None,
        extension_id: str | None = None,
    ) -> Extension:
        """The pending extension; with the `extension_id` of one that was asked for before, that one as it is by now."""
        answer: Answer[Extension] = Answer()
        asked = Asked(
            customer_id=customer_id,
            duration_minutes=duration_minutes,
            price=price,
            payment_request_id=payment_request_id,
        )
        try:
            return await self._ask(
                session_id, customer_id, RequestExtension(asker=answer, asked=asked, extension_id=extension_id), answer
            )
        except NotFound as stranger:
            if session_id in self._actors:
                raise  # the payment was not found
            raise SessionNotActive from stranger  # unknown, ended and somebody else's look alike (spec 2, the asking table; spec 7)

    async def respond_extension(
        self, session_id: str, extension_id: str, *, mitra_id: str, accepted: bool
    ) -> Extension:
        """The extension as it was decided."""
        answer: Answer[Extension] = Answer()
        command = AnswerExtension(asker=answer, mitra_id=mitra_id, extension_id=extension_id, accepted=accepted)
        return await self._ask(session_id, mitra_id, command, answer)

    async def cancel_extension(self, session_id: str, extension_id: str, *, customer_id: str) -> Extension:
        """The extension, `cancelled`."""
        answer: Answer[Extension] = Answer()
        return await self._ask(
            session_id,
            customer_id,
            CancelExtension(asker=answer, customer_id=customer_id, extension_id=extension_id),
            answer,
        )

    async def end(self, session_id: str, by: EndedBy, *, user_id: str | None) -> View:
        """The session, `ended`."""
        answer: Answer[View] = Answer()
        return await self._ask(session_id, user_id, End(asker=answer, by=by, user_id=user_id), answer)

    async def transfer(self, session_id: str) -> View:
        """The session, `rerouting`: another mitra is sought.

        Raises:
            NotFound
            SessionNotActive: it is not `active`.
            StoreUnavailable, Busy
        """
        answer: Answer[View] = Answer()
        return await self._ask(session_id, None, Transfer(asker=answer), answer)

    async def assign(self, session_id: str, *, mitra_id: str, pairing_id: str, offer_id: str) -> View:
        """The session with its new mitra, who has accepted this offer of its search.

        Raises:
            OfferResolved: somebody or something was faster.
            MitraDeactivated, CapacityExceeded
            StoreUnavailable: the offer will tell whether it was done.
        """
        answer: Answer[View] = Answer()
        command = AssignMitra(asker=answer, mitra_id=mitra_id, pairing_id=pairing_id, offer_id=offer_id)
        return await self._ask(session_id, None, command, answer)

    def saw(self, session_id: str, sighting: Sighting) -> None:
        """Tell a session what was seen of it. Dropped where something else waits already: it will be seen again."""
        actor = self._actors.get(session_id)
        if actor is not None and actor.retired is None and not actor.mailbox:
            actor.mailbox.put(sighting)

    async def payment_settled(self, session_id: str) -> None:
        """The payment of a session that may be on hold was confirmed or has failed."""
        actor = self._actors.get(session_id)
        if actor is not None and actor.retired is None:
            actor.mailbox.put(SettlePayment(), urgent=True)

    async def _ask(self, session_id: str, user_id: str | None, command: Command, answer: Answer[T]) -> T:
        actor = self._actors.get(session_id)
        if actor is None:
            await self._refuse_absent(session_id, user_id, command)
        else:
            actor.hand_in(command)
        return await answer.wait()

    async def _refuse_absent(self, session_id: str, user_id: str | None, command: Command) -> None:
        view = await self.view(session_id, user_id=user_id)
        if view.session.status is not SessionStatus.ENDED:  # living, but not here (yet)
            raise (
                Draining if self.draining else StoreUnavailable("The session is being taken up; try again in a moment.")
            )
        if isinstance(command, AnswerExtension | CancelExtension):
            if await self._ports.rows.find_extension(session_id, command.extension_id) is None:
                raise NotFound("This session has no such extension.")
            raise ExtensionResolved
        if isinstance(command, AssignMitra):
            raise OfferResolved
        raise SessionNotActive("The session has ended.")

    async def _load(self, session_id: str) -> View:
        stored = await self._ports.rows.load(session_id)
        if stored is None:
            raise NotFound
        return View(session=stored.session, last_seq=stored.last_seq)


@dataclass(frozen=True, slots=True)
class _Taken:
    """A session as it was committed last, here."""

    session: Session
    last_seq: int
