"""The live configuration in Postgres: what it is now, who changed it when, and the call to every node to read it again.

A change is one transaction under a lock: all keys or none, one version, one row of history, one of audit, one NOTIFY. What is
acceptable is decided in `halo/config.py`; this room must never write what was not validated there, and never guess what a stored
value that cannot be read was meant to be. Read next: `halo/config.py`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final
from uuid import uuid4

import msgspec

from halo import config
from halo.clock import Moment
from halo.config import LiveConfig
from halo.errors import InvalidState
from halo.store.postgres import Postgres, Transaction
from halo.store.queries import load_queries
from halo.store.values import Value
from halo.trace import current_trace_id

SQL: Final = load_queries("live_config")

CHANGED_CHANNEL: Final = "halo_live_config"
"""Each change is NOTIFYed here with its version; a node that hears of a newer one than it has loads again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfigChange:
    """One line of the history."""

    version: int
    changes: Mapping[str, Any]
    """The keys that were given, with their new values."""
    changed_by: str
    changed_at: Moment


class LiveConfigStore:
    """The rows of the live configuration."""

    def __init__(self, db: Postgres) -> None:
        self._db = db

    async def load(self) -> tuple[LiveConfig, list[str]]:
        """The configuration, and the keys whose stored value cannot be read: worth an alarm. Raises StoreUnavailable."""
        return await _load(self._db)

    async def change(
        self, changes: Mapping[str, object], changed_by: str, *, expected_version: int | None = None
    ) -> LiveConfig:
        """Apply `changes`, all or none, and tell every node; an empty change makes no version.

        Raises:
            InvalidState: it is no longer the `expected_version` that would be changed.
            ValidationFailed: with one entry in `errors` for each bad key.
            StoreUnavailable
        """

        async def write(tx: Transaction) -> LiveConfig:
            await tx.execute(SQL["lock"])
            before, _ = await _load(tx)
            if expected_version is not None and before.version != expected_version:
                raise InvalidState("Somebody has changed the configuration meanwhile; nothing was changed.")
            if not changes:
                return before
            after = config.change(before, changes)
            values: dict[str, Value] = {
                "version": after.version,
                "before": _encode(before, changes),
                "changes": _encode(after, changes),
                "changed_by": changed_by,
                "trace_id": current_trace_id(),
            }
            await tx.execute(SQL["save"], values)
            await tx.execute(SQL["insert_history"], values)
            await tx.execute(SQL["audit"], values)
            await tx.fetch_one(SQL["notify"], values)
            return after

        return await self._db.transact(write, str(uuid4()))

    async def history(self, limit: int = 100) -> Sequence[ConfigChange]:
        """The latest changes, newest first. Raises StoreUnavailable."""
        rows = await self._db.fetch_all(SQL["list_history"], {"limit": limit})
        return [
            ConfigChange(version=row.version, changes=row.changes, changed_by=row.changed_by, changed_at=row.changed_at)
            for row in rows
        ]


async def _load(source: Postgres | Transaction) -> tuple[LiveConfig, list[str]]:
    [row] = await source.fetch_all(SQL["load"])
    return config.read_stored(row.stored, row.version)


def _encode(values: LiveConfig, keys: Mapping[str, object]) -> str:
    """The keys' values as JSON, in the form in which they were validated."""
    return msgspec.json.encode({key: getattr(values, key) for key in keys}).decode()
