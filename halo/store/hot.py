"""A connection of one's own, and the one statement that is worth it.

The journal writes a batch as soon as the last one is durable, and the lease is held by a session-level lock: both need a
connection that nobody else borrows, and both must notice its loss. So a dedicated connection is never replaced behind its
owner's back: after `StoreUnavailable` it is gone, and the owner opens another. Read next: `halo/store/arrays.py`.
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, TypeVar

import psycopg
import trio

from halo.errors import StoreUnavailable
from halo.store.arrays import ENCODERS
from halo.store.connection import Result, TrioConnection, Values
from halo.store.faults import is_away
from halo.store.queries import Query

T = TypeVar("T")
_NOTHING: Values = {}


class Dedicated:
    """A connection for one owner; its tasks take turns.

    Error handling: `StoreUnavailable` when the server does not answer in time or the connection broke; whether the statement was
    done is unknown then. Other psycopg errors are mistakes of the caller and leave the connection whole.
    """

    def __init__(self, connection: TrioConnection, deadline_seconds: float) -> None:
        self._connection = connection
        self._deadline_seconds = deadline_seconds
        self._turn = trio.Lock()

    async def fetch_all(self, query: Query | str, values: Values = _NOTHING) -> list[Any]:
        """The rows, as named tuples."""
        return (await self._run(query, values)).rows

    async def fetch_one(self, query: Query | str, values: Values = _NOTHING) -> Any | None:
        """The first row, or None."""
        rows = (await self._run(query, values)).rows
        return rows[0] if rows else None

    async def execute(self, query: Query | str, values: Values = _NOTHING) -> int:
        """How many rows the statement touched."""
        return (await self._run(query, values)).touched

    async def prepare_hot(self, query: Query) -> "HotStatement":
        """Ready a statement whose parameters are columns of rows: `unnest(%(ids)s::uuid[], …)`.

        Raises TypeError if a parameter is no array of uuid, bigint, text or timestamptz.
        """
        name, types = await self._bounded(lambda: self._connection.describe(query))
        return HotStatement(self, query, name, types)

    async def run_hot(self, name: bytes, parameters: Sequence[bytes]) -> int:
        """Run what `prepare_hot` prepared, with parameters in Postgres' binary form. Returns how many rows it touched."""
        return await self._bounded(lambda: self._connection.run_binary(name, parameters))

    async def _run(self, query: Query | str, values: Values) -> Result:
        return await self._bounded(lambda: self._connection.run(query, values))

    async def _bounded(self, call: Callable[[], Awaitable[T]]) -> T:
        with trio.move_on_after(self._deadline_seconds):
            try:
                self._turn.acquire_nowait()  # `async with` would always go once around the event loop
            except trio.WouldBlock:
                await self._turn.acquire()
            try:
                return await call()
            except psycopg.Error as error:
                if is_away(error):
                    raise StoreUnavailable from error
                raise
            finally:
                self._turn.release()
        raise StoreUnavailable


class HotStatement:
    """One statement over whole columns, encoded for the types that the server says it takes."""

    def __init__(self, owner: Dedicated, query: Query, name: bytes, types: Sequence[int]) -> None:
        strange = [parameter for parameter, oid in zip(query.parameters, types, strict=True) if oid not in ENCODERS]
        if strange:
            raise TypeError(f"query {query.name}: {strange} are no arrays of uuid, bigint, text or timestamptz")
        self._owner = owner
        self._name = name
        self._columns = [(name, ENCODERS[oid]) for name, oid in zip(query.parameters, types, strict=True)]

    async def execute(self, columns: Mapping[str, Sequence[Any]]) -> int:
        """Run it. Columns are lists of the same length: ids and texts as str, numbers and moments (ms) as int.

        Returns how many rows it touched. Raises StoreUnavailable; the outcome is unknown then.
        """
        return await self._owner.run_hot(self._name, [encode(columns[name]) for name, encode in self._columns])
