"""One wire to Valkey: redis-py's asyncio connection, driven by Trio through trio-asyncio.

A link connects, exchanges one list of commands for one list of replies, and closes. It must never retry, pool or
reconnect on its own: a lost connection has to surface, because a server that came back may have come back empty. The
caller sets the deadlines. Read next: `halo/store/valkey.py`, the one task that owns a link.

A URL is `redis://`, `rediss://`, `unix://`, or `redis+cluster://`, `rediss+cluster://`.
"""

# First of all, and before psycopg anywhere: psycopg binds asyncio's `get_running_loop` when it is imported, and
# unpatched it fails later with "no running event loop".
import trio_asyncio  # isort: skip

import asyncio
import re
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any, Protocol, TypeVar, cast
from urllib.parse import urlsplit

from redis.asyncio import Connection, ConnectionPool, RedisCluster
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import AskError, ClusterDownError, ReadOnlyError, RedisClusterException, RedisError

from halo.store.valkey_wire import Command, Reply, Wire

Result = TypeVar("Result")

LINK_FAULTS = (RedisError, RedisClusterException, OSError, EOFError)
"""Everything by which redis-py says that the server did not answer; `TimeoutError` and TLS errors are `OSError`s."""

CLUSTER = "+cluster"


class ValkeyUrlRefused(ValueError):
    """The Valkey URL or the prefix cannot work."""


class Link(Protocol):
    """A connection, or the promise of one."""

    async def connect(self) -> None: ...

    async def identify(self) -> bytes:
        """The server's `run_id`, new whenever it starts; empty where a managed service forbids INFO."""

    async def exchange(self, commands: Sequence[Command]) -> list[Reply]:
        """One round trip: a reply, or a `ResponseError`, for each command, in order."""

    async def close(self) -> None:
        """Let go of the socket. Must not wait for the server: it may hang, and nothing bounds this call."""


async def _aio(function: Callable[..., Awaitable[Result]], *args: Any) -> Result:
    """Run an asyncio function from Trio. trio-asyncio has no types, so they are stated here once."""
    return cast("Result", await trio_asyncio.aio_as_trio(function)(*args))


class DirectLink:
    """One connection to one server.

    It has no socket timeouts of its own: through redis-py they cost 20 µs per reply (an asyncio timer each), and the
    owner's Trio deadline ends the whole round trip anyway. redis-py drops the connection when it is cancelled half way.
    """

    def __init__(self, url: str) -> None:
        options = {
            "socket_timeout": None,
            "socket_connect_timeout": None,
            "retry": Retry(NoBackoff(), 0),
            "protocol": 2,
        }
        pool: Any = ConnectionPool.from_url(url, **options)  # only to read the URL: its methods have no types
        self._connection: Connection = pool.make_connection()
        self._transport: asyncio.Transport | None = None
        self._wire: Wire | None = None

    async def connect(self) -> None:
        await _aio(self._connection.connect)
        writer = self._connection._writer  # noqa: SLF001  redis-py has no other way to its transport
        assert writer is not None
        self._transport = cast("asyncio.Transport", writer.transport)
        self._wire = Wire(self._transport)

    async def identify(self) -> bytes:
        (reply,) = await self.exchange([("INFO", "server")])
        return reply.partition(b"run_id:")[2].partition(b"\r\n")[0] if isinstance(reply, bytes) else b""

    async def exchange(self, commands: Sequence[Command]) -> list[Reply]:
        if self._wire is None:
            raise ConnectionResetError("the link is not connected")
        replies = await self._wire.exchange(commands)
        for reply in replies:
            if isinstance(reply, AskError | ClusterDownError | ReadOnlyError):
                # `AskError` includes MOVED. After a failover the wire may lead to a replica for ever: connect anew.
                raise ConnectionResetError("another server holds our keys now") from reply
        return replies

    async def close(self) -> None:
        await _aio(self._disconnect)

    async def _disconnect(self) -> None:
        self._wire = None
        await self._connection.disconnect(nowait=True)
        if self._transport is not None:
            # redis-py only closes it, which waits for unsent bytes to leave: a hung server would keep the socket.
            self._transport.abort()
            await asyncio.sleep(0)  # the loop closes the socket in its next turn


class ClusterLink:
    """A connection to the node of a cluster that holds our slot: all keys carry one hash tag, so there is only one.

    redis-py's cluster client finds the node. It does not carry the commands: it would retry, and reconnect in silence.
    """

    def __init__(self, url: str, prefix: str) -> None:
        self._url = urlsplit(url)
        self._prefix = prefix
        self._direct: DirectLink | None = None

    async def connect(self) -> None:
        host, port = await _aio(self._find_node)
        credentials, at, _ = self._url.netloc.rpartition("@")
        netloc = f"{credentials}{at}[{host}]:{port}" if ":" in host else f"{credentials}{at}{host}:{port}"
        self._direct = DirectLink(self._url._replace(netloc=netloc).geturl())
        await self._direct.connect()

    async def _find_node(self) -> tuple[str, int]:
        client = RedisCluster.from_url(
            self._url.geturl(),
            socket_timeout=None,
            socket_connect_timeout=None,
            retry=Retry(NoBackoff(), 0),
            protocol=2,
        )
        try:
            await client.initialize()
            node = client.get_node_from_key(self._prefix)
            if node is None:
                raise ConnectionRefusedError("no node of the cluster holds our slot")
            return str(node.host), int(node.port)
        finally:
            await client.aclose()

    async def identify(self) -> bytes:
        return b"" if self._direct is None else await self._direct.identify()

    async def exchange(self, commands: Sequence[Command]) -> list[Reply]:
        if self._direct is None:
            raise ConnectionResetError("the link is not connected")
        return await self._direct.exchange(commands)

    async def close(self) -> None:
        if self._direct is not None:
            await self._direct.close()


def _require_readable(url: str) -> None:
    """Now, and not at each attempt to connect: redis-py tells of a bad parameter by whatever its constructors raise."""
    if url.partition("://")[0] not in {"redis", "rediss", "unix"}:
        return  # the scheme is refused in better words
    try:
        DirectLink(url)
    except (TypeError, ValueError) as fault:
        named = re.search(r"'([a-z_]{1,40})'", str(fault))  # the rest of its words may quote a password
        which = f"the parameter {named[1]} in a way" if named else "something in it"
        raise ValkeyUrlRefused(f"HALO_VALKEY_URL has {which} that redis-py does not take.") from None


def choose_link(url: str, prefix: str) -> Callable[[], Link]:
    """What makes the links to this URL, none of them connected yet.

    Raises:
        ValkeyUrlRefused: an unknown scheme, a parameter that redis-py does not take, or a cluster without a hash tag in the prefix.
    """
    scheme, _, rest = url.partition("://")
    if rest:
        _require_readable(f"{scheme.removesuffix(CLUSTER)}://{rest}")
    if scheme in {"redis", "rediss", "unix"} and rest:
        return partial(DirectLink, url)
    if scheme in {"redis" + CLUSTER, "rediss" + CLUSTER} and rest:
        if not prefix.partition("{")[2].partition("}")[0]:
            raise ValkeyUrlRefused(
                "A cluster needs HALO_VALKEY_PREFIX with a hash tag such as {halo}: so that all keys share a slot"
            )
        return partial(ClusterLink, f"{scheme.removesuffix(CLUSTER)}://{rest}", prefix)
    raise ValkeyUrlRefused(
        "HALO_VALKEY_URL must begin with redis://, rediss://, unix://, redis+cluster:// or rediss+cluster://"
    )
