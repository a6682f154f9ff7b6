"""From a mitra's yes to `session_started` on both sides, on a real server: over the lobby socket and over HTTP.

A closed loop: a few customers search at once, each again and again, and every search asks one mitra, who says yes as soon as she hears of it.
The search is not part of the time: it begins when the yes leaves, and ends when the frame is there, on the customer's lobby socket
and on the mitra's. Client and server share the machine. Read next: `halo/actors/pairing.py`.
"""

import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Final, Literal
from uuid import uuid4

import trio

from halo.client import ApiClient, NothingCame, Socket, open_api, open_socket
from halo.clock import SystemClock
from halo.net.tokens import Tokens
from halo.session import Party
from halo.store.postgres import Postgres
from scripts.measuring.figures import Figure, Measurement, percentile
from scripts.measuring.theatre import TOKEN_SECONDS, Theatre, open_theatre

CUSTOMERS: Final = 4
"""At once: a few, so that what is measured is the way and not the queue."""
MITRAS: Final = 4
ROOM: Final = 100
"""More than there are customers: nobody is refused."""
PAIRINGS: Final = 200
"""Each way, each round."""
ROUNDS: Final = 3
"""The ways take turns, so that neither has the quieter machine."""
WARM_UP: Final = 40
PATIENCE_SECONDS: Final = 60.0
Way = Literal["lobby", "http"]
WAYS: Final[tuple[Way, ...]] = ("lobby", "http")
CONFIG: Final = {"pairing_blast_size": 1}
ADD_PEOPLE: Final = """
WITH mitra AS (INSERT INTO mitras (mitra_id, max_sessions) SELECT unnest(%(mitra_ids)s::uuid[]), %(room)s)
INSERT INTO customers (customer_id) SELECT unnest(%(customer_ids)s::uuid[])
"""


class PairingLost(Exception):
    """A search came to nothing, or somebody was not told."""


@dataclass
class Heard:
    """When what was heard, in seconds; the yes and the customer know the pairing, the mitra the session."""

    yes: dict[str, float] = field(default_factory=dict)
    by_customer: dict[str, tuple[float, str]] = field(default_factory=dict)
    by_mitra: dict[str, float] = field(default_factory=dict)

    def times_ms(self) -> dict[str, list[float]]:
        """Of every pairing, by side. Raises PairingLost when somebody has not heard of one."""
        if not self.yes or self.by_customer.keys() != self.yes.keys():
            raise PairingLost(f"{len(self.yes)} yeses, and {len(self.by_customer)} customers who heard of one")
        times: dict[str, list[float]] = {"customer": [], "mitra": []}
        for pairing_id, (at, session_id) in self.by_customer.items():
            if session_id not in self.by_mitra:
                raise PairingLost("a mitra was not told of her session")
            times["customer"].append((at - self.yes[pairing_id]) * 1000)
            times["mitra"].append((self.by_mitra[session_id] - self.yes[pairing_id]) * 1000)
        return times


@dataclass(frozen=True)
class Person:
    """A lobby socket, and a way to the HTTP API."""

    lobby: Socket
    api: ApiClient

    async def search(self, heard: Heard) -> None:
        """As the customer: pay, search, hear of it, end. Raises PairingLost."""
        made = await self.api.post("/api/payments", {"duration_minutes": 5})
        await self.api.post(f"/api/sandbox/payments/{made['id']}/confirm")
        pairing = await self.api.post("/api/pairings", {"payment_request_id": made["id"]})
        try:
            started = await self.lobby.expect("session_started")
        except NothingCame as missing:
            raise PairingLost(str(missing)) from missing
        heard.by_customer[pairing["pairing_id"]] = time.perf_counter(), started["session_id"]
        await self.api.post(f"/api/chat/{started['session_id']}/end")
        self.lobby.frames.clear()

    async def say_yes(self, way: Way, heard: Heard) -> None:
        """As the mitra: to every offer."""
        while True:
            offer = await self.lobby.expect("offer", PATIENCE_SECONDS)
            heard.yes[offer["pairing_id"]] = time.perf_counter()
            if way == "lobby":
                answer = await self.lobby.ask("offer_accept", offer_id=offer["offer_id"])
                if answer["type"] != "ack":
                    raise PairingLost(f"a yes was refused: {answer}")
            else:
                await self.api.post(f"/api/offers/{offer['offer_id']}/accept")

    async def listen(self, heard: Heard) -> None:
        """As the mitra: to every session that has started."""
        while True:
            started = await self.lobby.expect("session_started", PATIENCE_SECONDS)
            heard.by_mitra[started["session_id"]] = time.perf_counter()


