"""One socket of one person: frames in, frames out, its limits, and its one end.

Whoever speaks to it calls `send` and `close`, which never wait; one task reads. What it reads is judged here (rates, strikes, size)
and handed to `take`, which chat and lobby implement. It must never let what one client sends cost another: everything has a
bound, and what goes over it closes this socket with the code that says why (spec 4). Read next: `halo/net/chat.py`,
`halo/net/lobby.py`.
"""

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

import trio
from trio_websocket import ConnectionClosed

from halo import protocol
from halo.clock import Clock, Moment, rfc3339
from halo.decoding import FrameDecoder, FrameRefused
from halo.errors import FrameMalformed, RateLimited, Refusal, Unauthenticated
from halo.net.handshake import OpenWebSocket
from halo.net.limits import Rate, TokenBucket
from halo.net.stream import PING_FRAME, SocketStream, ping_frame, websocket_text_frame
from halo.net.tokens import Identity, Tokens

CLOSE_DONE: Final = 1000
CLOSE_BINARY: Final = 1003
CLOSE_FAULT: Final = 1011
CLOSE_COME_BACK: Final = 4000
CLOSE_SLOW: Final = 4001
CLOSE_REPLACED: Final = 4002
CLOSE_MALFORMED: Final = 4400
CLOSE_UNAUTHENTICATED: Final = 4401
CLOSE_DEACTIVATED: Final = 4403
CLOSE_GONE: Final = 4404
CLOSE_ABUSE: Final = 4429

