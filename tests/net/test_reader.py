"""`halo.net.reader`: whoever has spoken is told once, soon, and between others; and nobody is told of what is no longer his."""

import contextlib
import os
import socket
import struct
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
import trio.testing

from halo.net.reader import EVENTS_PER_WAKE, Reader


class Ear:
    """One end of a socket that notes what it is told; reads `bytes_at_once`, and asks for more while there is any."""

    def __init__(self, log: list[str] | None = None, name: str = "ear", bytes_at_once: int = 4096) -> None:
        self.near, self.far = socket.socketpair()  # a Unix socket: what is sent lies there when `send` returns
        self.near.setblocking(False)
        self.name, self.fd, self._bytes_at_once = name, self.near.fileno(), bytes_at_once
        self.log = [] if log is None else log
        self.hung_up: list[bool] = []
        self.reads = True
        self.then: Callable[[], object] | None = None
        """What hearing it leads to."""

    def readable(self, hung_up: bool) -> bool:
        self.log.append(self.name)
        self.hung_up.append(hung_up)
        got = b""
        if self.reads:
            with contextlib.suppress(OSError):  # nothing there
                got = self.near.recv(self._bytes_at_once)
        if self.then is not None:
            self.then()
        return len(got) == self._bytes_at_once

    def close(self) -> None:
        self.near.close()
        self.far.close()


Ears = Callable[..., Ear]


@asynccontextmanager
async def serving() -> AsyncIterator[Reader]:
    reader = Reader()
    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            await nursery.start(reader.serve)
            yield reader
            nursery.cancel_scope.cancel()


async def until(happened: Callable[[], object]) -> None:
    while not happened():
        await trio.lowlevel.checkpoint()


async def told_of_nothing_more(reader: Reader) -> None:
    """Whoever was to be told by now has been told: one who speaks last has been told."""
    last = Ear()
    reader.add(last.fd, last)
    last.far.send(b"x")
    await until(lambda: last.log)
    await trio.testing.wait_all_tasks_blocked()
    reader.remove(last.fd)
    last.close()


@pytest.fixture
def ears() -> Iterator[Ears]:
    made: list[Ear] = []

    def make(log: list[str] | None = None, name: str = "ear", bytes_at_once: int = 4096) -> Ear:
        made.append(Ear(log, name, bytes_at_once))
        return made[-1]

    yield make
    for ear in made:
        ear.close()


async def test_it_tells_of_bytes_that_come_and_of_those_that_lie_there_already(ears: Ears) -> None:
    early, late = ears(), ears()
    early.far.send(b"x")
    async with serving() as reader:
        for ear in (early, late):
            reader.add(ear.fd, ear)
        await told_of_nothing_more(reader)
        assert (early.hung_up, late.hung_up) == ([False], [])
        late.far.send(b"x")
        await told_of_nothing_more(reader)
        assert (early.hung_up, late.hung_up) == ([False], [False])


async def test_bytes_that_are_left_lying_are_told_of_once_and_again_only_when_asked_for(ears: Ears) -> None:
    """Whoever pauses costs nothing; and the reader, which sleeps by then, is woken by the asking itself."""
    ear = ears()
    ear.reads = False
    async with serving() as reader:
        reader.add(ear.fd, ear)
        ear.far.send(b"x")
        await told_of_nothing_more(reader)
        assert ear.hung_up == [False]
        reader.ask_again(ear.fd)
        await until(lambda: len(ear.hung_up) == 2)
        ear.near.recv(1)
        reader.ask_again(ear.fd)
        await told_of_nothing_more(reader)
        assert len(ear.hung_up) == 2


async def test_one_that_pours_is_told_again_and_again_and_others_in_between(ears: Ears) -> None:
    log: list[str] = []
    pouring, speaking = ears(log, "pouring", bytes_at_once=1), ears(log, "speaking")
    pouring.far.send(b"x" * 100)
    speaking.then = lambda: log.count("speaking") < 20 and speaking.far.send(b"x")
    async with serving() as reader:
        reader.add(pouring.fd, pouring)
        speaking.far.send(b"x")
        reader.add(speaking.fd, speaking)
        await told_of_nothing_more(reader)
    between = [len(tells) for tells in "".join(name[0] for name in log).split("s")[:-1]]
    assert len(between) == 20
    assert max(between) <= 2
    assert log.count("pouring") == 100


