"""Mitras in the lobby: they come online, beat, and take what is offered to them.

The conductor keeps the mitras of its pairs this way for the whole run, and the workers those of a rush. It must never take more sessions than
it was made for. Read next: `halo/load/people.py`.
"""

import random
import time
from collections import deque
from collections.abc import Callable
from functools import partial
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
from halo.load.hearing import Heard, decode
from halo.load.meter import Meter
from halo.load.orders import Person
from halo.load.patience import wait_until
from halo.load.wires import Wire, Wires

ROOM: Final = 3
"""Sessions at a time of one made-up mitra: with her lobby four sockets, of the five that a user may have."""
ONLINE_SECONDS: Final = 60.0
"""From the first try to connect to the yes of the server, for each: a listener that admits 20 a second is in no hurry."""
LEAVE_SECONDS: Final = 5.0
HEARTBEAT: Final = b'{"type":"heartbeat"}'
GO_OFFLINE: Final = b'{"type":"go_offline","id":"bye"}'


class NotOnline(Exception):
    """A mitra did not come online; the message is one sentence."""


class Host:
    """One mitra who waits."""

    __slots__ = ("_hosts", "beats", "is_here", "is_online", "number", "person", "sessions", "wire")

    def __init__(self, hosts: "Hosts", person: Person, number: int) -> None:
        self._hosts = hosts
        self.person = person
        self.number = number
        self.wire: Wire | None = None
        self.is_here = False
        self.is_online = False
        self.sessions = 0
        """Taken, or about to be."""
        self.beats: dict[str, float] = {}
        """Intended moments of heartbeats that were not answered yet, by id."""

    def taken(self, payload: bytes) -> None:
        self._hosts.taken(self, decode(payload))

    def closed(self, code: int) -> None:
        self._hosts.lost(self, code)

    def say(self, payload: bytes) -> None:
        if self.is_here and self.wire is not None:
            self.wire.say(payload)


