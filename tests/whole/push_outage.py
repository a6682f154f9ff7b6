"""The provider of pushes goes away for minutes while people chat and are paired, and comes back: nothing is lost, and nobody waited for it.

Pairs talk over their sockets; customers without a socket search, mitras without a socket say yes or stay silent, so that pushes of every
fate are written: answered, superseded, expired, and still wanted when the provider is back. `scripts/simulate push-outage` plays it for
five minutes against `halo serve` on stores of its own; `tests/whole/test_push_outage.py` for seconds. Read next: `tests/whole/push_books.py`.
"""

import argparse
import random
import sys
import time
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

import trio
import trio_asyncio  # noqa: F401  # before psycopg, which otherwise binds asyncio's loop before it is patched (spec 6, traps)

# isort: split
from halo.client import CallRefused, Socket, open_api
from halo.demo.stage import open_stage
from halo.errands import open_database
from halo.log import configure_logging
from halo.settings import Settings
from halo.store.postgres import open_postgres
from tests.whole.house import LOOPBACK, PATIENCE_SECONDS, SECRETS, UNLIMITED, House, Person
from tests.whole.push_books import Post, balance, has_failed, open_post, until_none_is_due

MESSAGE, SEARCH, YES = "message to its ack", "search to its offers", "yes to its session"
HEARTBEAT_SECONDS = 10.0
LOOK_SECONDS = 0.2
"""How often a mitra without a socket looks for offers."""
MINUTES = 240
"""What those who talk have paid for: more than any story lasts."""
WAITED_MS = 5_000
"""Half of what a call to the provider may take (`halo.net.outgoing.CALL_SECONDS`): who had waited for one would have waited for longer."""


class Waited(Exception):
    """Somebody who chats or is paired has waited for the provider."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How long, and how many."""

    before_seconds: float
    away_seconds: float
    after_seconds: float
    late_seconds: float
    """A push that is wanted for so much longer than the provider is away is delivered: the longest pause between attempts, and one call."""
    offer_seconds: int
    pairs: int = 5
    mitras: int = 4
    talk_seconds: float = 0.05
    search_seconds: float = 0.5
    seed: int = 7


def long_plan(minutes: float) -> Plan:
    return Plan(
        before_seconds=60, away_seconds=minutes * 60, after_seconds=60, late_seconds=30 + 10 + 5, offer_seconds=20
    )


@dataclass
class Street:
    """The people, and how long each of their deeds took (ms), by deed and part of the story."""

    house: House
    plan: Plan
    dice: random.Random
    part: str = "before"
    took: dict[str, dict[str, list[float]]] = field(
        default_factory=lambda: {deed: defaultdict(list) for deed in (MESSAGE, SEARCH, YES)}
    )

    def note(self, deed: str, began: float) -> None:
        self.took[deed][self.part].append((time.perf_counter() - began) * 1000)

    async def talk(self, socket: Socket) -> None:
        """One message after the other, each until it is acknowledged."""
        while True:
            began = time.perf_counter()
            answer = await socket.ask("message", body="hello")
            if answer["type"] != "ack":
                raise Waited(f"a message was refused: {answer}")
            self.note(MESSAGE, began)
            socket.frames.clear()
            await trio.sleep(self.plan.talk_seconds)

    async def search(self) -> None:
        """New customers without a socket, one after the other; nobody waits for what becomes of them."""
        while True:
            customer = await self.house.admit("customer", push_token=f"phone-{self.dice.getrandbits(64):x}")
            payment = await self.house.pay(customer)
            began = time.perf_counter()
            await self.house.call(customer, "POST", "/api/pairings", {"payment_request_id": payment["id"]})
            self.note(SEARCH, began)
            await trio.sleep(self.plan.search_seconds)

    async def answer(self, mitra: Person) -> None:
        """A mitra without a socket: she says yes to two offers of three, and leaves each session soon."""
        silent: set[str] = set()
        while True:
            for offer in (await self.house.call(mitra, "GET", "/api/offers"))["offers"]:
                if offer["offer_id"] in silent:
                    continue
                if self.dice.random() < 1 / 3:
                    silent.add(offer["offer_id"])
                    continue
                began = time.perf_counter()
                try:
                    accepted = await self.house.call(mitra, "POST", f"/api/offers/{offer['offer_id']}/accept")
                except CallRefused as refused:
                    if refused.status not in {409, 410}:
                        raise
                    continue  # another mitra was sooner, or its time is over
                self.note(YES, began)
                if self.dice.random() < 2 / 3:
                    await self.house.call(mitra, "POST", f"/api/chat/{accepted['session_id']}/end")
            await trio.sleep(LOOK_SECONDS)

    async def until_all_was_tried(self) -> None:
        """Until people have done everything while the provider was away, and a push that will be wanted for long has met it. Raises
        `trio.TooSlowError`."""
        with trio.fail_after(PATIENCE_SECONDS):
            while not (all(parts["away"] for parts in self.took.values()) and await has_failed(self.house.db)):
                await trio.sleep(0.05)

    async def beat(self, mitras: list[Person]) -> None:
        while True:
            for mitra in mitras:
                await self.house.call(mitra, "POST", "/api/mitra/status/heartbeat")
            await trio.sleep(HEARTBEAT_SECONDS)


