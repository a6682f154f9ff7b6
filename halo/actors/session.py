"""The actor of one living session: a Trio task with its own nursery and a mailbox, and the rooms that do its work.

It takes what waits, in order: what is said goes the short way through `halo/actors/conversation.py`, what people ask for is in
`halo/actors/requests.py`, what nobody asks for in `halo/actors/duties.py`; both change the session through `halo/actors/decider.py`
alone, and `halo/actors/alarm.py` wakes it. It must never touch another session, leave an asker without an answer, or replay what was
in hand at a crash. What crashes here is caught by `halo/actors/supervisor.py`; who may call what is in `halo/actors/registry.py`.
Read next: `halo/actors/decider.py`.
"""

from collections.abc import Callable

import trio

from halo import notices, protocol
from halo.actors import requests
from halo.actors.alarm import Alarm
from halo.actors.audience import CLOSE_COME_BACK, Audience
from halo.actors.commands import (
    AnswerExtension,
    AssignMitra,
    CancelExtension,
    Command,
    Due,
    Ear,
    Item,
    Said,
    Stop,
    View,
)
from halo.actors.conversation import Conversation, TailUnknown
from halo.actors.decider import CLOSE_DONE, Decider
from halo.actors.duties import Duties, Nudge
from halo.actors.mailbox import Mailbox
from halo.actors.ports import Ports
from halo.clock import Moment
from halo.errors import (
    ActorFault,
    ExtensionResolved,
    NotFound,
    OfferResolved,
    Refusal,
    SessionNotActive,
    StepOvertaken,
    StoreUnavailable,
)
from halo.session import Session, SessionStatus
from halo.trace import following


