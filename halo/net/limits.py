"""How often: token buckets, one or one per key, without a task or a timer of their own.

Everything is whole numbers, so a bucket is exact however long it stands, and time is whatever the caller's clock says, so tests
need not wait. A rate of 0 lifts the limit. Nothing here refuses anybody: it answers how long to wait, and the caller says no.
Read next: `halo/net/admission.py`, which uses these for sockets.
"""

from collections import OrderedDict
from dataclasses import dataclass
from typing import Final

from halo.clock import Clock, Moment

KEYS_AT_MOST: Final = 20_000
"""Buckets kept per limit: about 5 MB. A bucket that nobody has used for longest goes first, and it is nearly always full again; a
crowd large enough to push out an emptied one has as many buckets of its own to spend, so remembering more would not stop it."""


@dataclass(frozen=True, slots=True)
class Rate:
    """`tokens` for every `per_ms`, at most `burst` at once. `tokens` = 0 lifts the limit."""

    tokens: int
    per_ms: int
    burst: int

    def __post_init__(self) -> None:
        if self.tokens < 0 or self.per_ms <= 0 or (self.tokens and self.burst < 1):
            raise ValueError("a rate needs tokens of 0 or more, a period above 0, and room for at least one token")

    @property
    def is_lifted(self) -> bool:
        return self.tokens == 0


class TokenBucket:
    """One bucket, full at first.

    The level is kept in parts: one token is `per_ms` parts, and each millisecond brings `tokens` parts. So nothing is ever rounded.
    """

    __slots__ = ("_at", "_level", "_rate")

    def __init__(self, rate: Rate, now: Moment) -> None:
        self._rate = rate
        self._level = rate.burst * rate.per_ms
        self._at = now

    def wait_ms(self, now: Moment, amount: int = 1) -> int:
        """0 when `amount` tokens are there, otherwise the milliseconds until they are; takes nothing.

        More than the burst can never be there: then it is the time of a full bucket, and will be so again.
        """
        rate = self._rate
        if rate.is_lifted:
            return 0
        elapsed = now - self._at
        if elapsed > 0:
            self._level = min(rate.burst * rate.per_ms, self._level + elapsed * rate.tokens)
        self._at = (
            now  # also when the clock was set back: better a little late than a bucket that stands still until then
        )
        missing = amount * rate.per_ms - self._level
        return 0 if missing <= 0 else -(-missing // rate.tokens)

    def take(self, now: Moment, amount: int = 1) -> int:
        """0 and the tokens are taken, or the milliseconds to wait and nothing is taken."""
        if self._rate.tokens == 0:  # lifted; this is on the way of every frame
            return 0
        wait = self.wait_ms(now, amount)
        if wait == 0:
            self._level -= amount * self._rate.per_ms
        return wait


class Buckets:
    """One bucket of the same rate for each key (a user, an address), bounded in number."""

    def __init__(self, rate: Rate, clock: Clock, *, keys_at_most: int = KEYS_AT_MOST) -> None:
        self._rate = rate
        self._clock = clock
        self._keys_at_most = keys_at_most
        self._buckets: OrderedDict[str, TokenBucket] = OrderedDict()

    def __len__(self) -> int:
        return len(self._buckets)

    def take(self, key: str, amount: int = 1) -> int:
        """0 and the tokens are taken, or the milliseconds to wait and nothing is taken."""
        if self._rate.is_lifted:
            return 0
        now = self._clock.now()
        bucket = self._buckets.get(key)
        if bucket is None:
            bucket = self._buckets[key] = TokenBucket(self._rate, now)
            if len(self._buckets) > self._keys_at_most:
                self._buckets.popitem(last=False)
        else:
            self._buckets.move_to_end(key)
        return bucket.take(now, amount)

    def wait_ms(self, key: str, amount: int = 1) -> int:
        """How long `key` must wait for `amount`; takes nothing. For limits on failures: ask before, take after one."""
        bucket = self._buckets.get(key)
        return 0 if bucket is None else bucket.wait_ms(self._clock.now(), amount)
