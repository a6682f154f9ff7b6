import pytest
from hypothesis import given
from hypothesis import strategies as st

from halo.load.frames import LONGEST, TEXT, FrameStrange, client_frame, take_frames


def server_frame(payload: bytes) -> bytes:
    length = len(payload)
    head = bytes((0x81, length)) if length < 126 else bytes((0x81, 126)) + length.to_bytes(2)
    return head + payload


@given(st.lists(st.binary(max_size=300)), st.integers(1, 50))
def test_frames_come_out_whole_however_the_bytes_arrive(payloads: list[bytes], piece: int) -> None:
    stream = b"".join(map(server_frame, payloads))
    arrived, taken = bytearray(), []
    for at in range(0, len(stream), piece):
        arrived += stream[at : at + piece]
        taken += [payload for _, payload in take_frames(arrived)]
    assert taken == payloads
    assert not arrived


@pytest.mark.parametrize("length", [0, 125, 126, LONGEST])
def test_a_clients_frame_is_whole_masked_and_says_its_length(length: int) -> None:
    frame = client_frame(TEXT, b"x" * length)
    assert frame[0] == 0x81
    assert frame[1] & 0x80
    head = 6 if length < 126 else 8
    assert frame[head - 4 : head] == bytes(4)  # the mask, which changes nothing
    assert frame[head:] == b"x" * length


def test_a_frame_that_halo_takes_no_more_is_not_made() -> None:
    with pytest.raises(ValueError, match="65535"):
        client_frame(TEXT, b"x" * (LONGEST + 1))


@pytest.mark.parametrize("strange", [b"\x01\x00", b"\x81\x80", b"\x81\x7f"])
def test_pieces_masks_and_giants_are_strange(strange: bytes) -> None:
    with pytest.raises(FrameStrange):
        list(take_frames(bytearray(strange)))


def test_what_came_before_a_strange_frame_is_still_taken() -> None:
    frames = take_frames(bytearray(server_frame(b"well") + b"\x01\x00"))
    assert next(frames) == (TEXT, b"well")
    with pytest.raises(FrameStrange):
        next(frames)
