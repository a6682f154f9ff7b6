"""The live configuration in force on this node: one reading, replaced as a whole.

A change on this node is in force when `change` returns; one on another node is seen by looking at the version every second. A
stored value that cannot be read is an alarm, and means what `halo/config.py` says it means. Read next:
`halo/store/live_config.py`.
"""

from collections.abc import Mapping
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
        self._store = store
        self._current = LiveConfig()
        self._alarmed_version = -1

    def current(self) -> LiveConfig:
        return self._current

    async def load(self) -> LiveConfig:
        """Read what is stored.

        Raises:
            StoreUnavailable
        """
        config, unreadable = await self._store.load()
        if unreadable and self._alarmed_version != config.version:
            log.error("configuration_unreadable", keys=unreadable, version=config.version)
            self._alarmed_version = config.version
        if config.version >= self._current.version:  # a change of our own may have overtaken this reading
            self._current = config
        return self._current

    async def change(self, changes: Mapping[str, object], operator: str) -> LiveConfig:
        """All keys or none, audited; in force on this node when it returns.

        Raises:
            ValidationFailed, StoreUnavailable
        """
        changed = await self._store.change(changes, operator)
        if changed.version > self._current.version:
            self._current = changed
        return changed

    async def serve(self) -> NoReturn:
        while True:
            await trio.sleep(LOOK_SECONDS)
            try:
                await self.load()
            except StoreUnavailable:
                pass  # the reading in force stays in force
