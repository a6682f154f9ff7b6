"""Heartbeats on their way to Postgres: what this node heard since the last cycle, in one statement.

The statement only ever moves a heartbeat forward, so several nodes may run it, and a cycle that fails is simply tried again.
Pings themselves never touch Postgres. Read next: `halo/store/mirror.py`.
"""

from collections.abc import Iterable, Mapping
from typing import NoReturn, Protocol

import structlog
import trio

from halo.clock import Moment
from halo.errors import StoreUnavailable

log = structlog.get_logger(__name__)


class Heard(Protocol):
    def take_unmirrored(self) -> Mapping[str, Moment]: ...


class HeartbeatRows(Protocol):
    async def record_heartbeats(self, pairs: Iterable[tuple[str, Moment]]) -> int: ...


async def mirror_heartbeats(heard: Heard, rows: HeartbeatRows, interval_seconds: float) -> NoReturn:
    """Every `interval_seconds`, for ever."""
    waiting: dict[str, Moment] = {}
    while True:
        await trio.sleep(interval_seconds)
        for mitra_id, at in heard.take_unmirrored().items():
            waiting[mitra_id] = max(at, waiting.get(mitra_id, 0))
        if waiting:
            try:
                await rows.record_heartbeats(waiting.items())
            except StoreUnavailable:
                log.warning("heartbeats_kept_back", count=len(waiting))
            else:
                waiting = {}
