"""A whole halo for a test: the real server in this process or in one of its own, on the real stores, and people who use it.

What is here knows the wire and nothing of halo's inside, but for the database that a test may look into afterwards. Read next:
`tests/whole/test_chat_protocol.py`.
"""

import os
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import trio

from halo import client
from halo.client import ApiClient, CallRefused, Socket, open_api
from halo.clock import Clock
from halo.demo.stage import Stage, open_stage
from halo.server import Server, open_server
from halo.settings import Settings
from halo.store.invariants import find_violations
from halo.store.postgres import Postgres, open_postgres

WEBHOOK_SECRET = "whsec_" + "c2l4dGVlbiBieXRlcyBhbmQgc29tZSBtb3Jl"
SECRETS = {
    "HALO_TOKEN_SECRET": "a secret of thirty-two characters",
    "HALO_SERVER_KEY": "the key of the backend",
    "HALO_WEBHOOK_SECRET": WEBHOOK_SECRET,
    "HALO_ADMIN_KEY": "the key of the operators",
}
UNLIMITED = {
    "HALO_MESSAGES_PER_10S": "0",
    "HALO_BYTES_PER_S": "0",
    "HALO_CONNECTIONS_PER_USER": "0",
    "HALO_CONNECTIONS_PER_ADDRESS": "0",
    "HALO_HANDSHAKES_PER_S": "0",
    "HALO_REQUESTS_PER_S": "0",
    "HALO_CREATES_PER_MINUTE": "0",
}
"""A test that is about a limit sets it."""
LOOPBACK = {"HALO_WS_BIND": "127.0.0.1:0", "HALO_API_BIND": "127.0.0.1:0", "HALO_ADMIN_BIND": "127.0.0.1:0"}
AT_ONCE = 20
"""Of many calls whose number is not what a test is about: a hundred wait for one another longer than a client does, if the machine is busy."""
PATIENCE_SECONDS = 30.0
"""For what takes milliseconds here: only a hung server needs it all."""


@dataclass
class Person:
    """A customer or a mitra with a token."""

    user_id: str
    token: str
    refresh_token: str

    @property
    def authorization(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.token}"}


@dataclass
class House:
    """A running halo, seen from outside."""

    ready: dict[str, Any]
    db: Postgres
    api: ApiClient = field(repr=False)
    server: Server | None = None
    """Only when it runs in this process."""

    @property
    def own(self) -> Server:
        assert self.server is not None  # it runs in this process
        return self.server

    @property
    def ws_address(self) -> tuple[str, int]:
        url = urlsplit(self.ready["ws"])
        assert url.hostname is not None
        assert url.port is not None
        return url.hostname, url.port

    async def admit(self, user_type: str, **wish: Any) -> Person:
        """A new person with a token."""
        key = {"X-Halo-Key": SECRETS["HALO_SERVER_KEY"]}
        opened = await self.api.call("POST", "/api/auth/sessions", {"user_type": user_type, **wish}, key)
        return Person(opened["user_id"], opened["access_token"], opened["refresh_token"])

    async def call(self, person: Person, method: str, path: str, body: Any = None, **headers: str) -> Any:
        """One HTTP call as this person; Raises CallRefused."""
        body = {} if body is None and method == "POST" else body
        return await self.api.call(method, path, body, person.authorization | headers)

    async def operate(self, method: str, path: str, body: Any = None) -> Any:
        """One call of an operator."""
        key = {"Authorization": f"Bearer {SECRETS['HALO_ADMIN_KEY']}"}
        return await self.api.call(method, self.ready["admin"] + path, body, key)

    async def configure(self, **changes: Any) -> None:
        """Change the live configuration; it is in force when this returns."""
        await self.operate("PATCH", "/api/config", changes)

    async def pay(self, customer: Person, minutes: int = 5, **wish: Any) -> dict[str, Any]:
        """A confirmed payment."""
        made = await self.call(customer, "POST", "/api/payments", {"duration_minutes": minutes, **wish})
        paid: dict[str, Any] = await self.call(customer, "POST", f"/api/sandbox/payments/{made['id']}/confirm")
        return paid

    async def pay_extension(self, customer: Person, session_id: str | None = None, minutes: int = 2) -> dict[str, Any]:
        wish = {} if session_id is None else {"session_id": session_id}
        return await self.pay(customer, minutes, is_extension=True, **wish)

    async def go_online(self, mitra: Person, rooms: int = 3) -> None:
        """Online, heard of just now, and with so much room."""
        await self.db.execute(
            "UPDATE mitras SET max_sessions = %(n)s WHERE mitra_id = %(id)s", {"n": rooms, "id": mitra.user_id}
        )
        await self.call(mitra, "POST", "/api/mitra/status/online")
        await self.call(mitra, "POST", "/api/mitra/status/heartbeat")

    async def pair(self, customer: Person, mitra: Person, minutes: int = 5) -> str:
        """An active session of these two; the mitra must be online."""
        payment = await self.pay(customer, minutes)
        await self.call(customer, "POST", "/api/pairings", {"payment_request_id": payment["id"]})
        with trio.fail_after(PATIENCE_SECONDS):
            while not (offers := (await self.call(mitra, "GET", "/api/offers"))["offers"]):
                await trio.sleep(0.005)
        accepted = await self.call(mitra, "POST", f"/api/offers/{offers[0]['offer_id']}/accept")
        session_id: str = accepted["session_id"]
        return session_id

    async def open_pair(self, minutes: int = 5) -> tuple[Person, Person, str]:
        """Two people and their active session."""
        customer, mitra = await self.admit("customer"), await self.admit("mitra")
        await self.go_online(mitra)
        return customer, mitra, await self.pair(customer, mitra, minutes)

    async def open_pairs(self, mitras: list[Person], number: int) -> list[tuple[Person, Person, str]]:
        """So many sessions, each of a customer of its own; one mitra after the other comes online and takes an equal share."""
        share = number // len(mitras)
        pairs: list[tuple[Person, Person, str]] = []
        for mitra in mitras:
            await self.go_online(mitra, rooms=share)
            waiting: dict[str, Person] = {}
            places = trio.CapacityLimiter(AT_ONCE)
            async with trio.open_nursery() as nursery:
                for _ in range(share):
                    nursery.start_soon(self._search, waiting, places)
            with trio.fail_after(2 * PATIENCE_SECONDS):
                while waiting:
                    for offer in (await self.call(mitra, "GET", "/api/offers"))["offers"]:
                        accepted = await self.call(mitra, "POST", f"/api/offers/{offer['offer_id']}/accept")
                        pairs.append((waiting.pop(offer["pairing_id"]), mitra, accepted["session_id"]))
        return pairs

    async def _search(self, waiting: dict[str, Person], places: trio.CapacityLimiter) -> None:
        async with places:
            customer = await self.admit("customer")
            payment = await self.pay(customer)
            pairing = await self.call(customer, "POST", "/api/pairings", {"payment_request_id": payment["id"]})
            waiting[pairing["pairing_id"]] = customer

    def url(self, session_id: str, after_seq: int | str = 0) -> str:
        return f"{self.ready['ws']}/v1/chat/{session_id}?after_seq={after_seq}"

    def chat(self, session_id: str, person: Person, after_seq: int | str = 0) -> AbstractAsyncContextManager[Socket]:
        return open_socket(self.url(session_id, after_seq), person.token)

    def lobby(self, person: Person) -> AbstractAsyncContextManager[Socket]:
        return open_socket(f"{self.ready['ws']}/v1/lobby", person.token)

    async def ask_extension(self, customer: Person, session_id: str, payment: dict[str, Any]) -> dict[str, Any]:
        asked: dict[str, Any] = await self.call(
            customer,
            "POST",
            f"/api/chat/{session_id}/extensions",
            {
                "duration_minutes": payment["duration_minutes"],
                "price": payment["amount"],
                "extension_payment_request_id": payment["id"],
            },
        )
        return asked

    async def info(self, session_id: str, person: Person) -> dict[str, Any]:
        told: dict[str, Any] = await self.call(person, "GET", f"/api/chat/{session_id}/info")
        return told

    async def settle(self) -> None:
        """Until the mirror is built and believed, which a server does not wait for before it is ready."""
        with trio.fail_after(PATIENCE_SECONDS):
            while (await self.operate("GET", "/readyz"))["degraded"]:
                await trio.sleep(0.005)

    async def require_invariants(self) -> None:
        checked, violations = await find_violations(self.db)
        assert checked > 15
        assert violations == []


