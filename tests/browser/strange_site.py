"""A web page of somebody else's, on another port of this machine: the same one for every path, with headers of its own."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from functools import partial

import trio


@asynccontextmanager
async def open_strange_site(html: str, *headers: str) -> AsyncIterator[str]:
    """Its address, for the time of the block."""
    head = ["HTTP/1.1 200 OK", "Content-Type: text/html; charset=utf-8", "Connection: close", *headers]
    answer = "\r\n".join([*head, f"Content-Length: {len(html.encode())}", "", html]).encode()

    async def serve(stream: trio.SocketStream) -> None:
        async with stream:
            # A browser opens connections in advance, and drops those that it does not need.
            with suppress(trio.BrokenResourceError):
                if await stream.receive_some():
                    await stream.send_all(answer)

    async with trio.open_nursery() as nursery:
        [listener] = await nursery.start(partial(trio.serve_tcp, serve, 0, host="127.0.0.1"))
        yield f"http://127.0.0.1:{listener.socket.getsockname()[1]}/"
        nursery.cancel_scope.cancel()
