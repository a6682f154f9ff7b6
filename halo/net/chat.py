"""A participant's socket on one session: history first, then everything live, each frame to the session's actor.

`after_seq` and the moment of joining fit together without a gap: the actor's `join` is synchronous, so what is in the view comes from
Postgres and what is not comes live, held back until the history is out (C4). Authority is the session's row, asked again at every
command by the actor itself. Read next: `halo/actors/session.py`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Final, Protocol
from uuid import UUID, uuid5

from halo import protocol
from halo.actors.commands import AnswerExtension, CancelExtension, End, RequestExtension, Said, View
from halo.actors.conversation import message_frame
from halo.actors.ports import MessageRow
from halo.actors.session import SessionActor
from halo.clock import Clock, Moment, rfc3339
from halo.decoding import FrameDecoder
from halo.errors import Forbidden, NotFound, Refusal, ValidationFailed
from halo.events import EndedBy
from halo.extension import Asked
from halo.net.connection import CLOSE_GONE, Connection, Limits
from halo.net.connections import PING_SECONDS, Connections
from halo.net.handshake import OpenWebSocket
from halo.net.stream import SocketStream
from halo.net.tokens import Identity, Tokens
from halo.session import Extension, Party, extension_state

HISTORY_PAGE: Final = 200
"""Messages read at a time for a client that returns: at most some 800 KB, in a few milliseconds."""


class Heard(Protocol):
    @property
    def messages(self) -> Sequence[MessageRow]: ...


class History(Protocol):
    """What was said before, to one who takes part; raises NotFound for one who does not (any more)."""

    async def list_messages_to(self, reader_id: str, session_id: str, after_seq: int, limit: int) -> Heard: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatRoom:
    """What every chat socket of this node shares."""

    clock: Clock
    tokens: Tokens
    limits: Limits
    history: History
    connections: Connections


class ChatConnection(Connection):
    """One socket of one participant; an ear of the actor, and a speaker."""

    decoder = FrameDecoder.CHAT

    def __init__(
        self, stream: SocketStream, path: str, identity: Identity, actor: SessionActor, after_seq: int, room: ChatRoom
    ) -> None:
        super().__init__(stream, path, identity, room.limits, room.clock, room.tokens)
        self.party: Party = identity.user_type
        self._actor = actor
        self._after_seq = after_seq
        self._room = room
        self._view: View | None = None
        """The moment at which it joined; None when it was let in and found the session handed on to another mitra."""

    @property
    def user_id(self) -> str:
        return self.identity.user_id

    async def converse(self, websocket: OpenWebSocket) -> None:
        self._room.connections.add(self)
        try:
            self._view = self._actor.join(self)
        except NotFound:  # the handshake took its time; not a word is for her any more
            self.close(CLOSE_GONE)
        try:
            await super().converse(websocket)
        finally:
            self._actor.audience.leave(self)
            self._room.connections.remove(self)

    async def welcome(self) -> None:
        if self._view is None:
            return
        session, last_seq = self._view.session, self._view.last_seq
        after_seq = min(self._after_seq, last_seq)
        now = self._clock.now()
        pending = session.extension
        await self.say(
            protocol.Welcome(
                role=self.party.value,
                session=session.state(now, last_seq),
                pending_extension=extension_state(pending) if pending is not None else None,
                last_seq=last_seq,
                replay_from=after_seq,
                server_time=rfc3339(now),
                keepalive_seconds=PING_SECONDS,
                limits=self._limits.shown(),
            )
        )
        while after_seq < last_seq:
            try:
                heard = await self._room.history.list_messages_to(
                    self.user_id, session.session_id, after_seq, min(HISTORY_PAGE, last_seq - after_seq)
                )
            except NotFound:  # handed on by another node, and the actor here has not heard of it yet
                self.close(CLOSE_GONE)
                return
            if not heard.messages:  # the rows are there, or the actor would not have counted them
                raise NotFound("The history of this session cannot be read.")
            for row in heard.messages:
                await self.say(message_frame(session.session_id, row))
                after_seq = row.seq

    def take(self, frame: protocol.ChatFrame | protocol.LobbyFrame) -> None:
        actor, user_id = self._actor, self.identity.user_id
        match frame:
            case protocol.SendMessage():
                actor.hand_in(Said(self, frame.id, frame.body, perf_counter()))
            case protocol.SetTyping():
                actor.audience.hint(protocol.Typing(sender=self.party.value, on=frame.on), to=_other(self.party))
            case protocol.MarkRead():
                if frame.seq > actor.conversation.last_seq:
                    raise ValidationFailed("There is no message with this seq yet.")
                actor.audience.hint(protocol.Read(sender=self.party.value, seq=frame.seq), to=_other(self.party))
            case protocol.RequestExtension():
                self._require(Party.CUSTOMER)
                actor.hand_in(
                    RequestExtension(
                        asker=_FrameAsker(self, frame.id, tells_extension=True),
                        extension_id=str(uuid5(UUID(actor.session.session_id), f"{user_id} {frame.id}")),
                        asked=Asked(
                            customer_id=user_id,
                            duration_minutes=frame.duration_minutes,
                            price=frame.price,
                            payment_request_id=frame.extension_payment_request_id,
                        ),
                    )
                )
            case protocol.RespondExtension():
                self._require(Party.MITRA)
                asker = _FrameAsker(self, frame.id)
                actor.hand_in(
                    AnswerExtension(
                        asker=asker, mitra_id=user_id, extension_id=frame.extension_id, accepted=frame.accepted
                    )
                )
            case protocol.CancelExtension():
                self._require(Party.CUSTOMER)
                actor.hand_in(
                    CancelExtension(
                        asker=_FrameAsker(self, frame.id), customer_id=user_id, extension_id=frame.extension_id
                    )
                )
            case protocol.EndSession():
                actor.hand_in(End(asker=_FrameAsker(self, frame.id), by=EndedBy(self.party.value), user_id=user_id))
            case _:
                raise AssertionError(frame)  # the decoder lets nothing else through

    def stored(self, client_id: str, seq: int, at: Moment) -> None:
        self.answer(protocol.Ack(id=client_id, seq=seq, at=rfc3339(at)))

    def not_stored(self, client_id: str, refusal: Refusal) -> None:
        self.refuse(client_id, refusal)

    def token_renewed(self) -> None:
        self._room.connections.watch_expiry(self)

    def _require(self, party: Party) -> None:
        if self.party is not party:
            raise Forbidden(f"Only the {party} may do this.")


class _FrameAsker:
    """Turns the actor's answer into a frame for the one who asked."""

    __slots__ = ("_connection", "_id", "_tells_extension")

    def __init__(self, connection: ChatConnection, frame_id: str, *, tells_extension: bool = False) -> None:
        self._connection = connection
        self._id = frame_id
        self._tells_extension = tells_extension

    def resolved(self, value: Extension | View) -> None:
        extension_id = value.extension_id if self._tells_extension and isinstance(value, Extension) else None
        self._connection.answer(protocol.Ack(id=self._id, extension_id=extension_id))

    def refused(self, refusal: Refusal) -> None:
        self._connection.refuse(self._id, refusal)


def _other(party: Party) -> Party:
    return Party.MITRA if party is Party.CUSTOMER else Party.CUSTOMER
