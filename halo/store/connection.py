"""One connection to Postgres, driven by Trio: psycopg speaks the protocol, Trio waits.

psycopg writes its protocol as generators that yield what to wait for; `wait` answers them with Trio's own epoll, so nothing of
asyncio and no thread is on this path. Statements of ours go past psycopg's cursors, straight to libpq: 17 µs of CPU for a
prepared INSERT against 39 with a cursor. What must never happen here: a connection whose operation was cancelled is used
again. Its answer would be taken for the answer to the next question, so its socket is closed on the spot, which asks nothing
of the server and therefore never hangs. Read next: `halo/store/postgres.py`, which shares connections out.
"""

import select
from collections import namedtuple
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple, NoReturn, Self, TypeAlias

import psycopg
import structlog
import trio
from psycopg import adapt, errors, generators, pq
from psycopg.abc import RV, PQGen, Transformer
from psycopg.pq.abc import PGconn, PGresult
from psycopg.rows import AsyncRowFactory, tuple_row
from trio.lowlevel import notify_closing, wait_readable

from halo.store.faults import is_stale
from halo.store.queries import Query, unnamed_query
from halo.store.readiness import READ, READABLE, ready_for
from halo.store.values import Value, halo_adapters

log = structlog.get_logger(__name__)

Values: TypeAlias = Mapping[str, Value]
Statement: TypeAlias = tuple[Query | str, Values]

_NOTHING: Values = {}
_DONE = (pq.ExecStatus.COMMAND_OK, pq.ExecStatus.TUPLES_OK, pq.ExecStatus.EMPTY_QUERY)


class Result(NamedTuple):
    """What a statement answered."""

    rows: list[Any]
    """Named tuples with the columns as attributes; empty for statements that return nothing."""
    touched: int
    """How many rows it wrote, or read."""


class _Prepared:
    """A query as one connection knows it: its name on the server, and how its rows are read."""

    __slots__ = ("make_row", "name", "transformer")

    def __init__(self, name: bytes) -> None:
        self.name = name
        self.transformer: Transformer | None = None
        self.make_row: Callable[[Sequence[Any]], Any] = tuple


