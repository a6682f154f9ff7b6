"""The lobby socket: where mitras wait for offers and beat, and customers ask for somebody.

Frames are taken in their order, each to its end, and answered by `ack` or `refused`. Heartbeats are the hot path here: they are handed
in, and nobody waits for them; without an `id` they are answered by nothing at all. Read next: `halo/actors/pairing.py`.
"""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final, Protocol

from halo import protocol
from halo.actors.commands import View
from halo.availability import Beaten
from halo.clock import Clock, Moment, rfc3339
from halo.decoding import FrameDecoder
from halo.errors import Forbidden, Refusal
from halo.net.connection import Connection, Limits
from halo.net.connections import Connections
from halo.net.handshake import OpenWebSocket
from halo.net.stream import SocketStream
from halo.net.tokens import Identity, Tokens
from halo.pairing import PairingView
from halo.session import Party

HEARTBEAT_SECONDS: Final = 30
"""How often apps should ping: three pings fit into the freshness of 90 s (spec 3)."""


class Presence(Protocol):
    """A mitra's own comings and goings: Postgres first, then the mirror."""

    async def go_online(self, mitra_id: str) -> None: ...

    async def go_offline(self, mitra_id: str) -> None: ...

    async def is_online(self, mitra_id: str) -> bool: ...


class Heartbeats(Protocol):
    async def heartbeat(self, mitra_id: str, at: Moment) -> None: ...

    def hand_in(self, mitra_id: str, at: Moment, settled: Callable[[Beaten], None]) -> bool: ...


class Pairings(Protocol):
    async def start(
        self,
        customer_id: str,
        payment_request_id: str,
        topic_sensitivity: protocol.Topic,
        pairing_id: str | None = None,
    ) -> PairingView: ...

    async def cancel(self, pairing_id: str, customer_id: str) -> PairingView: ...


class Offers(Protocol):
    async def list_offers(self, mitra_id: str) -> Sequence[protocol.Offer]: ...

    async def accept(self, offer_id: str, mitra_id: str) -> tuple[str, str]: ...

    async def decline(self, offer_id: str, mitra_id: str) -> None: ...


class Beacon(Protocol):
    """Tells customers how many mitras are available; `halo.net.beacon.Beacon`."""

    async def add(self, listener: Connection) -> None: ...

    def remove(self, listener: Connection) -> None: ...


class LivingSessions(Protocol):
    async def living_of(self, user_id: str) -> list[View]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Lobby:
    """What every lobby socket of this node shares."""

    clock: Clock
    tokens: Tokens
    limits: Limits
    connections: Connections
    presence: Presence
    heartbeats: Heartbeats
    pairings: Pairings
    offers: Offers
    sessions: LivingSessions
    beacon: Beacon


class LobbyConnection(Connection):
    """One lobby socket of one person."""

    decoder = FrameDecoder.LOBBY
    is_lobby = True

    def __init__(self, stream: SocketStream, path: str, identity: Identity, lobby: Lobby) -> None:
        super().__init__(stream, path, identity, lobby.limits, lobby.clock, lobby.tokens)
        self._lobby = lobby
        self._websocket: OpenWebSocket | None = None
        self._beating = False
        """A heartbeat was handed in and not settled yet."""

    async def converse(self, websocket: OpenWebSocket) -> None:
        self._websocket = websocket
        self._lobby.connections.add(self)
        try:
            await super().converse(websocket)
        finally:
            self._websocket = None  # it holds this connection: the two would wait for the garbage collector
            self._lobby.beacon.remove(self)
            self._lobby.connections.remove(self)

    async def welcome(self) -> None:
        now, user_id = self._clock.now(), self.identity.user_id
        sessions = tuple(
            view.session.state(now, view.last_seq) for view in await self._lobby.sessions.living_of(user_id)
        )
        if self.identity.user_type is Party.CUSTOMER:
            await self.say(protocol.LobbyWelcomeCustomer(role="customer", sessions=sessions, server_time=rfc3339(now)))
            await self._lobby.beacon.add(self)
            return
        is_online = await self._lobby.presence.is_online(user_id)
        await self.say(
            protocol.LobbyWelcomeMitra(
                role="mitra",
                is_online=is_online,
                heartbeat_seconds=HEARTBEAT_SECONDS,
                sessions=sessions,
                server_time=rfc3339(now),
            )
        )
        for offer in await self._lobby.offers.list_offers(user_id):
            await self.say(offer)

    def take(self, frame: protocol.ChatFrame | protocol.LobbyFrame) -> Awaitable[None] | None:
        if not isinstance(frame, protocol.Heartbeat):
            return self._take_in_turn(frame)
        self._require(Party.MITRA)
        if self._beating:  # one at a time: whoever beats faster than it is answered waits
            return self._beat(frame.id)
        settled = partial(self._beaten, frame.id)
        self._beating = self._lobby.heartbeats.hand_in(self.identity.user_id, self._clock.now(), settled)
        return None if self._beating else self._beat(frame.id)

    def _beaten(self, frame_id: str | None, outcome: Beaten) -> None:
        """What has become of a heartbeat that was handed in."""
        self._beating = False
        if outcome is None:
            self._acknowledge_beat(frame_id)
        elif isinstance(outcome, Refusal):
            self.refuse(frame_id, outcome)
        elif self._websocket is not None and not self.is_closing:  # nobody knows yet: ask the slow way
            self._websocket.do(lambda: self.await_refusal(frame_id, self._beat(frame_id)))

    async def _beat(self, frame_id: str | None) -> None:
        await self._lobby.heartbeats.heartbeat(self.identity.user_id, self._clock.now())
        self._acknowledge_beat(frame_id)

    def _acknowledge_beat(self, frame_id: str | None) -> None:
        if frame_id is not None:
            self.answer(protocol.HeartbeatAck(id=frame_id, server_time=rfc3339(self._clock.now())))

    async def _take_in_turn(self, frame: protocol.ChatFrame | protocol.LobbyFrame) -> None:
        user_id = self.identity.user_id
        match frame:
            case protocol.GoOnline():
                self._require(Party.MITRA)
                await self._lobby.presence.go_online(user_id)
                self.answer(protocol.Ack(id=frame.id))
            case protocol.GoOffline():
                self._require(Party.MITRA)
                await self._lobby.presence.go_offline(user_id)
                self.answer(protocol.Ack(id=frame.id))
            case protocol.AcceptOffer():
                self._require(Party.MITRA)
                session_id, _ = await self._lobby.offers.accept(frame.offer_id, user_id)
                self.answer(protocol.Ack(id=frame.id, session_id=session_id))
            case protocol.DeclineOffer():
                self._require(Party.MITRA)
                await self._lobby.offers.decline(frame.offer_id, user_id)
                self.answer(protocol.Ack(id=frame.id))
            case protocol.RequestPairing():
                self._require(Party.CUSTOMER)
                view = await self._lobby.pairings.start(user_id, frame.payment_request_id, frame.topic_sensitivity)
                self.answer(protocol.Ack(id=frame.id, pairing_id=view.pairing_id))
            case protocol.CancelPairing():
                self._require(Party.CUSTOMER)
                await self._lobby.pairings.cancel(frame.pairing_id, user_id)
                self.answer(protocol.Ack(id=frame.id))
            case _:
                raise AssertionError(frame)  # the decoder lets nothing else through

    def token_renewed(self) -> None:
        self._lobby.connections.watch_expiry(self)

    def _require(self, party: Party) -> None:
        if self.identity.user_type is not party:
            raise Forbidden(f"Only a {party} may do this.")