async def play(house: House, post: Post, plan: Plan) -> tuple[Street, dict[str, int]]:
    """The whole story; what people waited for, and the books of the pushes. Raises PushesWrong, Waited."""
    street = Street(house, plan, random.Random(plan.seed))
    await house.configure(pairing_offer_seconds=plan.offer_seconds, pairing_waves=1, pairing_blast_size=2)
    chatty = await house.admit("mitra", push_token="phone-of-the-chatty")
    await house.go_online(chatty, rooms=plan.pairs)
    customers = [await house.admit("customer") for _ in range(plan.pairs)]
    pairs = [(customer, chatty, await house.pair(customer, chatty, MINUTES)) for customer in customers]
    mitras = [await house.admit("mitra", push_token=f"phone-of-mitra-{number}") for number in range(plan.mitras)]
    await house.call(chatty, "POST", "/api/mitra/status/offline")
    for mitra in mitras:
        await house.go_online(mitra, rooms=100)
    async with trio.open_nursery() as people:
        for customer, mitra, session_id in pairs:
            people.start_soon(_converse, street, session_id, customer, mitra)
        people.start_soon(street.beat, mitras)
        for mitra in mitras:
            people.start_soon(street.answer, mitra)
        async with trio.open_nursery() as business:
            business.start_soon(street.search)
            await trio.sleep(plan.before_seconds)
            street.part = "away"
            await post.be_away(plan.away_seconds, street.until_all_was_tried)
            street.part = "after"
            await trio.sleep(plan.after_seconds)
            business.cancel_scope.cancel()
        await until_none_is_due(house.db, 2 * plan.late_seconds + plan.offer_seconds + plan.away_seconds / 4)
        people.cancel_scope.cancel()
    figures = await balance(house.db, post, round(plan.late_seconds * 1000))
    await house.require_invariants()
    return street, figures


async def _converse(street: Street, session_id: str, customer: Person, mitra: Person) -> None:
    async with (
        street.house.chat(session_id, customer) as one,
        street.house.chat(session_id, mitra) as other,
        trio.open_nursery() as nursery,
    ):
        for socket in (one, other):
            await socket.expect("welcome")
            nursery.start_soon(street.talk, socket)


@asynccontextmanager
async def open_own_house(folder: Path, post: Post) -> AsyncIterator[House]:
    """`halo serve` in a process of its own, on stores of its own."""
    settings = {
        **LOOPBACK,
        **SECRETS,
        **UNLIMITED,
        "HALO_FCM_CREDENTIALS": str(post.provider.credentials(folder)),
        "FCM_ENDPOINT": post.provider.url,
    }
    async with open_stage(folder / "halo", settings) as stage:
        await stage.start()
        own = Settings.read({"HALO_DATA_DIR": str(stage.data_dir)}, {})
        async with open_database(own) as url, open_postgres(url) as db, open_api(stage.ready["api"]) as api:
            house = House(stage.ready, db, api)
            await house.settle()
            yield house


async def play_alone(plan: Plan) -> tuple[Street, dict[str, int]]:
    with TemporaryDirectory(prefix="halo-outage-") as folder:
        async with open_post() as post, open_own_house(Path(folder), post) as house:
            post.provider.expires_in = 20  # so that tokens run out while nobody gives new ones
            return await play(house, post, plan)


def percentile(values: list[float], part: float) -> float:
    return sorted(values)[min(len(values) - 1, int(len(values) * part))]


def run(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="scripts/simulate push-outage", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--minutes", type=float, default=5.0, metavar="M", help="how long the provider is away (5)")
    plan = long_plan(parser.parse_args(arguments).minutes)
    street, figures = trio.run(play_alone, plan)
    sys.stdout.write(
        f"{plan.away_seconds:g} s without a provider of pushes; rows of the outbox, each where it belongs:\n"
    )
    for name, count in sorted(figures.items()):
        sys.stdout.write(f"  {name:<58} {count:>8,}\n")
    slowest = 0.0
    for deed, parts in street.took.items():
        for part, times in parts.items():
            told = ", ".join(f"{label} {percentile(times, of):.1f}" for label, of in (("p50", 0.5), ("p99", 0.99)))
            sys.stdout.write(f"  {deed}, {part}: {told}, at most {max(times):.1f} ms ({len(times):,})\n")
            slowest = max(slowest, *times)
    if slowest > WAITED_MS:
        raise Waited(f"{slowest:.0f} ms")
    return 0


if __name__ == "__main__":
    configure_logging("critical", "console")
    sys.exit(run())
