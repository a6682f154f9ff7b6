"""What is read of an answer, below HTTP: in sips, and so much at most, whatever it is made of.

A client of HTTP takes 64 KB at a time and looks at all of it before anybody else has a turn: a flood of "100 Continue", or of chunks of one
byte, is thousands of events, and lasts for ever. Here a read is a small one, and an answer that is far longer than any of use ends as an
error. It must never cut an answer that `halo.net.outgoing` wants. Read next: `halo/net/outgoing.py`.
"""

import ssl
from collections.abc import Iterable
from typing import Any, Final

import httpcore

SIP_BYTES: Final = 4_096
"""A whole answer of use. Of the smallest "100 Continue" these are 240: some 3 ms until the next one has a turn."""
WIRE_BYTES_MAX: Final = 256 * 1024
"""Four times the longest body that is read (`halo.net.outgoing.ANSWER_BYTES_MAX`), for its head and its chunks."""


class Sips(httpcore.AsyncNetworkStream):
    """A connection. Raises `httpcore.ReadError` when an answer is too long."""

    def __init__(self, stream: httpcore.AsyncNetworkStream) -> None:
        self._stream = stream
        self._left = WIRE_BYTES_MAX

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:  # noqa: ASYNC109  # httpcore's signature
        if self._left <= 0:
            raise httpcore.ReadError("the answer is too long")
        piece = await self._stream.read(min(max_bytes, SIP_BYTES), timeout)
        self._left -= len(piece)
        return piece

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:  # noqa: ASYNC109
        self._left = WIRE_BYTES_MAX  # the next answer
        await self._stream.write(buffer, timeout)

    async def aclose(self) -> None:
        await self._stream.aclose()

    async def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,  # noqa: ASYNC109
    ) -> httpcore.AsyncNetworkStream:
        return Sips(await self._stream.start_tls(ssl_context, server_hostname, timeout))

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)


class SippingBackend(httpcore.AsyncNetworkBackend):
    """Connections of `backend`, read in sips."""

    def __init__(self, backend: httpcore.AsyncNetworkBackend) -> None:
        self._backend = backend

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        return Sips(await self._backend.connect_tcp(host, port, timeout, local_address, socket_options))

    async def connect_unix_socket(
        self,
        path: str,
        timeout: float | None = None,  # noqa: ASYNC109
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        return Sips(await self._backend.connect_unix_socket(path, timeout, socket_options))

    async def sleep(self, seconds: float) -> None:
        await self._backend.sleep(seconds)
