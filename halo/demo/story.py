"""The play: a customer and a mitra live through one whole paid session, and the server is killed in the middle.

Every line that is printed was checked before. The clients are real (`halo/client.py`), the server is a process of its own on real
stores, and at the end every invariant of the specification is asked of Postgres. The first thing that does not hold ends the play
with status 1.
"""

import shutil
import tempfile
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import trio

from halo.client import ApiClient, CallRefused, Frame, NothingCame, Socket, open_api, open_socket
from halo.demo.stage import ServerDidNotStart, Stage, open_stage
from halo.demo.told import Teller
from halo.errands import with_database
from halo.explain import explain_session
from halo.settings import Settings
from halo.store.invariants import find_violations

MINUTE_SECONDS = 4
"""A paid minute of the play: long enough for a kill and a restart within one, short enough to wait for the end of it."""
MINUTES = 5
EXTENSION_MINUTES = 2
CONFIG = {
    "session_warning_seconds": [MINUTE_SECONDS * MINUTES - 3],
    "session_timer_interval_seconds": 5,
    "closure_grace_seconds": 2,
    "reconnect_grace_seconds": 2,
    "extension_timeout_seconds": 20,
    "extension_default_action_on_timeout": "auto_reject",
    "extension_refusal": "resume",
}


class DidNotHold(Exception):
    """Something in the play was not as it must be."""


def hold(fact: object, sentence: str) -> None:
    if not fact:
        raise DidNotHold(sentence)


@dataclass
class Person:
    """A customer or a mitra, with a token and what their app would remember."""

    name: str
    user_id: str
    token: str
    last_seq: int = 0
    heard: list[tuple[int, str]] = field(default_factory=list)
    """`(seq, body)` of every message, own and other's, in order."""

    def note(self, seq: int, body: str) -> None:
        hold(seq == self.last_seq + 1, f"{self.name} got seq {seq} after {self.last_seq}")
        self.last_seq = seq
        self.heard.append((seq, body))


async def play(teller: Teller, keep: bool = False) -> int:
    """0 when everything held, else 1."""
    home = _make_home()
    held = False
    try:
        async with open_stage(home / "data", {"HALO_MINUTE_SECONDS": str(MINUTE_SECONDS)}) as stage:
            await _Play(teller, stage).run()
        held = True
    except (DidNotHold, NothingCame, CallRefused, ServerDidNotStart, httpx.TransportError) as failure:
        teller.failed(f"{type(failure).__name__}: {failure}")
    except BaseExceptionGroup as group:
        expected, rest = group.split(
            (DidNotHold, NothingCame, CallRefused, ServerDidNotStart, httpx.TransportError, OSError)
        )
        if rest is not None or expected is None:
            raise
        teller.failed("; ".join(f"{type(leaf).__name__}: {leaf}" for leaf in _leaves(expected)))
    finally:
        if keep or not held:
            teller.step(f"what is left lies in {home}")
        else:
            shutil.rmtree(home, ignore_errors=True)
    return 0 if held else 1


def _make_home() -> Path:
    home = Path(tempfile.mkdtemp(prefix="halo-demo-"))
    home.chmod(0o711)  # the embedded Postgres of a root user passes through, and sees nothing
    return home


def _leaves(group: BaseException) -> list[BaseException]:
    if isinstance(group, BaseExceptionGroup):
        return [leaf for part in group.exceptions for leaf in _leaves(part)]
    return [group]


