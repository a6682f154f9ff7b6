"""`halo.net.tap` on real sockets: no message is lost, forgotten or overtaken, however the socket ends and whatever its listener does."""

import contextvars
import os
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import outcome
import pytest
import trio
import trio.testing

from halo.net.flusher import Flusher
from halo.net.reader import Reader
from halo.net.stream import SocketStream
from halo.net.tap import RECEIVE_BYTES, SocketTap
from tests.net.test_frames import frame, in_pieces
from tests.net.test_stream import socket_pair

PATIENCE_SECONDS = 20
RESET = struct.pack("ii", 1, 0)
PING, PONG = 9, 10


def text(said: str) -> bytes:
    return frame(1, said.encode())


class Peer:
    """One socket with a tap: the listener, the library, and the client's end. `log` is what both heard, in their order."""

    def __init__(self, flusher: Flusher, reader: Reader, sockets: tuple[socket.socket, socket.socket]) -> None:
        near, self.far = sockets
        self.far.setblocking(True)  # what a test says at once fits into the kernel's buffers, and must leave whole
        self.stream = SocketStream(near, flusher, "peer")
        self.tap = SocketTap(self.stream, reader, self, 65_536)
        self.log: list[str | bytes] = []
        self.sips = 0
        self.ended: outcome.Outcome[None] | None = None
        """How the library's reading ended; a Value after the end of file."""
        self.reading = trio.CancelScope()
        self.on_hear: Callable[[str], Awaitable[None] | None] = lambda _: None

    def hear(self, said: str) -> Awaitable[None] | None:
        self.log.append(said)
        return self.on_hear(said)

    def pong(self, payload: bytes) -> None:
        self.log.append(f"pong {payload.decode()}")

    def sip(self) -> None:
        self.sips += 1

    async def read(self) -> None:
        """As the library does."""
        with self.reading:
            try:
                while received := await self.tap.receive_some(4096):
                    self.log.append(received)
            except (trio.BrokenResourceError, trio.ClosedResourceError, LookupError) as fault:
                self.ended = outcome.Error(fault)
            else:
                self.ended = outcome.Value(None)

    async def heard(self, *said: str | bytes) -> None:
        """Until exactly this was heard."""
        await until(lambda: len(self.log) >= len(said))
        assert self.log == list(said)

    async def ends(self, how: type[Exception] | None = None) -> None:
        await until(lambda: self.ended is not None)
        if how is None:
            assert self.ended == outcome.Value(None)
        else:
            assert isinstance(self.ended, outcome.Error)
            assert type(self.ended.error) is how

    def reset(self) -> None:
        self.far.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        self.far.close()


class House:
    """A reader and a flusher that serve, and sockets on demand."""

    def __init__(self, nursery: trio.Nursery, flusher: Flusher, reader: Reader) -> None:
        self._nursery, self._flusher, self._reader = nursery, flusher, reader
        self.peers: list[Peer] = []

    def meet(self, *said: bytes, unix: bool = False, fd: int | None = None, attached: bool = True) -> Peer:
        """A client who has said this already when the tap is attached; `fd` is the number that our end is to have."""
        near, far = socket.socketpair() if unix else socket_pair()
        if fd == far.fileno():
            near, far = far, near
        elif fd is not None and fd != near.fileno():
            os.dup2(near.fileno(), fd)
            near.close()
            near = socket.socket(fileno=fd)
        peer = Peer(self._flusher, self._reader, (near, far))
        for piece in said:
            peer.far.sendall(piece)
        self.peers.append(peer)
        if attached:
            peer.tap.attach()
            self.let_read(peer)
        return peer

    def let_read(self, peer: Peer) -> None:
        self._nursery.start_soon(peer.read)


@asynccontextmanager
async def open_house() -> AsyncIterator[House]:
    flusher, reader = Flusher(), Reader()
    with trio.fail_after(PATIENCE_SECONDS):
        async with trio.open_nursery() as nursery:
            await nursery.start(flusher.serve)
            await nursery.start(reader.serve)
            house = House(nursery, flusher, reader)
            try:
                yield house
            finally:
                for peer in house.peers:
                    peer.far.close()
                    peer.stream.abort()
            nursery.cancel_scope.cancel()


