"""WebSocket frames as a lean client needs them: made whole and masked, and cut out of what arrives. PURE.

The harness shares its machine with many a server that it measures, so its own price per message counts: text frames are handled in one
piece, the mask is zeros (which the server undoes as any other), and nothing is decoded that nobody looks at. It is no client for anything
but halo. Read next: `halo/load/wires.py`.
"""

import struct
from collections.abc import Iterator
from typing import Final

TEXT: Final = 0x1
CLOSE: Final = 0x8
PING: Final = 0x9
PONG: Final = 0xA

_FINAL: Final = 0x80
_MASKED: Final = 0x80
_LENGTH: Final = 0x7F
_NO_MASK: Final = bytes(4)
LONGEST: Final = 65_535
"""halo sends and takes nothing longer."""


class FrameStrange(Exception):
    """A frame that halo does not send: masked, in pieces, or longer than 64 KiB."""


def client_frame(opcode: int, payload: bytes) -> bytes:
    """One whole masked frame. Raises ValueError for a payload above `LONGEST`."""
    length = len(payload)
    if length < 126:
        return bytes((_FINAL | opcode, _MASKED | length)) + _NO_MASK + payload
    if length > LONGEST:
        raise ValueError(f"a frame holds at most {LONGEST} bytes here")
    return struct.pack("!BBH", _FINAL | opcode, _MASKED | 126, length) + _NO_MASK + payload


def take_frames(arrived: bytearray) -> Iterator[tuple[int, bytes]]:
    """Opcode and payload of each whole frame at the front of `arrived`, which keeps what is not whole yet.

    Raises:
        FrameStrange: the server sent what halo never sends.
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
