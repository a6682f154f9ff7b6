"""Where readers of many sessions share a statement: what is asked while one is under way goes into the next.

After a restart every socket wants its history and every actor its ids, in the same second. Each with a statement and a connection of its
own, they fill the pool's queue, and whoever comes behind is refused: people's messages. Here they cost one connection, and wait in memory,
in the order of their coming. There is no task that serves: the first of those who wait reads for the others too. It must never let one
reader's end be another's: when the one who reads is cancelled, the next reads again. Read next: `halo/store/sessions.py`.
"""

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final, Generic, Protocol, TypeVar

import psycopg
import trio

from halo.errors import StoreUnavailable

WAITING_MAX: Final = 20_000
"""Readers who may wait, a kilobyte each: the sockets and actors of ten thousand sessions that come back together."""


class Wish(Protocol):
    """What a reader asks for."""

    @property
    def limit(self) -> int:
        """The rows that it gets at most: so the memory that an answer may take is known before it is asked for."""
        ...


W = TypeVar("W", bound=Wish)


class _Reader(Generic[W]):
    """One who waits for an answer, or for the turn to read."""

    __slots__ = ("failure", "rows", "wish", "woken")

    def __init__(self, wish: W) -> None:
        self.wish = wish
        self.rows: list[Any] | None = None
        self.failure: StoreUnavailable | None = None
        self.woken = trio.Event()

    @property
    def is_served(self) -> bool:
        return self.rows is not None or self.failure is not None


class ReadingRoom(Generic[W]):
    """One kind of question, asked for several at once.

    `ask` gets wishes and answers with rows whose `place` says whose they are: 1 for the first wish.
    """

    def __init__(self, ask: Callable[[Sequence[W]], Awaitable[Sequence[Any]]], rows_max: int) -> None:
        self.statements = 0
        """How many were asked."""
        self._ask = ask
        self._rows_max = rows_max
        self._readers: dict[_Reader[W], None] = {}
        """In the order of their coming, until they are served or gone; the one who reads is the first."""
        self._reads: _Reader[W] | None = None

    @property
    def waiting(self) -> int:
        """Readers who are not served yet."""
        return len(self._readers)

    async def read(self, wish: W) -> list[Any]:
        """The rows for `wish`.

        Raises:
            StoreUnavailable: Postgres does not answer, or more wait than may; all who wait hear the former together.
        """
        if len(self._readers) >= WAITING_MAX:
            raise StoreUnavailable
        reader = _Reader(wish)
        self._readers[reader] = None
        try:
            if self._reads is None:
                self._reads = reader
            else:
                await reader.woken.wait()
            if self._reads is reader and not reader.is_served:
                await self._read_for_all(reader)
        finally:
            self._readers.pop(reader, None)
            if self._reads is reader:
                self._pass_on()
        if reader.rows is None:
            raise StoreUnavailable from reader.failure
        return reader.rows

    async def _read_for_all(self, first: _Reader[W]) -> None:
        readers = self._take()
        try:
            try:
                rows = await self._look_up(readers)
            except (
                psycopg.Error
            ):  # somebody's wish is wrong: it must not be everybody's fault, so all who come to read read alone
                if len(readers) == 1:
                    raise
                readers = [first]
                rows = await self._look_up(readers)
        except StoreUnavailable as away:  # for all who wait: each asking by itself would queue behind a dead server
            for reader in list(self._readers):
                reader.failure = away
                self._settle(reader)
            return
        answers: list[list[Any]] = [[] for _ in readers]
        for row in rows:
            answers[row.place - 1].append(row)
        for reader, answer in zip(readers, answers, strict=True):
            reader.rows = answer
            self._settle(reader)

    async def _look_up(self, readers: Sequence[_Reader[W]]) -> Sequence[Any]:
        self.statements += 1
        return await self._ask([reader.wish for reader in readers])

    def _take(self) -> list[_Reader[W]]:
        """As many as go into one statement, the one who reads among them. They stay until they are served: it may be cancelled."""
        taken: list[_Reader[W]] = []
        rows = 0
        for reader in self._readers:
            rows += reader.wish.limit
            if taken and rows > self._rows_max:
                break
            taken.append(reader)
        return taken

    def _settle(self, reader: _Reader[W]) -> None:
        self._readers.pop(reader, None)
        reader.woken.set()

    def _pass_on(self) -> None:
        """The first of those who still wait is the next to read."""
        self._reads = next(iter(self._readers), None)
        if self._reads is not None:
            self._reads.woken.set()
