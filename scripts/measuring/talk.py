"""The lean client: a process of its own that holds the sockets of many sessions, and lets their people talk when it is told to.

One epoll loop over plain sockets, frames made by hand: what it costs, the server cannot have. It checks what a good app checks, that
every message comes once and in the order of `seq`. It reads one order a line from standard input and answers each with one line of JSON:
the first line says whom to connect (`Plan`), then `go`, `mark` (figures since the last mark), `hush` (say no more, wait for every ack).
"""

import json
import os
import select
import socket
import sys
import time
from collections.abc import Iterator
from typing import Any, Final

import msgspec

from scripts.measuring.figures import percentile
from scripts.measuring.frames import CLOSE, PING, PONG, TEXT, client_frame, take_frames

HANDSHAKE_SECONDS: Final = 10.0
HUSH_SECONDS: Final = 10.0
BODY_CHARACTERS: Final = 120
BEYOND_ALL: Final = 10**9
"""An `after_seq` that means: no history, please."""

_PONG = client_frame(PONG, b"")


class Plan(msgspec.Struct, frozen=True):
    """Whom to connect: `(session_id, customer's token, mitra's token)` for each session."""

    host: str
    port: int
    sessions: list[tuple[str, str, str]]


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
        self._shake_hands(plan, session_id, token)
        self._name = f"{os.getpid()}-{self.socket.fileno()}"

    def _shake_hands(self, plan: Plan, session_id: str, token: str) -> None:
        request = (
            f"GET /v1/chat/{session_id}?after_seq={BEYOND_ALL} HTTP/1.1\r\nHost: {plan.host}:{plan.port}\r\nUpgrade: websocket\r\n"
            "Connection: Upgrade\r\nSec-WebSocket-Key: bWVhc3VyaW5nIGhhbG8uLg==\r\nSec-WebSocket-Version: 13\r\n"
            f"Sec-WebSocket-Protocol: halo.v1\r\nAuthorization: Bearer {token}\r\n\r\n"
        )
        self.socket.sendall(request.encode())
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


class Crowd:
    """All talkers of this process, and the loop that they share."""

    def __init__(self, plan: Plan) -> None:
        self.tally = Tally()
        self._epoll = select.epoll()
        self._talkers: dict[int, Talker] = {}
        for session_id, *tokens in plan.sessions:
            for token in tokens:
                talker = Talker(plan, session_id, token, self.tally)
                self._talkers[talker.socket.fileno()] = talker
                self._epoll.register(talker.socket.fileno(), select.EPOLLIN)
            self._turn(0)  # pings, and what the other side hears of this one's coming
        self._epoll.register(sys.stdin.fileno(), select.EPOLLIN)

    def __len__(self) -> int:
        return len(self._talkers)

    def orders(self) -> Iterator[str]:
        """Each order from standard input, while everybody goes on talking; ends with the input."""
        os.set_blocking(sys.stdin.fileno(), False)
        waiting = ""
        while True:
            if self._turn(1.0):
                said = sys.stdin.read()
                if not said:
                    return
                *whole, waiting = (waiting + said).split("\n")
                yield from whole

    def go(self) -> None:
        self.tally.talking = True
        for talker in self._talkers.values():
            talker.say()

    def hush(self) -> None:
        """Nobody says more; returns when everything said is acknowledged, or after `HUSH_SECONDS`."""
        self.tally.talking = False
        until = time.monotonic() + HUSH_SECONDS
        while time.monotonic() < until and any(talker.is_waiting for talker in self._talkers.values()):
            self._turn(0.1)
        settled = time.monotonic() + 0.3  # a delivery may follow the last ack
        while time.monotonic() < settled:
            self._turn(0.05)

    def _turn(self, seconds: float) -> bool:
        """One look at all sockets; whether there is an order."""
        ordered = False
        for descriptor, _ in self._epoll.poll(seconds):
            talker = self._talkers.get(descriptor)
            if talker is None:
                ordered = True
            else:
                talker.hear()
        return ordered


def main() -> None:
    plan = msgspec.json.decode(sys.stdin.readline(), type=Plan)
    crowd = Crowd(plan)
    answer({"connected": len(crowd)})
    for order in crowd.orders():
        if order == "go":
            crowd.go()
            answer({"talking": len(crowd)})
        elif order == "mark":
            answer(crowd.tally.mark())
        elif order == "hush":
            crowd.hush()
            answer(crowd.tally.mark())


def answer(line: dict[str, Any]) -> None:
    print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
