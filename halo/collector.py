"""Python's cyclic garbage collector, kept from looking at what has come to stay.

A full collection stops every task for as long as it takes to look through all objects: with 10,000 sessions a tenth of a second and
more, again and again, to find next to nothing, because sockets, sessions and messages are freed by their reference counts. So once
many have survived a full collection they are set aside and never looked through again; a collection then costs what is new. What would be lost
is a cycle that dies after it was set aside: nothing of halo's that lives long may be one, and `tests/whole/test_garbage.py` counts.
Read next: `halo/server.py`, which calls this when it is ready.
"""

import gc
from collections.abc import Callable
from time import perf_counter
from typing import Any, Final

YOUNG_OBJECTS: Final = 5_000
"""New objects before the youngest are looked through: Python's 700 is about what fifty messages take, and nearly all are dead soon after."""
MIDDLE_ROUNDS: Final = 3
OLD_ROUNDS: Final = 1
"""A full collection for every 40,000 objects that stay, some 10 ms when they are sockets and tasks (150,000 took 50)."""
STAYING_OBJECTS: Final = 10_000
"""So many survivors are set aside, 2 ms to look through again. Fewer may be one request's, whose cycles would then never be freed."""
LOOK_SECONDS: Final = 0.25
"""What survives from ten thousand sessions' timers in this time takes some 8 ms to look through; a quiet moment's takes 0.05 ms."""
LOOKED_SECONDS: Final = 0.002
"""So much spent on what is new, and it is time to look through everything that was not set aside: there is much of it by now."""
LOOKS: Final = 8
"""Without that, every two seconds: with `STAYING_OBJECTS` it costs a thousandth of a core."""


def spare_the_old() -> None:
    """Set aside all that lives now, and from now on what survives a full collection, when it is much."""
    gc.collect()
    gc.freeze()
    gc.collect()  # Python waits with the next until a quarter of what the last one found is new: of everything, or of nothing
    gc.set_threshold(YOUNG_OBJECTS, MIDDLE_ROUNDS, OLD_ROUNDS)
    if _freeze_survivors not in gc.callbacks:
        gc.callbacks.append(_freeze_survivors)


class Tidying:
    """Looks through what is new, a little at a time.

    Python counts new objects less freed ones. Where each new one takes the place of an old one, as when many sessions say the time, it finds
    nothing to do until 150,000 wait, and then stops everything for a tenth of a second.
    """

    def __init__(self, clock: Callable[[], float] = perf_counter) -> None:
        self._clock = clock
        self._looked_seconds = 0.0
        self._looks = 0

    def look(self) -> None:
        """To be called every `LOOK_SECONDS`."""
        began = self._clock()
        gc.collect(1)
        self._looked_seconds += self._clock() - began
        self._looks += 1
        if self._looks >= LOOKS or self._looked_seconds >= LOOKED_SECONDS:
            gc.collect()
            self._looked_seconds, self._looks = 0.0, 0


def _freeze_survivors(phase: str, found: dict[str, Any]) -> None:
    if phase == "stop" and found["generation"] == 2 and len(gc.get_objects(2)) >= STAYING_OBJECTS:
        gc.freeze()
