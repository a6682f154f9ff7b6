"""`halo.net.frames`: nothing is lost, nothing overtakes, and every text is what the library itself would have read."""

import random
import struct
from collections.abc import Iterable, Sequence
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from wsproto import ConnectionType
from wsproto.connection import Connection
from wsproto.events import CloseConnection, Message, Ping, Pong, TextMessage

from halo.net.frames import FrameCutter

MAX = 65_536
MASK = b"\x12\xf4\x00\xa9"
WHOLE_TEXT, CLOSE, PING, PONG = 1, 8, 9, 10


def masked(payload: bytes, mask: bytes) -> bytes:
    return bytes(byte ^ mask[at % 4] for at, byte in enumerate(payload))


def frame(opcode: int, payload: bytes = b"", *, final: bool = True, reserved: int = 0, mask: bytes = MASK) -> bytes:
    first = (0x80 if final else 0) | reserved | opcode
    return bytes((first,)) + length_of(len(payload)) + mask + masked(payload, mask)


def length_of(size: int) -> bytes:
    """As it stands in a masked frame, in the fewest bytes."""
    if size < 126:
        return bytes((0x80 | size,))
    return struct.pack("!BH", 0xFE, size) if size < 65_536 else struct.pack("!BQ", 0xFF, size)


def cut(pieces: Iterable[bytes], payload_bytes_max: int = MAX) -> list[str | bytes]:
    """What comes out while bytes come in."""
    cutter, out = FrameCutter(payload_bytes_max), []
    for piece in pieces:
        cutter.feed(piece)
        while (found := cutter.next()) is not None:
            out.append(found)
    return out


def in_pieces(sent: bytes, ends: Iterable[int]) -> list[bytes]:
    """`sent`, torn at these places."""
    places = [0, *sorted({end % (len(sent) + 1) for end in ends}), len(sent)]
    return [sent[begin:end] for begin, end in pairwise(places) if end > begin]


def told_by_both(found: Sequence[str | bytes]) -> list[object]:
    """What the listener and the library hear, in their order: messages, pings, pongs, and the code with which the library ends."""
    library, events, message = Connection(ConnectionType.SERVER), list[object](), list[bytes]()
    for each in found:
        if isinstance(each, str):
            events.append(each)
            continue
        library.receive_data(each)
        for event in library.events():
            if isinstance(event, Message):
                is_text = isinstance(event, TextMessage)
                message.append(event.data.encode() if is_text else bytes(event.data))
                if event.message_finished:
                    events.append(b"".join(message).decode() if is_text else b"".join(message))
                    message = []
            elif isinstance(event, CloseConnection):
                return [*events, int(event.code)]
            elif isinstance(event, Ping | Pong):
                events.append((type(event), bytes(event.payload)))
    return events


def told_by_the_library(sent: bytes) -> list[object]:
    """What wsproto alone makes of the same bytes."""
    return told_by_both([sent])


# ---- what is an ordinary message


@pytest.mark.parametrize("size", [0, 1, 2, 125, 126, 127, 4095, 4096, 65_535])
@pytest.mark.parametrize("mask", [bytes(4), MASK, b"\xff" * 4, b"\x00\x00\x00\x01"])
def test_a_whole_text_of_any_length_under_any_mask_is_read_as_the_library_reads_it(size: int, mask: bytes) -> None:
    text = "".join(random.Random(size).choices("abc\x00 \x7f", k=size))
    sent = frame(WHOLE_TEXT, text.encode(), mask=mask)
    assert cut([sent]) == [text] == told_by_the_library(sent)


@pytest.mark.parametrize("text", ["ä" * 63, "\U0001f600" * 32, "\ufeffwith a mark", "\ud7ff\ue000\U0010ffff"])
def test_characters_of_every_width_survive(text: str) -> None:
    assert cut([frame(WHOLE_TEXT, text.encode())]) == [text] == told_by_the_library(frame(WHOLE_TEXT, text.encode()))


def test_the_largest_message_is_read_and_one_byte_more_is_not_waited_for() -> None:
    assert cut([frame(WHOLE_TEXT, b"x" * 1000)], 1000) == ["x" * 1000]
    head = frame(WHOLE_TEXT, b"x" * 1001)[:8]
    assert cut([head], 1000) == [head]


def test_a_length_in_eight_bytes_is_left_to_the_library_without_waiting_for_the_payload() -> None:
    """The largest frame of the protocol, of 65,536 bytes, is the only one that is small enough and has such a length."""
    sent = frame(WHOLE_TEXT, b"x" * MAX)
    assert cut([sent[:2]]) == [sent[:2]]
    found = cut([sent[:5000], sent[5000:], frame(WHOLE_TEXT, b"after")])
    assert told_by_both(found) == ["x" * MAX, "after"]


# ---- what is for the library

FOR_THE_LIBRARY = {
    "a ping": frame(PING, b"p"),
    "an empty pong": frame(PONG),
    "a close": frame(CLOSE, struct.pack("!H", 1000)),
    "a binary message": frame(2, b"\xff"),
    "the beginning of a message": frame(1, b"he", final=False),
    "a continuation of nothing": frame(0, b"x"),
    "a reserved bit": frame(WHOLE_TEXT, b"hello", reserved=0x40),
    "another reserved bit": frame(WHOLE_TEXT, b"hello", reserved=0x10),
    "a reserved opcode": frame(3, b"hello"),
    "a reserved control opcode": frame(0xB),
    "an unmasked text": b"\x81\x05hello",
    "an unmasked text of nothing": b"\x81\x00",
    "text that is not UTF-8": frame(WHOLE_TEXT, b"\xff\xfe"),
    "text that ends within a character": frame(WHOLE_TEXT, b"\xe2\x82"),
    "a surrogate": frame(WHOLE_TEXT, b"\xed\xa0\x80"),
    "a longer form than need be": b"\x81\xfe\x00\x7d" + MASK + masked(b"x" * 125, MASK),
    "a longer form of nothing": b"\x81\xfe\x00\x00" + MASK,
    "a much longer form than need be": b"\x81\xff" + (5).to_bytes(8, "big") + MASK + masked(b"hello", MASK),
    "a length without end": b"\x81\xff" + b"\xff" * 8 + MASK,
    "a ping of 126 bytes": frame(PING, b"p" * 126),
    "a ping in fragments": frame(PING, b"p", final=False),
}


