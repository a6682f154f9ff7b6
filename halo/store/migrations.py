"""The schema's history: files `NNNN_name.sql`, applied in order, each in its own transaction, each once.

Several nodes may start at once: an advisory lock lets one of them work while the others wait and then find nothing to do. A
migration is recorded in the transaction that applies it, with its checksum. This must never guess: a file that was changed after
it was applied, or a database that knows a migration that we do not, is refused. Read next: `halo/store/sql/0001_foundation.sql`.
"""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from importlib.resources.abc import Traversable
from typing import Final

import psycopg

from halo.store.connection import TrioConnection
from halo.store.database_url import database_of, unreachable
from halo.store.dial import LOCK_MS, Limits, dial
from halo.store.faults import is_away
from halo.store.queries import parse_query

_FILE: Final = re.compile(r"(?P<name>\d{4}_[a-z0-9_]+)\.sql")
_LOCK_KEY: Final = (
    0x68616C6F_6D696772  # "halomigr"; advisory locks are per database, and this is the only one of its kind
)

_MIGRATING: Final[Limits] = {
    "statement_timeout": 0,  # an index over all messages takes as long as it takes
    "lock_timeout": LOCK_MS,  # but whoever waits for a table makes everybody behind him wait
    "idle_in_transaction_session_timeout": 60_000,
    "transaction_timeout": 0,
}
_TURN_MS: Final = 120_000
"""How long to wait for another node's migrations; then the start fails instead of hanging."""

_LOCK: Final = parse_query("lock", "SELECT pg_advisory_lock(%(key)s)")
_RECORD: Final = parse_query("record", "INSERT INTO schema_migrations (name, checksum) VALUES (%(name)s, %(checksum)s)")
_TABLE: Final = b"""CREATE TABLE IF NOT EXISTS schema_migrations (
    name text PRIMARY KEY, checksum text NOT NULL, applied_at timestamptz NOT NULL DEFAULT now())"""


class SchemaMismatch(Exception):
    """The database's schema is not one that this version of halo can continue."""


@dataclass(frozen=True, slots=True)
class Migration:
    """One file."""

    name: str
    script: bytes

    @property
    def checksum(self) -> str:
        """SHA-256 of the file, in hexadecimal."""
        return hashlib.sha256(self.script).hexdigest()


async def migrate(database_url: str, directory: Traversable | None = None) -> list[str]:
    """Bring the database up to date; returns the names of what was applied now. `directory` replaces the package's own files.

    Raises:
        SchemaMismatch: an applied file was changed, or is unknown here, or a new file stands before an applied one.
        StoreUnavailable: Postgres is away, or another node's migration takes too long; what was applied stays applied.
    """
    migrations = list_migrations(directory or resources.files("halo.store") / "sql")
    try:
        connection = await dial(database_url, _MIGRATING)
        try:
            await _take_turn(connection)
            return [await _apply(connection, migration) for migration in await _outstanding(connection, migrations)]
        finally:
            connection.close_now()  # which frees the lock
    except psycopg.Error as error:
        if is_away(error):
            raise unreachable(database_url, error) from error
        if isinstance(error, psycopg.errors.InsufficientPrivilege):
            raise SchemaMismatch(
                f"The tables of {database_of(database_url)} cannot be made or changed by this user "
                f"({error.diag.message_primary}); make it the owner of the database."
            ) from error
        raise


def list_migrations(directory: Traversable) -> list[Migration]:
    """All files, in order. Raises SchemaMismatch when a numbered file is named otherwise or two have the same number."""
    migrations: list[Migration] = []
    numbered = [entry for entry in directory.iterdir() if entry.name[0].isdigit()]  # other SQL may lie beside them
    for file in sorted(numbered, key=lambda entry: entry.name):
        named = _FILE.fullmatch(file.name)
        if named is None:
            raise SchemaMismatch(f"{file.name} is not named NNNN_name.sql")
        if migrations and migrations[-1].name[:4] == named["name"][:4]:
            raise SchemaMismatch(f"{file.name} and {migrations[-1].name}.sql have the same number")
        migrations.append(Migration(named["name"], file.read_bytes()))
    return migrations


async def _take_turn(connection: TrioConnection) -> None:
    await connection.control(b"SET lock_timeout = %d" % _TURN_MS)
    await connection.run(_LOCK, {"key": _LOCK_KEY})
    await connection.control(b"SET lock_timeout = %d" % LOCK_MS)


async def _outstanding(connection: TrioConnection, migrations: Sequence[Migration]) -> Sequence[Migration]:
    await connection.control(_TABLE)
    rows = (await connection.run("SELECT name, checksum FROM schema_migrations ORDER BY name")).rows
    known = {migration.name: migration for migration in migrations}
    for row in rows:
        if row.name not in known:
            raise SchemaMismatch(f"the database has the migration {row.name}, which this version of halo does not know")
        if row.checksum != known[row.name].checksum:
            raise SchemaMismatch(f"the migration {row.name} was changed after it was applied")
    applied = {row.name for row in rows}
    outstanding = [migration for migration in migrations if migration.name not in applied]
    if rows and outstanding and outstanding[0].name < rows[-1].name:
        raise SchemaMismatch(f"the migration {outstanding[0].name} is new, but {rows[-1].name} was applied already")
    return outstanding


async def _apply(connection: TrioConnection, migration: Migration) -> str:
    await connection.control(b"BEGIN")
    await connection.control(migration.script)
    await connection.run(_RECORD, {"name": migration.name, "checksum": migration.checksum})
    if await connection.control(b"COMMIT") != b"COMMIT":
        raise SchemaMismatch(f"the migration {migration.name} ends its own transaction")
    return migration.name
