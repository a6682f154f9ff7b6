"""The chats of a worker: participants on wires, who speak, note what they hear, and come back when their connection is lost.

They do what a good app does and no more: keep the last `seq`, send again what was not acknowledged, come back by `after_seq` with some
jitter. Each socket is judged by the book of its session. It must never wait for an answer before somebody else speaks. Read next:
`halo/load/ledger.py`.
"""

import heapq
import itertools
import random
import time
from collections.abc import Callable
from typing import Final

import trio

from halo.load.handshake import (
    BACK_SECONDS,
    CONNECTING_AT_ONCE,
    FINAL_STATUS,
    Address,
    HandshakeFailed,
    HandshakeRefused,
    open_wire,
)
from halo.load.hearing import Heard
from halo.load.ledger import Book, Findings, Kind
from halo.load.meter import Meter
from halo.load.orders import Seat
from halo.load.participant import Participant
from halo.load.wires import Wires

REFUSED_PAUSE_SECONDS: Final = 0.2
"""Before somebody speaks again who was refused without being told when."""
LATER_SECONDS: Final = 0.01
RATE_LIMITED: Final = "RATE_LIMITED"
FINAL_CODES: Final = frozenset({1000, 4401, 4403, 4404})
"""Close codes after which coming back is of no use (spec 4)."""


