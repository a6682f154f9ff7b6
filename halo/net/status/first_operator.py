"""The first operator: how a halo that nobody has signed in to yet lets somebody in, without a password that others could know.

Given a password, the first operator has it. Otherwise each start makes a one-time link, until somebody has signed in; a password that
halo made up for its own data directory works too, but whoever started halo should not have to look for it. It must never put a
password on anybody who has one, nor into a log. Read next: `halo/store/operator_accounts.py`, `halo/net/status/sign_in.py`.
"""

from collections.abc import Sequence
from typing import Final, Protocol
from urllib.parse import urlencode

from halo.errors import NotFound
from halo.net.status.passwords import Passwords
from halo.net.status.sign_in import PASSWORD_PATH
from halo.operator_account import FIRST_OPERATOR, OperatorAccount
from halo.settings import Settings

BY: Final = "first start"
"""Who is written down for what the program does by itself."""


class FirstAccounts(Protocol):
    """The part of `halo.store.operator_accounts.OperatorAccounts` that is needed here."""

    async def list(self) -> Sequence[OperatorAccount]: ...

    async def add_first(self, name: str, password_hash: str | None, by: str) -> bool: ...

    async def has_anybody_signed_in(self) -> bool: ...

    async def invite(self, name: str, by: str) -> str: ...


async def admit_first(accounts: FirstAccounts, passwords: Passwords, settings: Settings, *, links: bool) -> str | None:
    """See to it that there is an operator; the token of a link for the first one, when `links` are wanted and one is needed.

    Raises:
        StoreUnavailable
    """
    given = settings.admin_password
    if not await accounts.list():
        stored = None if given is None else await passwords.hash(given)
        await accounts.add_first(FIRST_OPERATOR, stored, BY)
    if not links or (given is not None and not settings.admin_password_is_made_up):
        return None
    if await accounts.has_anybody_signed_in():
        return None
    try:
        return await accounts.invite(FIRST_OPERATOR, BY)
    except NotFound:  # somebody has removed the first one and added others
        return None


def link_of(admin_url: str, link_token: str) -> str:
    """Where the password is set; `admin_url` is the address of the admin listener."""
    return f"{admin_url}{PASSWORD_PATH}?{urlencode({'link': link_token})}"
