"""The scenarios as they are played inside a worker: prepare, play, settle, verify.

A scene says when; the rooms it uses know how. It must never end well by waiting too little: what is not settled in time is counted as
missing. Read next: `halo/load/rushes.py`, the scenes that are not chats.
"""

import time
from collections.abc import Iterator
from typing import Final, Protocol

import trio

from halo.load import arrivals
from halo.load.handshake import HandshakeRefused
from halo.load.house import House
from halo.load.participant import Participant
from halo.load.patience import wait_until
from halo.load.speech import speak_at

SETTLE_SECONDS: Final = 15.0
"""Far longer than any ack or delivery takes; a restarted server has had its time before."""
READING_AT_ONCE: Final = 4


class Scene(Protocol):
    async def prepare(self) -> None: ...

    async def play(self) -> None: ...

    async def settle(self) -> None: ...

    async def verify(self) -> None: ...


class Chat:
    """Pairs talk: steady, over a day, or around a storm."""

    def __init__(self, house: House) -> None:
        self.house = house
        self.plan = house.plan
        self.chats = house.chats
        for seat in house.orders.seats:
            self.chats.seat(seat)

    async def prepare(self) -> None:
        await self.chats.connect_all(self.house.doing("connecting"))

    async def play(self) -> None:
        await trio.sleep(max(0.0, self.house.start - time.monotonic()))
        if not self.plan.rate:
            await self.chats.speak_on(self.house.start + self.plan.seconds)
            return
        await speak_at(self.moments(), self.house.start, self.chats.say, self.house.meter)

    @property
    def rate(self) -> float:
        """This process' share."""
        return self.plan.rate / self.plan.processes

    def moments(self) -> Iterator[tuple[float, Participant]]:
        """Who speaks when: everybody in turn, so that nobody passes a limit by chance."""
        speakers = list(self.chats.participants)
        self.house.dice.shuffle(speakers)
        for number, at in enumerate(arrivals.poisson(self.rate, self.plan.seconds, self.house.dice)):
            yield at, speakers[number % len(speakers)]

    async def settle(self) -> None:
        self.house.doing("waiting for what is under way")(0, 1)
        await wait_until(lambda: all(book.is_settled for book in self.chats.books), SETTLE_SECONDS)
        now, meter = time.monotonic(), self.house.meter
        for intended in [at for book in self.chats.books for at in book.waiting_since()]:
            meter.counts["unanswered"] += 1
            meter.observe("ack", now - intended)  # what never was answered counts with the time that was waited for it

    async def verify(self) -> None:
        """Everything is read again over HTTP, and compared with what was acknowledged and heard."""
        self.chats.is_coming_back = False
        tell, done = self.house.doing("reading everything again"), 0
        places = trio.CapacityLimiter(READING_AT_ONCE)
        async with self.house.open_api() as api:

            async def read(number: int) -> None:
                nonlocal done
                seat, book = self.house.orders.seats[number], self.chats.books[number]
                async with places:
                    history = await self.house.history(api, seat.session_id, seat.customer, book.began_after)
                self.house.meter.counts["stored"] += book.close(history, self.chats.filler)
                done += 1
                tell(done, len(self.chats.books))

            async with trio.open_nursery() as nursery:
                for number in range(len(self.chats.books)):
                    nursery.start_soon(read, number)


class Day(Chat):
    """A day's curve."""

    def moments(self) -> Iterator[tuple[float, Participant]]:
        speakers = list(self.chats.participants)
        self.house.dice.shuffle(speakers)
        for number, at in enumerate(arrivals.day(self.rate, self.plan.seconds, self.house.dice)):
            yield at, speakers[number % len(speakers)]


class ConnectStorm(Chat):
    """Nobody is connected before the start."""

    async def prepare(self) -> None:
        pass

    async def play(self) -> None:
        await trio.sleep(max(0.0, self.house.start - time.monotonic()))
        moments = arrivals.rush(len(self.chats.participants), self.plan.window, self.house.dice)
        async with trio.open_nursery() as nursery:
            for offset, participant in zip(moments, self.chats.participants, strict=True):
                nursery.start_soon(self._come, participant, self.house.start + offset)
            if self.plan.rate:
                await speak_at(self.moments(), self.house.start, self.chats.say, self.house.meter)

    async def _come(self, participant: Participant, intended: float) -> None:
        await trio.sleep(max(0.0, intended - time.monotonic()))
        try:
            await self.chats.connect(participant, intended, "connect")
        except HandshakeRefused:
            participant.is_done = True
            self.house.meter.counts["gone_for_good"] += 1


class SlowReaders(Chat):
    """Some mitras stop reading; at the end they come back, and then everything must be there."""

    async def prepare(self) -> None:
        count = max(1, round(self.plan.slow * len(self.chats.books))) if self.plan.slow else 0
        for participant in [one for one in self.chats.participants if one.side][:count]:
            participant.is_slow = True
        self.house.meter.counts["slow"] = count
        await super().prepare()

    async def play(self) -> None:
        slow = [one for one in self.chats.participants if one.is_slow]
        await trio.sleep(max(0.0, self.house.start - time.monotonic()))
        for participant in slow:
            if participant.wire is not None:
                participant.wire.pause()
        await super().play()
        for participant in slow:
            if participant.wire is not None and participant.wire.is_open:
                participant.wire.cut()
                self.chats.lost(participant, 0)

    def moments(self) -> Iterator[tuple[float, Participant]]:
        """Every second message goes to somebody who does not read, so that what waits for them piles up."""
        slow = {one.book for one in self.chats.participants if one.is_slow}
        quick = [one for one in self.chats.participants if one.book not in slow]
        ignored = [one for one in self.chats.participants if one.book in slow and not one.is_slow]
        groups = [group for group in (quick, ignored) if group]
        for number, at in enumerate(arrivals.poisson(self.rate, self.plan.seconds, self.house.dice)):
            group = groups[number % len(groups)]
            yield at, group[number // len(groups) % len(group)]
