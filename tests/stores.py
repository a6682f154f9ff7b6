"""Real stores for tests: one Postgres and one Valkey per worker, a fresh database per test, cloned from a migrated template.

Load it from `tests/conftest.py` by `pytest_plugins = ["tests.stores"]`. The servers are started by halo's own
`halo/store/embedded.py`, in a thread, so that tests of every kind can share them: Trio's tests each have an event loop of their
own, and plain ones have none.
"""

import os
import queue
import shutil
import tempfile
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import pytest
import trio
import trio_asyncio  # noqa: F401  # before psycopg, which otherwise binds asyncio's loop before it is patched (spec 6, traps)

# isort: split
import psycopg
import redis
from psycopg import sql

from halo.store.directory import open_data_directory
from halo.store.embedded import open_embedded_postgres, open_embedded_valkey
from halo.store.migrations import migrate

TEMPLATE: Final = "halo_template"
_DURABLE: Final = os.environ.get("HALO_TEST_FSYNC") == "1"
"""Tests throw their databases away; what is to be proved of durability, `tests/store/test_embedded.py` proves with fsync on."""

_PATIENCE_SECONDS: Final = 60.0
_MEMORY: Final = Path("/dev/shm")
_ROOM_BYTES: Final = 4 * 2**30
"""A worker's stores take some 200 MB, and a container's default of 64 MB would end the first of them. Where it is smaller, they are on disk."""


def roomy_directory() -> Path:
    """Where servers that are thrown away with what they hold are put: a database is made in memory in a third of the time, and on a busy disk in a tenth."""
    is_there = not _DURABLE and _MEMORY.is_dir() and os.access(_MEMORY, os.W_OK | os.X_OK)
    is_roomy = is_there and shutil.disk_usage(_MEMORY).free > _ROOM_BYTES
    return _MEMORY if is_roomy else Path(tempfile.gettempdir())


@dataclass(frozen=True, slots=True)
class Stores:
    """Where the servers of this worker are."""

    postgres_url: str
    valkey_url: str


@pytest.fixture(scope="session")
def stores() -> Iterator[Stores]:
    """Both servers, in a directory with a short name: a socket's path must fit into 107 bytes."""
    home = Path(tempfile.mkdtemp(prefix="halo-tests-", dir=roomy_directory()))
    try:
        with _hold_in_thread(lambda: _open_stores(home)) as opened:
            yield opened
    finally:
        shutil.rmtree(home)


@pytest.fixture(scope="session")
def postgres_url(stores: Stores) -> str:
    """The maintenance database of a running Postgres; nothing of halo is in it."""
    return stores.postgres_url


@pytest.fixture(scope="session")
def template(postgres_url: str) -> str:
    """The name of a database with every migration applied; nobody may stay connected to it."""
    make_template(postgres_url)
    return TEMPLATE


@pytest.fixture(scope="session")
def _numbers() -> Iterator[int]:
    return count(1)


@pytest.fixture
def empty_database_url(postgres_url: str, _numbers: Iterator[int]) -> Iterator[str]:
    """A database of this test alone with nothing in it, for tests of the migrations themselves."""
    with open_database(postgres_url, f"test_{next(_numbers)}", "template0") as url:
        yield url


@pytest.fixture
def database_url(postgres_url: str, template: str, _numbers: Iterator[int]) -> Iterator[str]:
    """A migrated database of this test alone."""
    with open_database(postgres_url, f"test_{next(_numbers)}", template) as url:
        yield url


@pytest.fixture
def valkey_url(stores: Stores) -> str:
    """An empty Valkey. Emptied before and not after: a failed test leaves its keys to be looked at."""
    with redis.Redis.from_url(stores.valkey_url) as client:
        client.flushall()
    return stores.valkey_url


def make_template(postgres_url: str) -> None:
    """Outside of Trio: it runs the migrations itself."""
    _execute(postgres_url, sql.SQL("CREATE DATABASE {}").format(sql.Identifier(TEMPLATE)))
    trio.run(migrate, of_database(postgres_url, TEMPLATE))


def of_database(url: str, name: str) -> str:
    """The same server, another database."""
    return urlsplit(url)._replace(path=f"/{name}").geturl()


@contextmanager
def open_database(postgres_url: str, name: str, template: str) -> Iterator[str]:
    """A database for the time of the block."""
    names = {"name": sql.Identifier(name), "template": sql.Identifier(template)}
    # A copy of files costs half of what the default costs, which writes every page to the log too: nothing is synced here.
    _execute(postgres_url, sql.SQL("CREATE DATABASE {name} TEMPLATE {template} STRATEGY FILE_COPY").format(**names))
    try:
        yield of_database(postgres_url, name)
    finally:
        _execute(postgres_url, sql.SQL("DROP DATABASE {name} WITH (FORCE)").format(**names))


def _execute(url: str, statement: sql.Composed) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(statement)


@asynccontextmanager
async def _open_stores(home: Path) -> AsyncIterator[Stores]:
    with open_data_directory(home / "data") as directory:
        async with open_embedded_postgres(directory, durable=_DURABLE) as postgres:
            async with open_embedded_valkey(directory) as valkey:
                yield Stores(postgres, valkey)


@contextmanager
def _hold_in_thread(make: Callable[[], AbstractAsyncContextManager[Stores]]) -> Iterator[Stores]:
    """Hold an async context manager open in a thread with an event loop of its own."""
    answers: queue.Queue[tuple[Stores, Callable[[], None]] | BaseException] = queue.Queue()

    async def hold() -> None:
        over = trio.Event()
        token = trio.lowlevel.current_trio_token()
        async with make() as opened:
            answers.put((opened, lambda: token.run_sync_soon(over.set)))
            await over.wait()

    def run() -> None:
        try:
            trio.run(hold)
        except BaseException as fault:  # noqa: BLE001  # handed to the fixture's caller, in another thread
            answers.put(fault)

    thread = threading.Thread(target=run, name="stores of the tests", daemon=True)
    thread.start()
    answer = answers.get(timeout=_PATIENCE_SECONDS)
    if isinstance(answer, BaseException):
        raise answer
    opened, close = answer
    try:
        yield opened
    finally:
        close()
        thread.join(_PATIENCE_SECONDS)
        if not answers.empty():
            fault = answers.get()
            assert isinstance(fault, BaseException)
            raise fault
