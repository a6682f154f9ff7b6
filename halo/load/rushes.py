"""The scenes that are not chats: a rush for mitras, a rush for more time, and heartbeats.

Each asks the API afterwards for what the sockets were told: a match, a purchase or a presence that only a frame knows of is not believed. It
must never count what did not come as if nobody had asked. Read next: `halo/load/scenes.py`, the others.
"""

import time
from typing import Final

from halo.load import arrivals
from halo.load.chats import Chats
from halo.load.handshake import HandshakeRefused, open_wire
from halo.load.hearing import Heard, decode
from halo.load.house import House
from halo.load.orders import Person, Seat
from halo.load.participant import Participant
from halo.load.patience import wait_until
from halo.load.reading import call_patiently
from halo.load.speech import speak_at
from halo.load.wires import Wire

SETTLE_SECONDS: Final = 15.0
LOOKED_AT: Final = 100
"""Mitras whose presence is asked for after heartbeats, of each process: all of a hundred thousand would be a load of its own."""


class Seeker:
    """A customer who looks for a mitra, once."""

    def __init__(self, house: House, seat: Seat) -> None:
        self._house = house
        self.seat = seat
        self.wire: Wire | None = None
        self.is_here = False
        self.asked_at = 0.0
        self.outcome = ""
        self.session_id = ""
        self.pairing_id = ""

    def taken(self, payload: bytes) -> None:
        frame, counts = decode(payload), self._house.meter.counts
        match frame.type:
            case "welcome":
                self.is_here = True
            case "ack":
                self.pairing_id = frame.pairing_id
                self._house.meter.observe("asked", time.monotonic() - self.asked_at)
            case "pairing_matched" | "pairing_failed":
                counts["matches" if frame.type == "pairing_matched" else f"failed_{frame.cause}"] += 1
                counts["outcomes_repeated"] += bool(self.outcome)
                if not self.outcome:
                    self._house.meter.observe("match", time.monotonic() - self.asked_at)
                self.outcome, self.session_id = frame.type, frame.session_id
            case "refused":
                counts[f"refused_{frame.code}"] += 1
                self.outcome = self.outcome or f"refused_{frame.code}"
            case _:
                pass

    def closed(self, code: int) -> None:
        self._house.meter.counts[f"lobby_closed_{code}"] += 1

    def ask(self, intended: float) -> None:
        self.asked_at = intended
        self._house.meter.counts["searches"] += 1
        if self.wire is not None:
            self.wire.say(
                b'{"type":"pairing_request","id":"search","payment_request_id":"%b"}' % self.seat.payment_id.encode()
            )


class PairingRush:
    """Many customers ask at once."""

    def __init__(self, house: House) -> None:
        self.house = house
        self.seekers = [Seeker(house, seat) for seat in house.orders.customers]
        for person in house.orders.mitras:
            house.hosts.add(person)

    async def prepare(self) -> None:
        await self.house.hosts.connect_all(self.house.doing("mitras come online"))
        tell, address = self.house.doing("customers connect"), self.house.hosts.address
        assert address is not None  # told with the orders
        for number, seeker in enumerate(self.seekers):
            seeker.wire = await open_wire(
                self.house.wires, address, "/v1/lobby", seeker.seat.customer.token, seeker, number
            )
            seeker.wire.attend()
            tell(number + 1, len(self.seekers))
        await wait_until(lambda: all(seeker.is_here for seeker in self.seekers), SETTLE_SECONDS)

    async def play(self) -> None:
        moments = arrivals.rush(len(self.seekers), self.house.plan.window, self.house.dice)
        planned = list(zip(moments, self.seekers, strict=True))
        await speak_at(planned, self.house.start, lambda seeker, at: seeker.ask(at), self.house.meter)
        left = self.house.start + self.house.plan.seconds - time.monotonic()
        await wait_until(lambda: all(seeker.outcome for seeker in self.seekers), left)

    async def settle(self) -> None:
        await wait_until(lambda: all(seeker.outcome or not seeker.asked_at for seeker in self.seekers), SETTLE_SECONDS)
        for seeker in self.seekers:
            if seeker.asked_at and not seeker.outcome:
                self.house.meter.counts["unanswered"] += 1
                self.house.meter.observe("match", time.monotonic() - seeker.asked_at)

    async def verify(self) -> None:
        """Whoever was told of a match has that one session and no other."""
        await self.house.send_home()
        tell, done = self.house.doing("asking what became of each search"), 0
        async with self.house.open_api() as api:
            for seeker in self.seekers:
                if seeker.outcome == "pairing_matched":
                    found = await call_patiently(api, seeker.seat.customer, "/api/chat")
                    theirs = [session["session_id"] for session in found["sessions"]]
                    self.house.meter.counts["matches_kept"] += theirs == [seeker.session_id]
                done += 1
                tell(done, len(self.seekers))


