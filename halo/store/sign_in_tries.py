"""Tries to sign in, counted in Postgres: five in a quarter of an hour for each account, and for each address, on all nodes together.

A try is taken before the password is looked at and given back when it was right, so that many at once find no gap and nobody is locked
out by signing in often. A try that was refused is not counted: waiting ends. Names that nobody has are counted like others; so are
hashes all that is stored. Tries of this node stand in one line before they have a connection: it must never be that strangers who wait
for one another hold what everybody's messages need. Read next: `halo/net/status/guesses.py`.
"""

import hashlib
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Final
from uuid import uuid4

import trio

from halo.clock import Clock, Moment
from halo.errors import Busy, RateLimited
from halo.store.connection import Values
from halo.store.postgres import Postgres, Transaction
from halo.store.queries import load_queries

SQL: Final = load_queries("sign_in_tries")

TRIES: Final = 5
WINDOW_MS: Final = 15 * 60_000
LOCK_CLASS: Final = 0x5347
"""Of the advisory locks that put tries in a line; sessions' nodes use another class."""
LINE_MAX: Final = 32
"""Who waits on this node; a turn takes some 3 ms, so the last one's comes in a tenth of a second, and no flood of guesses holds memory."""
LINE_SECONDS: Final = 2.0
"""A turn that has not come by then means that Postgres hardly moves, or that another node holds the same line: waiting on helps nobody."""


class SignInTries:
    """The rows of tries. Every method raises `StoreUnavailable` when Postgres does not answer."""

    def __init__(self, db: Postgres, clock: Clock) -> None:
        self._db = db
        self._clock = clock
        self._turn = trio.Lock()
        """Whoever has it may hold a connection while waiting for other nodes; so it is one of the pool's at most."""

    async def take(self, name: str, address: str) -> Sequence[int]:
        """One more try, to be given back when it was right.

        Raises:
            RateLimited: with the time until there is room for another one, of the account and of the address.
            Busy: too many stand in line; nothing was counted.
        """
        await self._stand_in_line()
        try:
            return await self._db.transact(partial(self._count, subjects_of(name, address)), str(uuid4()))
        finally:
            self._turn.release()

    async def _stand_in_line(self) -> None:
        """Until it is our turn, which is ours to release."""
        if self._turn.statistics().tasks_waiting >= LINE_MAX:
            raise Busy("Too many people are signing in; wait a moment.")
        with trio.move_on_after(LINE_SECONDS) as patience:
            await self._turn.acquire()
        if patience.cancelled_caught:
            raise Busy("Signing in takes too long at the moment; try again.")

    async def _count(self, subjects: Sequence[bytes], tx: Transaction) -> list[int]:
        for subject in subjects:
            await tx.fetch_one(SQL["lock"], lock_of(subject))
        now = self._clock.now()  # only now: whoever waited longer would otherwise count as the earlier one
        wait_ms = max([await self._wait_ms(tx, subject, now) for subject in subjects])
        if wait_ms > 0:
            raise RateLimited("Too many tries to sign in.", retry_after_ms=wait_ms)
        rows = [await tx.fetch_one(SQL["add"], {"subject": subject, "at": now}) for subject in subjects]
        return [row.try_id for row in rows if row is not None]

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


def subjects_of(name: str, address: str) -> list[bytes]:
    """The account and the address, hashed, in the one order in which everybody locks them: so no two wait for each other."""
    return sorted([_subject("account", name), _subject("address", address)])


def lock_of(subject: bytes) -> Mapping[str, int]:
    """The advisory lock that all nodes take before they count its tries."""
    return {"lock_class": LOCK_CLASS, "lock_key": int.from_bytes(subject[:4], "big", signed=True)}


def _subject(kind: str, text: str) -> bytes:
    return hashlib.sha256(f"{kind} {text}".encode(errors="surrogatepass")).digest()
