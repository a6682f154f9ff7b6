"""The live configuration in force on this node: one reading, replaced as a whole.

A change on this node is in force as soon as it is committed; one on another node is seen by looking at the version every second. A
stored value that cannot be read is an alarm, and means what `halo/config.py` says it means. Read next:
`halo/store/live_config.py`.
"""

import contextlib
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
        self._alarmed_version = -1

    def current(self) -> LiveConfig:
        return self._current

    async def load(self) -> LiveConfig:
        """Read what is stored.

        Raises:
            StoreUnavailable
        """
        config, unreadable = await self.store.load()
        if unreadable and self._alarmed_version != config.version:
            log.error("configuration_unreadable", keys=unreadable, version=config.version)
            self._alarmed_version = config.version
        if config.version >= self._current.version:  # a change of our own may have overtaken this reading
            self._current = config
        return self._current

    def adopt(self, changed: LiveConfig) -> None:
        """A change was made on this node: it is in force from now on."""
        if changed.version > self._current.version:
            self._current = changed

    async def serve(self) -> NoReturn:
        while True:
            await trio.sleep(LOOK_SECONDS)
            with contextlib.suppress(StoreUnavailable):  # the reading in force stays in force
                await self.load()