class Chats:
    """All participants of this process."""

    def __init__(
        self, wires: Wires, meter: Meter, findings: Findings, *, tag: str, filler: str, dice: random.Random
    ) -> None:
        self._wires = wires
        self._meter = meter
        self._findings = findings
        self._dice = dice
        self._tag = tag
        self.filler = filler
        self.participants: list[Participant] = []
        self.books: list[Book] = []
        self.address: Address | None = None
        self.there = trio.Event()
        """Set while the server is not known to be gone."""
        self.there.set()
        self.there_since = 0.0
        """When the server was last known to be ready: nobody can be back before."""
        self.is_closed_loop = False
        self.is_coming_back = True
        self._later: list[tuple[float, int, Participant, int | None]] = []
        """Who speaks again, and when: the same message by its number, or in the closed loop another one."""
        self._turns = itertools.count()
        self._send_lost, self._lost = trio.open_memory_channel[Participant](100_000)

    def seat(self, seat: Seat) -> None:
        """Both sides of a session, not connected yet."""
        book = Book(seat.session_id, self._tag, seat.last_seq, self._findings)
        self.books.append(book)
        for side, person in enumerate((seat.customer, seat.mitra)):
            self.participants.append(Participant(self, seat, side, person, book, len(self.participants)))

    # ---- connections

    async def connect(self, participant: Participant, since: float, figure: str) -> None:
        """Until the handshake is done; the time from `since` to the welcome that follows is measured as `figure`.

        Raises:
            HandshakeRefused: for good.
        """
        participant.away_since, participant.figure = since, figure
        while True:
            assert self.address is not None  # told before anybody connects
            path = f"/v1/chat/{participant.seat.session_id}?after_seq={participant.book.last_seq(participant.side)}"
            try:
                wire = await open_wire(
                    self._wires,
                    self.address,
                    path,
                    participant.person.token,
                    participant,
                    participant.number,
                    is_narrow=participant.is_slow,
                )
            except HandshakeFailed:
                self._meter.counts["handshakes_failed"] += 1
            except HandshakeRefused as refused:
                self._meter.counts[f"handshakes_refused_{refused.status}"] += 1
                if refused.status in FINAL_STATUS:
                    raise
            else:
                participant.wire = wire
                wire.attend()
                return
            self._meter.counts[f"tries_{figure}"] += 1
            await trio.sleep(self._dice.uniform(*BACK_SECONDS))

    async def connect_all(self, tell: Callable[[int, int], None]) -> None:
        """Everybody, some at a time."""
        places = trio.CapacityLimiter(CONNECTING_AT_ONCE)
        left = len(self.participants)

        async def connect(participant: Participant) -> None:
            nonlocal left
            async with places:
                await self.connect(participant, time.monotonic(), "connect")
            left -= 1
            tell(len(self.participants) - left, len(self.participants))

        async with trio.open_nursery() as nursery:
            for participant in self.participants:
                nursery.start_soon(connect, participant)

    def cut_all(self) -> None:
        """Every wire at once; all come back by themselves."""
        self.there_since = time.monotonic()
        for participant in self.participants:
            if participant.wire is not None and participant.wire.is_open:
                participant.wire.cut()
                self.lost(participant, 0)

    async def bring_back(self) -> None:
        """Whoever lost the connection comes back, until cancelled."""
        async with trio.open_nursery() as nursery:
            async for participant in self._lost:
                nursery.start_soon(self._come_back, participant)

    async def _come_back(self, participant: Participant) -> None:
        since = time.monotonic()
        await self.there.wait()
        if not participant.is_slow:
            await trio.sleep(self._dice.uniform(*BACK_SECONDS))
        try:
            await self.connect(participant, since, "resume")
        except HandshakeRefused:
            participant.is_done = True
            self._meter.counts["gone_for_good"] += 1

    def lost(self, participant: Participant, code: int) -> None:
        participant.is_here = False
        if code:
            self._meter.counts[f"closed_{code}"] += 1
        if not self.is_coming_back or participant.is_done or code in FINAL_CODES:
            participant.is_done = True
            return
        self._send_lost.send_nowait(participant)

    # ---- what arrives

    def welcomed(self, participant: Participant) -> None:
        participant.is_here = True
        self._meter.observe(participant.figure, time.monotonic() - max(participant.away_since, self.there_since))
        self._meter.counts[f"{participant.figure}s"] += 1
        for number in participant.book.unanswered(participant.side):
            participant.book.resent(participant.side, number)
            self._utter(participant, number)

    def acked(self, participant: Participant, frame: Heard) -> None:
        if frame.seq is None:
            self.told(participant, frame)
            return
        intended = participant.book.acked(participant.side, frame.id, frame.seq)
        if intended is None:
            return
        self._meter.observe("ack", time.monotonic() - intended)
        self._meter.counts["acks"] += 1
        if self.is_closed_loop:
            self.say(participant, time.monotonic())

    def heard(self, participant: Participant, frame: Heard) -> None:
        assert frame.seq is not None  # every message has one
        intended = participant.book.heard(participant.side, frame.sender, frame.id, frame.seq)
        if intended is None:
            return
        if frame.body != f"{frame.id}{self.filler}":
            self._findings.note(
                Kind.ALTERED, f"session {participant.seat.session_id}: {frame.id} came with another body"
            )
        self._meter.counts["deliveries"] += 1
        if not participant.is_slow:
            self._meter.observe("delivery", time.monotonic() - intended)

    def refused(self, participant: Participant, frame: Heard) -> None:
        """What may be tried again is, under its id: a server that says "not now" still owes the time. Beyond a limit nothing is owed."""
        self._meter.counts[f"refused_{frame.code}"] += 1
        number = participant.book.find_unanswered(participant.side, frame.id)
        if not frame.retryable or frame.code == RATE_LIMITED:
            participant.book.refused(participant.side, frame.id)
            number = None
        if number is not None or self.is_closed_loop:
            at = time.monotonic() + ((frame.retry_after_ms or 0) / 1000 or REFUSED_PAUSE_SECONDS)
            heapq.heappush(self._later, (at, next(self._turns), participant, number))

    async def try_again(self) -> None:
        """Whoever was refused speaks again when it is time, until cancelled."""
        while True:
            await trio.sleep(LATER_SECONDS)
            now = time.monotonic()
            while self._later and self._later[0][0] <= now:
                _, _, participant, number = heapq.heappop(self._later)
                if number is not None and participant.is_here:  # or it is sent again on coming back
                    participant.book.resent(participant.side, number)
                    self._utter(participant, number)
                elif number is None and self.is_closed_loop:
                    self.say(participant, now)

    def told(self, participant: Participant, frame: Heard) -> None:
        """Anything that is about time or extensions; a scenario that cares overrides it."""

    # ---- what is said

    def say(self, participant: Participant, intended: float) -> None:
        """One message; whoever is not connected says it on coming back."""
        number = participant.book.intend(participant.side, intended)
        self._meter.counts["said"] += 1
        if participant.is_here:
            self._utter(participant, number)

    def _utter(self, participant: Participant, number: int) -> None:
        message_id = participant.book.id_of(number)
        assert participant.wire is not None  # whoever is here has one
        participant.wire.say(
            b'{"type":"message","id":"%b","body":"%b%b"}'
            % (message_id.encode(), message_id.encode(), self.filler.encode())
        )

    async def speak_on(self, until: float) -> None:
        """The closed loop, until then: everybody begins, and goes on when answered."""
        self.is_closed_loop = True
        now = time.monotonic()
        for participant in self.participants:
            self.say(participant, now)
        await trio.sleep(max(0.0, until - time.monotonic()))
        self.is_closed_loop = False