class SessionActor:
    """The one task that may change a session while it lives.

    Resource handling: `run` holds nothing but its nursery; sockets belong to their connections.
    Error handling: a `Refusal` goes to the asker; `OwnershipLost` and everything unexpected leave `run`.
    """

    __slots__ = (
        "_alarm",
        "_decider",
        "_duties",
        "_in_hand",
        "_ports",
        "audience",
        "conversation",
        "mailbox",
        "retired",
    )

    def __init__(self, session: Session, last_seq: int, ports: Ports, stepped_at: Moment = 0) -> None:
        self.audience = Audience()
        self.conversation = Conversation(session.session_id, last_seq, self.audience, ports)
        self.mailbox: Mailbox[Item] = Mailbox()
        self.retired: type[Refusal] | None = None
        """Why nothing is taken any more: it has ended, was stopped, or is parked."""
        self._ports = ports
        self._alarm = Alarm(self.mailbox, ports)
        self._decider = Decider(session, self.conversation, self.audience, self._alarm, ports, stepped_at)
        self._duties = Duties(self._decider, self._alarm, self.audience, ports)
        self._in_hand: list[Item] = []

    @property
    def session(self) -> Session:
        return self._decider.session

    # ---- for the sockets: synchronous, so that what is seen and what is heard fit together without a gap

    def join(self, ear: Ear) -> View:
        """From now on `ear` hears everything; the view is the moment before the first thing that it will hear.

        Who comes after the last word hears it now: the handshake took its time.

        Raises:
            NotFound: the session was handed on meanwhile, and `ear` belongs to its former mitra.
        """
        if ear.user_id not in {self.session.customer_id, self.session.mitra_id}:
            raise NotFound
        self.audience.join(ear)
        if self.session.status is SessionStatus.ENDED:
            ear.send(protocol.encode(notices.ended(self.session)))
            ear.close(CLOSE_DONE)
        elif self.retired is not None and not self.is_parked:
            ear.send(protocol.encode(protocol.Reconnect(after_ms=0, reason="moved")))
            ear.close(CLOSE_COME_BACK)
        return self.view()

    def view(self) -> View:
        return self._decider.view()

    def hand_in(self, item: Item) -> None:
        """Put `item` into the mailbox.

        Raises:
            Busy, SessionNotActive, ExtensionResolved, OfferResolved, Draining, ActorFault: it was not taken.
        """
        if self.retired is not None:
            raise _too_late(item, self.retired())
        self.mailbox.put(item)

    def owe_downtime(self, since: Moment, until: Moment) -> None:
        """Nobody kept this session's clock meanwhile: credit it before anything else, whatever waits already."""
        self._decider.owe_downtime(since, until)
        if self.retired is None:
            self._alarm.ring_in_turn()

    def doubt(self) -> None:
        """The row may be another node's by now: it is read soon, and before anything else."""
        self._decider.doubt()

    @property
    def owes_downtime(self) -> bool:
        return self._decider.owes_downtime

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
            nursery.start_soon(self._alarm.serve, name=f"alarm of {self.session.session_id}")
            self._alarm.set(self.session)
            if self._duties.are_waiting:
                self.mailbox.put(Due(), urgent=True)
            await self._work()
            nursery.cancel_scope.cancel()

    async def _work(self) -> None:
        decider = self._decider
        while decider.session.status is not SessionStatus.ENDED:
            if not self._in_hand:
                self._in_hand = await self.mailbox.take_all()
                self._ports.meters.taken_items.observe(len(self._in_hand))
            item = self._in_hand[0]
            if isinstance(item, Stop):
                return
            if isinstance(item, Said):
                await self._store_messages()
                continue
            if isinstance(item, Command):
                await self._answer(item)
            else:
                await self._duties.do(item)
            del self._in_hand[0]

    async def _store_messages(self) -> None:
        """Everything said up to the next command goes into one journal entry."""
        said: list[Said] = []
        for item in self._in_hand:
            if not isinstance(item, Said):
                break
            said.append(item)
        decider = self._decider
        try:
            if decider.is_uncertain:
                await decider.reload()
            await self.conversation.store(said, decider.session)
        except TailUnknown as unknown:
            decider.doubt()  # what turns out to be durable is heard soon, also when nobody says anything more
            if isinstance(unknown.__cause__, StepOvertaken):
                del self._in_hand[: len(said)]  # already answered
                await decider.try_reload()
                return
        except StoreUnavailable as away:  # from the reload: nobody was answered yet
            for item in said:
                item.not_stored(away)
        del self._in_hand[: len(said)]

    async def _answer(self, command: Command) -> None:
        try:
            with following(command.trace):
                await requests.answer(command, self._decider, self._ports)
        except Refusal as refusal:
            command.asker.refused(refusal)
            # It may have been done: a deadline of it must not wait for the next thing that happens.
            if self._decider.is_uncertain:
                self._alarm.ring_soon()

    # ---- for the supervisor

    async def recover(self) -> None:
        """After a crash: what was in hand is refused, never replayed, and the row is read again, now or when the store is back.

        What nobody asked for and would be lost for ever (a stop) stays in hand, unless it was the one that crashed.

        Raises:
            OwnershipLost
        """
        unasked: list[Item] = [item for item in self._in_hand[1:] if isinstance(item, Nudge | Stop)]
        self._refuse_in_hand(ActorFault)
        self._in_hand = unasked
        self.conversation.forget_ids()
        self._decider.doubt()  # soon: for what is owed
        await self._decider.try_reload()

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


def _too_late(item: Item, refusal: Refusal) -> Refusal:
    """Who answers, cancels or accepts after the end is told the same as who was beaten by another: it is decided."""
    if not isinstance(refusal, SessionNotActive):
        return refusal
    match item:
        case AnswerExtension() | CancelExtension():
            return ExtensionResolved()
        case AssignMitra():
            return OfferResolved()
        case _:
            return refusal


def _refuse(item: Item, refusal: Refusal) -> None:
    refusal = _too_late(item, refusal)
    if isinstance(item, Said):
        item.not_stored(refusal)
    elif isinstance(item, Command):
        item.asker.refused(refusal)
