"""Families of tokens: who signed in where, which refresh token is the one that counts, and which families were revoked.

A refresh token is opaque, counts once, and only its SHA-256 is stored, so a stolen database opens no door. It must never let a
deactivated mitra in, never forget that a token was rotated away (seeing it again means that it was stolen: the whole family goes),
and never hold a token longer than it takes to answer. Read next: `halo/net/tokens.py`, the access tokens of a family.
"""

import hashlib
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final
from uuid import uuid4

from halo.clock import Clock, Moment
from halo.errors import InvalidState, MitraDeactivated, Refusal, TokenReused, Unauthenticated
from halo.push import DEFAULT_LOCALE
from halo.session import Party
from halo.store.postgres import Postgres, Transaction
from halo.store.queries import load_queries
from halo.store.values import Value

SQL: Final = load_queries("auth_sessions")

REVOKED_CHANNEL: Final = "halo_auth_revoked"
"""Each revocation is NOTIFYed here as `<auth_session_id> <because>`, so that every node closes its sockets within a second."""
REFRESH_LIFETIME_MS: Final = 30 * 24 * 3600 * 1000
"""A phone that was not opened for a month signs in again; each refresh starts the month anew."""
REFRESH_TOKEN_BYTES: Final = 32
"""256 bits: never guessed, and a plain hash of it cannot be searched."""


class RevokedBecause(StrEnum):
    """Why a family ended."""

    SIGNED_OUT = "signed_out"
    REUSED = "token_reused"
    DEACTIVATED = "deactivated"
    OPERATOR = "operator"

    @property
    def refusal(self) -> type[Refusal]:
        """With what its access tokens are answered until they have expired (and its sockets closed: 4403 or 4401)."""
        return MitraDeactivated if self is RevokedBecause.DEACTIVATED else Unauthenticated


