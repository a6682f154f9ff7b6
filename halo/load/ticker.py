"""A timer that wakes a Trio task within some tens of microseconds: Linux' timerfd, waited for like a socket.

Trio sleeps in whole milliseconds, because epoll does; a harness that is up to a millisecond late at each message would measure itself. It
must never be shared by two tasks. Read next: `halo/load/speech.py`.
"""

import ctypes
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import trio

_NONBLOCK: Final = 0o4000
_CLOEXEC: Final = 0o2000000
_ABSOLUTE: Final = 1
_WITHIN_REACH_SECONDS: Final = 0.000_05
"""Setting the timer and waking up takes as long: what is due so soon is due now."""


class _Spec(ctypes.Structure):
    """`struct itimerspec`: every, and first at; each seconds and nanoseconds."""

    _fields_ = (
        ("every_s", ctypes.c_long),
        ("every_ns", ctypes.c_long),
        ("first_s", ctypes.c_long),
        ("first_ns", ctypes.c_long),
    )


class Ticker:
    """One task's alarm clock, on the machine's monotonic clock."""

    def __init__(self, library: ctypes.CDLL, descriptor: int) -> None:
        self._library = library
        self._descriptor = descriptor

    async def sleep_until(self, moment: float) -> None:
        """Until `time.monotonic()` is `moment`; a checkpoint also when that has passed."""
        if moment - time.monotonic() <= _WITHIN_REACH_SECONDS:
            await trio.lowlevel.checkpoint()
            return
        whole = int(moment)
        spec = _Spec(0, 0, whole, max(1, int((moment - whole) * 1e9)))
        if self._library.timerfd_settime(self._descriptor, _ABSOLUTE, ctypes.byref(spec), None):
            raise OSError(ctypes.get_errno(), "the timer cannot be set")
        await trio.lowlevel.wait_readable(self._descriptor)
        os.read(self._descriptor, 8)


@contextmanager
def open_ticker() -> Iterator[Ticker]:
    """A timer for the time of the block. Raises OSError where the system has none."""
    library = ctypes.CDLL(None, use_errno=True)
    descriptor = library.timerfd_create(time.CLOCK_MONOTONIC, _NONBLOCK | _CLOEXEC)
    if descriptor < 0:
        raise OSError(ctypes.get_errno(), "this system has no timerfd")
    try:
        yield Ticker(library, descriptor)
    finally:
        os.close(descriptor)