async def measure(say: Callable[[str], None], pairings: int = PAIRINGS, rounds: int = ROUNDS) -> Measurement:
    customer_ids, mitra_ids = ([str(uuid4()) for _ in range(number)] for number in (CUSTOMERS, MITRAS))

    async def insert(db: Postgres) -> None:
        await db.execute(ADD_PEOPLE, {"customer_ids": customer_ids, "mitra_ids": mitra_ids, "room": ROOM})

    taken: dict[Way, list[dict[str, list[float]]]] = {way: [] for way in WAYS}
    async with open_theatre() as theatre:
        await theatre.prepare(insert)
        await theatre.stage.start()
        async with AsyncExitStack() as stack:
            await _configure(theatre)
            customers = [await _admit(stack, theatre, Party.CUSTOMER, user_id) for user_id in customer_ids]
            mitras = [await _admit(stack, theatre, Party.MITRA, user_id) for user_id in mitra_ids]
            for mitra in mitras:
                await mitra.api.post("/api/mitra/status/online")
            for way in WAYS:
                await _play(customers, mitras, way, min(WARM_UP, pairings))
            for number in range(1, rounds + 1):
                for way in WAYS:
                    times = (await _play(customers, mitras, way, pairings)).times_ms()
                    taken[way].append(times)
                    middle = percentile(times["customer"], 0.5)
                    say(
                        f"pairings: {way}, round {number} of {rounds}: {len(times['customer'])} sessions, median {middle:.1f} ms"
                    )
    return Measurement(
        title="From a mitra's yes to session_started",
        figures=tuple(
            Figure(
                name=f"{way}: to the {side}'s socket, {label}",
                unit="ms",
                rounds=tuple(percentile(times[side], part) for times in taken[way]),
            )
            for way in WAYS
            for side in ("customer", "mitra")
            for label, part in (("median", 0.5), ("99 of 100", 0.99))
        ),
        notes=(
            f"{pairings} pairings a round each way, {CUSTOMERS} searches at once in a closed loop; a yes is one durable transaction of Postgres.",
        ),
    )


async def _play(customers: list[Person], mitras: list[Person], way: Way, pairings: int) -> Heard:
    heard = Heard()

    async def repeat(customer: Person) -> None:
        for _ in range(pairings // CUSTOMERS):
            await customer.search(heard)

    async with trio.open_nursery() as answering:
        for mitra in mitras:
            answering.start_soon(mitra.say_yes, way, heard)
            answering.start_soon(mitra.listen, heard)
        async with trio.open_nursery() as searching:
            for customer in customers:
                searching.start_soon(repeat, customer)
        with trio.move_on_after(1.0):  # the last mitra may hear a moment later than her customer
            while len(heard.by_mitra) < len(heard.by_customer):  # noqa: ASYNC110  # a lost frame sets no event
                await trio.sleep(0.01)
        answering.cancel_scope.cancel()
    return heard


async def _configure(theatre: Theatre) -> None:
    key = {"Authorization": f"Bearer {theatre.stage.secret('admin_key')}"}
    async with open_api(theatre.stage.ready["admin"], key) as admin:
        await admin.call("PATCH", "/api/config", CONFIG)


async def _admit(stack: AsyncExitStack, theatre: Theatre, party: Party, user_id: str) -> Person:
    token = Tokens(theatre.token_secret, TOKEN_SECONDS, SystemClock()).issue(party, user_id, user_id)
    ready = theatre.stage.ready
    api = await stack.enter_async_context(open_api(ready["api"], {"Authorization": f"Bearer {token}"}))
    return Person(await stack.enter_async_context(open_socket(f"{ready['ws']}/v1/lobby", token)), api)