class RefreshTokenReused(TokenReused):
    """This refresh token was used before; every token of its family is revoked."""

    def __init__(self, auth_session_id: str) -> None:
        super().__init__()
        self.auth_session_id = auth_session_id
        """The family that is revoked now, and whose sockets have to close."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """A family with its one refresh token that counts; the only place where the token is in the clear."""

    auth_session_id: str
    user_type: Party
    user_id: str
    refresh_token: str = field(repr=False)
    expires_at: Moment


@dataclass(frozen=True, slots=True, kw_only=True)
class Revoked:
    """A family that ended before its time."""

    auth_session_id: str
    user_id: str
    revoked_at: Moment
    because: RevokedBecause


@dataclass(frozen=True, slots=True)
class _Refused:
    auth_session_id: str
    is_deactivated: bool
    is_reused: bool


class AuthSessions:
    """The rows of auth sessions, and the rows of the people who open them."""

    def __init__(self, db: Postgres, clock: Clock) -> None:
        self._db = db
        self._clock = clock

    async def open(
        self,
        user_type: Party,
        user_id: str | None = None,
        *,
        display_name: str | None = None,
        push_token: str | None = None,
        locale: str = DEFAULT_LOCALE,
        max_sessions: int | None = None,
        auth_session_id: str | None = None,
    ) -> Opened:
        """Sign somebody in; a user who is new is created, a `display_name` or a mitra's `max_sessions` that is given is kept.

        `auth_session_id` may be derived from an idempotency key: opened again it is the same family with a new refresh token, and
        the one whose answer was lost counts no more. Tokens are not stored, so the same answer cannot be given twice.

        Raises:
            InvalidState: this id belongs to a user of the other type, or the family of this id is not this user's or was revoked.
            MitraDeactivated, StoreUnavailable
        """
        at = self._clock.now()
        opened = Opened(
            auth_session_id=auth_session_id or str(uuid4()),
            user_type=user_type,
            user_id=user_id or str(uuid4()),
            refresh_token=secrets.token_urlsafe(REFRESH_TOKEN_BYTES),
            expires_at=at + REFRESH_LIFETIME_MS,
        )
        person: dict[str, Value] = {
            "user_id": opened.user_id,
            "user_type": user_type.value,
            "display_name": display_name,
            "at": at,
        }
        family: dict[str, Value] = {
            "auth_session_id": opened.auth_session_id,
            "user_type": user_type.value,
            "user_id": opened.user_id,
            "refresh_token_hash": _hash(opened.refresh_token),
            "push_token": push_token,
            "locale": locale,
            "at": at,
            "expires_at": opened.expires_at,
        }

        async def write(tx: Transaction) -> None:
            await tx.fetch_one(SQL["lock_user_id"], person)
            if (other := await tx.fetch_one(SQL["find_other_type"], person)) is not None:
                raise InvalidState(f"This user_id belongs to a {other.user_type}.")
            match user_type:
                case Party.CUSTOMER:
                    await tx.execute(SQL["save_customer"], person)
                case Party.MITRA:
                    mitra = await tx.fetch_one(SQL["save_mitra"], person | {"max_sessions": max_sessions})
                    if mitra is None or not mitra.is_active:
                        raise MitraDeactivated
            if push_token is not None:
                await tx.execute(SQL["release_push_token"], family)
            if await tx.fetch_one(SQL["open"], family) is None:
                raise InvalidState("This auth session is not this user's, or was revoked.")

        await self._db.transact(write, str(uuid4()))
        return opened

    async def rotate(self, refresh_token: str) -> Opened:
        """Trade a refresh token for the next one; the family lives for another 30 days.

        Raises:
            Unauthenticated: never one of ours, expired, or its family was revoked.
            RefreshTokenReused: it was traded before; its family is revoked now, whoever holds it.
            MitraDeactivated, StoreUnavailable
        """
        at = self._clock.now()
        old_hash = _hash(refresh_token)
        successor = secrets.token_urlsafe(REFRESH_TOKEN_BYTES)
        values: dict[str, Value] = {
            "old_hash": old_hash,
            "new_hash": _hash(successor),
            "at": at,
            "expires_at": at + REFRESH_LIFETIME_MS,
        }

        async def write(tx: Transaction) -> Opened | _Refused | None:
            row = await tx.fetch_one(SQL["rotate"], values)
            if row is not None:
                return Opened(
                    auth_session_id=row.auth_session_id,
                    user_type=Party(row.user_type),
                    user_id=row.user_id,
                    refresh_token=successor,
                    expires_at=at + REFRESH_LIFETIME_MS,
                )
            refused = await tx.fetch_one(SQL["find_refused"], values)
            if refused is None:
                return None
            if refused.is_reused:  # kept, so told by a value: an exception would take the revocation back
                await _revoke(tx, refused.auth_session_id, RevokedBecause.REUSED, at)
            return _Refused(refused.auth_session_id, refused.is_deactivated, refused.is_reused)

        match await self._db.transact(write, str(uuid4())):
            case Opened() as rotated:
                return rotated
            case _Refused(is_deactivated=True):
                raise MitraDeactivated
            case _Refused(auth_session_id=auth_session_id, is_reused=True):
                raise RefreshTokenReused(auth_session_id)
            case _:
                raise Unauthenticated

    async def revoke(self, auth_session_id: str, because: RevokedBecause) -> bool:
        """End a family; False when it had ended before. Raises StoreUnavailable."""
        at = self._clock.now()

        async def write(tx: Transaction) -> bool:
            return await _revoke(tx, auth_session_id, because, at)

        return await self._db.transact(write, str(uuid4()))

    async def revoke_user(self, user_id: str, because: RevokedBecause) -> list[str]:
        """End every family of a user: the ids of those that lived until now. Raises StoreUnavailable."""
        at = self._clock.now()

        async def write(tx: Transaction) -> list[str]:
            return await revoke_families(tx, user_id, because, at)

        return await self._db.transact(write, str(uuid4()))

    async def is_alive(self, auth_session_id: str) -> bool:
        """Neither revoked nor expired. Raises StoreUnavailable."""
        alive = await self._db.fetch_one(SQL["is_alive"], {"auth_session_id": auth_session_id, "at": self._clock.now()})
        return alive is not None

    async def list_recently_revoked(self, since: Moment) -> Sequence[Revoked]:
        """What a node that starts has missed: families revoked at `since` or later, the oldest first. Raises StoreUnavailable."""
        rows = await self._db.fetch_all(SQL["list_recently_revoked"], {"since": since})
        return [
            Revoked(
                auth_session_id=row.auth_session_id,
                user_id=row.user_id,
                revoked_at=row.revoked_at,
                because=RevokedBecause(row.revoked_because),
            )
            for row in rows
        ]

    async def delete_ended(self, before: Moment) -> int:
        """Forget families that expired or were revoked before `before`, with their retired tokens: how many."""

        async def write(tx: Transaction) -> int:
            return await tx.execute(SQL["delete_ended"], {"before": before})

        return await self._db.transact(write, str(uuid4()))


async def revoke_families(tx: Transaction, user_id: str, because: RevokedBecause, at: Moment) -> list[str]:
    """End every family of a user in the caller's transaction: the ids of those that lived until now."""
    rows = await tx.fetch_all(SQL["revoke_user"], {"user_id": user_id, "because": because.value, "at": at})
    return [row.auth_session_id for row in rows]


async def _revoke(tx: Transaction, auth_session_id: str, because: RevokedBecause, at: Moment) -> bool:
    values: dict[str, Value] = {"auth_session_id": auth_session_id, "because": because.value, "at": at}
    return await tx.fetch_one(SQL["revoke"], values) is not None


def _hash(refresh_token: str) -> bytes:
    # A client may send any text: a lone surrogate is hashed like the rest and found nowhere.
    return hashlib.sha256(refresh_token.encode(errors="surrogatepass")).digest()
