"""Who tried what and what became of it, for the trail that operators read: written before it is tried, and once more when it is over.

A crash in between leaves `attempted`, and so does an answer that nobody has: a store that went away, an actor that fell. What a store
writes down in its own transaction needs only its refusals here. It must never hold up or hide what was done because the second line could
not be written. Read next: `halo/net/operations.py`, `halo/store/operators.py`.
"""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any, Final, Protocol

import structlog

from halo.errors import ActorFault, Refusal, StoreUnavailable

UNKNOWN: Final = (StoreUnavailable, ActorFault)
"""Refusals after which nobody knows whether it was done."""

_log: structlog.typing.FilteringBoundLogger = structlog.get_logger("halo.net")


class TrailRows(Protocol):
    """The part of `halo.store.operators.Operators` that is needed here."""

    async def record_attempt(self, operator: str, action: str, subject: str, details: Mapping[str, Any]) -> int: ...

    async def record_outcome(self, action_id: int, code: str | None) -> None: ...

    async def record_refusal(self, operator: str, action: str, subject: str, code: str) -> None: ...


class Trail:
    """See the module."""

    def __init__(self, rows: TrailRows) -> None:
        self._rows = rows

    @asynccontextmanager
    async def attempt(
        self, operator: str, action: str, subject: str, details: Mapping[str, Any] | None = None
    ) -> AsyncIterator[None]:
        """The block is the attempt, which is durable before it begins. Raises StoreUnavailable, and what the block raises."""
        action_id = await self._rows.record_attempt(operator, action, subject, details or {})
        try:
            yield
        except UNKNOWN:
            raise
        except Refusal as refusal:
            await self._conclude(action_id, refusal.code)
            raise
        await self._conclude(action_id, None)

    @asynccontextmanager
    async def refusals(self, operator: str, action: str, subject: str) -> AsyncIterator[None]:
        """The block leads up to an attempt, or writes down itself what it does: only what is refused is written down here."""
        try:
            yield
        except UNKNOWN:
            raise
        except Refusal as refusal:
            await self.refused(operator, action, subject, refusal)
            raise

    async def refused(self, operator: str, action: str, subject: str, refusal: Refusal) -> None:
        """It was refused before it was begun, and its asker is told so whether or not this can be written down."""
        try:
            await self._rows.record_refusal(operator, action, subject, refusal.code)
        except StoreUnavailable:
            _log.warning("refusal_not_written_down", action=action, code=refusal.code)

    async def _conclude(self, action_id: int, code: str | None) -> None:
        try:
            await self._rows.record_outcome(action_id, code)
        except StoreUnavailable:  # what is done is done; the row says `attempted`, which is true
            _log.warning("outcome_not_written_down", action_id=action_id, code=code)
