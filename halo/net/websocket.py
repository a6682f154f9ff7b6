"""The WebSocket listener: who may open which socket, decided before anything is opened.

A handshake is refused with a plain HTTP answer: 401 token, 403 origin, 404 no such session for this user, 400 bad `after_seq`, 503
draining. A token is taken from the `Authorization` header or from the subprotocol `bearer.<token>`, never from the URL, and cookies
mean nothing here. Read next: `halo/net/chat.py`, `halo/net/lobby.py`.
"""

import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, Protocol
from urllib.parse import parse_qs

import trio

from halo import protocol
from halo.actors.commands import View
from halo.actors.session import SessionActor
from halo.errors import Draining, NotFound, Refusal, StoreUnavailable, Unauthenticated
from halo.net.admission import Admission
from halo.net.chat import ChatConnection, ChatRoom
from halo.net.connection import Connection
from halo.net.handshake import CONNECT_SECONDS, RequestHead, open_websocket, receive_head, refuse
from halo.net.lobby import Lobby, LobbyConnection
from halo.net.reader import Reader
from halo.net.refusal import HeadRefused
from halo.net.stream import SocketStream
from halo.net.tap import SocketTap
from halo.net.tokens import Identity, Tokens
from halo.session import Party, SessionStatus
from halo.trace import HEADER, Trace, follow

SUBPROTOCOL: Final = "halo.v1"
BEARER: Final = "bearer."
_CHAT = re.compile(r"/v1/chat/([0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12})")
_WHOLE_NUMBER = re.compile(r"[0-9]{1,1000}")


class Actors(Protocol):
    """Where living sessions are found."""

    def find(self, session_id: str) -> SessionActor | None: ...

    async def view(self, session_id: str, *, user_id: str | None) -> View: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Doorkeeper:
    """Everything that decides about a handshake."""

    tokens: Tokens
    allowed_origins: frozenset[str]
    actors: Actors
    chat: ChatRoom
    lobby: Lobby
    reader: Reader
    is_draining: Callable[[], bool]
    refused: Counter[str] = field(default_factory=Counter)
    """Handshakes, by code."""

    async def converse(self, stream: SocketStream, admission: Admission) -> None:
        """One connection, from its first byte to its last; the conversation that `serve_guarded` holds."""
        admitted: tuple[Connection, str | None] | None = None
        try:
            with trio.move_on_after(CONNECT_SECONDS) as patience:
                admitted = await self._let_in(stream)
        except HeadRefused as no:
            await self._turn_away(stream, no)
            return
        except trio.BrokenResourceError:
            return  # hung up before asking for anything
        if patience.cancelled_caught or admitted is None:
            await self._turn_away(stream, HeadRefused(408, "TIMEOUT", "The request did not come in time."))
            return
        admission.authenticated()
        connection, subprotocol = admitted
        async with open_websocket(
            stream,
            message_bytes_max=protocol.FRAME_BYTES_MAX,
            subprotocol=subprotocol,
            judge=connection.judge,
            take=connection.read,
            heard=self.lobby.connections.heard,
            tap=SocketTap(stream, self.reader, connection, protocol.FRAME_BYTES_MAX),
        ) as websocket:
            await connection.converse(websocket)

    async def _turn_away(self, stream: SocketStream, no: HeadRefused) -> None:
        self.refused[no.code] += 1
        await refuse(stream, no)

    async def _let_in(self, stream: SocketStream) -> tuple[Connection, str | None]:
        """The connection and its subprotocol; the head itself is not kept for the life of the socket."""
        head = await receive_head(stream)
        follow(Trace.received(head.all(HEADER)))
        return await self._admit(stream, head), SUBPROTOCOL if SUBPROTOCOL in head.subprotocols else None

    async def _admit(self, stream: SocketStream, head: RequestHead) -> Connection:
        try:
            if self.is_draining():
                raise Draining
            origin = head.one("origin")
            if origin is not None and origin not in self.allowed_origins:
                raise HeadRefused(403, "ORIGIN_REFUSED", "This origin is not allowed to open sockets here.")
            identity = self.tokens.verify(_token(head))
            if head.path == "/v1/lobby":
                return LobbyConnection(stream, head.path, identity, self.lobby)
            after_seq = _after_seq(head.query)
            actor = await self._find(head.path, identity)
            return ChatConnection(stream, head.path, identity, actor, after_seq, self.chat)
        except Refusal as no:
            raise HeadRefused(no.status, no.code, no.message) from None

    async def _find(self, path: str, identity: Identity) -> SessionActor:
        found = _CHAT.fullmatch(path)
        if found is None:
            raise NotFound("There is no such socket; there are /v1/chat/{session_id} and /v1/lobby.")
        session_id = found[1]
        actor = self.actors.find(session_id)
        if actor is None:
            view = await self.actors.view(session_id, user_id=identity.user_id)  # NotFound unless it is theirs
            if view.session.status is SessionStatus.ENDED:
                raise NotFound("The session has ended.")
            raise StoreUnavailable("The session is being taken up; try again in a moment.")
        session = actor.session
        theirs = session.customer_id if identity.user_type is Party.CUSTOMER else session.mitra_id
        if theirs != identity.user_id or session.status is SessionStatus.ENDED:
            raise NotFound
        return actor


def _token(head: RequestHead) -> str:
    authorization = head.one("authorization")
    if authorization is not None:
        scheme, _, token = authorization.partition(" ")
        if scheme.lower() != "bearer":
            raise Unauthenticated("The Authorization header must be a bearer token.")
        return token.strip()
    offered = [offer.removeprefix(BEARER) for offer in head.subprotocols if offer.startswith(BEARER)]
    if len(offered) != 1:
        raise Unauthenticated
    return offered[0]


def _after_seq(query: str) -> int:
    values = parse_qs(query, keep_blank_values=True).get("after_seq", ["0"])
    if len(values) != 1 or not _WHOLE_NUMBER.fullmatch(values[0]):
        raise HeadRefused(400, "VALIDATION_ERROR", "after_seq must be a whole number, 0 or more.")
    return int(values[0])
