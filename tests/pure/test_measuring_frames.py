import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scripts.measuring.frames import CLOSE, PING, TEXT, FrameStrange, client_frame, take_frames


def server_frame(opcode: int, payload: bytes) -> bytes:
    """As RFC 6455 has a server send it, written down independently of the code."""
    if len(payload) < 126:
        return struct.pack("!BB", 0x80 + opcode, len(payload)) + payload
    return struct.pack("!BBH", 0x80 + opcode, 126, len(payload)) + payload


@given(
    frames=st.lists(st.tuples(st.sampled_from([TEXT, PING, CLOSE]), st.binary(max_size=300)), max_size=6),
    cut=st.integers(min_value=1, max_value=40),
)
def test_frames_come_out_as_they_were_sent_wherever_the_stream_is_cut(
    frames: list[tuple[int, bytes]], cut: int
) -> None:
    sent = b"".join(server_frame(opcode, payload) for opcode, payload in frames)
    arrived, heard = bytearray(), []
    for first in range(0, len(sent), cut):
        arrived += sent[first : first + cut]
        heard += list(take_frames(arrived))
    assert heard == frames
    assert not arrived


def test_half_a_frame_stays_until_the_rest_has_come() -> None:
    arrived = bytearray(server_frame(TEXT, b"hello")[:-1])
    assert list(take_frames(arrived)) == []
    arrived += b"o"
    assert list(take_frames(arrived)) == [(TEXT, b"hello")]


@pytest.mark.parametrize("size", [0, 1, 125, 126, 200, 65_535])
def test_a_client_frame_is_whole_and_masked_and_says_its_length(size: int) -> None:
    frame = client_frame(TEXT, b"m" * size)
    assert frame[0] == 0x81
    assert frame[1] & 0x80
    assert frame.endswith(b"m" * size)
    assert len(frame) == size + (6 if size < 126 else 8)


def test_a_client_frame_of_64_kib_is_refused() -> None:
    with pytest.raises(ValueError, match="64 KiB"):
        client_frame(TEXT, bytes(65_536))


@pytest.mark.parametrize(
    "strange",
    [b"\x01\x00", b"\x81\x80\x00\x00\x00\x00", b"\x81\x7f" + bytes(8)],
    ids=["fragment", "masked", "huge"],
)
def test_what_halo_never_sends_is_told_instead_of_misread(strange: bytes) -> None:
    with pytest.raises(FrameStrange):
        list(take_frames(bytearray(strange)))
