"""One HTTP connection: its deadlines, its limits, and the order in which bytes, h11 and the application take turns.

A connection is always in one phase, and each phase has a deadline that the client's dripping cannot move: waiting for a request,
its head, its body, the application's answer. Whatever breaks a rule gets one short answer, and the connection is closed.
Never start the application for a request that has not arrived whole. Read next: `halo/net/http.py`, which holds all connections.
"""

import enum
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Final

import h11
import trio
from hypercorn.app_wrappers import ASGIWrapper
from hypercorn.config import Config
from hypercorn.events import Event, RawData, Updated
from hypercorn.protocol.events import Body, EndBody, Request, Response, StreamClosed
from hypercorn.protocol.events import Event as StreamEvent
from hypercorn.protocol.h11 import STREAM_ID, H11Protocol
from hypercorn.protocol.http_stream import ASGIHTTPState, HTTPStream
from hypercorn.trio.task_group import TaskGroup, _handle
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import AppWrapper, ASGIReceiveEvent, ASGISendEvent, ConnectionState, Scope

from halo.net.head import head_too_large, require_clean
from halo.net.refusal import HARDENED, HeadRefused, problem_body, refusal_response
from halo.net.stream import SocketStream

BODY_BYTES_MAX: Final = 64 * 1024
"""As large as a frame may be; no call of the API needs more."""

RECEIVE_BYTES: Final = 16 * 1024
WRITE_AHEAD_BYTES: Final = 256 * 1024
"""How much of an answer may wait in our buffer before the application waits too (X4: the worst connection costs 1 MiB)."""


class Phase(enum.Enum):
    """What a connection waits for."""

    IDLE = "the first byte of a request"
    HEAD = "the rest of its head"
    BODY = "the rest of its body"
    ANSWER = "the application's next word"


PATIENCE_SECONDS: Final = {
    Phase.IDLE: 10.0,  # a human's next tap comes sooner, and a socket that is kept for one costs 64 KiB
    Phase.HEAD: 10.0,  # a head is one or two packets, even from the worst telephone
    Phase.BODY: 10.0,  # 64 KiB at 6.4 KiB/s
    Phase.ANSWER: 30.0,  # the application's own deadlines are far shorter; this is for one that has none
}


class HttpConnection:
    """Holds one conversation. `run` until it is over; `drain` when the server wants to stop."""

    def __init__(
        self, app: ASGIWrapper, config: Config, context: WorkerContext, state: ConnectionState, stream: SocketStream
    ) -> None:
        self.app = app
        self.config = config
        self.context = context
        self.state = state
        self.stream = stream
        self._patience = trio.CancelScope()
        self._phase = Phase.IDLE
        self._ending = False
        self._heard_all = False
        self.instance: str | None = None
        """The path of the request under way, once it was found clean."""

    async def run(self) -> None:
        """Until the client has gone, a deadline has passed or a rule was broken. Raises only what nobody foresaw."""
        tasks = _ApplicationTasks()
        async with tasks:
            self.enter(Phase.IDLE)
            with self._patience:
                try:
                    await self._converse(_WholeRequestProtocol(self, tasks))
                except HeadRefused as no:
                    self._answer_and_end(no)
                except (trio.BrokenResourceError, trio.ClosedResourceError):
                    self._ending = True  # gone in the middle of something; there is nobody to tell
            if not self._ending and self._phase in (Phase.HEAD, Phase.BODY) and self._patience.cancelled_caught:
                self._answer_and_end(HeadRefused(408, "TOO_SLOW", "The request did not arrive in time."))
            tasks.cancel()  # an application that still works, works for nobody
        with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            await self.stream.wait_flushed()
        await self.stream.aclose_gently()

    def drain(self) -> None:
        """Close now if nothing is under way, otherwise after the answer (Hypercorn's context says so to the protocol)."""
        if self._phase is Phase.IDLE:
            self._end()

    def enter(self, phase: Phase) -> None:
        self._phase = phase
        if phase is Phase.IDLE:
            self.instance = None
        self._patience.deadline = trio.current_time() + PATIENCE_SECONDS[phase]

    async def send(self, event: Event) -> None:
        """What the protocol has for the client, or has to say about itself."""
        match event:
            case RawData(data=data):
                if self._phase is Phase.ANSWER:
                    self.enter(Phase.ANSWER)
                if data:
                    self.stream.write(data)
                if self.stream.pending_bytes > WRITE_AHEAD_BYTES:
                    try:
                        await self.stream.wait_flushed()
                    except (trio.BrokenResourceError, trio.ClosedResourceError):
                        self._end()
            case Updated(idle=False):
                self.enter(Phase.BODY)
            case Updated():
                self.enter(Phase.IDLE)
                if self._heard_all:
                    self._end()
            case _:  # Closed, the only other one
                self._end()

    async def _converse(self, protocol: H11Protocol) -> None:
        while not self._ending:
            received = await self.stream.receive_some(RECEIVE_BYTES)
            if not received:
                if self._phase is not Phase.ANSWER:
                    return
                self._heard_all = True  # it may have closed its half only; the answer is on its way
                await trio.sleep_forever()
            if self._phase is Phase.IDLE:
                self.enter(Phase.HEAD)
            await protocol.handle(RawData(data=received))

    def _end(self) -> None:
        self._ending = True
        self._patience.cancel()

    def _answer_and_end(self, no: HeadRefused) -> None:
        self._ending = True
        self.stream.write(refusal_response(no.status, no.code, no.detail, headers=no.headers, instance=self.instance))


