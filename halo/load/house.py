"""What the scenes of a worker share: its people, sockets, meters and books, and what the conductor has said so far.

It must never decide when anything happens; a scene does. Read next: `halo/load/scenes.py`.
"""

import random
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Final

import trio

from halo.client import ApiClient
from halo.load.chats import Chats
from halo.load.handshake import address_of
from halo.load.hosts import Hosts
from halo.load.ledger import Findings, Stored
from halo.load.meter import Meter
from halo.load.orders import Doing, Orders, Person, Report
from halo.load.reading import call_patiently
from halo.load.wires import Wires

PAGE: Final = 500
"""Messages of one page of a history; the API may give fewer."""
TELL_SECONDS: Final = 0.25


class House:
    """One worker's share of a run."""

    def __init__(self, orders: Orders, say: Callable[[Report], None]) -> None:
        self.orders = orders
        self.plan = orders.plan
        self.dice = random.Random(f"{orders.plan.seed}-{orders.number}")  # noqa: S311  # dice, not a secret
        self.meter = Meter()
        self.findings = Findings()
        self.wires = Wires()
        filler = " " + "m" * max(0, self.plan.body - len(orders.tag) - 5)
        self.chats = Chats(self.wires, self.meter, self.findings, tag=orders.tag, filler=filler, dice=self.dice)
        self.hosts = Hosts(self.wires, self.meter, self.dice)
        self.go = trio.Event()
        self.stop = trio.Event()
        self.start = 0.0
        """The beginning, on the machine's monotonic clock; known when `go` is set."""
        self._say = say
        self._told_at = 0.0
        self.api = orders.api
        self.moved(orders.ws, orders.api)

    def moved(self, ws: str, api: str) -> None:
        """The server is here now."""
        self.api = api
        self.chats.address = self.hosts.address = address_of(ws, verify=self.orders.verify_tls)
        self.chats.there_since = time.monotonic() if self.go.is_set() else 0.0
        self.chats.there.set()

    def away(self) -> None:
        """The server is being killed: who tries to come back waits for its return, as it would after some tries."""
        self.chats.there = trio.Event()

    def cut(self) -> None:
        self.chats.cut_all()

    async def stopped(self, playing: trio.CancelScope) -> None:
        """Ends the play when the conductor says so."""
        await self.stop.wait()
        playing.cancel()

    def doing(self, what: str) -> Callable[[int, int], None]:
        """For work that takes a while: tells how far it is, not too often."""

        def tell(done: int, of: int) -> None:
            now = time.monotonic()
            if done == of or now - self._told_at > TELL_SECONDS:
                self._told_at = now
                self._say(Doing(what, done, of))

        return tell

    @asynccontextmanager
    async def open_api(self) -> AsyncIterator[ApiClient]:
        api = ApiClient(self.api, verify=self.orders.verify_tls)
        try:
            yield api
        finally:
            with trio.CancelScope(shield=True):
                await api.aclose()

    async def send_home(self) -> None:
        """Its mitras go offline, where anybody would miss them."""
        if not self.orders.is_throw_away:
            await self.hosts.leave(self.doing("mitras go offline"))

    async def history(self, api: ApiClient, session_id: str, person: Person, after_seq: int) -> list[Stored]:
        """Everything that the server has kept of a session, read page by page."""
        rows: list[Stored] = []
        while True:
            page = await call_patiently(
                api, person, f"/api/chat/{session_id}/messages?after_seq={after_seq}&limit={PAGE}"
            )
            if not page["messages"]:
                return rows
            rows += [Stored(row["seq"], row["id"], row["sender"], row["body"]) for row in page["messages"]]
            after_seq = rows[-1].seq
