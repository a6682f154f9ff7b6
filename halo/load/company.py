"""Who takes part in a run: gathered before it, kept alive during it, and sent home afterwards, however it ended.

Before anybody is made, the halo is looked at: are others online there, do its tokens live long enough, do its WebSockets answer where we
think. It must never leave a session that nobody will come back to. Read next: `halo/load/people.py`.
"""

import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Final

import httpx
import trio

from halo.client import CallRefused
from halo.load.handshake import HandshakeFailed, HandshakeRefused, address_of, open_wire
from halo.load.hosts import ROOM, Hosts
from halo.load.meter import Meter
from halo.load.orders import Orders, Person, Seat
from halo.load.people import SPARE, People, Tell, open_people
from halo.load.plan import SCENARIOS, Plan
from halo.load.target import Target, TargetRefused
from halo.load.wires import Wires

EXTENSION_MINUTES: Final = 2
BEAT_SECONDS: Final = 15.0
"""As often as halo's lobby asks for."""
TOKEN_SPARE_SECONDS: Final = 60.0
"""Beyond the run, for the connecting before it and the reading after it."""
FAREWELL_SECONDS: Final = 20.0
"""For ending the sessions of a run that failed; what is left then ends when its paid time does."""


class Deaf:
    """Listens to a wire that is only tried."""

    def taken(self, payload: bytes) -> None:
        pass

    def closed(self, code: int) -> None:
        pass


@dataclass
class Company:
    """Everybody, and the mitras of the pairs, who wait in the lobby all the time."""

    plan: Plan
    target: Target
    hosts: Hosts
    wires: Wires
    seats: list[Seat] = field(default_factory=list)
    customers: list[Seat] = field(default_factory=list)
    mitras: list[Person] = field(default_factory=list)

    def shares(self, tag: str) -> list[Orders]:
        """Everybody dealt out to the processes."""
        return [
            Orders(
                plan=self.plan,
                number=number,
                ws=self.target.ws,
                api=self.target.api,
                tag=tag,
                seats=tuple(self.seats[number :: self.plan.processes]),
                mitras=tuple(self.mitras[number :: self.plan.processes]),
                customers=tuple(self.customers[number :: self.plan.processes]),
                verify_tls=self.target.verify_tls,
                is_throw_away=self.target.is_own,
            )
            for number in range(self.plan.processes)
        ]

    def move(self, target: Target) -> None:
        """The server is here now."""
        self.target = target
        self.hosts.address = address_of(target.ws, verify=target.verify_tls)

    async def gather(self, people: People, tell: Tell, beat: Callable[[], None]) -> None:
        """Make everybody; `beat` is called when there are mitras whose hearts must beat from now on."""
        match SCENARIOS[self.plan.scenario].company:
            case "mitras":
                self.mitras = await people.admit_all("mitra", self.plan.mitras, tell, ROOM)
            case "crowd":
                self.mitras = await people.admit_all(
                    "mitra", self.plan.mitras or mitras_for(self.plan.pairs), tell, ROOM
                )
                self.customers = await people.paid_customers(self.plan.pairs, self.plan.minutes, tell)
            case _:
                for person in await people.admit_all("mitra", mitras_for(self.plan.pairs), tell, ROOM):
                    self.hosts.add(person)
                await self.hosts.connect_all(lambda done, of: tell("mitras come online", done, of))
                beat()
                await people.pairs(self.plan.pairs, self.plan.minutes, self.hosts, tell, self.seats)
                if self.plan.scenario == "extension-rush":
                    self.seats = await people.buy_time(self.seats, EXTENSION_MINUTES, tell)

    async def require_fit(self, people: People, *, beside_others: bool) -> None:
        """Raises TargetRefused when this halo must not, or cannot, play this run."""
        visitor = await people.admit("customer", "load visitor")
        if people.expires_in < self.plan.seconds + TOKEN_SPARE_SECONDS:
            raise TargetRefused(
                f"Access tokens live {people.expires_in} s there, too short for a run of {self.plan.seconds:g} s; "
                "shorten the run, or give that halo a longer HALO_ACCESS_TOKEN_SECONDS."
            )
        await self._require_websockets(visitor)
        beacon = await people.as_(visitor, "GET", "/api/customer/beacon")
        if beacon["available_mitras"] and not beside_others:
            raise TargetRefused(
                f"{beacon['available_mitras']} mitras are online there who are none of ours, and made-up customers would be given to them; "
                "use a halo without people, or say --beside-others."
            )

    async def _require_websockets(self, visitor: Person) -> None:
        address = address_of(self.target.ws, verify=self.target.verify_tls)
        try:
            wire = await open_wire(self.wires, address, "/v1/lobby", visitor.token, Deaf())
        except (HandshakeFailed, HandshakeRefused) as fault:
            raise TargetRefused(
                f"WebSockets cannot be opened at {self.target.ws}: {fault}; say where with --ws."
            ) from fault
        wire.cut()

    async def go_home(self, tell: Tell) -> None:
        """Sessions are ended, mitras go offline."""
        async with open_people(self.target.api, self.target.keys, verify_tls=self.target.verify_tls) as people:
            await people.end(self.seats, tell)
        self.seats = []
        await self.hosts.leave(lambda done, of: tell("mitras go offline", done, of))


def mitras_for(pairs: int) -> int:
    """With some room to spare, or the last customers find nobody."""
    return max(2, int(pairs * SPARE / ROOM) + 1)


@asynccontextmanager
async def open_company(plan: Plan, target: Target, tell: Tell, *, beside_others: bool) -> AsyncIterator[Company]:
    """Everybody that the plan needs, for the time of the block.

    Raises:
        TargetRefused, PeopleFailed, NotOnline, CallRefused: they could not be gathered.
    """
    dice = random.Random(plan.seed)  # noqa: S311  # dice, not a secret
    with Wires() as wires:
        company = Company(plan, target, Hosts(wires, Meter(), dice), wires)
        company.move(target)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(wires.serve)
            nursery.start_soon(company.hosts.bring_back)
            try:
                async with open_people(target.api, target.keys, verify_tls=target.verify_tls) as people:
                    await company.require_fit(people, beside_others=beside_others)
                    await company.gather(people, tell, lambda: nursery.start_soon(company.hosts.beat_on, BEAT_SECONDS))
                yield company
                await company.go_home(tell)
            finally:
                if company.seats:
                    with trio.move_on_after(FAREWELL_SECONDS, shield=True):
                        await _part(company, tell)
                nursery.cancel_scope.cancel()


async def _part(company: Company, tell: Tell) -> None:
    """After a failure: what can be ended is, and the failure is what is told."""
    try:
        await company.go_home(tell)
    except (httpx.TransportError, CallRefused, TargetRefused):
        tell("the sessions could not be ended; they end with their paid time", 0, 0)
    except BaseExceptionGroup as group:
        _, rest = group.split((httpx.TransportError, CallRefused, TargetRefused))
        if rest is not None:
            raise rest from None
        tell("the sessions could not be ended; they end with their paid time", 0, 0)