class _WholeRequestProtocol(H11Protocol):
    """Hypercorn's h11 protocol without its doors to HTTP/2 and WebSockets; errors become refusals."""

    def __init__(self, connection: HttpConnection, tasks: TaskGroup) -> None:
        stream = connection.stream
        super().__init__(
            connection.app,
            connection.config,
            connection.context,
            tasks,
            connection.state,
            ssl=False,
            client=(stream.peer, 0),
            server=None,
            send=connection.send,
        )
        self._connection = connection

    async def _check_protocol(self, event: h11.Request) -> None:
        self._connection.instance = None  # until this one is known to be clean, too
        require_clean(event)
        self._connection.instance = path_of(event.target)
        headers = dict(event.headers)
        if b"upgrade" in headers:
            raise HeadRefused(400, "UPGRADE_REFUSED", "Only HTTP/1.1 is spoken here, and no WebSockets.")
        # h11 has seen to it that this is a number; a chunked body is counted as it comes
        if int(headers.get(b"content-length", b"0")) > BODY_BYTES_MAX:
            raise _body_too_large()

    async def _create_stream(self, request: h11.Request) -> None:
        self.stream = _WholeRequestStream(
            self.app,
            self.config,
            self.context,
            self.task_group,
            self.ssl,
            self.client,
            self.server,
            self.stream_send,
            STREAM_ID,
        )
        self.stream.when_whole = self._when_whole
        await self.stream.handle(
            Request(
                stream_id=STREAM_ID,
                headers=list(request.headers),
                http_version=request.http_version.decode("ascii"),
                method=request.method.decode("ascii").upper(),
                raw_path=request.target,
                state=self.connection_state,
            )
        )
        self.keep_alive_requests += 1

    async def _send_error_response(self, status_code: int) -> None:
        if status_code == 431 and self.stream is None:
            raise head_too_large()
        status = 400 if status_code == 431 else status_code  # h11 says 431 of a chunk's size line, too
        raise HeadRefused(status, "MALFORMED", "This is not a request that HTTP/1.1 knows.")

    def _when_whole(self) -> None:
        self._connection.enter(Phase.ANSWER)


class _WholeRequestStream(HTTPStream):
    """Hypercorn's ASGI stream, which the application meets only when the request is complete."""

    when_whole: Callable[[], None]
    _request: Request
    _body = b""

    async def handle(self, event: StreamEvent) -> None:
        match event:
            case Request():
                self._request = event
            case Body(data=data):
                if len(self._body) + len(data) > BODY_BYTES_MAX:
                    raise _body_too_large()
                self._body += data
            case EndBody():
                self.when_whole()
                await super().handle(self._request)
                await self.app_put({"type": "http.request", "body": self._body, "more_body": False})
            case StreamClosed():
                self.closed = (
                    True  # the application is not told: its answer is complete, or its task is about to be cancelled
                )
            case _:
                raise AssertionError(f"{type(event).__name__} does not belong to a request")

    async def _send_error_response(self, status_code: int) -> None:
        instance = path_of(self._request.raw_path)
        body = problem_body(status_code, "INTERNAL", "halo met a fault of its own.", retryable=True, instance=instance)
        headers = [
            (b"content-type", b"application/problem+json"),
            (b"content-length", str(len(body)).encode("ascii")),
            (b"connection", b"close"),
            *((name.encode("ascii"), value.encode("ascii")) for name, value in HARDENED),
        ]
        await self.send(Response(stream_id=self.stream_id, headers=headers, status_code=status_code))
        if self.scope["method"] != "HEAD":
            await self.send(Body(stream_id=self.stream_id, data=body))
        await self.send(EndBody(stream_id=self.stream_id))
        self.state = ASGIHTTPState.CLOSED


class _ApplicationTasks(TaskGroup):
    """The nursery of one connection's requests. A request arrives as one message; waiting for another waits until cancelled."""

    async def spawn_app(
        self, app: AppWrapper, config: Config, scope: Scope, send: Callable[[ASGISendEvent | None], Awaitable[None]]
    ) -> Callable[[ASGIReceiveEvent], Awaitable[None]]:
        arrived: deque[ASGIReceiveEvent] = deque()

        async def put(message: ASGIReceiveEvent) -> None:
            arrived.append(message)

        async def receive() -> ASGIReceiveEvent:
            await trio.lowlevel.checkpoint()
            if not arrived:
                await trio.sleep_forever()
            return arrived.popleft()

        self.spawn(_handle, app, config, scope, receive, send, trio.to_thread.run_sync, trio.from_thread.run)
        return put

    def cancel(self) -> None:
        if self._nursery is not None:
            self._nursery.cancel_scope.cancel()


def path_of(target: bytes) -> str:
    """The path of a target that was found clean, which is ASCII."""
    return target.partition(b"?")[0].decode("ascii", "replace")


def _body_too_large() -> HeadRefused:
    return HeadRefused(413, "BODY_TOO_LARGE", "The request's body is longer than 64 KiB.")