@asynccontextmanager
async def open_socket(url: str, access_token: str) -> AsyncIterator[Socket]:
    """halo's own client; a socket that the server closed is closed here as well, which trio-websocket leaves to the collector."""
    async with client.open_socket(url, access_token) as socket:
        try:
            yield socket
        finally:
            if socket.closed_with is not None:
                await trio.aclose_forcefully(socket._websocket._stream)


async def refusal_of(call: Any) -> CallRefused:
    """The refusal that `call` meets."""
    try:
        answer = await call
    except CallRefused as refused:
        return refused
    raise AssertionError(f"not refused: {answer}")


def environment_of(database_url: str, valkey_url: str, **changes: str) -> dict[str, str]:
    return {
        "HALO_DATABASE_URL": database_url,
        "HALO_VALKEY_URL": valkey_url,
        "HALO_SANDBOX": "1",
        **LOOPBACK,
        **SECRETS,
        **UNLIMITED,
        **changes,
    }


@asynccontextmanager
async def open_house(
    database_url: str, valkey_url: str, *, clock: Clock | None = None, **changes: str
) -> AsyncIterator[House]:
    """A server in this process: the fast one, and the one whose inside can be seen."""
    settings = Settings.read(environment_of(database_url, valkey_url, **changes), {})
    mask = os.umask(0o077)
    try:
        async with (
            open_server(settings, clock) as (server, _),
            open_postgres(database_url) as db,
            trio.open_nursery() as nursery,
        ):
            ready = await nursery.start(_run, server)
            async with open_api(ready["api"]) as api:
                house = House(ready, db, api, server)
                await house.settle()
                yield house
            server.stop.set()
    finally:
        os.umask(mask)


async def _run(server: Server, *, task_status: trio.TaskStatus[dict[str, str]]) -> None:
    await server.run(task_status.started)


@asynccontextmanager
async def open_process(
    home: Path, database_url: str, valkey_url: str, **changes: str
) -> AsyncIterator[tuple[Stage, House]]:
    """A server in a process of its own, which may be killed; `stage.start()` after that needs `renew`."""
    async with open_stage(home / "data", environment_of(database_url, valkey_url, **changes)) as stage:
        await stage.start()
        async with open_postgres(database_url) as db, open_api(stage.ready["api"]) as api:
            house = House(stage.ready, db, api)
            await house.settle()
            yield stage, house


@asynccontextmanager
async def renewed(stage: Stage, house: House) -> AsyncIterator[House]:
    """The same house after its server was started again, on other ports."""
    async with open_api(stage.ready["api"]) as api:
        again = House(stage.ready, house.db, api)
        await again.settle()
        yield again
