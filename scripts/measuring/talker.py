"""One person of the lean client: a plain socket, frames made by hand, at most one message in flight, and what all of them have seen.

It checks what a good app checks, that every message comes once and in the order of `seq`. Read next: `scripts/measuring/talk.py`,
the loop that all of them share.
"""

import os
import socket
import time
from typing import Any, Final

import msgspec

from halo.load.frames import CLOSE, PING, PONG, TEXT, client_frame, take_frames
from scripts.measuring.figures import percentile

HANDSHAKE_SECONDS: Final = 10.0
BODY_CHARACTERS: Final = 120
BEYOND_ALL: Final = 10**9
"""An `after_seq` that means: no history, please."""

_PONG = client_frame(PONG, b"")


class Plan(msgspec.Struct, frozen=True):
    """Whom to connect: `[session_id, token, …]` for each session, the tokens of those of its people who come."""

    host: str
    port: int
    sessions: list[list[str]]
    at_once: int = 1
    """So many sessions' sockets are opened before the first is waited for."""
    until_closed: bool = False
    """A socket that the server closes is expected, not a fault."""


class Frame(msgspec.Struct):
    """What a talker looks at; everything else in a frame is for people."""

    type: str
    id: str | None = None
    seq: int | None = None
    last_seq: int = 0


_decode = msgspec.json.Decoder(Frame).decode


class SocketLost(Exception):
    """The server closed a socket, or refused to open it."""


class Talker:
    """One participant: a socket, the last `seq`, and at most one message that was not acknowledged yet."""

    def __init__(self, plan: Plan, session_id: str, token: str, tally: "Tally") -> None:
        self._tally = tally
        self._arrived = bytearray()
        self._said = 0
        self._asked_at = 0.0
        self._waiting = ""
        self._last_seq = -1
        self.socket = socket.create_connection((plan.host, plan.port), HANDSHAKE_SECONDS)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._name = f"{os.getpid()}-{self.socket.fileno()}"
        request = (
            f"GET /v1/chat/{session_id}?after_seq={BEYOND_ALL} HTTP/1.1\r\nHost: {plan.host}:{plan.port}\r\nUpgrade: websocket\r\n"
            "Connection: Upgrade\r\nSec-WebSocket-Key: bWVhc3VyaW5nIGhhbG8uLg==\r\nSec-WebSocket-Version: 13\r\n"
            f"Sec-WebSocket-Protocol: halo.v1\r\nAuthorization: Bearer {token}\r\n\r\n"
        )
        self.socket.sendall(request.encode())

    def shake_hands(self) -> None:
        """Wait for the welcome. Raises SocketLost."""
        while b"\r\n\r\n" not in self._arrived:
            self._receive()
        head, _, rest = bytes(self._arrived).partition(b"\r\n\r\n")
        if not head.startswith(b"HTTP/1.1 101"):
            raise SocketLost(head.splitlines()[0].decode(errors="replace"))
        self._arrived[:] = rest
        while self._last_seq < 0:
            if not self._arrived:
                self._receive()
            self._listen()
            if self._last_seq < 0:
                self._receive()
        self.socket.settimeout(0)

    def _receive(self) -> None:
        data = self.socket.recv(65536)
        if not data:
            raise SocketLost("the server closed a socket")
        self._arrived += data

    def say(self) -> None:
        """The next message, unless the last one is still under way."""
        if not self._waiting:
            self._said += 1
            self._waiting = f"{self._name}-{self._said}"
            frame = b'{"type":"message","id":"%s","body":"%s"}' % (self._waiting.encode(), b"m" * BODY_CHARACTERS)
            self._asked_at = time.perf_counter()
            self.socket.sendall(client_frame(TEXT, frame))

    @property
    def is_waiting(self) -> bool:
        return bool(self._waiting)

    def hear(self) -> None:
        """What has arrived; an ack is answered with the next message while the tally says so."""
        try:
            self._receive()
        except BlockingIOError:
            return
        self._listen()

    def _listen(self) -> None:
        for opcode, payload in take_frames(self._arrived):
            if opcode == TEXT:
                self._understand(_decode(payload))
            elif opcode == PING:
                self.socket.sendall(_PONG)
            elif opcode == CLOSE:
                raise SocketLost(f"the server closed a socket with {int.from_bytes(payload[:2])}")

    def _understand(self, frame: Frame) -> None:
        if frame.type == "welcome":
            self._last_seq = frame.last_seq
        elif frame.seq is not None and frame.type in {"ack", "message"}:
            self._tally.disorders += frame.seq != self._last_seq + 1
            self._last_seq = frame.seq
            if frame.type == "message":
                self._tally.deliveries += 1
            elif frame.id == self._waiting:
                self._tally.acked(time.perf_counter() - self._asked_at)
                self._waiting = ""
                if self._tally.talking:
                    self.say()
        elif frame.type == "refused":
            self._tally.refusals += 1
            self._waiting = ""
            if self._tally.talking:
                self.say()


class Tally:
    """What all talkers together have seen since the last mark, and for ever."""

    def __init__(self) -> None:
        self.talking = False
        self.acks = 0
        self.deliveries = 0
        self.refusals = 0
        self.disorders = 0
        self._latencies_ms: list[float] = []
        self._marked_at = time.perf_counter()

    def acked(self, seconds: float) -> None:
        self.acks += 1
        self._latencies_ms.append(seconds * 1000)

    def mark(self) -> dict[str, Any]:
        """The figures since the last mark, and a new beginning."""
        latencies, self._latencies_ms = self._latencies_ms, []
        now = time.perf_counter()
        seconds, self._marked_at = now - self._marked_at, now
        times = times_cpu()
        figures: dict[str, Any] = {
            "seconds": seconds,
            "acks": len(latencies),
            "acks_ever": self.acks,
            "deliveries_ever": self.deliveries,
        }
        figures |= {"refusals_ever": self.refusals, "disorders_ever": self.disorders, "cpu_seconds": times}
        if latencies:
            figures |= {"p50_ms": percentile(latencies, 0.5), "p99_ms": percentile(latencies, 0.99)}
        return figures


def times_cpu() -> float:
    """User and system time of this process."""
    used = os.times()
    return used.user + used.system
