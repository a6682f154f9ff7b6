"""The load on the bare ceiling: the same sockets, the same frames and the same loop as the lean client that loads halo.

A process of its own, told a port and a kind, which prints one line of JSON. Each participant keeps one frame in flight; its own frame coming back
is the ack. CPU is read at both edges of the window, for the server and for this process, so that a reader sees that the client was not the
limit. Read next: `scripts/measuring/talk.py`, whose twin this is; `scripts/benching/ceiling.py`.
"""

import json
import select
import socket
import sys
import time
from typing import Any, Final

import msgspec

from halo.load.frames import PING, PONG, TEXT, client_frame, take_frames
from scripts.measuring.figures import percentile
from scripts.measuring.processes import cpu_seconds, machine_cpu_seconds
from scripts.measuring.talker import BODY_CHARACTERS, HANDSHAKE_SECONDS, Frame, SocketLost, times_cpu

RECEIVE_BYTES: Final = 65_536
_decode = msgspec.json.Decoder(Frame).decode
_PONG = client_frame(PONG, b"")


class EchoTalker:
    """One socket, and the frame that it waits for."""

    def __init__(self, port: int, number: int) -> None:
        self._arrived = bytearray()
        self._name = f"talker-{number}"
        self._said = 0
        self._asked_at = 0.0
        self._waiting = ""
        self.latencies_ms: list[float] = []
        self.deliveries = 0
        self.socket = socket.create_connection(("127.0.0.1", port), HANDSHAKE_SECONDS)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        request = (
            f"GET /{number // 2}/{number % 2} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            "Sec-WebSocket-Key: bWVhc3VyaW5nIGhhbG8uLg==\r\nSec-WebSocket-Version: 13\r\n\r\n"
        )
        self.socket.sendall(request.encode())
        while b"\r\n\r\n" not in self._arrived:
            self._receive()
        head, _, rest = bytes(self._arrived).partition(b"\r\n\r\n")
        if not head.startswith(b"HTTP/1.1 101"):
            raise SocketLost(head.splitlines()[0].decode(errors="replace"))
        self._arrived[:] = rest
        self.socket.settimeout(0)

    def say(self) -> None:
        self._said += 1
        self._waiting = f"{self._name}-{self._said}"
        frame = b'{"type":"message","id":"%s","body":"%s"}' % (self._waiting.encode(), b"m" * BODY_CHARACTERS)
        self._asked_at = time.perf_counter()
        self.socket.sendall(client_frame(TEXT, frame))

    def hear(self) -> None:
        """What has arrived; one's own frame is answered with the next. Raises SocketLost."""
        try:
            self._receive()
        except BlockingIOError:
            return
        for opcode, payload in take_frames(self._arrived):
            if opcode == PING:
                self.socket.sendall(_PONG)
            elif opcode == TEXT:
                if _decode(payload).id == self._waiting:
                    self.latencies_ms.append((time.perf_counter() - self._asked_at) * 1000)
                    self.say()
                else:
                    self.deliveries += 1

    def _receive(self) -> None:
        piece = self.socket.recv(RECEIVE_BYTES)
        if not piece:
            raise SocketLost("the server closed a socket")
        self._arrived += piece


class Load:
    """All talkers and their one loop."""

    def __init__(self, port: int, sockets: int, server_pid: int) -> None:
        self._server_pid = server_pid
        self._epoll = select.epoll()
        self._talkers: dict[int, EchoTalker] = {}
        for number in range(sockets):
            talker = EchoTalker(port, number)
            self._talkers[talker.socket.fileno()] = talker
            self._epoll.register(talker.socket.fileno(), select.EPOLLIN)

    def run(self, warm_up_seconds: float, seconds: float) -> dict[str, Any]:
        for talker in self._talkers.values():
            talker.say()
        self._turn(warm_up_seconds)
        for talker in self._talkers.values():
            talker.latencies_ms.clear()
            talker.deliveries = 0
        before = self._accounts()
        self._turn(seconds)
        after = self._accounts()
        took, server, client, machine = (later - sooner for later, sooner in zip(after, before, strict=True))
        latencies = [one for talker in self._talkers.values() for one in talker.latencies_ms]
        return {
            "seconds": took,
            "acks": len(latencies),
            "deliveries": sum(talker.deliveries for talker in self._talkers.values()),
            "server_cpu_seconds": server,
            "client_cpu_seconds": client,
            "others_cpu_seconds": max(0.0, machine - server - client),
            "p50_ms": percentile(latencies, 0.5),
            "p99_ms": percentile(latencies, 0.99),
        }

    def _accounts(self) -> tuple[float, float, float, float]:
        return time.perf_counter(), cpu_seconds(self._server_pid), times_cpu(), machine_cpu_seconds()

    def _turn(self, seconds: float) -> None:
        until = time.perf_counter() + seconds
        while time.perf_counter() < until:
            for descriptor, _ in self._epoll.poll(0.1):
                self._talkers[descriptor].hear()


if __name__ == "__main__":
    port, sockets, server_pid = (int(argument) for argument in sys.argv[1:4])
    print(json.dumps(Load(port, sockets, server_pid).run(float(sys.argv[4]), float(sys.argv[5]))))
