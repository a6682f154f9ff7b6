"""The registry: the one door to the sessions of this node.

What somebody asks of a session goes to its actor; for sessions that have ended or live elsewhere their rows answer. It must never reach
into a session: whatever changes one goes through its mailbox. Read next: `halo/actors/roster.py`, the actors behind the door, and
`halo/actors/session.py`.
"""

from typing import TypeVar

import trio

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
    Transfer,
    View,
)
from halo.actors.ownership import Ownership, TakeUp
from halo.actors.ports import Ports
from halo.actors.roster import Roster, Taken
from halo.actors.supervisor import RestartBudget
from halo.effects import Step
from halo.errors import Draining, ExtensionResolved, NotFound, OfferResolved, SessionNotActive, StoreUnavailable
from halo.events import EndedBy
from halo.extension import Asked
from halo.session import Extension, SessionStatus

T = TypeVar("T")


class Registry(Roster):
    """All sessions of this node, for whoever asks something of them.

    Error handling: every public method raises `Refusal`s only.
    """

    def __init__(
        self, nursery: trio.Nursery, ports: Ports, ownership: Ownership, budget: RestartBudget | None = None
    ) -> None:
        super().__init__(nursery, ports, budget)
        self._ownership = ownership
        self._take_up = TakeUp(self, ports, ownership)

    async def restore(self) -> int:
        """Take up every living session that nobody keeps; returns how many. Safe to call again and again.

        Raises:
            StoreUnavailable: those that were taken up are kept; call again for the others.
        """
        return await self._take_up.run()

    async def opened(self, decided: Step) -> None:
        """Start the actor of a session that has just been committed."""
        if decided.session.session_id not in self._actors:
            self.start_late(Taken(decided.session, 0), decided.at)
        self._ports.outside.capacity_changed(decided.session.mitra_id)

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
