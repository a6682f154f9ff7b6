"""People of a measurement who only listen: a socket each, and the moment at which every frame of theirs came.

They are tasks of the process that measures, which does nothing else meanwhile. Frames are made and cut by hand, as those of the lean
client, since the storm of them must cost less than the server that it meets. Must never retry: whoever opens a guest
decides what a refusal means. Read next: `scripts/measuring/reconnect.py`, `scripts/measuring/timers.py`.
"""

import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Final
from urllib.parse import urlsplit

import msgspec
import trio

from halo.clock import SystemClock
from halo.load.frames import CLOSE, PING, PONG, TEXT, client_frame, take_frames
from halo.net.tokens import Tokens
from halo.session import Party
from scripts.measuring.sessions import LivingSession
from scripts.measuring.talker import Frame, SocketLost
from scripts.measuring.theatre import TOKEN_SECONDS

PIECE_BYTES: Final = 65_536
_decode = msgspec.json.Decoder(Frame).decode
_PONG = client_frame(PONG, b"")


class Seat(msgspec.Struct, frozen=True):
    """Whose socket it will be."""

    session_id: str
    party: Party
    token: str


class NotYet(SocketLost):
    """The server has no hand free for a handshake, and says when to ask again: no fault, but a wait."""


class Guest:
    """One socket that was welcomed."""

    def __init__(self, stream: trio.SocketStream, seat: Seat) -> None:
        self._stream = stream
        self._arrived = bytearray()
        self._closed = ""
        self.seat = seat
        self.last_seq = 0
        self.welcomed_at = 0.0
        """Seconds since 1970: the server, its database and we share one clock."""

    async def shake_hands(self, address: str, after_seq: int) -> None:
        """Returns when the server has said welcome. Raises SocketLost."""
        request = (
            f"GET /v1/chat/{self.seat.session_id}?after_seq={after_seq} HTTP/1.1\r\nHost: {address}\r\nUpgrade: websocket\r\n"
            "Connection: Upgrade\r\nSec-WebSocket-Key: bWVhc3VyaW5nIGhhbG8uLg==\r\nSec-WebSocket-Version: 13\r\n"
            f"Sec-WebSocket-Protocol: halo.v1\r\nAuthorization: Bearer {self.seat.token}\r\n\r\n"
        )
        try:
            await self._stream.send_all(request.encode())
            while b"\r\n\r\n" not in self._arrived:
                await self._receive()
        except (trio.BrokenResourceError, SocketLost) as lost:
            raise NotYet("closed before it was answered") from lost
        head, _, rest = bytes(self._arrived).partition(b"\r\n\r\n")
        if head.startswith((b"HTTP/1.1 503", b"HTTP/1.1 429")):
            raise NotYet(head.splitlines()[0].decode(errors="replace"))
        if not head.startswith(b"HTTP/1.1 101"):
            raise SocketLost(head.splitlines()[0].decode(errors="replace"))
        self._arrived[:] = rest
        self.last_seq = (await self.hear_type("welcome")).last_seq
        self.welcomed_at = time.time()

    async def say(self, message_id: str) -> None:
        frame = b'{"type":"message","id":"%b","body":"I am back."}' % message_id.encode()
        await self._stream.send_all(client_frame(TEXT, frame))

    async def hear_type(self, name: str) -> Frame:
        """The next frame of that type; what comes before it is heard and forgotten. Raises SocketLost."""
        while True:
            for frame in await self.hear():
                if frame.type == name:
                    return frame

    async def hear(self) -> list[Frame]:
        """What has arrived, at least one frame. Raises SocketLost."""
        while True:
            frames = []
            for opcode, payload in take_frames(self._arrived):
                if opcode == TEXT:
                    frames.append(_decode(payload))
                elif opcode == PING:
                    await self._stream.send_all(_PONG)
                elif opcode == CLOSE:
                    self._closed = f"the server closed a socket with {int.from_bytes(payload[:2])}"
            if frames:
                return frames  # the last words before a close were said, and count
            if self._closed:
                raise SocketLost(self._closed)
            await self._receive()

    async def _receive(self) -> None:
        try:
            piece = await self._stream.receive_some(PIECE_BYTES)
        except trio.BrokenResourceError as broken:
            raise SocketLost("the connection broke") from broken
        if not piece:
            raise SocketLost("the server closed a socket without a word")
        self._arrived += piece


@asynccontextmanager
async def open_guest(ws: str, seat: Seat, after_seq: int) -> AsyncIterator[Guest]:
    """Connected and welcomed; `ws` is the server's address, `after_seq` the last message that this person has. Raises NotYet, SocketLost."""
    address = urlsplit(ws)
    try:
        stream = await trio.open_tcp_stream(address.hostname or "", address.port or 0)
    except OSError as refused:
        raise NotYet("no connection") from refused
    stream.setsockopt(trio.socket.IPPROTO_TCP, trio.socket.TCP_NODELAY, 1)
    async with stream:
        guest = Guest(stream, seat)
        await guest.shake_hands(address.netloc, after_seq)
        yield guest


def seats(sessions: Sequence[LivingSession], secret: str, parties: Sequence[Party]) -> list[Seat]:
    """A seat for each of `parties` in each of `sessions`, with tokens that outlast the measurement."""
    tokens = Tokens(secret, TOKEN_SECONDS, SystemClock())
    found = []
    for session in sessions:
        for party in parties:
            user_id = session.customer_id if party is Party.CUSTOMER else session.mitra_id
            token = tokens.issue(party, user_id, user_id)  # a family of tokens needs an id, and any will do
            found.append(Seat(session.session_id, party, token))
    return found
