"""Calls that halo makes itself: to Google for pushes, to the payment provider for refunds.

One client for each, by TLS that is verified, straight (no proxy from the environment), never following a redirect (a signed body or a
token must not travel to whoever says 302), with a deadline for each part and a bound for what is read back. It must never raise for what
the other side does: all of that is `CallFailed`, in words that hold no secret. Read next: `halo/net/fcm.py`, `halo/net/refunds_out.py`.
"""

import re
import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from email.utils import parsedate_to_datetime
from typing import Final

import httpx
import trio

from halo.clock import Moment
from halo.net.sips import SippingBackend
from halo.trace import HEADER, Trace

CALL_SECONDS: Final = 10.0
"""For a whole call, however slowly its answer trickles. Google answers in 0.1 to 0.5 s."""
ANSWER_BYTES_MAX: Final = 64 * 1024
"""Ten times the longest answer that is of use; of a longer one the rest is not read."""
PIECES_MAX: Final = 512
"""Of a body: ten times as many as a long one comes in, and some 20 ms of work when each is a chunk of one byte."""
CONNECTIONS_MAX: Final = 192
"""Twice the deliveries at the same time (`halo.actors.outbox.AT_ONCE`): a user may have two phones."""
IDLE_MAX: Final = 32
"""Kept, since a TLS handshake costs more than the message; at the sender's pace fewer are idle at a time. The pool looks at each pair of
idle ones before each call: with all of them kept that would be milliseconds."""
KEPT_SECONDS: Final = 60.0
"""How long it is kept: pushes of a quiet night come some seconds apart, and servers close theirs after minutes."""

_DIGITS: Final = re.compile(r"[0-9]{1,9}", re.ASCII)


class CallFailed(Exception):
    """No answer came; the message says in what way, without the address."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What the other side said."""

    status: int
    body: bytes
    """At most `ANSWER_BYTES_MAX` of it."""
    retry_after: str | None

    def retry_after_ms(self, now: Moment) -> int | None:
        """`Retry-After`, seconds or a date; None without one, or one that makes no sense."""
        given = (self.retry_after or "").strip()
        if _DIGITS.fullmatch(given):
            return int(given) * 1000
        try:
            until = parsedate_to_datetime(given)
            return max(0, round(until.timestamp() * 1000) - now)
        except (ValueError, OverflowError, OSError):
            return None


class Outgoing:
    """A client that keeps its connections; made by `open_outgoing`."""

    def __init__(self, client: httpx.AsyncClient) -> None:
        self._client = client

    async def post(
        self, url: str, content: bytes, headers: Mapping[str, str], *, traceparent: str | None = None
    ) -> Answer:
        """One POST, a leg of the trace that `traceparent` names, of the step that wants this call; without one, of a new trace.

        Raises:
            CallFailed
        """
        sent = {**headers, HEADER: str(Trace.received([] if traceparent is None else [traceparent]))}
        try:
            with trio.fail_after(CALL_SECONDS):
                return await self._call(url, content, sent)
        except (trio.TooSlowError, httpx.TimeoutException):
            raise CallFailed("no answer in time") from None
        except (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError) as error:  # their texts name addresses
            raise CallFailed(type(error).__name__) from None

    async def _call(self, url: str, content: bytes, headers: Mapping[str, str]) -> Answer:
        answer: Answer | None = None
        body, pieces = bytearray(), 0
        with trio.CancelScope() as enough:
            async with self._client.stream("POST", url, content=content, headers=headers) as response:
                answer = Answer(response.status_code, b"", response.headers.get("retry-after"))
                # Raw: what is compressed would be bounded only after it was unpacked. The client does not ask for it.
                async for piece in response.aiter_raw():
                    # Of chunks of one byte there are hundreds in what was read at once. Cancelled is only what waits inside of httpx.
                    await trio.lowlevel.cancel_shielded_checkpoint()
                    if enough.cancel_called:
                        continue
                    pieces += 1
                    body += piece[: ANSWER_BYTES_MAX - len(body)]
                    if len(body) >= ANSWER_BYTES_MAX or pieces >= PIECES_MAX:
                        enough.cancel()  # leaving the loop would leave httpx's generators to the collector
        assert answer is not None  # only its body is ever cut short
        return replace(answer, body=bytes(body))


def trust() -> ssl.SSLContext:
    """The system's authorities. Reading them takes some 80 ms, so it is done once, at the start, by who will need them."""
    return ssl.create_default_context()


def trust_nobody() -> ssl.SSLContext:
    """No authority at all: no call by TLS succeeds. For a halo that has nobody to call."""
    return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)


@asynccontextmanager
async def open_outgoing(tls: ssl.SSLContext) -> AsyncIterator[Outgoing]:
    """A client for the body of the block."""
    limits = httpx.Limits(
        max_connections=CONNECTIONS_MAX, max_keepalive_connections=IDLE_MAX, keepalive_expiry=KEPT_SECONDS
    )
    transport = httpx.AsyncHTTPTransport(verify=tls, trust_env=False, limits=limits)
    pool = transport._pool  # noqa: SLF001  # httpx has no other way to hand its pool a backend
    pool._network_backend = SippingBackend(pool._network_backend)  # noqa: SLF001
    async with httpx.AsyncClient(
        transport=transport,
        follow_redirects=False,
        trust_env=False,
        timeout=CALL_SECONDS,
        headers={"user-agent": "halo", "accept-encoding": "identity"},
    ) as client:
        yield Outgoing(client)
