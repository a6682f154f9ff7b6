"""Errands: the short commands that need the stores for a moment and no server.

With embedded stores an errand joins the ones of a halo that is running on the same data directory, and otherwise starts them for
itself. Must never write while another node owns what it writes. Read next: `halo/cli.py`.
"""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Final, TypeVar
from urllib.parse import quote

from halo.clock import SystemClock
from halo.errors import StoreUnavailable
from halo.net.status.first_operator import link_of
from halo.net.tokens import Tokens
from halo.operator_account import OperatorAccount, Role
from halo.session import Party
from halo.settings import Settings
from halo.store.auth_sessions import AuthSessions
from halo.store.database_url import unreachable
from halo.store.directory import DataDirectoryInUse
from halo.store.embedded import open_stores
from halo.store.migrations import migrate
from halo.store.operator_accounts import OperatorAccounts
from halo.store.postgres import Postgres, open_postgres

T = TypeVar("T")

COMMAND_LINE: Final = "command line"
"""Who is written down for what is done to operators here: whoever may run it holds the database."""


@asynccontextmanager
async def open_database(settings: Settings) -> AsyncIterator[str]:
    """The URL of the Postgres that the settings mean, running or started for the time of the block."""
    if settings.database_url is not None:
        yield settings.database_url
        return
    try:
        async with open_stores(settings.data_dir, None, "unix:///not-needed") as urls:
            yield urls.database
    except DataDirectoryInUse:
        sockets = (settings.data_dir / "run").resolve()
        yield f"postgresql://halo@/postgres?host={quote(str(sockets), safe='')}&port=5432"


async def migrate_schema(settings: Settings) -> list[str]:
    """The names of the migrations that were applied."""
    async with open_database(settings) as url:
        return await migrate(url)


async def with_database(settings: Settings, work: Callable[[Postgres], Awaitable[T]]) -> T:
    """Run `work` on the database of the settings."""
    async with open_database(settings) as url, open_postgres(url) as db:
        try:
            return await work(db)
        except StoreUnavailable as away:
            raise unreachable(url, away.__cause__) from away


async def open_token(
    settings: Settings, user_type: str, user_id: str | None, display_name: str | None
) -> dict[str, object]:
    """A new auth session, as `POST /api/auth/sessions` answers it."""
    clock = SystemClock()

    async def open_session(db: Postgres) -> dict[str, object]:
        opened = await AuthSessions(db, clock).open(Party(user_type), user_id, display_name=display_name)
        tokens = Tokens(settings.token_secret, settings.access_token_seconds, clock)
        return {
            "user_id": opened.user_id,
            "access_token": tokens.issue(opened.user_type, opened.user_id, opened.auth_session_id),
            "refresh_token": opened.refresh_token,
            "expires_in": settings.access_token_seconds,
        }

    return await with_database(settings, open_session)


async def add_operator(settings: Settings, name: str, role: Role) -> str:
    """A new operator; the link with which the password is set."""

    async def add(db: Postgres) -> str:
        accounts = OperatorAccounts(db, SystemClock())
        await accounts.add(name, role, COMMAND_LINE)
        return _link(settings, await accounts.invite(name, COMMAND_LINE))

    return await with_database(settings, add)


async def reset_operator(settings: Settings, name: str) -> str:
    """Take password and sessions away; the link with which a new password is set."""

    async def reset(db: Postgres) -> str:
        return _link(settings, await OperatorAccounts(db, SystemClock()).reset(name, COMMAND_LINE))

    return await with_database(settings, reset)


async def remove_operator(settings: Settings, name: str) -> None:
    """Out at once, on every node."""
    await with_database(settings, lambda db: OperatorAccounts(db, SystemClock()).remove(name, COMMAND_LINE))


async def list_operators(settings: Settings) -> list[OperatorAccount]:
    """Everybody, by name."""
    return await with_database(settings, lambda db: OperatorAccounts(db, SystemClock()).list())


def _link(settings: Settings, link_token: str) -> str:
    return link_of(f"http://{settings.admin_bind}", link_token)
