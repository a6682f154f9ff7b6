"""Tries to sign in, counted in Postgres: five in a quarter of an hour for each account, and for each address, on all nodes together.

A try is taken before the password is looked at and given back when it was right, so that many at once find no gap and nobody is locked
out by signing in often. A try that was refused is not counted: waiting ends. Names that nobody has are counted like others; so are
hashes all that is stored. Read next: `halo/net/status/sign_in.py`.
"""

import hashlib
from collections.abc import Sequence
from typing import Final
from uuid import uuid4

from halo.clock import Clock, Moment
from halo.errors import RateLimited
from halo.store.connection import Values
from halo.store.postgres import Postgres, Transaction
from halo.store.queries import load_queries

SQL: Final = load_queries("sign_in_tries")

TRIES: Final = 5
WINDOW_MS: Final = 15 * 60_000
LOCK_CLASS: Final = 0x5347
"""Of the advisory locks that put tries in a line; sessions' nodes use another class."""


class SignInTries:
    """The rows of tries. Every method raises `StoreUnavailable` when Postgres does not answer."""

    def __init__(self, db: Postgres, clock: Clock) -> None:
        self._db = db
        self._clock = clock

    async def take(self, name: str, address: str) -> Sequence[int]:
        """One more try, to be given back when it was right.

        Raises:
            RateLimited: with the time until there is room for another one, of the account and of the address.
        """
        subjects = sorted(
            [_subject("account", name), _subject("address", address)]
        )  # one order, so no two wait for each other
        now = self._clock.now()

        async def write(tx: Transaction) -> list[int]:
            for subject in subjects:
                lock_key = int.from_bytes(subject[:4], "big", signed=True)
                await tx.fetch_one(SQL["lock"], {"lock_class": LOCK_CLASS, "lock_key": lock_key})
            wait_ms = max([await self._wait_ms(tx, subject, now) for subject in subjects])
            if wait_ms > 0:
                raise RateLimited("Too many tries to sign in.", retry_after_ms=wait_ms)
            rows = [await tx.fetch_one(SQL["add"], {"subject": subject, "at": now}) for subject in subjects]
            return [row.try_id for row in rows if row is not None]

        return await self._db.transact(write, str(uuid4()))

    async def give_back(self, taken: Sequence[int]) -> None:
        """The password was right."""
        await self._db.execute(SQL["give_back"], {"try_ids": list(taken)})

    async def delete_old(self, before: Moment) -> int:
        """Forget those from before `before`, which is longer ago than the window: how many."""
        return await self._db.execute(SQL["delete_old"], {"before": before})

    async def _wait_ms(self, tx: Transaction, subject: bytes, now: Moment) -> int:
        values: Values = {"subject": subject, "since": now - WINDOW_MS, "most": TRIES}
        row = await tx.fetch_one(SQL["count"], values)
        assert row is not None  # an aggregate has one row
        return 0 if row.tries < TRIES else int(row.oldest) + WINDOW_MS - now


def _subject(kind: str, text: str) -> bytes:
    return hashlib.sha256(f"{kind} {text}".encode(errors="surrogatepass")).digest()
