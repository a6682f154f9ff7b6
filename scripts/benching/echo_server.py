"""The bare ceiling: trio-websocket as it comes, sending each frame back, with nothing behind it.

`echo` answers a frame with that frame, one out for one in. `relay` sends it to the other end of the pair as well, two out for one in, as many
as a durable message costs. Nothing is decoded, checked, stored or tuned here; what halo does faster than stock must not help its own
ceiling. Read next: `scripts/benching/echo_client.py`, `scripts/benching/ceiling.py`.
"""

import sys
from typing import Any, Final

import trio
from trio_websocket import ConnectionClosed, WebSocketRequest, serve_websocket

KINDS: Final = ("echo", "relay")


class Pairs:
    """Who sits at the other end."""

    def __init__(self) -> None:
        self._at: dict[str, Any] = {}

    async def echo(self, request: WebSocketRequest) -> None:
        socket = await request.accept()
        try:
            while True:
                await socket.send_message(await socket.get_message())
        except ConnectionClosed:
            return

    async def relay(self, request: WebSocketRequest) -> None:
        """Paths are `/PAIR/0` and `/PAIR/1`."""
        pair, _, side = request.path.rpartition("/")
        other = f"{pair}/{1 - int(side)}"
        socket = self._at[request.path] = await request.accept()
        try:
            first = await socket.get_message()  # nobody speaks before both are connected
            while other not in self._at:
                await trio.lowlevel.checkpoint()  # its handshake was answered, and its task goes on with the next tick
            partner = self._at[other]
            await self._both(first, socket, partner)
            while True:
                await self._both(await socket.get_message(), socket, partner)
        except ConnectionClosed:
            return

    async def _both(self, message: Any, socket: Any, partner: Any) -> None:
        await socket.send_message(message)
        await partner.send_message(message)


async def serve(kind: str) -> None:
    """Until it is killed; the port goes to standard output."""
    pairs = Pairs()
    handler = pairs.relay if kind == "relay" else pairs.echo
    async with trio.open_nursery() as nursery:
        server = await nursery.start(serve_websocket, handler, "127.0.0.1", 0, None)
        print(server.port, flush=True)


if __name__ == "__main__":
    trio.run(serve, sys.argv[1])
