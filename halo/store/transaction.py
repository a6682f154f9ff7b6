"""One transaction: what `Postgres.transact` hands to the work that it runs.

`BEGIN` and the operation's own row travel with the work's first statements, so they cost no journey of their own; the operation's
row is the first insert (spec 5, unknown commits). A transaction never commits itself, and never outlives its work. Read next:
`halo/store/postgres.py`.
"""

from collections.abc import Sequence
from typing import Any, Final

from psycopg.errors import InFailedSqlTransaction, UniqueViolation
from psycopg.pq import TransactionStatus

from halo.store.connection import Result, Statement, TrioConnection, Values
from halo.store.queries import Query, parse_query

_BEGIN: Final = parse_query("begin", "BEGIN")
_INSERT_OPERATION: Final = parse_query(
    "insert_operation", "INSERT INTO operations (operation_id) VALUES (%(operation_id)s)"
)
_NOTHING: Values = {}


class OperationRepeated(Exception):
    """This operation was committed by an earlier call; nothing was written now. Whoever asks reads what it did."""


class Transaction:
    """Statements of one transaction, on one connection, for one task.

    Error handling: psycopg errors come through as they are and leave the transaction unusable: let them pass.
    """

    def __init__(self, connection: TrioConnection, operation_id: str | None) -> None:
        self._connection = connection
        self._operation_id = operation_id
        self._opening: list[Statement] = [(_BEGIN, _NOTHING)]
        if operation_id is not None:
            self._opening.append((_INSERT_OPERATION, {"operation_id": operation_id}))

    async def fetch_all(self, query: Query | str, values: Values = _NOTHING) -> list[Any]:
        """The rows, as named tuples."""
        return (await self._run(query, values)).rows

    async def fetch_one(self, query: Query | str, values: Values = _NOTHING) -> Any | None:
        """The first row, or None."""
        rows = (await self._run(query, values)).rows
        return rows[0] if rows else None

    async def execute(self, query: Query | str, values: Values = _NOTHING) -> int:
        """How many rows the statement touched; a guard that matched nothing gives 0."""
        return (await self._run(query, values)).touched

    async def execute_all(self, statements: Sequence[Statement]) -> list[Result]:
        """Several statements in one journey: half the price. All of them run, so guards are looked at afterwards."""
        opening, self._opening = self._opening, []
        try:
            results = await self._connection.run_all([*opening, *statements])
        except UniqueViolation as violation:
            if opening and violation.diag.table_name == "operations":
                raise OperationRepeated(self._operation_id) from violation
            raise
        return results[len(opening) :]

    async def open(self) -> None:
        """Begin, unless a statement has done so already."""
        if self._opening:
            await self.execute_all(())

    async def commit(self) -> None:
        """Raises InFailedSqlTransaction if an error was swallowed on the way: Postgres calls that a COMMIT, and rolls back."""
        if await self._connection.control(b"COMMIT") != b"COMMIT":
            raise InFailedSqlTransaction("a statement of this transaction failed, so nothing was committed")

    async def roll_back(self) -> None:
        """Undo; nothing to do when nothing was begun or the connection is gone, which undoes it as well."""
        if self._connection.pgconn.transaction_status in {TransactionStatus.INTRANS, TransactionStatus.INERROR}:
            await self._connection.control(b"ROLLBACK")

    async def _run(self, query: Query | str, values: Values) -> Result:
        if self._opening:
            return (await self.execute_all([(query, values)]))[0]
        return await self._connection.run(query, values)