class _Buyers(Chats):
    """Chats in which people sell and buy time."""

    def told(self, participant: Participant, frame: Heard) -> None:
        match frame.type:
            case "extension_request" if participant.side == 1 and participant.wire is not None:
                participant.wire.say(
                    b'{"type":"extension_respond","id":"yes","extension_id":"%b","accepted":true}'
                    % frame.extension_id.encode()
                )
            case "extension_response":
                self.answers[participant.number] = frame.accepted
            case "session_resumed":
                asked = self.asked_at.get(participant.seat.session_id)
                if asked is not None and participant.number not in self.resumed:
                    self.resumed.add(participant.number)
                    if participant.side == 0:
                        self._meter.counts["extensions"] += 1
                        self._meter.observe("extension", time.monotonic() - asked)
            case _:
                pass

    asked_at: dict[str, float]
    resumed: set[int]
    answers: dict[int, bool]


class ExtensionRush:
    """Many customers buy time at once, and every mitra says yes."""

    def __init__(self, house: House) -> None:
        self.house = house
        old = house.chats
        self.chats = _Buyers(
            house.wires, house.meter, house.findings, tag=house.orders.tag, filler=old.filler, dice=house.dice
        )
        self.chats.address = old.address
        self.chats.asked_at, self.chats.resumed, self.chats.answers = {}, set(), {}
        house.chats = self.chats
        for seat in house.orders.seats:
            self.chats.seat(seat)

    async def prepare(self) -> None:
        await self.chats.connect_all(self.house.doing("connecting"))
        await wait_until(lambda: all(one.is_here for one in self.chats.participants), SETTLE_SECONDS)

    async def play(self) -> None:
        customers = [participant for participant in self.chats.participants if participant.side == 0]
        moments = arrivals.rush(len(customers), self.house.plan.window, self.house.dice)
        await speak_at(list(zip(moments, customers, strict=True)), self.house.start, self._ask, self.house.meter)
        left = self.house.start + self.house.plan.seconds - time.monotonic()
        await wait_until(lambda: len(self.chats.resumed) == len(self.chats.participants), left)

    def _ask(self, customer: Participant, intended: float) -> None:
        seat = customer.seat
        self.chats.asked_at[seat.session_id] = intended
        self.house.meter.counts["requests"] += 1
        assert customer.wire is not None  # all are connected
        customer.wire.say(
            b'{"type":"extension_request","id":"more","duration_minutes":%d,"price":%d,"extension_payment_request_id":"%b"}'
            % (seat.minutes, seat.price, seat.payment_id.encode())
        )

    async def settle(self) -> None:
        await wait_until(lambda: len(self.chats.resumed) >= 2 * len(self.chats.asked_at), SETTLE_SECONDS)
        now = time.monotonic()
        for participant in self.chats.participants:
            asked = self.chats.asked_at.get(participant.seat.session_id)
            if asked is not None and participant.side == 0 and participant.number not in self.chats.resumed:
                self.house.meter.counts["unanswered"] += 1
                self.house.meter.observe("extension", now - asked)
        self.house.meter.counts["resumed_both"] = len(self.chats.resumed)

    async def verify(self) -> None:
        """Whoever was told of more time has paid for it once, and has it."""
        self.chats.is_coming_back = False
        tell, done = self.house.doing("asking what became of each purchase"), 0
        async with self.house.open_api() as api:
            for participant in self.chats.participants:
                if participant.side or participant.number not in self.chats.resumed:
                    continue
                seat = participant.seat
                payment = await call_patiently(api, seat.customer, f"/api/payments/{seat.payment_id}")
                info = await call_patiently(api, seat.customer, f"/api/chat/{seat.session_id}/info")
                has_time = info["session"]["duration_minutes"] == self.house.plan.minutes + seat.minutes
                self.house.meter.counts["extensions_kept"] += payment["status"] == "consumed" and has_time
                done += 1
                tell(done, len(self.chats.resumed) // 2)


class Heartbeats:
    """Mitras wait and beat."""

    def __init__(self, house: House) -> None:
        self.house = house
        for person in house.orders.mitras:
            house.hosts.add(person)

    async def prepare(self) -> None:
        try:
            await self.house.hosts.connect_all(self.house.doing("mitras come online"))
        except* HandshakeRefused as refused:
            raise refused.exceptions[0] from None

    async def play(self) -> None:
        hosts = self.house.hosts
        beats = arrivals.beats(len(hosts.hosts), self.house.plan.interval, self.house.plan.seconds)
        await speak_at(((at, hosts.hosts[who]) for at, who in beats), self.house.start, hosts.beat, self.house.meter)

    async def settle(self) -> None:
        await wait_until(lambda: not any(host.beats for host in self.house.hosts.hosts), SETTLE_SECONDS)
        now = time.monotonic()
        for host in self.house.hosts.hosts:
            for intended in host.beats.values():
                self.house.meter.counts["unanswered"] += 1
                self.house.meter.observe("heartbeat", now - intended)

    async def verify(self) -> None:
        """Whoever beats is online, says the API of some of them."""
        looked = self.house.hosts.hosts[:: max(1, len(self.house.hosts.hosts) // LOOKED_AT)]
        tell = self.house.doing("asking who is online")
        async with self.house.open_api() as api:
            for number, host in enumerate(looked, 1):
                person: Person = host.person
                status = await call_patiently(api, person, "/api/mitra/status")
                self.house.meter.counts["looked_at"] += 1
                self.house.meter.counts["online"] += bool(status["is_online"] and status["is_reachable"])
                tell(number, len(looked))
        await self.house.send_home()