QUEUED_FRAMES_MAX: Final = 256
"""Outbound frames that may wait for a slow reader (spec 4)."""
STRIKES: Final = 3
"""Frames that are not JSON or have no `type` before the socket is closed (spec 4)."""
ABUSE_MS: Final = 10_000
"""A rate that is exceeded for so long closes the socket (spec 4, fine print)."""
CALM_MS: Final = 3_000
"""So long without a refusal, and the abuse is over: half the time in which the slowest bucket gives back six messages."""
OTHERS_PER_MESSAGE: Final = 5
"""Frames that are no messages (typing, read, ping, heartbeats, questions) for each message that is allowed: 10 a second."""
HINTS_PENDING_MAX: Final = 32
"""A reader that lags by more is spared what is worth nothing a second later."""
LAST_WORDS: Final = (b'{"type":"reconnect"', b'{"type":"session_ended"')
"""What a client must hear even if its history never came to its end: when to come back, or that nothing will come any more. A live
message or an `ack` in the same place would move its `seq` past what it has not seen."""
FRAME_OVERHEAD_BYTES: Final = 32
"""Counted for every frame, empty pings and fragments too: about what one costs us to look at."""
BYTES_BURST_SECONDS: Final = 8
"""Two frames of the largest size at once, at the default rate."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """The limits of one connection; 0 lifts one."""

    messages_per_10s: int
    bytes_per_s: int

    def shown(self) -> dict[str, int]:
        """As `welcome` tells them."""
        return {
            "frame_bytes": protocol.FRAME_BYTES_MAX,
            "body_characters": protocol.BODY_CHARACTERS_MAX,
            "messages_per_10s": self.messages_per_10s,
            "bytes_per_s": self.bytes_per_s,
        }


class Connection(ABC):
    """See the module; made after the handshake, gone when `converse` returns."""

    is_lobby = False

    def __init__(
        self, stream: SocketStream, path: str, identity: Identity, limits: Limits, clock: Clock, tokens: Tokens
    ) -> None:
        self.path = path
        self.identity = identity
        self._stream = stream
        self._clock = clock
        self._tokens = tokens
        self._limits = limits
        now = clock.now()
        self._bytes = TokenBucket(Rate(limits.bytes_per_s, 1000, max(1, limits.bytes_per_s * BYTES_BURST_SECONDS)), now)
        self._others = TokenBucket(
            Rate(
                limits.messages_per_10s * OTHERS_PER_MESSAGE,
                10_000,
                max(1, limits.messages_per_10s * OTHERS_PER_MESSAGE),
            ),
            now,
        )
        self._messages = TokenBucket(Rate(limits.messages_per_10s, 10_000, max(1, limits.messages_per_10s)), now)
        self._bytes_over_ms = 0
        """How long to wait until the byte rate allows the frame in hand."""
        self._abused_since: Moment | None = None
        self._refused_at = 0
        self._strikes = 0
        self._held: list[bytes] | None = []
        """What is said live while the history is still on its way; None once the socket is live."""
        self._marks: tuple[bytes, ...] = ()
        """Receipts that were asked for meanwhile."""
        self._close_code: int | None = None
        self._reading = trio.CancelScope()
        self._pinged_at: float | None = None
        self.refusals: Counter[str] | None = None
        """By code, of all sockets together; whoever keeps them gives it."""
        self.heard: Callable[[bytes], None] | None = None
        """Who waits for the marks that pongs bring back; given in the same way."""

    # ---- for everybody else: nothing here waits

    @property
    def is_closing(self) -> bool:
        return self._close_code is not None

    @property
    def close_code(self) -> int | None:
        """Why we close it; None when the client does, or the protocol was broken."""
        return self._close_code

    @property
    def last_received(self) -> float:
        """Trio's clock at the last byte from the client."""
        return self._stream.last_received

    def send(self, frame: bytes) -> None:
        """One frame, in order; a reader that lags 256 frames behind is closed with 4001."""
        if self._held is not None:
            if len(self._held) >= QUEUED_FRAMES_MAX:
                self.close(CLOSE_SLOW)
            else:
                self._held.append(frame)
            return
        stream = self._stream
        if stream.pending_frames >= QUEUED_FRAMES_MAX:
            stream.flush()  # a burst within one tick is no slow reader
            if stream.pending_frames >= QUEUED_FRAMES_MAX:
                self.close(CLOSE_SLOW)
                return
        stream.write(websocket_text_frame(frame))

    def hint(self, frame: bytes) -> None:
        """One frame that may be lost: dropped while the reader lags, so that nobody can fill its queue with nothing."""
        if self._held is None and self._stream.pending_frames < HINTS_PENDING_MAX:
            self._stream.write(websocket_text_frame(frame))

    def close(self, code: int) -> None:
        """Stop reading; the socket's own task says goodbye with `code`. The first reason stands."""
        if self._close_code is None:
            self._close_code = code
            self._reading.cancel()

    def ping(self) -> None:
        self._pinged_at = trio.current_time()
        self._stream.write(PING_FRAME)

    def ask_receipt(self, mark: bytes) -> None:
        """A ping behind all that was said so far: its pong, which brings `mark` back, says that it was received."""
        if self._held is None:
            self._stream.write(ping_frame(mark))
        elif len(self._marks) < HINTS_PENDING_MAX:  # it must not overtake what is held
            self._marks = (*self._marks, mark)

    def is_dead(self) -> bool:
        """Whether not a byte came since the last ping."""
        return self._pinged_at is not None and self._stream.last_received < self._pinged_at

    def cut(self) -> None:
        """No goodbye: nobody is there to hear it."""
        self.close(CLOSE_COME_BACK)
        self._stream.abort()

    def judge(self, size: int) -> int | None:
        """Called for each piece of a frame, pings and empty fragments too: the close code when the rate was exceeded for too long."""
        wait_ms = self._bytes.take(self._clock.now(), size + FRAME_OVERHEAD_BYTES)
        self._bytes_over_ms = max(self._bytes_over_ms, wait_ms)
        return CLOSE_ABUSE if wait_ms and self._is_abuse() else None

    # ---- the socket's own task

    async def converse(self, websocket: OpenWebSocket) -> None:
        """Welcome, history, then frames until either side closes."""
        try:
            with self._reading:
                try:
                    await self.welcome()
                except Refusal:  # the store is away, which is no fault of this socket's: the client is to come back
                    self.close(CLOSE_FAULT)
                if not self.is_closing:  # what is held must not pass what was never replayed
                    await self._release_held()
                await websocket.wait_closed()
            self._say_last_words()
            await websocket.aclose(self._close_code or CLOSE_DONE)
        except (ConnectionClosed, trio.BrokenResourceError, trio.ClosedResourceError):
            pass  # the client has left, or was cut

    @abstractmethod
    async def welcome(self) -> None:
        """Say who is here and what was said before, with `say`."""

    @abstractmethod
    def take(self, frame: protocol.ChatFrame | protocol.LobbyFrame) -> Awaitable[None] | None:
        """Do what the frame asks, or return what has to be waited for. A `Refusal` of either is told under the frame's `id`."""

    async def say(self, frame: protocol.Frame) -> None:
        """One frame of the welcome or the history; waits while the client is slow, so that a long history needs no queue."""
        self._stream.write(websocket_text_frame(protocol.encode(frame)))
        if self._stream.pending_frames >= QUEUED_FRAMES_MAX // 2:
            await self._stream.wait_flushed()

    def answer(self, frame: protocol.Frame) -> None:
        self.send(protocol.encode(frame))

    def refuse(self, frame_id: str | None, refusal: Refusal) -> None:
        if self.refusals is not None:
            self.refusals[refusal.code] += 1
        self.answer(
            protocol.Refused(
                id=frame_id,
                code=refusal.code,
                status=refusal.status,
                message=refusal.message,
                retryable=refusal.retryable,
                retry_after_ms=refusal.retry_after_ms,
            )
        )

    async def _release_held(self) -> None:
        """The live stream begins where the history ended."""
        while self._held:
            held, self._held = self._held, []
            for frame in held:
                self._stream.write(websocket_text_frame(frame))
            await self._stream.wait_flushed()
        self._held = None
        for mark in self._marks:
            self._stream.write(ping_frame(mark))
        self._marks = ()

    def _say_last_words(self) -> None:
        """Closed while the history was still on its way: what was held for its end is dropped, but for `LAST_WORDS`."""
        for frame in self._held or ():
            if frame.startswith(LAST_WORDS):
                self._stream.write(websocket_text_frame(frame))
        if self._held is not None:
            self._held = []  # and stays held: said before the close frame is out, it would stand where the history was to come

    def hear(self, text: str) -> Awaitable[None] | None:
        """One message in one frame, in the task that reads all sockets; live also while the history is still on its way."""
        if self._close_code is not None:
            return None
        code = self.judge(len(text) if text.isascii() else len(text.encode()))
        if code is not None:
            self.close(code)
            return None
        return self.read(text)

    def pong(self, payload: bytes) -> None:
        """The answer to a ping of ours; also after our own close, for the last word was heard, too."""
        if payload and self.heard is not None:
            self.heard(payload)
        code = self.judge(len(payload))
        if code is not None:
            self.close(code)

    def sip(self) -> None:
        """Bytes came, and no whole frame yet."""
        code = self.judge(0)
        if code is not None:
            self.close(code)

    def read(self, text: str | bytes) -> Awaitable[None] | None:
        """One message of the client. What has to be waited for is returned; it raises nothing of the client's doing."""
        if self.is_closing:
            return None
        if not isinstance(text, str):
            self.close(CLOSE_BINARY)
            return None
        over_ms, self._bytes_over_ms = self._bytes_over_ms, 0
        try:
            frame = self.decoder.decode(text)
        except FrameRefused as no:
            if isinstance(no.refusal, FrameMalformed):
                self._strikes += 1
                if self._strikes >= STRIKES:
                    self.close(CLOSE_MALFORMED)
                    return None
            self.refuse(no.frame_id, no.refusal)
            return None
        frame_id: str | None = getattr(frame, "id", None)
        bucket = self._messages if isinstance(frame, protocol.SendMessage) else self._others
        over_ms = max(over_ms, bucket.take(self._clock.now()))
        if over_ms:
            self._limit(frame_id, over_ms)
            return None
        try:
            match frame:
                case protocol.Ping():
                    self.answer(protocol.Pong(id=frame.id, server_time=rfc3339(self._clock.now())))
                case protocol.Refresh():
                    self._refresh(frame)
                case _:
                    waiting = self.take(frame)
                    return None if waiting is None else self.await_refusal(frame_id, waiting)
        except Refusal as refusal:
            self.refuse(frame_id, refusal)
        return None

    async def await_refusal(self, frame_id: str | None, waiting: Awaitable[None]) -> None:
        """Wait for what a frame asked; a `Refusal` is told under its `id`."""
        try:
            await waiting
        except Refusal as refusal:
            self.refuse(frame_id, refusal)

    @property
    @abstractmethod
    def decoder(self) -> FrameDecoder:
        """What this kind of socket understands."""

    @abstractmethod
    def token_renewed(self) -> None:
        """The client brought a newer token: watch that one's end."""

    def _refresh(self, frame: protocol.Refresh) -> None:
        identity = self._tokens.verify(frame.access_token)
        if (identity.user_id, identity.auth_session_id) != (self.identity.user_id, self.identity.auth_session_id):
            raise Unauthenticated("This token belongs to somebody else.")
        self.identity = identity
        self.token_renewed()
        self.answer(protocol.Ack(id=frame.id, expires_at=rfc3339(identity.expires_at)))

    def _limit(self, frame_id: str | None, wait_ms: int) -> None:
        if self._is_abuse():
            self.close(CLOSE_ABUSE)
        else:
            self.refuse(frame_id, RateLimited(retry_after_ms=wait_ms))

    def _is_abuse(self) -> bool:
        """Note one more excess; True when they have gone on for too long."""
        now = self._clock.now()
        if self._abused_since is None or now - self._refused_at > CALM_MS:
            self._abused_since = now
        self._refused_at = now
        return now - self._abused_since >= ABUSE_MS
