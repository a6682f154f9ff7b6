"""The live configuration in force on this node: one reading, replaced as a whole.

A change on this node is in force as soon as it is committed; one on another node is seen by looking at the version every second. A
stored value that cannot be read is one ERROR and an alarm until it can be read (`configuration_is_readable` of `halo/watch.py`), and means
what `halo/config.py` says it means. Read next: `halo/store/live_config.py`.
"""

import contextlib
from collections.abc import Sequence
from typing import Final, NoReturn

import structlog
import trio

from halo.config import LiveConfig
from halo.errors import StoreUnavailable
from halo.store.live_config import LiveConfigStore

log = structlog.get_logger(__name__)

LOOK_SECONDS: Final = 1.0


class Configuration:
    """Holds the reading; everybody else asks `current` at each decision."""

    def __init__(self, store: LiveConfigStore) -> None:
        self.store = store
        self._current = LiveConfig()
        self._unreadable: tuple[str, ...] = ()
        self._told: tuple[int, tuple[str, ...]] | None = None
        """The version and keys of the last ERROR, until all can be read: the same is not told every second."""

    def current(self) -> LiveConfig:
        return self._current

    def unreadable(self) -> Sequence[str]:
        """The stored keys that could not be read, or that this version does not know, at the last look."""
        return self._unreadable

    async def load(self) -> LiveConfig:
        """Read what is stored.

        Raises:
            StoreUnavailable
        """
        config, unreadable = await self.store.load()
        if config.version >= self._current.version:  # a change of our own may have overtaken this reading
            self._current = config
            self._take_unreadable(tuple(sorted(unreadable)))
        return self._current

    def _take_unreadable(self, keys: tuple[str, ...]) -> None:
        self._unreadable = keys
        found = (self._current.version, keys) if keys else None
        if found is not None and found != self._told:
            log.error("configuration_unreadable", keys=keys, version=self._current.version)
        self._told = found

    def adopt(self, changed: LiveConfig) -> None:
        """A change was made on this node: it is in force from now on."""
        if changed.version > self._current.version:
            self._current, self._unreadable = changed, ()  # what is still unreadable the next look finds

    async def serve(self) -> NoReturn:
        while True:
            await trio.sleep(LOOK_SECONDS)
            with contextlib.suppress(StoreUnavailable):  # the reading in force stays in force
                await self.load()