async def until(happened: Callable[[], object]) -> None:
    while not happened():
        await trio.sleep(0.0005)


class Gate:
    """A listener that has to wait for each message, until it is let on."""

    def __init__(self, peer: Peer) -> None:
        self.open, self.begun = trio.Event(), trio.Event()
        self._log = peer.log
        peer.on_hear = self.wait

    async def wait(self, said: str) -> None:
        self.begun.set()
        await self.open.wait()
        self._log.append(f"done {said}")


# ---- order


async def test_messages_reach_the_listener_and_the_rest_the_library_each_in_its_place() -> None:
    async with open_house() as house:
        peer = house.meet(text("a") + frame(PING, b"1") + text("b") + text("c") + frame(2, b"2"))
        await peer.heard("a", frame(PING, b"1"), "b", "c", frame(2, b"2"))
        peer.far.sendall(text("later"))
        await peer.heard("a", frame(PING, b"1"), "b", "c", frame(2, b"2"), "later")


async def test_nothing_is_heard_before_the_handshake_is_answered() -> None:
    """A head longer than the library reads at once comes to it in pieces, and nothing of it is lost."""
    async with open_house() as house:
        peer = house.meet(text("early"), attached=False)
        peer.stream.unread(b"head" * 2_500)
        house.let_read(peer)
        await until(lambda: len(peer.log) == 3)
        await trio.testing.wait_all_tasks_blocked()
        assert b"".join(piece for piece in peer.log if isinstance(piece, bytes)) == b"head" * 2_500
        peer.log.clear()
        peer.tap.attach()
        await peer.heard("early")


