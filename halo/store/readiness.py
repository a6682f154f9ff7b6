"""Waiting for a socket as psycopg's generators ask for it, with Trio's epoll.

psycopg yields a `Wait` and wants a `Ready` back. Nothing here may close a socket or keep a task after it returns. Read next:
`halo/store/connection.py`, which drives the generators.
"""

from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Final

import trio
from psycopg.waiting import Ready, Wait
from trio.lowlevel import wait_readable, wait_writable

READ: Final = int(
    Wait.R
)  # plain ints: the generators are compiled and yield those, and comparing enums costs a call each
_WRITE: Final = int(Wait.W)
READABLE: Final = Ready.R
_WRITABLE: Final = Ready.W
_NEITHER: Final = Ready.NONE


async def ready_for(socket: int, state: int) -> Ready:
    """Until the socket is ready for what `state` names; for what it is ready then."""
    if state == READ:
        await wait_readable(socket)
        return READABLE
    if state == _WRITE:
        await wait_writable(socket)
        return _WRITABLE
    return await _readable_or_writable(socket)


async def _readable_or_writable(socket: int) -> Ready:
    """When the socket's buffer is full: the server may be waiting for us to read before it reads what we write."""
    found: Ready = _NEITHER

    async def watch(wait: Callable[[int], Awaitable[None]], ready: Ready) -> None:
        nonlocal found
        with suppress(trio.ClosedResourceError):  # libpq says it better, when it is asked next
            await wait(socket)
        found = Ready(found | ready)
        nursery.cancel_scope.cancel()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(watch, wait_readable, READABLE)
        nursery.start_soon(watch, wait_writable, _WRITABLE)
    return found