async def test_new_bytes_of_one_that_pours_give_it_no_second_turn(ears: Ears) -> None:
    log: list[str] = []
    pouring, quiet = ears(log, "pouring", bytes_at_once=1), ears(log, "quiet", bytes_at_once=1)
    pouring.then = lambda: len(log) < 200 and pouring.far.send(b"xx")
    async with serving() as reader:
        for ear in (pouring, quiet):
            ear.far.send(b"x" * 50)
            reader.add(ear.fd, ear)
        await until(lambda: log.count("quiet") == 50)
    assert log.count("pouring") <= 52


async def test_more_are_served_than_fit_in_one_wake_and_everybody_else_has_a_turn_in_between(ears: Ears) -> None:
    crowd = [ears() for _ in range(3 * EVENTS_PER_WAKE + 7)]
    turn, told_in = 0, list[int]()
    for ear in crowd:
        ear.far.send(b"x")
        ear.then = lambda: told_in.append(turn)
    async with serving() as reader:
        for ear in crowd:
            reader.add(ear.fd, ear)
        while len(told_in) < len(crowd):
            await trio.lowlevel.checkpoint()
            turn += 1
        await told_of_nothing_more(reader)
    assert [ear.hung_up for ear in crowd] == [[False]] * len(crowd)
    # two wakes have at most one turn of ours between them, and may have none
    assert max(told_in.count(turn) for turn in told_in) <= 2 * EVENTS_PER_WAKE


@pytest.mark.parametrize("with_bytes", [False, True])
@pytest.mark.parametrize("reset", [False, True])
async def test_it_says_that_the_other_side_has_hung_up(ears: Ears, with_bytes: bool, reset: bool) -> None:
    ear = ears()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        far = socket.create_connection(listener.getsockname())
        near, _ = listener.accept()
    with near, far:
        async with serving() as reader:
            reader.add(near.fileno(), ear)
            if with_bytes:
                far.send(b"x")
            if reset:
                far.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                far.close()
            else:
                far.shutdown(socket.SHUT_WR)
            await until(lambda: True in ear.hung_up)
            reader.remove(near.fileno())


async def test_who_was_removed_is_not_told_even_of_what_was_found_in_the_same_wake(ears: Ears) -> None:
    first, second = ears(), ears()
    async with serving() as reader:
        first.then = lambda: reader.remove(second.fd)
        second.then = lambda: reader.remove(first.fd)
        for ear in (first, second):
            reader.add(ear.fd, ear)
            ear.far.send(b"x")
        await told_of_nothing_more(reader)
        assert sorted(len(ear.log) for ear in (first, second)) == [0, 1]
        for ear in (first, second):
            reader.remove(ear.fd)
            reader.remove(ear.fd)
            reader.ask_again(ear.fd)
            ear.far.send(b"x")
        await told_of_nothing_more(reader)
        assert sorted(len(ear.log) for ear in (first, second)) == [0, 1]


async def test_a_descriptor_that_is_used_anew_tells_its_new_owner_only(ears: Ears) -> None:
    old, new = ears(), ears()
    async with serving() as reader:
        reader.add(old.fd, old)
        old.far.send(b"x")
        reader.ask_again(old.fd)
        reader.remove(old.fd)
        os.dup2(new.fd, old.fd)  # closes the one, and puts the other in its place
        reader.add(old.fd, new)
        new.far.send(b"x")
        await told_of_nothing_more(reader)
        assert (old.log, new.log) == ([], ["ear"])
        reader.remove(old.fd)


async def test_what_cannot_be_watched_is_not_kept() -> None:
    """Else the number would be removed later from under its next owner, or fail the closing of a socket."""
    reader, ear = Reader(), Ear()
    with Path(os.devnull).open("rb") as unwatchable:
        with pytest.raises(OSError, match="not permitted"):
            reader.add(unwatchable.fileno(), ear)
        reader.remove(unwatchable.fileno())
    ear.close()


async def test_after_its_end_sockets_may_still_be_closed(ears: Ears) -> None:
    ear = ears()
    async with serving() as reader:
        reader.add(ear.fd, ear)
    reader.ask_again(ear.fd)
    reader.remove(ear.fd)
    assert ear.log == []