@pytest.mark.parametrize("pieces", [1, 7, 1_000])
async def test_a_long_conversation_in_any_pieces_is_heard_whole(pieces: int) -> None:
    said = [f"{n} " + "x" * (n * 37 % 300) for n in range(300)] + ["y" * 65_535, "z" * 10_000]
    sent = b"".join(map(text, said))
    async with open_house() as house:
        peer = house.meet()
        peer.far.setblocking(False)
        for piece in in_pieces(sent, range(0, len(sent), len(sent) // pieces)):
            view = memoryview(piece)
            while view:
                try:
                    view = view[peer.far.send(view) :]
                except BlockingIOError:
                    await trio.sleep(0.0005)
        await peer.heard(*said)


async def test_what_a_listener_waits_for_is_awaited_before_anything_more_is_read() -> None:
    async with open_house() as house:
        peer = house.meet(attached=False)
        gate = Gate(peer)
        peer.tap.attach()
        house.let_read(peer)
        peer.far.sendall(text("a") + text("b") + frame(PING))
        await gate.begun.wait()
        peer.far.sendall(text("c"))
        await trio.testing.wait_all_tasks_blocked()
        assert peer.log == ["a"]
        gate.open.set()
        await peer.heard("a", "done a", "b", "done b", frame(PING), "c", "done c")


@pytest.mark.parametrize("size", [1, RECEIVE_BYTES, 5 * RECEIVE_BYTES])
async def test_what_came_while_a_socket_was_paused_is_not_forgotten_though_nobody_else_speaks(size: int) -> None:
    """The kernel tells of it once only, and the reader sleeps."""
    async with open_house() as house:
        peer = house.meet(text("a"), attached=False)
        gate = Gate(peer)
        peer.tap.attach()
        house.let_read(peer)
        await gate.begun.wait()
        peer.on_hear = lambda _: None
        peer.far.sendall(text("b" * size) + text("c" * size))
        await trio.testing.wait_all_tasks_blocked()
        gate.open.set()
        await peer.heard("a", "done a", "b" * size, "c" * size)


# ---- fairness


async def test_one_that_pours_messages_does_not_hold_up_another() -> None:
    async with open_house() as house:
        pouring = house.meet(text("x" * 90) * 1_000, unix=True)
        speaking = house.meet(text("0"), unix=True)
        poured: list[int] = []

        def go_on(said: str) -> None:
            poured.append(len(pouring.log))
            if int(said) < 10:
                speaking.far.send(text(str(int(said) + 1)))

        speaking.on_hear = go_on
        await until(lambda: len(poured) == 11 and len(pouring.log) == 1_000)
        steps = [after - before for before, after in zip([0, *poured], poured, strict=False)]
        assert max(steps) <= 2 * RECEIVE_BYTES // 90


@pytest.mark.parametrize("opcode", [PONG, PING], ids=["pongs", "pings"])
async def test_one_that_pours_pongs_or_pings_does_not_hold_up_another(opcode: int) -> None:
    """The library takes pings without ever waiting."""
    async with open_house() as house:
        pouring = house.meet(frame(opcode, b"x" * 90) * 1_000, unix=True)
        speaking = house.meet(text("a"), unix=True)
        poured: list[int] = []
        speaking.on_hear = lambda _: poured.append(len(pouring.log))
        await until(lambda: len(pouring.log) == 1_000)
        assert len(poured) == 1
        assert poured[0] <= 2 * RECEIVE_BYTES // 90


async def test_a_pong_is_heard_in_its_place_and_wakes_nobody() -> None:
    async with open_house() as house:
        peer = house.meet(text("a") + frame(PONG) + frame(PONG, b"mark") + text("b"))
        await peer.heard("a", "pong ", "pong mark", "b")


@pytest.mark.parametrize(
    "wrong", [frame(PONG, b"x" * 126), frame(PONG, b"x", final=False), frame(PONG, b"x", reserved=0x40)],
    ids=["long", "in parts", "reserved"],
)  # fmt: skip
async def test_a_wrong_pong_is_the_librarys(wrong: bytes) -> None:
    async with open_house() as house:
        peer = house.meet(wrong + text("behind it"))
        await until(lambda: bool(peer.log))
        assert isinstance(peer.log[0], bytes)


async def test_more_sockets_than_one_wake_takes_are_all_heard() -> None:
    async with open_house() as house:
        crowd = [house.meet(text(str(n)), unix=True) for n in range(150)]
        for n, peer in enumerate(crowd):
            await peer.heard(str(n))
            peer.far.sendall(text("again"))
        for n, peer in enumerate(crowd):
            await peer.heard(str(n), "again")


async def test_each_drop_is_counted_and_so_is_no_whole_frame() -> None:
    said = text("hello")
    async with open_house() as house:
        peer = house.meet()
        for at in range(len(said)):
            peer.far.send(said[at : at + 1])
            await until(lambda: peer.stream.received_bytes == at + 1)  # noqa: B023  awaited at once
        await peer.heard("hello")
        assert peer.sips == len(said) - 1
        peer.far.send(frame(PING))
        await peer.heard("hello", frame(PING))
        assert peer.sips == len(said) - 1


# ---- the end


@pytest.mark.parametrize("said", [[], ["a"], ["a", "b" * 3 * RECEIVE_BYTES], ["b" * (RECEIVE_BYTES - 8)]])
@pytest.mark.parametrize("early", [True, False])
async def test_the_end_of_file_is_heard_after_what_was_said_before_it(said: list[str], early: bool) -> None:
    sent = b"".join(map(text, said))
    async with open_house() as house:
        peer = house.meet(*([sent] if early else []), attached=False)
        if early:
            peer.far.shutdown(socket.SHUT_WR)  # one event tells of both
        peer.tap.attach()
        house.let_read(peer)
        if not early:
            peer.far.sendall(sent)
            await peer.heard(*said)
            peer.far.shutdown(socket.SHUT_WR)
        await peer.ends()
        assert peer.log == said


async def test_the_end_of_file_behind_half_a_frame_is_heard() -> None:
    async with open_house() as house:
        peer = house.meet(text("a") + text("b")[:-1])
        peer.far.shutdown(socket.SHUT_WR)
        await peer.ends()
        assert peer.log == ["a"]


async def test_the_end_of_file_that_came_while_the_socket_was_paused_is_heard() -> None:
    async with open_house() as house:
        peer = house.meet(text("a"), attached=False)
        gate = Gate(peer)
        peer.tap.attach()
        house.let_read(peer)
        await gate.begun.wait()
        peer.far.sendall(text("b"))
        peer.far.shutdown(socket.SHUT_WR)
        await trio.testing.wait_all_tasks_blocked()
        gate.open.set()
        await peer.ends()
        assert peer.log == ["a", "done a", "b", "done b"]


@pytest.mark.parametrize("paused", [False, True])
async def test_a_reset_ends_the_reading(paused: bool) -> None:
    async with open_house() as house:
        peer = house.meet(*([text("a")] if paused else []), attached=False)
        gate = Gate(peer)
        peer.tap.attach()
        house.let_read(peer)
        if paused:
            await gate.begun.wait()
        await trio.testing.wait_all_tasks_blocked()
        peer.reset()
        gate.open.set()
        await peer.ends()


@pytest.mark.parametrize("by_force", [False, True])
async def test_a_stream_that_we_close_while_the_library_waits_ends_its_reading(by_force: bool) -> None:
    async with open_house() as house:
        peer = house.meet()
        await trio.testing.wait_all_tasks_blocked()
        if by_force:
            peer.stream.abort()
            peer.stream.abort()
        else:
            await peer.tap.aclose()
        await peer.ends(trio.ClosedResourceError)
        assert peer.stream.on_close is None


async def test_a_stream_that_is_closed_by_force_while_the_socket_is_paused_ends_its_reading() -> None:
    """The write deadline strikes while a command waits for Postgres."""
    async with open_house() as house:
        peer = house.meet(text("a"), attached=False)
        gate = Gate(peer)
        peer.tap.attach()
        house.let_read(peer)
        await gate.begun.wait()
        peer.stream.abort()
        gate.open.set()
        await peer.ends(trio.ClosedResourceError)
        assert peer.log == ["a", "done a"]


async def waits() -> None:
    await trio.lowlevel.checkpoint()


@pytest.mark.parametrize("behind", [b"", text("b"), frame(PING)])
@pytest.mark.parametrize("answer", [lambda: None, waits])
async def test_a_listener_may_close_its_own_stream_by_force(
    behind: bytes, answer: Callable[[], Awaitable[None] | None]
) -> None:
    async with open_house() as house:
        other, peer = house.meet(), house.meet()

        def close(_: str) -> Awaitable[None] | None:
            peer.stream.abort()
            return answer()

        peer.on_hear = close
        await trio.testing.wait_all_tasks_blocked()
        peer.far.sendall(text("a") + behind)
        await peer.ends(trio.ClosedResourceError)
        other.far.send(text("c"))
        await other.heard("c")


@pytest.mark.parametrize("behind", [b"", frame(PING)])
async def test_a_listener_may_cancel_its_own_reading(behind: bytes) -> None:
    async with open_house() as house:
        other, peer = house.meet(), house.meet()
        peer.on_hear = lambda _: peer.reading.cancel()
        await trio.testing.wait_all_tasks_blocked()
        peer.far.sendall(text("a") + behind)
        await until(lambda: peer.reading.cancelled_caught)
        other.far.send(text("c"))
        await other.heard("c")


async def test_a_fault_of_the_listener_ends_its_own_socket_only() -> None:
    def fail(_: str) -> None:
        raise KeyError

    async with open_house() as house:
        faulty, other = house.meet(), house.meet()
        faulty.on_hear = fail
        await trio.testing.wait_all_tasks_blocked()
        faulty.far.send(text("a"))
        await faulty.ends(KeyError)
        other.far.send(text("b"))
        await other.heard("b")


async def test_who_is_cancelled_leaves_the_rest_to_who_reads_next() -> None:
    async with open_house() as house:
        peer = house.meet()
        await trio.testing.wait_all_tasks_blocked()
        peer.reading.cancel()
        await until(lambda: peer.reading.cancelled_caught)
        peer.far.sendall(text("unheard"))
        await trio.testing.wait_all_tasks_blocked()
        peer.tap.detach()
        assert await peer.stream.receive_some() == text("unheard")
        peer.far.sendall(text("late") * 10)
        peer.far.shutdown(socket.SHUT_WR)
        await peer.stream.aclose_gently()
        assert peer.stream.received_bytes == len(text("unheard")) + 10 * len(text("late"))
        assert peer.log == []


async def test_a_descriptor_that_is_used_anew_speaks_to_its_new_listener() -> None:
    async with open_house() as house:
        old = house.meet(text("a"))
        await old.heard("a")
        old.stream.abort()
        await old.ends(trio.ClosedResourceError)
        new = house.meet(text("b"), fd=old.stream.fd)
        await new.heard("b")
        assert old.log == ["a"]
        old.tap.detach()  # as whoever ends a conversation does, however it ended
        new.far.send(text("c"))
        await new.heard("b", "c")


# ---- work for the socket's own task


async def test_work_is_done_at_once_when_nothing_else_is() -> None:
    async with open_house() as house:
        peer = house.meet()
        await trio.testing.wait_all_tasks_blocked()

        async def work() -> None:
            await trio.lowlevel.checkpoint()
            peer.log.append(trio.lowlevel.current_task().name.rpartition(".")[2])

        peer.tap.do(work)
        peer.tap.do(work)
        await peer.heard("read", "read")
        peer.far.sendall(text("a"))
        await peer.heard("read", "read", "a")


async def test_work_is_done_before_anything_more_is_read() -> None:
    async with open_house() as house:
        peer = house.meet(text("a"), attached=False)
        gate = Gate(peer)
        peer.tap.attach()
        house.let_read(peer)
        await gate.begun.wait()
        peer.far.sendall(text("b"))

        async def work() -> None:
            await trio.lowlevel.checkpoint()
            peer.log.append("worked")

        peer.tap.do(work)
        await trio.testing.wait_all_tasks_blocked()
        gate.open.set()
        await peer.heard("a", "done a", "worked", "b", "done b")


@pytest.mark.parametrize("paused", [False, True])
@pytest.mark.parametrize("behind", [b"", frame(PING)])
async def test_work_that_a_listener_asks_for_while_it_hears_is_done(paused: bool, behind: bytes) -> None:
    async with open_house() as house:
        peer = house.meet()
        gate = Gate(peer)

        async def work() -> None:
            peer.log.append("worked")

        def ask(_: str) -> None:
            peer.tap.do(work)

        await trio.testing.wait_all_tasks_blocked()
        if paused:
            peer.far.sendall(text("a") + text("b") + behind)
            await gate.begun.wait()
            peer.on_hear = ask
            gate.open.set()
            await until(lambda: "worked" in peer.log)
            assert peer.log[:3] == ["a", "done a", "b"]
        else:
            peer.on_hear = ask
            peer.far.sendall(text("b") + behind)
            await until(lambda: "worked" in peer.log)
        if behind:
            await until(lambda: behind in peer.log)
        peer.on_hear = lambda _: None
        peer.far.sendall(text("c"))
        await until(lambda: peer.log[-1] == "c")


async def test_a_fault_of_the_work_ends_the_socket_and_not_who_asked_for_it() -> None:
    def fail() -> Awaitable[None]:
        raise KeyError

    async with open_house() as house:
        peer = house.meet()
        await trio.testing.wait_all_tasks_blocked()
        peer.tap.do(fail)
        await peer.ends(KeyError)


# ---- whose task


WHOSE = contextvars.ContextVar("WHOSE", default="nobody's")


async def test_a_listener_hears_in_the_context_of_its_own_socket() -> None:
    async with open_house() as house:
        peers = []
        for name in ("a", "b"):
            WHOSE.set(name)
            peers.append(house.meet())
        WHOSE.set("the test's")
        seen: list[str] = []
        await trio.testing.wait_all_tasks_blocked()
        for peer in peers:
            peer.on_hear = lambda _: seen.append(WHOSE.get())
            peer.far.sendall(text("x"))
            await peer.heard("x")
        assert seen == ["a", "b"]
