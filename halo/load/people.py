"""Made-up people: admitted with the backend's key, paying with the provider's signature, paired by the server as anybody is.

Everything goes through the public API, so that it works on any halo and proves that it does. It must never put a key or a token into an
error's text. Read next: `halo/load/target.py`, where the keys come from.
"""

import json
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any, Final

import httpx
import trio
from standardwebhooks import Webhook

from halo.client import ApiClient, CallRefused
from halo.load.hosts import Host, Hosts
from halo.load.orders import Person, Seat
from halo.load.patience import wait_until
from halo.load.target import Keys, TargetRefused

AT_ONCE: Final = 16
"""Calls under way: more would only wait for one another in the server."""
SPARE: Final = 1.5
"""Mitras' room for each customer who searches, or the last ones find nobody."""
SEARCHES: Final = 6
SEARCH_SECONDS: Final = 40.0
LOOK_SECONDS: Final = 0.2
TRIES: Final = 40
"""Of a call that was refused for now (429, 503)."""

Tell = Callable[[str, int, int], None]


class PeopleFailed(Exception):
    """The people that a run needs could not be made; the message is one sentence."""


class People:
    """Makes people and what they need."""

    def __init__(self, api: ApiClient, keys: Keys) -> None:
        self._api = api
        self._keys = keys
        self._places = trio.CapacityLimiter(AT_ONCE)
        self.expires_in = 0
        """Seconds that the last token lives."""

    async def admit(self, user_type: str, name: str, room: int | None = None) -> Person:
        wish: dict[str, Any] = {"user_type": user_type, "display_name": name}
        if room is not None:
            wish["max_sessions"] = room
        opened = await self.call("POST", "/api/auth/sessions", wish, {"X-Halo-Key": self._keys.server_key})
        self.expires_in = int(opened["expires_in"])
        return Person(opened["user_id"], opened["access_token"])

    async def admit_all(self, user_type: str, count: int, tell: Tell, room: int | None = None) -> list[Person]:
        people: list[Person] = []

        async def admit(number: int) -> None:
            people.append(await self.admit(user_type, f"load {user_type} {number}", room))
            tell(f"admitting {user_type}s", len(people), count)

        await self._all(admit, count)
        return people

    async def pay(self, person: Person, minutes: int, session_id: str | None = None) -> dict[str, Any]:
        """A confirmed payment."""
        wish: dict[str, Any] = {"duration_minutes": minutes}
        if session_id is not None:
            wish |= {"is_extension": True, "session_id": session_id}
        payment: dict[str, Any] = await self.as_(person, "POST", "/api/payments", wish)
        if self._keys.webhook_secret is None:
            await self.as_(person, "POST", f"/api/sandbox/payments/{payment['id']}/confirm")
        else:
            await self._confirm(payment, self._keys.webhook_secret)
        return payment

    async def _confirm(self, payment: dict[str, Any], secret: str) -> None:
        body = json.dumps(
            {
                "type": "payment.confirmed",
                "payment_request_id": payment["id"],
                "provider_ref": f"load-{payment['id']}",
                "amount": payment["amount"],
                "currency": payment["currency"],
            }
        )
        now, webhook_id = datetime.now(UTC), f"load-{payment['id']}"
        signed = {
            "webhook-id": webhook_id,
            "webhook-timestamp": str(int(now.timestamp())),
            "webhook-signature": Webhook(secret).sign(webhook_id, now, body),
            "content-type": "application/json",
        }
        await self.call("POST", "/api/payments/webhook", body.encode(), signed)

    async def paid_customers(self, count: int, minutes: int, tell: Tell) -> list[Seat]:
        """Customers with a confirmed payment and no session; the seat's `payment_id` is theirs."""
        seats: list[Seat] = []

        async def make(number: int) -> None:
            customer = await self.admit("customer", f"load customer {number}")
            payment = await self.pay(customer, minutes)
            seats.append(Seat("", customer, customer, payment_id=payment["id"]))
            tell("customers pay", len(seats), count)

        await self._all(make, count)
        return seats

    async def pairs(self, count: int, minutes: int, hosts: Hosts, tell: Tell, seats: list[Seat]) -> None:
        """So many living sessions into `seats`, with mitras from `hosts`, who take what is offered.

        Raises:
            PeopleFailed: the server found nobody for somebody, again and again.
        """
        customers = await self.paid_customers(count, minutes, tell)

        async def pair(number: int) -> None:
            seats.append(await self._pair(customers[number], hosts))
            tell("pairing", len(seats), count)

        await self._all(pair, count)

    async def _pair(self, asking: Seat, hosts: Hosts) -> Seat:
        cause = ""
        for _ in range(SEARCHES):
            found = await self.as_(asking.customer, "POST", "/api/pairings", {"payment_request_id": asking.payment_id})
            until = time.monotonic() + SEARCH_SECONDS
            while found["status"] == "searching" and time.monotonic() < until:
                await trio.sleep(LOOK_SECONDS)
                found = await self.as_(asking.customer, "GET", f"/api/pairings/{found['pairing_id']}")
            if found["status"] == "matched":
                session_id = str(found["session_id"])
                host = await self._host_of(session_id, hosts)
                info = await self.as_(asking.customer, "GET", f"/api/chat/{session_id}/info")
                return Seat(session_id, asking.customer, host.person, info["last_seq"])
            cause = str(found["cause"] or "nobody answered in time")
            await trio.sleep(LOOK_SECONDS)
        raise PeopleFailed(f"The server found no mitra for a made-up customer in {SEARCHES} searches: {cause}.")

    async def _host_of(self, session_id: str, hosts: Hosts) -> Host:
        if await wait_until(lambda: session_id in hosts.taken_by, SEARCH_SECONDS):
            return hosts.taken_by[session_id]
        raise PeopleFailed(
            "A made-up customer was given to a mitra who is none of ours; nobody else may be online there."
        )

    async def buy_time(self, seats: list[Seat], minutes: int, tell: Tell) -> list[Seat]:
        """The same seats, each with a confirmed payment for more time."""
        done: dict[int, Seat] = {}

        async def buy(number: int) -> None:
            seat = seats[number]
            payment = await self.pay(seat.customer, minutes, seat.session_id)
            done[number] = Seat(
                seat.session_id, seat.customer, seat.mitra, seat.last_seq, payment["id"], payment["amount"], minutes
            )
            tell("paying for more time", len(done), len(seats))

        await self._all(buy, len(seats))
        return [done[number] for number in range(len(seats))]

    async def end(self, seats: list[Seat], tell: Tell) -> None:
        """All sessions, by their customers: nobody is left in a session that nobody will come back to."""
        ended = 0

        async def end(number: int) -> None:
            nonlocal ended
            try:
                await self.as_(seats[number].customer, "POST", f"/api/chat/{seats[number].session_id}/end")
            except CallRefused as refused:
                if refused.status not in {401, 409}:  # over, or the token is: halo ends it when its time is up
                    raise
            ended += 1
            tell("ending the sessions", ended, len(seats))

        await self._all(end, len(seats))

    async def as_(self, person: Person, method: str, path: str, body: Any = None) -> Any:
        return await self.call(
            method, path, {} if body is None and method == "POST" else body, {"Authorization": f"Bearer {person.token}"}
        )

    async def call(self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None) -> Any:
        """One call; what was refused for now is asked again.

        Raises:
            CallRefused: for good.
            TargetRefused: nobody answered.
        """
        for number in range(TRIES):
            try:
                return await self._api.call(method, path, body, headers)
            except CallRefused as refused:
                if refused.status not in {429, 503} or number == TRIES - 1:
                    raise
                wait = float(refused.problem.get("retry_after_ms") or 250) / 1000
            except httpx.TransportError as away:
                if number == TRIES - 1:
                    raise TargetRefused(f"{type(away).__name__}: the API does not answer.") from away
                wait = 0.25
            await trio.sleep(wait)
        raise AssertionError("the last try returns or raises")

    async def _all(self, work: Callable[[int], Any], count: int) -> None:
        async def one(number: int) -> None:
            async with self._places:
                await work(number)

        async with trio.open_nursery() as nursery:
            for number in range(count):
                nursery.start_soon(one, number)


@asynccontextmanager
async def open_people(api_url: str, keys: Keys, *, verify_tls: bool = True) -> AsyncIterator[People]:
    api = ApiClient(api_url, verify=verify_tls)
    try:
        yield People(api, keys)
    finally:
        with trio.CancelScope(shield=True):
            await api.aclose()