class Hosts:
    """All mitras of this process."""

    def __init__(self, wires: Wires, meter: Meter, dice: random.Random) -> None:
        self._wires = wires
        self._meter = meter
        self._dice = dice
        self.address: Address | None = None
        self.hosts: list[Host] = []
        self.taken_by: dict[str, Host] = {}
        """Who has which session."""
        self.is_leaving = False
        self._offers: dict[str, deque[tuple[Host, str]]] = {}
        """Open offers by pairing: of ten of ours who are asked one says yes, and the next only if that is refused."""
        self._saying_yes: dict[str, str] = {}
        """The pairing of each offer that was accepted and not answered yet."""
        self._send_lost, self._lost = trio.open_memory_channel[Host](200_000)

    def add(self, person: Person) -> Host:
        host = Host(self, person, len(self.hosts))
        self.hosts.append(host)
        return host

    async def connect_all(self, tell: Callable[[int, int], None]) -> None:
        """Everybody into the lobby and online, some at a time."""
        places, online = trio.CapacityLimiter(CONNECTING_AT_ONCE), 0

        async def connect(host: Host) -> None:
            nonlocal online
            async with places:
                with trio.move_on_after(ONLINE_SECONDS):
                    await self._connect(host)
                    await wait_until(lambda: host.is_online, ONLINE_SECONDS)
                if not host.is_online:
                    raise NotOnline(f"A made-up mitra could not come online within {ONLINE_SECONDS:g} s.")
            online += 1
            tell(online, len(self.hosts))

        async with trio.open_nursery() as nursery:
            for host in self.hosts:
                nursery.start_soon(connect, host)

    async def _connect(self, host: Host) -> None:
        while True:
            assert self.address is not None  # told before anybody connects
            try:
                host.wire = await open_wire(
                    self._wires, self.address, "/v1/lobby", host.person.token, host, host.number
                )
            except HandshakeFailed:
                self._meter.counts["handshakes_failed"] += 1
            except HandshakeRefused as refused:
                self._meter.counts[f"handshakes_refused_{refused.status}"] += 1
                if refused.status in FINAL_STATUS:
                    raise
            else:
                host.wire.attend()
                return
            await trio.sleep(self._dice.uniform(*BACK_SECONDS))

    async def bring_back(self) -> None:
        """Whoever lost the connection comes back, until cancelled."""
        async with trio.open_nursery() as nursery:
            async for host in self._lost:
                nursery.start_soon(self._come_back, host)

    async def _come_back(self, host: Host) -> None:
        await trio.sleep(self._dice.uniform(*BACK_SECONDS))
        try:
            await self._connect(host)
        except HandshakeRefused:
            self._meter.counts["gone_for_good"] += 1

    async def beat_on(self, interval: float) -> None:
        """Everybody beats, spread over the interval, until cancelled."""
        while self.hosts:
            for host in self.hosts:
                host.say(HEARTBEAT)
                await trio.sleep(interval / len(self.hosts))

    def beat(self, host: Host, intended: float) -> None:
        """One heartbeat that asks for its answer."""
        beat_id = f"{len(host.beats)}-{intended:.6f}"
        host.beats[beat_id] = intended
        self._meter.counts["beats"] += 1
        host.say(b'{"type":"heartbeat","id":"%b"}' % beat_id.encode())

    async def leave(self, tell: Callable[[int, int], None]) -> None:
        """Everybody goes offline, some at a time; who is not connected cannot, and will be missed by the server's sweep."""
        self.is_leaving = True
        for at in range(0, len(self.hosts), CONNECTING_AT_ONCE):
            group = self.hosts[at : at + CONNECTING_AT_ONCE]
            for host in group:
                host.say(GO_OFFLINE)
            await wait_until(partial(self._all_gone, group), LEAVE_SECONDS)
            tell(min(at + CONNECTING_AT_ONCE, len(self.hosts)), len(self.hosts))

    @staticmethod
    def _all_gone(hosts: list[Host]) -> bool:
        return not any(host.is_online and host.is_here for host in hosts)

    def lost(self, host: Host, code: int) -> None:
        host.is_here = False
        self._meter.counts[f"lobby_closed_{code}"] += 1
        if not self.is_leaving:
            self._send_lost.send_nowait(host)

    def taken(self, host: Host, frame: Heard) -> None:
        match frame.type:
            case "welcome":
                host.is_here = True
                host.say(b'{"type":"go_online","id":"hello"}')
            case "heartbeat_ack":
                intended = host.beats.pop(frame.id or "", None)
                if intended is not None:
                    self._meter.counts["heartbeats"] += 1
                    self._meter.observe("heartbeat", time.monotonic() - intended)
            case "offer":
                self._offered(host, frame)
            case "ack" if frame.id == "hello":
                host.is_online = True
            case "ack" if frame.id == "bye":
                host.is_online = False
            case "ack" if frame.session_id:
                self._offers.pop(self._saying_yes.pop(frame.id or "", ""), None)
                self._meter.counts["accepted"] += 1
                self.taken_by[frame.session_id] = host
            case "refused":
                self._refused(host, frame)
            case _:
                pass

    def _offered(self, host: Host, frame: Heard) -> None:
        self._meter.counts["offers"] += 1
        waiting = self._offers.get(frame.pairing_id)
        if waiting is not None:
            waiting.append((host, frame.offer_id))
        else:
            self._offers[frame.pairing_id] = deque([(host, frame.offer_id)])
        if frame.pairing_id not in self._saying_yes.values():
            self._accept_next(frame.pairing_id)

    def _accept_next(self, pairing_id: str) -> None:
        """By whoever of ours has room."""
        waiting = self._offers[pairing_id]
        for _ in range(len(waiting)):
            host, offer_id = waiting.popleft()
            if host.sessions < ROOM and host.is_here:
                host.sessions += 1
                self._saying_yes[offer_id] = pairing_id
                host.say(b'{"type":"offer_accept","id":"%b","offer_id":"%b"}' % (offer_id.encode(), offer_id.encode()))
                return

    def _refused(self, host: Host, frame: Heard) -> None:
        self._meter.counts[f"mitra_refused_{frame.code}"] += 1
        pairing_id = self._saying_yes.pop(frame.id or "", None)
        if pairing_id is not None:
            host.sessions -= 1
            self._accept_next(pairing_id)