class _Play:
    def __init__(self, teller: Teller, stage: Stage) -> None:
        self._teller = teller
        self._stage = stage
        self._session_id = ""

    async def run(self) -> None:
        tell = self._teller
        tell.scene("A server is started, with a real Postgres and a real Valkey of its own")
        await self._stage.start()
        tell.step(
            f"ready: {self._stage.ready['ws']}, {self._stage.ready['api']}; a paid minute lasts {MINUTE_SECONDS} s here"
        )
        async with open_api(
            self._stage.ready["admin"], {"Authorization": f"Bearer {self._stage.secret('admin_key')}"}
        ) as admin:
            await admin.call("PATCH", "/api/config", CONFIG)
        customer, mitra = await self._introduce()
        await self._pair(customer, mitra)
        unacknowledged = await self._talk_and_extend(customer, mitra)
        await self._stage.kill()
        tell.step("kill -9: the server is gone in the middle of a sentence")
        await trio.sleep(1.0)
        await self._come_back(customer, mitra, unacknowledged)
        tell.scene("What Postgres says of it")
        await self._check()
        status = await self._stage.stop()
        hold(status == 0, f"the server ended with status {status}")
        tell.step("SIGTERM: the server drained and ended with status 0")

    @asynccontextmanager
    async def _api(self, person: Person) -> AsyncIterator[ApiClient]:
        async with open_api(self._stage.ready["api"], {"Authorization": f"Bearer {person.token}"}) as api:
            yield api

    async def _introduce(self) -> tuple[Person, Person]:
        tell = self._teller
        tell.scene("Two people arrive")
        people = []
        async with open_api(self._stage.ready["api"], {"X-Halo-Key": self._stage.secret("server_key")}) as backend:
            for user_type, name in (("customer", "Sari"), ("mitra", "Budi")):
                opened = await backend.post("/api/auth/sessions", {"user_type": user_type, "display_name": name})
                people.append(Person(name, opened["user_id"], opened["access_token"]))
                tell.step(f"{name} has a token as a {user_type}")
        return people[0], people[1]

    async def _pay(self, api: ApiClient, **wish: Any) -> Any:
        payment = await api.post("/api/payments", wish)
        confirmed = await api.post(f"/api/sandbox/payments/{payment['id']}/confirm")
        hold(confirmed["status"] == "confirmed", f"the payment is {confirmed['status']}")
        return confirmed

    async def _pair(self, customer: Person, mitra: Person) -> None:
        tell = self._teller
        tell.scene("Paying and finding each other")
        async with self._api(customer) as api, open_socket(f"{self._stage.ready['ws']}/v1/lobby", mitra.token) as lobby:
            await lobby.expect("welcome")
            hold((await lobby.ask("go_online"))["type"] == "ack", "Budi could not go online")
            await lobby.send("heartbeat")
            tell.step("Budi is online in the lobby")
            payment = await self._pay(api, duration_minutes=MINUTES, is_first_session_discount=True)
            tell.step(
                f"Sari pays {payment['amount']} {payment['currency']} for {MINUTES} minutes (first-session discount)"
            )
            pairing = await api.post(
                "/api/pairings", {"payment_request_id": payment["id"], "topic_sensitivity": "regular"}
            )
            offer = await lobby.expect("offer")
            accepted = await lobby.ask("offer_accept", offer_id=offer["offer_id"])
            self._session_id = accepted["session_id"]
            found = await api.get(f"/api/pairings/{pairing['pairing_id']}")
            hold(found["status"] == "matched" and found["session_id"] == self._session_id, f"the pairing is {found}")
            tell.step("Budi accepts the offer: the session is active and the clock runs", session_id=self._session_id)

    async def _join(self, stack: AsyncExitStack, person: Person) -> tuple[Socket, Frame]:
        url = f"{self._stage.ready['ws']}/v1/chat/{self._session_id}?after_seq={person.last_seq}"
        socket = await stack.enter_async_context(open_socket(url, person.token))
        return socket, await socket.expect("welcome")

    async def _say(self, speaker: Person, socket: Socket, listener: Person, other: Socket, body: str) -> None:
        ack = await socket.ask("message", body=body)
        hold(ack["type"] == "ack", f"{speaker.name} was refused: {ack}")
        speaker.note(ack["seq"], body)
        message = await other.expect("message")
        listener.note(message["seq"], message["body"])
        self._teller.step(f"{speaker.name}: {body!r} (seq {ack['seq']}: acknowledged, and heard by {listener.name})")

    async def _talk_and_extend(self, customer: Person, mitra: Person) -> str:
        """Everything up to the kill; returns the id of a message whose ack nobody waited for."""
        tell = self._teller
        async with AsyncExitStack() as stack, self._api(customer) as api:
            sari, welcome = await self._join(stack, customer)
            budi, _ = await self._join(stack, mitra)
            tell.scene("Talking")
            hold(welcome["session"]["status"] == "active", f"the session is {welcome['session']['status']}")
            await self._say(customer, sari, mitra, budi, "Hello, is somebody there?")
            await self._say(mitra, budi, customer, sari, "I am. Take your time.")
            timer = await sari.expect("session_timer")
            tell.step(f"the server warns: {timer['remaining_seconds']} s are left")

            tell.scene("More time, accepted")
            payment = await self._pay(
                api, duration_minutes=EXTENSION_MINUTES, is_extension=True, session_id=self._session_id
            )
            before = (await api.get(f"/api/chat/{self._session_id}/info"))["session"]["remaining_seconds"]
            await self._request(sari, budi, payment)
            refused = await sari.ask("message", body="Can you hear me?")
            hold(refused.get("code") == "SESSION_PAUSED", f"a message during the pause got {refused}")
            tell.step("while Budi thinks, the clock stands still and messages are refused as SESSION_PAUSED")
            await self._answer(sari, budi, accepted=True)
            after = (await api.get(f"/api/chat/{self._session_id}/info"))["session"]["remaining_seconds"]
            granted = EXTENSION_MINUTES * MINUTE_SECONDS
            hold(
                abs(after - before - granted) <= 2, f"{before} s were left, {granted} s were bought, {after} s are left"
            )
            tell.step(f"{before} s were left, {granted} s were bought, {after} s are left")

            tell.scene("More time, refused")
            payment = await self._pay(
                api, duration_minutes=EXTENSION_MINUTES, is_extension=True, session_id=self._session_id
            )
            await self._request(sari, budi, payment)
            await self._answer(sari, budi, accepted=False)
            failed = await api.get(f"/api/payments/{payment['id']}")
            hold(
                (failed["status"], failed["failure_cause"]) == ("failed", "extension_rejected"),
                f"the payment is {failed}",
            )
            tell.step(
                "Budi refuses: nothing is charged, the refund is due, and the session goes on with all the time left"
            )

            tell.scene("The server is killed")
            await self._say(customer, sari, mitra, budi, "Something is wrong with my connection")
            return await sari.send("message", id="sent-into-the-dark", body="Did this arrive?")

    async def _request(self, sari: Socket, budi: Socket, payment: Any) -> None:
        asked = await sari.ask(
            "extension_request",
            duration_minutes=EXTENSION_MINUTES,
            price=payment["amount"],
            extension_payment_request_id=payment["id"],
        )
        hold(asked["type"] == "ack", f"the request was refused: {asked}")
        await sari.expect("session_paused")
        await budi.expect("session_paused")
        self._teller.step(
            f"Sari asks for {EXTENSION_MINUTES} more minutes at {payment['amount']} {payment['currency']}; the chat pauses"
        )

    async def _answer(self, sari: Socket, budi: Socket, *, accepted: bool) -> None:
        request = await budi.expect("extension_request")
        answered = await budi.ask("extension_respond", extension_id=request["extension_id"], accepted=accepted)
        hold(answered["type"] == "ack", f"the answer was refused: {answered}")
        for socket in (sari, budi):
            response = await socket.expect("extension_response")
            hold(response["accepted"] is accepted and response["reason"] == "answered", f"the response is {response}")
            await socket.expect("session_resumed")
        if accepted:
            self._teller.step("Budi accepts: charged once, and the chat goes on")

    async def _come_back(self, customer: Person, mitra: Person, unacknowledged: str) -> None:
        tell = self._teller
        started = tell.seconds
        await self._stage.start()
        tell.step(f"a new server is ready after {tell.seconds - started:.1f} s, on what the killed one left behind")
        async with AsyncExitStack() as stack:
            sari, welcome = await self._join(stack, customer)
            budi, _ = await self._join(stack, mitra)
            tell.scene("They return")
            ack = await sari.ask("message", id=unacknowledged, body="Did this arrive?")
            hold(ack["type"] == "ack", f"the repeated message got {ack}")
            for person, socket in ((customer, sari), (mitra, budi)):
                if person is customer and ack["seq"] > welcome["last_seq"]:
                    person.note(ack["seq"], "Did this arrive?")
                else:
                    message = await socket.expect("message")
                    person.note(message["seq"], message["body"])
            tell.step(f"the message that nobody had acknowledged was sent again, and is there once (seq {ack['seq']})")
            await self._say(mitra, budi, customer, sari, "I am still here")
            hold(customer.heard == mitra.heard, "the two have heard different things")
            tell.step(f"both have heard the same {customer.last_seq} messages: no gap, no repetition")

            tell.scene("Time is up")
            closing = await sari.expect("session_closing", seconds=60)
            await budi.expect("session_closing")
            tell.step(f"the paid time is over; {closing['grace_seconds']} s to say goodbye")
            await self._say(customer, sari, mitra, budi, "Thank you. Good night!")
            ended = await sari.expect("session_ended", seconds=30)
            await budi.expect("session_ended")
            hold(ended["end_reason"] == "completed", f"it ended as {ended['end_reason']}")
            codes = (await sari.wait_closed(), await budi.wait_closed())
            hold(codes == (1000, 1000), f"the sockets closed with {codes}")
            tell.step("the session has ended as completed, and both sockets are closed with 1000")

    async def _check(self) -> None:
        settings = Settings.read({"HALO_DATA_DIR": str(self._stage.data_dir)}, {})
        violations, timeline = await with_database(settings, self._ask_postgres)
        hold(not violations, f"broken: {violations}")
        hold(timeline, "the session has no timeline")
        if timeline:
            for line in timeline.splitlines():
                self._teller.step(line)

    async def _ask_postgres(self, db: Any) -> tuple[list[str], str | None]:
        checked, violations = await find_violations(db)
        self._teller.step(f"{checked} invariants of money, time, sessions and messages hold")
        return violations, await explain_session(db, self._session_id)
