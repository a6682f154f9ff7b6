"""WebSocket frames for a lean client: made once, masked, and cut out of what arrives. PURE.

The client of a measurement must cost less than the server it measures, so it speaks the protocol by hand: text frames below 64 KiB,
pings, closes, nothing fragmented. It is no client for anything else. Read next: `scripts/measuring/talk.py`.
"""

import struct
from collections.abc import Iterator
from typing import Final

TEXT: Final = 0x1
CLOSE: Final = 0x8
PING: Final = 0x9
PONG: Final = 0xA

_FINAL = 0x80
_MASKED = 0x80
_LENGTH = 0x7F
_NO_MASK = bytes(4)
"""A mask of zeros is a mask: the server unmasks as ever, and the client need not."""


class FrameStrange(Exception):
    """A frame that halo does not send: masked, fragmented, or larger than 64 KiB."""


def client_frame(opcode: int, payload: bytes) -> bytes:
    """One whole masked frame. Raises ValueError for a payload of 64 KiB or more."""
    length = len(payload)
    if length < 126:
        return bytes((_FINAL | opcode, _MASKED | length)) + _NO_MASK + payload
    if length >= 65_536:
        raise ValueError("the lean client sends frames below 64 KiB")
    return struct.pack("!BBH", _FINAL | opcode, _MASKED | 126, length) + _NO_MASK + payload


def take_frames(arrived: bytearray) -> Iterator[tuple[int, bytes]]:
    """Opcode and payload of each whole frame at the front of `arrived`, which keeps what is not whole yet.

    Raises:
        FrameStrange: the server sent something that halo never sends.
    """
    at, end = 0, len(arrived)
    try:
        while end - at >= 2:
            first, second = arrived[at], arrived[at + 1]
            length, start = second & _LENGTH, at + 2
            if not first & _FINAL or second & _MASKED or length == 127:
                raise FrameStrange(f"the server sent a frame that begins with {first:#x} {second:#x}")
            if length == 126:
                if end - at < 4:
                    return
                length, start = int.from_bytes(arrived[at + 2 : at + 4]), at + 4
            if end < start + length:
                return
            at = start + length
            yield first & 0x0F, bytes(arrived[start:at])
    finally:
        del arrived[:at]
