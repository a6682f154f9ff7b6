"""Commands out, replies in, on a connection that redis-py has opened: an asyncio protocol that wakes a Trio task.

redis-py's `send_packed_command` and `read_response` cost an asyncio task and a dozen of its callbacks for each round trip, through trio-asyncio
some 300 µs whatever it carries. So once redis-py has shaken hands (TLS, password, database), its transport is given to this protocol: bytes
go out by one call, and what comes in goes to hiredis at once. It must never be used again after a round trip that was not finished: the
next one would read its replies. Read next: `halo/store/valkey_link.py`, which opens and closes.
"""

# trio_asyncio first of all, as in `halo/store/valkey_link.py`
import trio_asyncio  # isort: skip  # noqa: F401

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, Final, TypeAlias, cast

import hiredis
import trio
from redis._parsers.base import BaseParser
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import InvalidResponse

Command: TypeAlias = tuple[str | bytes | int, ...]
"""A command and its arguments. Only idempotent ones: an answer that is lost leaves the outcome unknown."""
Reply: TypeAlias = Any
"""What came back, in RESP 2 (bytes, int, None, lists), or a `ResponseError` in the place of this one command's
reply."""

_pack: Final = cast("Callable[[Command], bytes]", hiredis.pack_command)
"""redis-py's asyncio connection packs in Python, some 2 µs an argument; this is 0.15, and a batch has thousands."""


class Wire(asyncio.Protocol):
    """One connection's bytes, from the moment when redis-py's handshake is over.

    Error handling: `exchange` raises ConnectionError when the connection is lost, and redis-py's ConnectionError for what it counts as one
    (a server that is loading). A server's refusal of one command stands in the place of its reply.
    """

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._reader = hiredis.Reader(protocolError=InvalidResponse, replyError=BaseParser.parse_error)
        self._replies: list[Reply] = []
        self._wanted = 0
        self._arrived = trio.Event()
        self._is_whole = True
        """No reply is outstanding."""
        self._is_gone = False
        transport.set_protocol(self)

    async def exchange(self, commands: Sequence[Command]) -> list[Reply]:
        """The replies to `commands`, in order. A call that is cancelled leaves the wire unusable."""
        if not self._is_whole:
            # Connecting again is the caller's part: a server that is back may have lost everything.
            raise ConnectionResetError("the connection to Valkey is gone")
        if not commands:
            return []
        self._is_whole = False
        self._replies, self._wanted, self._arrived = [], len(commands), trio.Event()
        self._transport.write(b"".join(map(_pack, commands)))
        await self._arrived.wait()
        if self._is_gone:
            raise ConnectionResetError("the connection to Valkey was lost")
        replies, self._replies, self._wanted = self._replies, [], 0
        for reply in replies:
            if isinstance(reply, RedisConnectionError):
                raise reply
        self._is_whole = True
        return replies

    # ---- for asyncio

    def data_received(self, data: bytes) -> None:
        try:
            self._reader.feed(data)
            while (reply := self._reader.gets()) is not False:
                self._replies.append(reply)
        except InvalidResponse:
            self._give_up()
            return
        if len(self._replies) == self._wanted:
            self._arrived.set()
        elif len(self._replies) > self._wanted:  # an answer to no question: nothing on this wire can be believed
            self._give_up()

    def connection_lost(self, _: Exception | None) -> None:
        self._give_up()

    def _give_up(self) -> None:
        self._is_gone, self._is_whole = True, False
        self._arrived.set()
