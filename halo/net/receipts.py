"""Receipts: which frames have arrived, known by the pong to a ping that was sent right behind them.

A socket delivers in order, so whoever answers the ping has received what went before it; bytes that merely left our buffer prove
nothing. A mark is a keyed hash that nobody can guess, so that no client can acknowledge what another one was told. It must not grow:
what is older than a minute has decided its push already. Read next: `halo/net/connections.py`.
"""

import hashlib
import secrets
from typing import Final

import trio

MARK_BYTES: Final = 8
"""A guess in 2**64, within a minute; a ping may carry 125 bytes, and each costs a phone its radio."""
KEPT_SECONDS: Final = 60.0
"""Far longer than a push waits for its pong (`halo.outbox.PUSH_PATIENCE_MS`)."""


class Receipts:
    """What was asked and what was answered, lately."""

    def __init__(self) -> None:
        self._key = secrets.token_bytes(16)
        self._asked: dict[bytes, float] = {}
        """Marks in the order of their asking, with Trio's clock then."""
        self._heard: dict[bytes, float] = {}

    def __len__(self) -> int:
        return len(self._asked) + len(self._heard)

    def ask(self, user_id: str, receipt: str) -> bytes:
        """The payload of the ping."""
        mark = self._mark(user_id, receipt)
        self._asked.pop(mark, None)  # asked again, it goes to the end of the line
        self._asked[mark] = trio.current_time()
        return mark

    def note(self, mark: bytes) -> None:
        """A pong came; one that nobody asked for is nothing."""
        if self._asked.pop(mark, None) is not None:
            self._heard[mark] = trio.current_time()

    def has(self, user_id: str, receipt: str) -> bool:
        return self._mark(user_id, receipt) in self._heard

    def forget_old(self) -> None:
        before = trio.current_time() - KEPT_SECONDS
        for marks in (self._asked, self._heard):
            while marks and next(iter(marks.values())) < before:
                del marks[next(iter(marks))]

    def _mark(self, user_id: str, receipt: str) -> bytes:
        return hashlib.blake2s(f"{user_id} {receipt}".encode(), key=self._key, digest_size=MARK_BYTES).digest()
