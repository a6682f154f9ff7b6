"""A high dynamic range histogram: microseconds in slots that are never wider than a thousandth of their value. PURE.

The slots, and the text form of `encoded`, are those of HdrHistogram (V2, three significant digits), so that any tool that reads its logs
reads ours. It must never average percentiles: histograms of several processes are added, slot by slot, before anything is read off. It
is our own because the package on PyPI wants setuptools and pbr where halo runs. Read next: `halo/load/meter.py`.
"""

import base64
import math
import struct
import zlib
from collections.abc import Iterator
from typing import Final, Self

HALF_BITS: Final = 10
"""1,024 slots for each doubling: what three significant digits need."""
HALF: Final = 1 << HALF_BITS
HIGHEST_US: Final = 3_600_000_000
"""An hour. Whatever takes longer counts as one."""
_COOKIE: Final = 0x1C849303 | 0x10
_COMPRESSED_COOKIE: Final = 0x1C849304 | 0x10
_HEADER: Final = struct.Struct(">iiiiqqd")


class HistogramStrange(ValueError):
    """The text is not a histogram of this form."""


class Hdr:
    """How often something took how long; sparse, so that an empty second costs nothing."""

    __slots__ = ("counts", "highest", "lowest", "total")

    def __init__(self) -> None:
        self.counts: dict[int, int] = {}
        self.total = 0
        self.lowest = HIGHEST_US
        self.highest = 0

    def record(self, microseconds: int) -> None:
        """One value; below 0 counts as 0, above an hour as an hour."""
        value = 0 if microseconds < 0 else min(microseconds, HIGHEST_US)
        slot = slot_of(value)
        self.counts[slot] = self.counts.get(slot, 0) + 1
        self.total += 1
        self.highest = max(self.highest, value)
        self.lowest = min(self.lowest, value)

    def add(self, other: "Hdr") -> None:
        """All of the other's values too."""
        for slot, count in other.counts.items():
            self.counts[slot] = self.counts.get(slot, 0) + count
        self.total += other.total
        self.highest = max(self.highest, other.highest)
        self.lowest = min(self.lowest, other.lowest)

    def percentile(self, part: float) -> int:
        """The value in µs that `part` (0 to 100) of all do not exceed, rounded up to the end of its slot; 0 of nothing."""
        wanted = max(1, math.ceil(round(part / 100 * self.total, 9)))
        seen = 0
        for slot in sorted(self.counts):
            seen += self.counts[slot]
            if seen >= wanted:
                return min(top_of(slot), self.highest)
        return 0

    @property
    def mean(self) -> float:
        """In µs, from the middles of the slots; 0 of nothing."""
        if not self.total:
            return 0.0
        return sum((bottom_of(slot) + top_of(slot)) / 2 * count for slot, count in self.counts.items()) / self.total

    def curve(self) -> Iterator[tuple[float, int]]:
        """`(percentile, µs)` at each slot that is not empty: what a percentile plot draws."""
        seen = 0
        for slot in sorted(self.counts):
            seen += self.counts[slot]
            yield seen / self.total * 100, min(top_of(slot), self.highest)

    def encoded(self) -> str:
        """HdrHistogram's V2 form, compressed, base64."""
        payload = bytearray()
        before = -1
        for slot in sorted(self.counts):
            if slot - before > 1:
                _put(payload, -(slot - before - 1))
            _put(payload, self.counts[slot])
            before = slot
        whole = _HEADER.pack(_COOKIE, len(payload), 0, 3, 1, HIGHEST_US, 1.0) + bytes(payload)
        squeezed = zlib.compress(whole)
        return base64.b64encode(struct.pack(">ii", _COMPRESSED_COOKIE, len(squeezed)) + squeezed).decode()

    @classmethod
    def decoded(cls, text: str) -> Self:
        """What `encoded` wrote; lowest and highest are known to the width of a slot.

        Raises:
            HistogramStrange: it is something else.
        """
        try:
            raw = base64.b64decode(text, validate=True)
            cookie, length = struct.unpack_from(">ii", raw)
            whole = zlib.decompress(raw[8 : 8 + length])
            inner, payload_length, _, digits, *_ = _HEADER.unpack_from(whole)
        except (ValueError, struct.error, zlib.error) as fault:
            raise HistogramStrange("this is no compressed histogram") from fault
        if (cookie, inner, digits) != (_COMPRESSED_COOKIE, _COOKIE, 3):
            raise HistogramStrange("this is a histogram of another form")
        histogram = cls()
        slot = 0
        for number in _take(whole[_HEADER.size : _HEADER.size + payload_length]):
            if number < 0:
                slot -= number
                continue
            if number:
                histogram.counts[slot] = number
                histogram.total += number
                histogram.lowest = min(histogram.lowest, bottom_of(slot))
                histogram.highest = top_of(slot)
            slot += 1
        return histogram


def slot_of(value: int) -> int:
    """Which slot counts this value."""
    shift = max(0, value.bit_length() - HALF_BITS - 1)
    return (shift << HALF_BITS) + (value >> shift)


def bottom_of(slot: int) -> int:
    """The least value of this slot."""
    shift = max(0, (slot >> HALF_BITS) - 1)
    return (slot - (shift << HALF_BITS)) << shift


def top_of(slot: int) -> int:
    """The greatest value of this slot."""
    shift = max(0, (slot >> HALF_BITS) - 1)
    return ((slot - (shift << HALF_BITS) + 1) << shift) - 1


def _put(payload: bytearray, number: int) -> None:
    """Zigzag, then seven bits a byte, the lowest first; a ninth byte holds eight."""
    left = (number << 1) ^ (number >> 63)
    for _ in range(8):
        if left < 0x80:
            payload.append(left)
            return
        payload.append(left & 0x7F | 0x80)
        left >>= 7
    payload.append(left)


def _take(payload: bytes) -> Iterator[int]:
    at = 0
    while at < len(payload):
        left = shift = 0
        for place in range(9):
            if at >= len(payload):
                raise HistogramStrange("this histogram ends in the middle of a number")
            byte = payload[at]
            at += 1
            left |= (byte if place == 8 else byte & 0x7F) << shift
            shift += 7
            if byte < 0x80 or place == 8:
                break
        yield (left >> 1) ^ -(left & 1)
