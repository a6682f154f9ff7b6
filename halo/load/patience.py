"""Waiting for what many small callbacks bring about together, and not for ever.

An event set at each of a million acks would cost what a look fifty times a second does not. It must never be used where a latency is
measured. Read next: `halo/load/scenes.py`.
"""

from collections.abc import Callable
from typing import Final

import trio

LOOK_SECONDS: Final = 0.02


async def wait_until(holds: Callable[[], bool], seconds: float) -> bool:
    """Whether it came to hold within so many seconds."""
    with trio.move_on_after(seconds):
        while not holds():  # noqa: ASYNC110  # the reason stands above
            await trio.sleep(LOOK_SECONDS)
        return True
    return holds()