@pytest.mark.parametrize("what", FOR_THE_LIBRARY)
def test_whatever_is_no_whole_text_goes_to_the_library_byte_for_byte(what: str) -> None:
    sent = FOR_THE_LIBRARY[what]
    assert b"".join(each for each in cut([sent]) if isinstance(each, bytes)) == sent
    assert told_by_both(cut([sent])) == told_by_the_library(sent)


@pytest.mark.parametrize("what", FOR_THE_LIBRARY)
def test_what_stands_before_and_behind_it_keeps_its_place(what: str) -> None:
    sent = frame(WHOLE_TEXT, b"before") + FOR_THE_LIBRARY[what] + frame(WHOLE_TEXT, b"behind") + frame(PING, b"last")
    assert told_by_both(cut([sent])) == told_by_the_library(sent)
    assert told_by_both(cut(bytes((byte,)) for byte in sent)) == told_by_the_library(sent)


def test_a_message_in_fragments_is_the_librarys_to_its_end_also_with_pings_in_it() -> None:
    parts = [frame(1, b"he", final=False), frame(PING, b"?"), frame(0, b"l", final=False), frame(0, b"lo")]
    assert cut([b"".join(parts) + frame(WHOLE_TEXT, b"next")]) == [*parts, "next"]


def test_a_text_within_a_text_is_no_message() -> None:
    parts = [frame(1, b"a", final=False), frame(WHOLE_TEXT, b"b")]
    assert cut([b"".join(parts)]) == parts
    assert told_by_both(cut([b"".join(parts)])) == [1002]


@pytest.mark.parametrize("begun", [b"\x81\x05", b"\x81\xff", frame(WHOLE_TEXT, b"\xff")])
def test_after_something_strange_all_goes_to_the_library_as_it_comes(begun: bytes) -> None:
    rest = [frame(WHOLE_TEXT, b"hello"), b"\x81", b"\x80"]
    assert cut([begun, *rest]) == [begun, *rest]


# ---- pieces


def test_a_frame_that_comes_byte_by_byte_comes_out_when_it_is_whole() -> None:
    sent = frame(WHOLE_TEXT, b"x" * 126)
    cutter = FrameCutter(MAX)
    for byte in sent[:-1]:
        assert not cutter.has_part or cutter.next() is None
        cutter.feed(bytes((byte,)))
        assert cutter.next() is None
        assert cutter.has_part
    cutter.feed(sent[-1:])
    assert cutter.next() == "x" * 126
    assert cutter.next() is None
    assert not cutter.has_part


def test_a_cutter_that_has_handed_all_out_keeps_nothing() -> None:
    """Thousands of idle sockets would each keep what they last said."""
    cutter = FrameCutter(MAX)
    cutter.feed(frame(WHOLE_TEXT, b"x" * 4000))
    assert cutter.next() == "x" * 4000
    assert cutter.next() is None
    assert cutter._bytes == b""


PAYLOADS = st.one_of(
    st.binary(max_size=130),
    st.text(max_size=130).map(str.encode),
    st.sampled_from([125, 126, 127, 300]).map(lambda size: b"x" * size),
)
FRAMES = st.builds(
    frame,
    st.sampled_from([1, 1, 1, 1, 0, 2, CLOSE, PING, PONG, 3]),
    PAYLOADS,
    final=st.sampled_from([True, True, True, False]),
    reserved=st.sampled_from([0] * 9 + [0x40]),
    mask=st.binary(min_size=4, max_size=4),
)
TEXTS = st.builds(lambda text, mask: frame(1, text.encode(), mask=mask), st.text(), st.binary(min_size=4, max_size=4))
TORN = st.lists(st.integers(0, 5_000), max_size=12)


@given(st.lists(st.one_of(TEXTS, FRAMES), max_size=12), TORN)
def test_frames_in_any_pieces_are_told_as_the_library_alone_would_tell_them(sent: list[bytes], ends: list[int]) -> None:
    whole = b"".join(sent)
    assert told_by_both(cut(in_pieces(whole, ends), 200)) == told_by_the_library(whole)


@given(st.lists(st.one_of(TEXTS, FRAMES, st.binary(max_size=20)), max_size=12), TORN)
def test_any_bytes_in_any_pieces_come_out_whole_and_in_their_order(sent: list[bytes], ends: list[int]) -> None:
    whole = b"".join(sent)
    cutter, at = FrameCutter(200), 0
    for piece in in_pieces(whole, ends):
        cutter.feed(piece)
        while (found := cutter.next()) is not None:
            if isinstance(found, bytes):
                assert whole[at : at + len(found)] == found
                at += len(found)
            else:
                payload = found.encode()
                head = 1 + len(length_of(len(payload)))
                assert whole[at : at + head] == b"\x81" + length_of(len(payload))
                mask = whole[at + head : at + head + 4]
                assert masked(whole[at + head + 4 : at + head + 4 + len(payload)], mask) == payload
                at += head + 4 + len(payload)
    assert cutter.has_part == (at < len(whole))
    assert whole[at:] == cutter._bytes[cutter._at :]
