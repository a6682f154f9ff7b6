"""HTTP/1.1 for the apps' API and the operators' page: Hypercorn's protocol pieces under halo's own rules for sockets.

Of Hypercorn this uses the h11 protocol, the ASGI stream and the lifespan. Its TCP server is replaced, because there one odd byte
ends the server and one client that does not read hangs the shutdown (spec 7). A request reaches the application only when it has
arrived whole and within its limits; so no slow client ever occupies the application, and none is told half a body. HTTP/2, h2c
and WebSockets are refused here. Never let a request live longer than its deadline, nor the server for a client's sake.
Read next: `halo/net/http_connection.py`, one connection; then `halo/net/api.py`, the application.
"""

from collections.abc import Sequence
from functools import partial
from socket import socket
from typing import Any, Final

import structlog
import trio
from hypercorn.app_wrappers import ASGIWrapper
from hypercorn.config import Config
from hypercorn.trio.lifespan import Lifespan
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import ASGIFramework, ConnectionState

from halo.net.admission import Admission
from halo.net.guard import Door, serve_guarded
from halo.net.head import HEAD_BYTES_MAX
from halo.net.http_connection import HttpConnection
from halo.net.stream import SocketStream

DRAIN_SECONDS: Final = 3.0
"""How long requests under way may take when the server stops. SIGTERM to exit is 5 s in all (spec 5)."""
LIFESPAN_SECONDS: Final = 10.0
KEEP_ALIVE_REQUESTS_MAX: Final = 1000
"""Then the connection is closed after its answer, so that a load balancer can spread clients anew."""

_log: structlog.typing.FilteringBoundLogger = structlog.get_logger("halo.net")


class _FaultLog:
    """Hypercorn's logger, reduced to what may be written: that the application failed, never the text of its exception."""

    def __init__(self, config: Config) -> None:
        del config

    async def access(self, request: Any, response: Any, request_time: float) -> None:
        """The application writes its own lines, which contain no paths with ids."""

    async def exception(self, message: str, *_args: Any, **_kwargs: Any) -> None:
        _log.error("http_application_fault", said=message)

    async def warning(self, message: str, *_args: Any, **_kwargs: Any) -> None:
        _log.warning("http_server", said=message)

    error = critical = warning
    info = debug = access


def http_config() -> Config:
    """Hypercorn's settings as far as its protocol pieces read them."""
    config = Config()
    config.include_server_header = False
    config.h11_max_incomplete_size = HEAD_BYTES_MAX
    config.keep_alive_max_requests = KEEP_ALIVE_REQUESTS_MAX
    config.startup_timeout = config.shutdown_timeout = LIFESPAN_SECONDS
    config.logger_class = _FaultLog  # type: ignore[assignment]  # it has the methods that the pieces in use call, and no more
    return config


async def serve_http(
    app: ASGIFramework,
    listeners: Sequence[socket],
    *,
    stop: trio.Event,
    door: Door,
    drain_seconds: float = DRAIN_SECONDS,
    task_status: trio.TaskStatus[list[str]] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve `app` on `listeners` until `stop` is set, then drain; or until cancelled, then at once.

    Reports the listeners' real addresses (`127.0.0.1:8801`) when the application has started and connections are accepted.
    Draining: no new connections, idle ones are closed, requests under way are answered, all within `drain_seconds`.
    Raises what the application's start-up raises, and nothing that a client or a request causes.
    """
    config = http_config()
    wrapped = ASGIWrapper(app)
    state: dict[str, Any] = {}
    context = WorkerContext(None)
    lifespan = Lifespan(wrapped, config, state)
    open_connections: set[HttpConnection] = set()

    async def converse(stream: SocketStream, _admission: Admission) -> None:
        connection = HttpConnection(wrapped, config, context, ConnectionState(state.copy()), stream)
        open_connections.add(connection)
        try:
            await connection.run()
        finally:
            open_connections.discard(connection)

    async def accept_until_stop(connections: trio.Nursery) -> None:
        async with trio.open_nursery() as accepting:
            task_status.started(
                await accepting.start(partial(serve_guarded, listeners, converse, door=door, connections=connections))
            )
            await stop.wait()
            accepting.cancel_scope.cancel()

    async with trio.open_nursery() as lifetime:
        await lifetime.start(lifespan.handle_lifespan)
        await lifespan.wait_for_startup()
        async with trio.open_nursery() as connections:
            await accept_until_stop(connections)
            await context.terminated.set()
            connections.cancel_scope.deadline = trio.current_time() + drain_seconds
            for connection in open_connections:
                connection.drain()
        await lifespan.wait_for_shutdown()
        lifetime.cancel_scope.cancel()
