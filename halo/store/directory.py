"""The data directory of embedded stores: one halo at a time, closed to everybody else.

A `DataDirectory` in hand is the proof that this process holds its lock; what starts servers in it asks for that proof. The lock
belongs to the process and not to its children, so a `kill -9` frees it although orphaned servers live on. A directory that
existed before keeps its mode: an operator may have named `/tmp`. Read next: `halo/store/embedded.py`.
"""

import fcntl
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from halo.store.account import Account, account_for

_LONGEST_SOCKET_BYTES: Final = 107
"""`sun_path` holds 108 bytes on Linux, the last of them NUL."""

_LONGEST_SOCKET_NAME: Final = ".s.PGSQL.5432"


class DataDirectoryInUse(Exception):
    """Another halo holds this data directory; the message is one sentence for the operator."""


class DataDirectoryUnusable(Exception):
    """halo cannot make or write this data directory; the message is one sentence for the operator."""


@dataclass(frozen=True, slots=True)
class DataDirectory:
    """A data directory that this process has locked."""

    path: Path
    account: Account
    """As whom the servers in it run."""
    sockets: Path
    """Where they listen; of mode 0700."""
    mark: str
    """In the command line of each of its servers, so that orphans are known as ours."""

    @property
    def database(self) -> Path:
        return self.path / "postgres"

    def log_of(self, server: str) -> Path:
        return self.path / f"{server}.log"


@contextmanager
def open_data_directory(path: Path) -> Iterator[DataDirectory]:
    """Make the directory where it is missing, and hold its lock.

    Raises `DataDirectoryInUse`, `DataDirectoryUnusable`, `halo.store.account.PathClosed`.
    """
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = (path / "lock").open("a+", encoding="ascii")
    except OSError as fault:
        raise DataDirectoryUnusable(f"The data directory {path} cannot be used: {fault.strerror}.") from fault
    with lock:
        _take(lock.fileno(), path)
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        account = account_for(path / "postgres")
        account.let_through(path / "postgres")
        with _open_sockets(path, account) as sockets:
            yield DataDirectory(path, account, sockets, _mark_of(path))


def _take(descriptor: int, path: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = (path / "lock").read_text(encoding="ascii") or "unknown"
        raise DataDirectoryInUse(f"Another halo (process {holder}) is using the data directory {path}.") from None


def _mark_of(path: Path) -> str:
    """The same for every start on this very directory, another for its copy."""
    inode = path.stat()
    identity = f"{path.resolve()} {inode.st_dev} {inode.st_ino}"
    return "halo-" + hashlib.sha256(identity.encode(errors="surrogateescape")).hexdigest()[:16]


@contextmanager
def _open_sockets(path: Path, account: Account) -> Iterator[Path]:
    """`<data>/run`, or a short directory of its own where that path would not fit into a socket's address.

    The short one is found again, and removed, through a link at `<data>/run`: a killed halo leaves nothing behind for long. It
    gets a random name, since a name that others can foretell in a shared directory can be taken by them first.
    """
    run = path / "run"
    if run.is_symlink():
        shutil.rmtree(run.readlink(), ignore_errors=True)  # gone already when the machine was rebooted meanwhile
        run.unlink()
    if _fits(run):
        run.mkdir(mode=0o700, exist_ok=True)
        run.chmod(0o700)
        account.own(run)
        yield run
        return
    short = Path(tempfile.mkdtemp(prefix="halo-"))
    account.own(short)
    account.let_through(short)
    run.symlink_to(short)
    try:
        yield short
    finally:
        run.unlink()
        shutil.rmtree(short)


def _fits(run: Path) -> bool:
    """A comma would do for Postgres, but libpq takes it for the end of one host and the begin of another."""
    return len(os.fsencode(run / _LONGEST_SOCKET_NAME)) <= _LONGEST_SOCKET_BYTES and "," not in str(run)
