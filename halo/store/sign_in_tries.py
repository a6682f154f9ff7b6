"""Tries to sign in, counted in Postgres: five in a quarter of an hour for each account, and for each address, on all nodes together.

On the machine itself everybody is one address, so there the address counts only to bound the hashing: five wrong passwords shut out one
name, and not the house.
A try is taken before the password is looked at and given back when it was right, so that many at once find no gap and nobody is locked
out by signing in often. A try that was refused is not counted: waiting ends. Names that nobody has are counted like others; so are
hashes all that is stored of them. Whatever came to nothing is in the trail, one row for a name and a minute. Tries of this node stand in one line before they have a connection: it must never be that strangers who wait
for one another hold what everybody's messages need. Read next: `halo/net/status/guesses.py`.
"""

import hashlib
from collections.abc import Mapping, Sequence
from functools import partial
from ipaddress import ip_address
from typing import Final
from uuid import uuid4

import trio

from halo.clock import Clock, Moment
from halo.errors import Busy, RateLimited
from halo.store.connection import Values
from halo.store.postgres import Postgres, Transaction
from halo.store.queries import load_queries
from halo.trace import current_trace_id

SQL: Final = load_queries("sign_in_tries")

TRIES: Final = 5
HOUSE_TRIES: Final = 200
"""From this machine: forty names' worth, which nobody mistypes, and some 40 s of a core in a quarter of an hour, which guesses may have."""
WRONG_PASSWORD: Final = "WRONG_PASSWORD"  # noqa: S105  # a code
STRANGER: Final = "not signed in"
"""Who is written down for a try: nobody has shown who it was. It has spaces, so it is no operator's name."""
UNKNOWN: Final = "a name nobody has"
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
        except RateLimited as refusal:
            await self._note(name, refusal.code)
            raise
        finally:
            self._turn.release()

    async def fail(self, name: str) -> None:
        """The password was wrong: that is written down. Raises `Busy`, as `take` does."""
        await self._stand_in_line()
        try:
            await self._note(name, WRONG_PASSWORD)
        finally:
            self._turn.release()

    async def _note(self, name: str, code: str) -> None:
        """In our turn: whoever waits for the row of this minute must not hold more than one connection, either."""
        values: Values = {"stranger": STRANGER, "unknown": UNKNOWN, "name": name, "code": code}
        await self._db.execute(SQL["note_refused"], {**values, "trace_id": current_trace_id()})

    async def _stand_in_line(self) -> None:
        """Until it is our turn, which is ours to release."""
        if self._turn.statistics().tasks_waiting >= LINE_MAX:
            raise Busy("Too many people are signing in; wait a moment.")
        with trio.move_on_after(LINE_SECONDS) as patience:
            await self._turn.acquire()
        if patience.cancelled_caught:
            raise Busy("Signing in takes too long at the moment; try again.")

    async def _count(self, subjects: Mapping[bytes, int], tx: Transaction) -> list[int]:
        for subject in subjects:
            await tx.fetch_one(SQL["lock"], lock_of(subject))
        now = self._clock.now()  # only now: whoever waited longer would otherwise count as the earlier one
        wait_ms = max([await self._wait_ms(tx, subject, most, now) for subject, most in subjects.items()])
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

    async def _wait_ms(self, tx: Transaction, subject: bytes, most: int, now: Moment) -> int:
        values: Values = {"subject": subject, "since": now - WINDOW_MS, "most": most}
        row = await tx.fetch_one(SQL["count"], values)
        assert row is not None  # an aggregate has one row
        return 0 if row.tries < most else int(row.oldest) + WINDOW_MS - now


def subjects_of(name: str, address: str) -> Mapping[bytes, int]:
    """The account and the address, hashed, with their tries; in the one order in which everybody locks them, so that no two wait for each
    other."""
    most = {_subject("account", name): TRIES, _subject("address", address): tries_of(address)}
    return dict(sorted(most.items()))


def tries_of(address: str) -> int:
    """How many wrong passwords may come from there in a quarter of an hour. What is no address is a stranger's."""
    try:
        return HOUSE_TRIES if ip_address(address).is_loopback else TRIES
    except ValueError:
        return TRIES


def lock_of(subject: bytes) -> Mapping[str, int]:
    """The advisory lock that all nodes take before they count its tries."""
    return {"lock_class": LOCK_CLASS, "lock_key": int.from_bytes(subject[:4], "big", signed=True)}


def _subject(kind: str, text: str) -> bytes:
    return hashlib.sha256(f"{kind} {text}".encode(errors="surrogatepass")).digest()
