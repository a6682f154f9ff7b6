"""A socket between halo and Postgres that does to a COMMIT what a bad network does.

It forwards everything until a COMMIT passes, and then does once what the test asks for. Nothing is guessed from time: the server's
answer has arrived before it is withheld, so "committed, but nobody was told" is a fact and not a likelihood.
"""

import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from enum import Enum, auto
from pathlib import Path
from urllib.parse import quote

import trio
from psycopg.conninfo import conninfo_to_dict

COMMIT = b"Q\x00\x00\x00\x0bCOMMIT\x00"


class Fault(Enum):
    """What becomes of the next COMMIT."""

    NONE = auto()
    LOST = auto()  # it never reaches the server
    ANSWER_LOST = auto()  # it is done, the connection breaks before the answer
    ANSWER_LATE = auto()  # it is done, the answer comes when `release` is set


@dataclass(slots=True, eq=False)
class CuttingProxy:
    """The proxy as a test holds it."""

    url: str
    faults: list[Fault] = field(default_factory=list)
    commits: int = 0
    committing: trio.Event = field(default_factory=trio.Event)
    """Set when a COMMIT was done whose answer is withheld."""
    release: trio.Event = field(default_factory=trio.Event)


@asynccontextmanager
async def open_cutting_proxy(database_url: str) -> AsyncIterator[CuttingProxy]:
    """A proxy in front of the server of `database_url`; its `url` names the same database."""
    there = conninfo_to_dict(database_url)
    server = f"{there['host']}/.s.PGSQL.{there.get('port') or 5432}"
    with tempfile.TemporaryDirectory(prefix="proxy-") as directory:
        listening = trio.socket.socket(trio.socket.AF_UNIX)
        await listening.bind(str(Path(directory) / ".s.PGSQL.5432"))
        listening.listen()
        url = f"postgresql://{there['user']}@/{there['dbname']}?host={quote(directory, safe='')}&port=5432"
        proxy = CuttingProxy(url)

        async def serve(client: trio.SocketStream) -> None:
            try:
                async with client, await trio.open_unix_socket(server) as stream:
                    await _relay(proxy, client, stream)
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                pass  # one side was killed, which is what these tests are about

        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.serve_listeners, serve, [trio.SocketListener(listening)])
            yield proxy
            nursery.cancel_scope.cancel()


async def _relay(proxy: CuttingProxy, client: trio.SocketStream, server: trio.SocketStream) -> None:
    fault = Fault.NONE

    async def answers() -> None:
        async for chunk in server:
            if fault is not Fault.NONE and b"COMMIT" in chunk:
                proxy.committing.set()
                if fault is Fault.ANSWER_LATE:
                    await proxy.release.wait()
                else:
                    nursery.cancel_scope.cancel()
                    return
            await client.send_all(chunk)
        nursery.cancel_scope.cancel()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(answers)
        async for chunk in client:
            if COMMIT in chunk:
                proxy.commits += 1
                fault = proxy.faults.pop(0) if proxy.faults else Fault.NONE
                if fault is Fault.LOST:
                    break
            await server.send_all(chunk)
        nursery.cancel_scope.cancel()
