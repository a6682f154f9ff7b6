"""`halo.net.stream` on real sockets: nothing is lost, nothing interleaves, one system call a tick, and nobody waits for ever."""

import contextlib
import os
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing

from halo.net import stream as room
from halo.net.flusher import Flusher
from halo.net.stream import PING_FRAME, SocketStream, websocket_text_frame


@asynccontextmanager
async def open_flusher() -> AsyncIterator[Flusher]:
    flusher = Flusher()
    async with trio.open_nursery() as nursery:
        await nursery.start(flusher.serve)
        yield flusher
        nursery.cancel_scope.cancel()


def with_flusher(test: Callable[[Flusher], Awaitable[None]]) -> Callable[[], Awaitable[None]]:
    """Run a test with a flusher that serves; a fixture would have to be cancelled from another task."""

    async def run() -> None:
        with trio.fail_after(30):
            async with open_flusher() as flusher:
                await test(flusher)

    run.__name__, run.__doc__ = test.__name__, test.__doc__
    return run


def socket_pair(send_buffer: int | None = None) -> tuple[socket.socket, socket.socket]:
    """Two ends of one TCP connection over loopback."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        if send_buffer is not None:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer)
        far = socket.socket()
        if send_buffer is not None:
            far.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, send_buffer)
        far.connect(listener.getsockname())
        near, _ = listener.accept()
    far.setblocking(False)
    return near, far


def open_pair(flusher: Flusher, send_buffer: int | None = None) -> tuple[SocketStream, SocketStream]:
    near, far = socket_pair(send_buffer)
    return SocketStream(near, flusher, "near"), SocketStream(far, flusher, "far")


async def receive_exactly(stream: SocketStream, count: int) -> bytes:
    received = b""
    while len(received) < count:
        piece = await stream.receive_some()
        assert piece, f"the end came after {len(received)} of {count} bytes"
        received += piece
    return received


async def is_reset(stream: SocketStream, sip: int | None = None) -> bool:
    """Read to the end, slowly if told so: whether it was a reset."""
    try:
        while await stream.receive_some(sip):
            await trio.sleep(0 if sip is None else 0.01)
    except trio.BrokenResourceError:
        return True
    return False


@with_flusher
async def test_it_keeps_every_promise_of_a_trio_stream(flusher: Flusher) -> None:
    async def make() -> tuple[SocketStream, SocketStream]:
        return open_pair(flusher)

    async def make_clogged() -> tuple[SocketStream, SocketStream]:
        near, far = open_pair(flusher, 4096)
        for end in (near, far):
            while end.pending_bytes == 0:
                end.write(b"x" * 16_384)
                end.flush()
        return near, far

    await trio.testing.check_half_closeable_stream(make, make_clogged)


@with_flusher
async def test_all_that_is_written_in_one_tick_leaves_in_one_piece(flusher: Flusher) -> None:
    near, far = open_pair(flusher)
    async with near, far:
        for word in (b"ack", b"delivery", b"presence"):
            near.write(word)
        assert near.pending_frames == 3
        assert await far.receive_some() == b"ackdeliverypresence"
        assert (near.pending_frames, near.pending_bytes) == (0, 0)


@with_flusher
async def test_a_flush_costs_one_system_call_for_each_socket(flusher: Flusher) -> None:
    near, far = open_pair(flusher)
    calls: list[int] = []

    class Counted(socket.socket):
        def sendmsg(self, buffers, *args):  # type: ignore[no-untyped-def]
            calls.append(len(buffers))
            return super().sendmsg(buffers, *args)

    counted = Counted(fileno=near._socket.detach())
    counted.setblocking(False)
    near._socket = counted
    async with near, far:
        for round_ in range(10):
            for _ in range(5):
                near.write(b"%d" % round_)
            await receive_exactly(far, 5)
    assert calls == [5] * 10


@with_flusher
async def test_bytes_arrive_in_order_through_a_tiny_buffer_and_a_slow_reader(flusher: Flusher) -> None:
    near, far = open_pair(flusher, 4096)
    frames = [bytes([number % 251]) * (1 + 37 * (number % 97)) for number in range(400)]
    expected = b"".join(frames)

    async def write() -> None:
        for number, frame in enumerate(frames):
            if number % 3:
                near.write(frame)
            else:
                await near.send_all(frame)

    async with near, far, trio.open_nursery() as nursery:
        nursery.start_soon(write)
        received = b""
        while len(received) < len(expected):
            received += await far.receive_some(1000)
        assert received == expected
    assert near.pending_bytes == 0


@with_flusher
async def test_a_cancelled_send_all_never_cuts_its_bytes_in_half(flusher: Flusher) -> None:
    near, far = open_pair(flusher, 4096)
    first = b"1" * 400_000
    lent = bytearray(first)
    async with near, far:
        with trio.move_on_after(0.05) as impatience:
            await near.send_all(lent)
        assert impatience.cancelled_caught
        lent[:] = b"0" * len(lent)  # the caller may use its buffer again
        assert 0 < near.pending_bytes < len(first)
        near.write(b"2" * 10)
        assert await receive_exactly(far, len(first) + 10) == first + b"2" * 10


@with_flusher
async def test_send_all_cancelled_before_it_began_sends_nothing(flusher: Flusher) -> None:
    near, far = open_pair(flusher)
    async with near, far:
        with trio.CancelScope() as scope:
            scope.cancel()
            await near.send_all(b"never")
        near.write(b"first")
        assert await far.receive_some() == b"first"


@with_flusher
async def test_waiting_until_flushed_paces_a_long_replay(flusher: Flusher) -> None:
    near, far = open_pair(flusher, 4096)
    most = 0

    async def replay() -> None:
        nonlocal most
        for _ in range(50):
            for _ in range(10):
                near.write(b"m" * 500)
            most = max(most, near.pending_frames)
            await near.wait_flushed()

    async with near, far, trio.open_nursery() as nursery:
        nursery.start_soon(replay)
        await receive_exactly(far, 50 * 10 * 500)
    assert most == 10


async def test_a_peer_that_reads_nothing_is_closed_by_force_at_the_write_deadline(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(room, "WRITE_DEADLINE_SECONDS", 0.2)
    async with open_flusher() as flusher:
        near, far = open_pair(flusher, 4096)
        before = trio.current_time()
        with pytest.raises(trio.BrokenResourceError):
            await near.send_all(b"x" * 1_000_000)
        assert 0.15 < trio.current_time() - before < 5
        assert near.pending_bytes == 0
        assert not near.is_open
        assert await is_reset(far)  # so that the kernel keeps nothing either
        await far.aclose()


async def test_a_reader_of_the_stream_is_woken_when_the_write_deadline_closes_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(room, "WRITE_DEADLINE_SECONDS", 0.1)
    async with open_flusher() as flusher:
        near, far = open_pair(flusher, 4096)
        near.write(b"x" * 1_000_000)
        with trio.fail_after(5):
            with contextlib.suppress(trio.BrokenResourceError):
                assert await near.receive_some() == b""
        await far.aclose()


async def test_a_peer_that_sips_is_closed_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "WRITE_DEADLINE_SECONDS", 0.3)
    monkeypatch.setattr(room, "WRITE_FLOOR_BYTES", 10_000_000)
    async with open_flusher() as flusher:
        near, far = open_pair(flusher, 4096)
        near.write(b"x" * 5_000_000)
        with trio.fail_after(5):
            assert await is_reset(far, sip=2000)
        assert not near.is_open
        await far.aclose()


@with_flusher
async def test_one_full_socket_delays_no_other(flusher: Flusher) -> None:
    full, deaf = open_pair(flusher, 4096)
    near, far = open_pair(flusher)
    async with full, deaf, near, far:
        full.write(b"x" * 1_000_000)
        for _ in range(100):
            near.write(b"y")
            with trio.fail_after(0.5):
                assert await far.receive_some() == b"y"
        assert full.pending_bytes > 0


@with_flusher
async def test_writing_to_a_peer_that_has_gone_harms_nobody(flusher: Flusher) -> None:
    near, far = open_pair(flusher)
    other, other_far = open_pair(flusher)
    async with near, other, other_far:
        far.abort()
        for _ in range(5):
            near.write(b"into the void")
            other.write(b"x")
            assert await other_far.receive_some() == b"x"
        with pytest.raises(trio.BrokenResourceError):
            await near.send_all(b"is anybody there?")
        near.write(b"no")
        assert near.pending_frames == 0


@with_flusher
async def test_closing_wakes_whoever_sends_or_receives(flusher: Flusher) -> None:
    near, far = open_pair(flusher, 4096)

    async def expect_closed(call: Callable[[], Awaitable[object]]) -> None:
        with pytest.raises(trio.ClosedResourceError):
            await call()

    async with far, trio.open_nursery() as nursery:
        nursery.start_soon(expect_closed, lambda: near.send_all(b"x" * 1_000_000))
        nursery.start_soon(expect_closed, near.receive_some)
        await trio.testing.wait_all_tasks_blocked()
        await near.aclose()


@with_flusher
async def test_what_was_written_just_before_closing_still_arrives(flusher: Flusher) -> None:
    near, far = open_pair(flusher)
    async with far:
        near.write(b"session_ended")
        await near.aclose()
        assert await far.receive_some() == b"session_ended"
        assert await far.receive_some() == b""


@with_flusher
async def test_closing_gently_lets_the_answer_arrive_although_the_peer_still_sends(flusher: Flusher) -> None:
    near, far = open_pair(flusher)
    async with far, trio.open_nursery() as nursery:
        await far.send_all(b"x" * 50_000)
        near.write(b"413")
        nursery.start_soon(near.aclose_gently)
        await far.send_all(b"x" * 50_000)
        assert await receive_exactly(far, 3) == b"413"
        assert await far.receive_some() == b""
        await far.aclose()


@with_flusher
async def test_closing_gently_does_not_wait_for_a_peer_that_stays(flusher: Flusher) -> None:
    near, far = open_pair(flusher)
    async with far:
        with trio.fail_after(5):
            await near.aclose_gently(0.1)
        assert await far.receive_some() == b""


@with_flusher
async def test_bytes_put_back_are_received_first(flusher: Flusher) -> None:
    near, far = open_pair(flusher)
    async with near, far:
        await far.send_all(b"body")
        near.unread(b"head")
        assert await near.receive_some(3) == b"hea"
        assert await near.receive_some(3) == b"d"
        assert await near.receive_some() == b"body"
        assert near.received_bytes == 4


@with_flusher
async def test_it_knows_when_it_last_heard_from_its_peer(flusher: Flusher) -> None:
    near, far = open_pair(flusher)
    async with near, far:
        before = near.last_received
        await trio.sleep(0.01)
        far.write(b"pong")
        await near.receive_some()
        assert near.last_received > before


async def test_a_flusher_that_ends_breaks_the_full_streams_so_that_nobody_waits_for_ever() -> None:
    async with open_flusher() as flusher:
        near, far = open_pair(flusher, 4096)
        async with trio.open_nursery() as nursery:

            async def expect_broken() -> None:
                with pytest.raises(trio.BrokenResourceError):
                    await near.send_all(b"x" * 1_000_000)

            nursery.start_soon(expect_broken)
            await trio.testing.wait_all_tasks_blocked()
            assert flusher._drains is not None
            flusher._drains.cancel_scope.cancel()
        with pytest.raises(trio.BrokenResourceError):
            await near.send_all(b"x" * 1_000_000)
        await near.aclose()
        await far.aclose()


@pytest.mark.parametrize(
    ("size", "header"),
    [
        (0, b"\x81\x00"),
        (125, b"\x81\x7d"),
        (126, b"\x81\x7e\x00\x7e"),
        (65_535, b"\x81\x7e\xff\xff"),
        (65_536, b"\x81\x7f\x00\x00\x00\x00\x00\x01\x00\x00"),
    ],
)
def test_a_text_frame_has_the_length_in_its_shortest_form(size: int, header: bytes) -> None:
    assert websocket_text_frame(b"a" * size) == header + b"a" * size


def test_a_ping_is_a_whole_frame() -> None:
    assert PING_FRAME == b"\x89\x00"


@with_flusher
async def test_what_lies_there_can_be_taken_without_waiting(flusher: Flusher) -> None:
    near, far = open_pair(flusher)
    async with near, far:
        assert near.receive_now(10) is None
        await far.send_all(b"hello")
        await trio.lowlevel.wait_readable(near.fd)
        assert (near.receive_now(3), near.receive_now(3), near.receive_now(3)) == (b"hel", b"lo", None)
        assert near.received_bytes == 5
        await far.send_eof()
        await trio.lowlevel.wait_readable(near.fd)
        assert near.receive_now(3) == b""
    with pytest.raises(trio.ClosedResourceError):
        near.receive_now(3)


@with_flusher
async def test_a_reset_is_found_without_waiting(flusher: Flusher) -> None:
    near_end, far_end = socket_pair()
    far_end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    far_end.close()
    async with SocketStream(near_end, flusher) as near:
        await trio.lowlevel.wait_readable(near.fd)
        with pytest.raises(trio.BrokenResourceError):
            near.receive_now(3)
        near.abort()
        with pytest.raises(trio.BrokenResourceError):
            near.receive_now(3)


@pytest.mark.parametrize("by_force", [False, True])
def test_whoever_watches_the_descriptor_is_told_once_before_it_is_closed(by_force: bool) -> None:
    async def close() -> None:
        near, far = open_pair(Flusher())
        near.on_close = lambda: seen.append(os.fstat(near.fd).st_ino > 0)
        for _ in range(2):
            if by_force:
                near.abort()
            await near.aclose()
        await far.aclose()

    seen: list[bool] = []
    trio.run(close)
    assert seen == [True]
