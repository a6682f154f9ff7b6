"""Operators' accounts in Postgres: name, role, the hash of a password, and the one-time link with which it is set.

Links are kept as SHA-256 only, count once and for an hour, and a new one replaces the one before. Whatever takes a password away or
replaces it ends every session of its owner in the same transaction, and is written down in `operator_actions`. Whatever touches both
locks the operator's row before link and sessions. It must never see a password in the clear. Read next: `halo/store/operator_sessions.py`, `halo/net/status/passwords.py`.
"""

import hashlib
import secrets
from typing import Any, Final
from uuid import uuid4

import msgspec

from halo.clock import Clock, Moment
from halo.errors import NotFound
from halo.operator_account import LinkSpent, OperatorAccount, OperatorExists, Role
from halo.store.postgres import Postgres, Transaction
from halo.store.queries import load_queries
from halo.store.values import Value
from halo.trace import current_trace_id

SQL: Final = load_queries("operator_accounts")

LINK_MS: Final = 3_600_000
"""An hour: long enough to find the terminal that it was printed on, short enough for one that was left in a log."""
LINK_BYTES: Final = 32
"""256 bits: never guessed, and a plain hash of it cannot be searched."""


class OperatorAccounts:
    """The rows of operators. Every method raises `StoreUnavailable` when Postgres does not answer."""

    def __init__(self, db: Postgres, clock: Clock) -> None:
        self._db = db
        self._clock = clock

    async def find_password(self, name: str) -> str | None:
        """The stored hash; None for an unknown name and for one without a password."""
        row = await self._db.fetch_one(SQL["find_password"], {"name": name})
        return None if row is None else row.password_hash

    async def list(self) -> list[OperatorAccount]:
        """Everybody, by name."""
        return [_account(row) for row in await self._db.fetch_all(SQL["list"])]

    async def add(self, name: str, role: Role, by: str) -> None:
        """Somebody new, who cannot sign in before a link was used. Raises `OperatorExists`."""
        values = {"name": name, "role": role.value, "password_hash": None, "at": self._clock.now()}

        async def write(tx: Transaction) -> None:
            if not await tx.execute(SQL["add"], values):
                raise OperatorExists
            await self._audit(tx, by, "add_operator", name, role=role.value)

        await self._db.transact(write, str(uuid4()))

    async def add_first(self, name: str, password_hash: str | None, by: str) -> bool:
        """The first operator, unless there is one: two nodes that start at once add one and not two."""
        values = {
            "name": name,
            "role": Role.OPERATOR.value,
            "password_hash": password_hash,
            "at": self._clock.now(),
        }

        async def write(tx: Transaction) -> bool:
            await tx.execute(SQL["lock"])
            added = await tx.execute(SQL["add_first"], values) == 1
            if added:
                await self._audit(tx, by, "add_operator", name, role=Role.OPERATOR.value)
            return added

        return await self._db.transact(write, str(uuid4()))

    async def has_anybody_signed_in(self) -> bool:
        """Ever."""
        row = await self._db.fetch_one(SQL["has_signed_in"])
        return row is not None and bool(row.anybody)

    async def remove(self, name: str, by: str) -> None:
        """Out at once: sessions and link go with the account; what was done under the name stays written down. Raises `NotFound`."""

        async def write(tx: Transaction) -> None:
            if not await tx.execute(SQL["remove"], {"name": name}):
                raise NotFound("There is no such operator.")
            await self._audit(tx, by, "remove_operator", name)

        await self._db.transact(write, str(uuid4()))

    async def invite(self, name: str, by: str) -> str:
        """A new one-time link's token, for an hour. Raises `NotFound`."""
        return await self._invite(name, by, is_reset=False)

    async def reset(self, name: str, by: str) -> str:
        """The same, and the old password and every session are over at once. Raises `NotFound`."""
        return await self._invite(name, by, is_reset=True)

    async def find_invited(self, link_token: str) -> str | None:
        """Whose link this is, as long as it counts; looking uses nothing up."""
        row = await self._db.fetch_one(SQL["find_invited"], {"link_hash": _hash(link_token), "at": self._clock.now()})
        return None if row is None else row.name

    async def accept(self, link_token: str, password_hash: str) -> str:
        """Use a link up and set the password: whose. Of two at once one is first, and the other raises `LinkSpent`."""
        values: dict[str, Value] = {"link_hash": _hash(link_token), "at": self._clock.now()}

        async def write(tx: Transaction) -> str:
            await tx.fetch_one(SQL["lock_invited"], values)
            row = await tx.fetch_one(SQL["spend_link"], values)
            if row is None:
                raise LinkSpent
            await self._replace_password(tx, row.name, password_hash)
            await self._audit(tx, row.name, "set_password", row.name)
            return str(row.name)

        return await self._db.transact(write, str(uuid4()))

    async def change_password(self, name: str, password_hash: str) -> None:
        """By its owner, who showed the old one; every session and a link that is open are over. Raises `NotFound`."""

        async def write(tx: Transaction) -> None:
            await self._replace_password(tx, name, password_hash)
            await tx.execute(SQL["revoke_link"], {"name": name})
            await self._audit(tx, name, "change_password", name)

        await self._db.transact(write, str(uuid4()))

    async def _invite(self, name: str, by: str, *, is_reset: bool) -> str:
        link_token, now = secrets.token_urlsafe(LINK_BYTES), self._clock.now()
        link: dict[str, Value] = {"name": name, "link_hash": _hash(link_token), "expires_at": now + LINK_MS}

        async def write(tx: Transaction) -> None:
            if await tx.fetch_one(SQL["lock_one"], {"name": name}) is None:
                raise NotFound("There is no such operator.")
            if is_reset:
                await tx.execute(SQL["clear_password"], {"name": name})
                await tx.execute(SQL["revoke_sessions"], {"name": name})
            await tx.execute(SQL["invite"], link)
            await self._audit(tx, by, "reset_operator" if is_reset else "invite_operator", name)

        await self._db.transact(write, str(uuid4()))
        return link_token

    async def _replace_password(self, tx: Transaction, name: str, password_hash: str) -> None:
        if not await tx.execute(SQL["set_password"], {"name": name, "password_hash": password_hash}):
            raise NotFound("There is no such operator.")
        await tx.execute(SQL["revoke_sessions"], {"name": name})

    async def _audit(self, tx: Transaction, by: str, action: str, name: str, **details: str) -> None:
        values: dict[str, Value] = {
            "operator": by,
            "action": action,
            "name": name,
            "details": msgspec.json.encode(details).decode(),
            "trace_id": current_trace_id(),
        }
        await tx.execute(SQL["audit"], values)


def _account(row: Any) -> OperatorAccount:
    signed_in_at: Moment | None = row.signed_in_at
    return OperatorAccount(
        name=row.name,
        role=Role(row.role),
        has_password=row.has_password,
        created_at=row.created_at,
        signed_in_at=signed_in_at,
    )


def _hash(link_token: str) -> bytes:
    # A client may send any text: a lone surrogate is hashed like the rest and found nowhere.
    return hashlib.sha256(link_token.encode(errors="surrogatepass")).digest()
