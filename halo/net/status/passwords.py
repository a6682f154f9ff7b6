"""Passwords of operators: hashed by scrypt, in threads of their own kind, never on the event loop.

One hash takes 32 MiB and some 0.2 s of a core on purpose, so at most two are made at once, and whoever comes while many wait is sent
away. A name that nobody has costs the same time as one that somebody has. It must never keep, log or compare a password in the clear.
Decision 0026 says why scrypt. Read next: `halo/net/status/sign_in.py`.
"""

import base64
import hashlib
import hmac
import re
import secrets
import unicodedata
from collections.abc import Callable
from typing import Final

import trio

from halo.errors import Busy

COST: Final = (2**15, 8, 3)
"""scrypt's n, r and p: 32 MiB, and as much work as OWASP asks of a machine with that little memory."""
SALT_BYTES: Final = 16
HASH_BYTES: Final = 32
AT_ONCE: Final = 2
"""64 MiB at most, and never all cores of a small machine."""
WAITING_MAX: Final = 8
"""Two seconds' work: who comes later is told to come again, so that no flood of guesses holds memory."""

_MEMORY_SLACK: Final = 1024 * 1024
_STORED: Final = re.compile(
    r"scrypt\$([0-9]{1,9})\$([0-9]{1,3})\$([0-9]{1,3})\$([A-Za-z0-9+/=]+)\$([A-Za-z0-9+/=]+)", re.ASCII
)


class StoredHashUnreadable(Exception):
    """The stored hash of a password is none that this halo has made."""


class Passwords:
    """Makes and checks hashes. One for each node, so that its limits hold."""

    def __init__(self, limiter: trio.CapacityLimiter | None = None) -> None:
        self._limiter = limiter or trio.CapacityLimiter(AT_ONCE)
        self._nobodys = _stored(COST, secrets.token_bytes(SALT_BYTES), secrets.token_bytes(HASH_BYTES))
        """What a password is held against when there is no such operator; no password fits it."""

    async def hash(self, password: str) -> str:
        """What is stored. Raises `Busy`."""
        salt = secrets.token_bytes(SALT_BYTES)
        return _stored(COST, salt, await self._in_thread(lambda: _derive(password, salt, COST)))

    async def verify(self, password: str, stored: str | None) -> bool:
        """Whether it is the one; with None it is not, after the same time.

        Raises:
            Busy, StoredHashUnreadable
        """
        found = _STORED.fullmatch(stored or self._nobodys)
        if found is None:
            raise StoredHashUnreadable
        n, r, p = map(int, found.groups()[:3])
        salt, expected = map(base64.b64decode, found.groups()[3:])
        derived = await self._in_thread(lambda: _derive(password, salt, (n, r, p)))
        return hmac.compare_digest(derived, expected) and stored is not None

    async def _in_thread(self, work: Callable[[], bytes]) -> bytes:
        if self._limiter.statistics().tasks_waiting >= WAITING_MAX:
            raise Busy("Too many people are signing in; wait a moment.")
        return await trio.to_thread.run_sync(work, limiter=self._limiter)


def _derive(password: str, salt: bytes, cost: tuple[int, int, int]) -> bytes:
    n, r, p = cost
    # The same letters may come composed or not, depending on the keyboard.
    plain = unicodedata.normalize("NFKC", password).encode(errors="surrogatepass")
    return hashlib.scrypt(
        plain, salt=salt, n=n, r=r, p=p, maxmem=128 * n * r + 128 * r * p + _MEMORY_SLACK, dklen=HASH_BYTES
    )


def _stored(cost: tuple[int, int, int], salt: bytes, derived: bytes) -> str:
    texts = [base64.b64encode(part).decode() for part in (salt, derived)]
    return "$".join(["scrypt", *map(str, cost), *texts])