class TrioConnection(psycopg.AsyncConnection[Any]):
    """A connection in autocommit; `BEGIN` and `COMMIT` are statements like others.

    Resource handling: whoever opened it closes it with `close_now`, which does not block and may be called twice.
    Error handling: every failure is a psycopg.Error, and the connection says by `is_clean` whether it can be used again.
    """

    def __init__(self, pgconn: PGconn, row_factory: AsyncRowFactory[Any] = tuple_row) -> None:
        super().__init__(pgconn, row_factory)
        self.lock = trio.Lock()  # type: ignore[assignment]  # psycopg's own is asyncio's
        self._autocommit = True
        self._adapters = halo_adapters()
        self._prepared_here: dict[Query, _Prepared] = {}
        self._silence = select.poll()
        self._silence.register(pgconn.socket, select.POLLIN)
        self.statements = 0
        """How many were sent; the pool adds them up."""
        self.add_notice_handler(_log_notice)

    # ---- life

    @property
    def is_clean(self) -> bool:
        """Whether the next user finds it whole and outside any transaction."""
        return self.pgconn.status == pq.ConnStatus.OK and self.pgconn.transaction_status == pq.TransactionStatus.IDLE

    @property
    def is_silent(self) -> bool:
        """Whether nothing has come while it lay idle. What comes then is a farewell: the server went away or was restarted."""
        return not self._silence.poll(0)

    def close_now(self) -> None:
        """Close the socket, whatever is under way on it. A task that waits for it gets an OperationalError."""
        if self.pgconn.status != pq.ConnStatus.BAD:
            notify_closing(self.pgconn.socket)
            self._closed = True
            self.pgconn.finish()

    async def wait(self, gen: PQGen[RV], interval: float = 0.0, timeout: float | None = None) -> RV:  # noqa: ARG002, ASYNC109  # psycopg's signature
        """Drive one of psycopg's generators to its end. Only `notifies` gives a timeout, in seconds."""
        deadline = trio.current_time() + timeout if timeout is not None else None
        whole = False
        try:
            socket = self.pgconn.socket
            state: int = next(gen)
            while True:
                if deadline is not None:
                    with trio.move_on_at(deadline) as scope:
                        ready = await ready_for(socket, state)
                    if scope.cancelled_caught:
                        whole = True  # nothing was asked, so nothing is left unanswered
                        raise errors._WaitTimeout  # noqa: SLF001  # what `notifies` expects
                elif state == READ:
                    await wait_readable(socket)
                    ready = READABLE
                else:
                    ready = await ready_for(socket, state)
                state = gen.send(ready)
        except StopIteration as stop:
            whole = True
            answer: RV = stop.value
            return answer
        except psycopg.Error:
            whole = True  # libpq knows itself whether this was the end of the connection
            raise
        except (trio.ClosedResourceError, OSError) as closed:
            raise psycopg.OperationalError("the connection was closed") from closed
        finally:
            if not whole:
                self.close_now()

    # ---- statements

    async def run(self, query: Query | str, values: Values = _NOTHING) -> Result:
        """Run one statement. A `Query` is prepared once per connection; a `str` is sent as it is."""
        query, prepared = await self._know(query)
        self._send(query, prepared, values)
        return self._read(prepared, await self._answer())

    async def run_all(self, statements: Sequence[Statement]) -> list[Result]:
        """Run several statements for the price of one journey. Raises the first error; what follows it was not run."""
        known = [(*await self._know(query), values) for query, values in statements]
        pgconn = self.pgconn
        pgconn.enter_pipeline_mode()
        try:
            for query, prepared, values in known:
                self._send(query, prepared, values)
        except BaseException:
            self.close_now()  # half of it may be on its way
            raise
        pgconn.pipeline_sync()
        await self.wait(generators.send(pgconn))
        answers = [(await self.wait(generators.fetch_many(pgconn)))[0] for _ in known]
        await self.wait(generators.fetch_many(pgconn))  # the end of the pipeline
        pgconn.exit_pipeline_mode()
        for answer in answers:
            if answer.status not in _DONE:
                self._refuse(answer)
        return [self._read(prepared, answer) for (_, prepared, _), answer in zip(known, answers, strict=True)]

    async def control(self, command: bytes) -> bytes:
        """BEGIN, COMMIT, ROLLBACK, or a whole script: sent as it is. Returns what the server says it did last."""
        self.statements += 1
        self.pgconn.send_query(command)
        return (await self._answer()).command_status or b""

    async def describe(self, query: Query) -> tuple[bytes, list[int]]:
        """Prepare, and return the name on the server and the types of the parameters, as object ids."""
        name = (self._prepared_here.get(query) or await self._prepare(query)).name
        self.pgconn.send_describe_prepared(name)
        answer = await self._answer()
        return name, [answer.param_type(index) for index in range(answer.nparams)]

    async def run_binary(self, name: bytes, parameters: Sequence[bytes | None]) -> int:
        """Run a prepared statement whose parameters are all in binary. Returns how many rows it touched."""
        self.statements += 1
        self.pgconn.send_query_prepared(name, parameters, param_formats=[pq.Format.BINARY] * len(parameters))
        return (await self._answer()).command_tuples or 0

    async def _know(self, query: Query | str) -> tuple[Query, _Prepared | None]:
        if isinstance(query, str):
            return unnamed_query(query), None
        return query, self._prepared_here.get(query) or await self._prepare(query)

    def _send(self, query: Query, prepared: _Prepared | None, values: Values) -> None:
        parameters = query.bind(values)
        self.statements += 1
        if prepared is None:
            self.pgconn.send_query_params(query.sql, parameters, result_format=pq.Format.BINARY)
        else:
            self.pgconn.send_query_prepared(prepared.name, parameters, result_format=pq.Format.BINARY)

    async def _prepare(self, query: Query) -> _Prepared:
        name = b"halo%d" % len(self._prepared_here)
        self.pgconn.send_prepare(name, query.sql)
        await self._answer()
        prepared = self._prepared_here[query] = _Prepared(name)
        return prepared

    async def _answer(self) -> PGresult:
        """The last result of what was sent. Raises the first error among them."""
        results: list[PGresult] = await self.wait(generators.execute(self.pgconn))
        for result in results:
            if result.status not in _DONE:
                self._refuse(result)
        return results[-1]

    def _refuse(self, result: PGresult) -> NoReturn:
        error = errors.error_from_result(result, encoding="utf-8")
        if is_stale(error):
            self.close_now()
        raise error

    def _read(self, prepared: _Prepared | None, result: PGresult) -> Result:
        touched = result.command_tuples or 0
        if result.status != pq.ExecStatus.TUPLES_OK:
            return Result([], touched)
        prepared = prepared or _Prepared(b"")
        transformer = prepared.transformer
        if transformer is None:
            transformer = prepared.transformer = adapt.Transformer(self)
            transformer.set_pgresult(result)
            prepared.make_row = _row_maker(*(result.fname(index) or b"" for index in range(result.nfields)))
        else:
            transformer.set_pgresult(result, set_loaders=False)  # a prepared statement's columns do not change
        rows = transformer.load_rows(0, result.ntuples, prepared.make_row)
        transformer.set_pgresult(None, set_loaders=False)  # else each statement would keep its last result in memory
        return Result(rows, touched)

    @classmethod
    async def open(cls, conninfo: str) -> Self:
        """Connect to the one address that `conninfo` names. Raises psycopg.OperationalError; may be cancelled at any moment."""
        attempt = cls._connect_gen(conninfo)
        try:
            socket, state = next(attempt)
            while True:
                ready = await ready_for(socket, state)
                socket, state = attempt.send(ready)
        except StopIteration as stop:
            connection: Self = stop.value
            return connection
        except OSError as closed:
            raise psycopg.OperationalError("the connection was closed") from closed
        finally:
            attempt.close()  # a half-made connection goes with its generator


@lru_cache(maxsize=512)  # some hundred named queries; the bound is against ad-hoc columns
def _row_maker(*columns: bytes) -> Callable[[Sequence[Any]], Any]:
    row: Any = namedtuple("Row", [column.decode() for column in columns], rename=True)  # type: ignore[misc]  # noqa: PYI024  # its columns are known at run time only
    make: Callable[[Sequence[Any]], Any] = row._make  # public, in spite of its name
    return make


def _log_notice(notice: errors.Diagnostic) -> None:
    """A warning from Postgres is a mistake of ours; its detail may quote rows, so it stays out of the log."""
    if notice.severity_nonlocalized == "WARNING":
        log.warning("postgres_notice", sqlstate=notice.sqlstate, notice=notice.message_primary)
