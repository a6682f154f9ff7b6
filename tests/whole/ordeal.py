"""One paid session from nothing to goodbye, played by apps that do what good apps do when a server dies: start again, come back
where they were, and ask again under the same key.

`Ordeal.play` gives back what became of everything, without the ids, so that two runs can be compared. Read next:
`tests/whole/test_crash.py`.
"""

import json
import os
import subprocess
import sys
import tempfile
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, TypeVar

import httpx
import trio

from halo.client import CallRefused, open_api
from halo.store.invariants import find_violations
from halo.store.postgres import open_postgres
from tests.whole.house import SECRETS, House, Person, environment_of
from tests.whole.wire import Closed, HandshakeRefused, Wire, chat_path, open_wire

T = TypeVar("T")

MINUTES_SECONDS: Final = (2, 6, 20)
"""Paid time runs while people talk and a server comes back. Two seconds are enough for that and short enough to wait for; where they
were not, because the machine was busy, the play has shown nothing and is played again with longer ones (`OutOfTime`)."""
PLAY_SECONDS: Final = 200.0
"""A play takes five; with the longest minutes, a restart and a machine that is busy with all the others, a hundred."""
START_SECONDS: Final = 60.0
RETRY_SECONDS: Final = 0.02
NEVER: Final = (0, "")
CONFIG: Final = {
    "reconnect_grace_seconds": 2,
    "extension_timeout_seconds": 60,
    "session_timer_interval_seconds": 3600,
    "session_warning_seconds": [],
    "pairing_offer_seconds": 60,
}
DONE_BEFORE: Final = {"SESSION_NOT_ACTIVE", "EXTENSION_RESOLVED", "INVALID_STATE", "PAYMENT_IN_USE"}
"""What is told to somebody who asks again for what was done when nobody could say so."""
COME_BACK: Final = {1001, 1006, 1011, 4000, 4001, 4002}
BROKEN: Final = (httpx.TransportError, EOFError, OSError, trio.BrokenResourceError, trio.ClosedResourceError)


class OutOfTime(Exception):
    """The paid time, or the grace, was over before all was said: the machine was too busy for so short a minute."""


@asynccontextmanager
async def open_zygote() -> AsyncIterator[str]:
    """The path of the socket at which servers are to be had."""
    with tempfile.TemporaryDirectory(prefix="crash-") as home:
        path = f"{home}/s"
        process = await trio.lowlevel.open_process(
            [sys.executable, "-m", "tests.whole.crashing_server", path], stdin=subprocess.DEVNULL
        )
        try:
            with trio.fail_after(START_SECONDS):
                while not Path(path).exists():
                    assert process.poll() is None
                    await trio.sleep(0.01)
            yield path
        finally:
            process.kill()
            with trio.CancelScope(shield=True):
                await process.wait()


@dataclass
class Mortal:
    """A server that may die, and what it has told."""

    stream: trio.SocketStream
    ready: dict[str, str] = field(default_factory=dict)
    commits: list[str] = field(default_factory=list)
    is_killed: bool = False
    """It has said that it dies now."""
    is_ready: trio.Event = field(default_factory=trio.Event)
    is_dead: trio.Event = field(default_factory=trio.Event)

    async def listen(self) -> None:
        rest = b""
        async with self.stream:
            async for chunk in self.stream:
                *lines, rest = (rest + chunk).split(b"\n")
                for line in lines:
                    self._note(json.loads(line))
            self.is_dead.set()
            self.is_ready.set()

    def _note(self, told: dict[str, Any]) -> None:
        if "ready" in told:
            self.ready = told["ready"]
            self.is_ready.set()
        else:
            self.commits.append(told["label"])
            self.is_killed = self.is_killed or bool(told["dies"])


STATUSES: Final = {
    "session_started": "active",
    "session_paused": "extending",
    "session_resumed": "active",
    "session_closing": "closing",
    "session_ended": "ended",
}
"""Where each frame says that the session is."""


class Chat:
    """One side's app: what it has heard, and where it would go on."""

    def __init__(self, ordeal: "Ordeal", person: Person) -> None:
        self._ordeal = ordeal
        self._person = person
        self._wire: Wire | None = None
        self._open = AsyncExitStack()
        self.heard: list[str] = []
        """Bodies, by seq from 1."""
        self.acked: dict[str, int] = {}
        self.status = ""

    async def close(self) -> None:
        self._wire = None
        await self._open.aclose()

    async def connect(self) -> Wire:
        if self._wire is None:
            path = chat_path(self._ordeal.session_id, len(self.heard))
            self._wire = await self._open.enter_async_context(open_wire(self._ordeal.house, path, self._person))
            welcome = await self._wire.receive()
            assert welcome["type"] == "welcome"
            self.status = welcome["session"]["status"]
        return self._wire

    async def take(self) -> dict[str, Any]:
        told = await (await self.connect()).receive()
        if told["type"] == "message":
            self._hear(told["seq"], told["body"])
        else:
            self.status = STATUSES.get(told["type"], self.status)
        return told

    async def say(self, name: str, body: str) -> None:
        """Until it is acknowledged."""
        wire = await self.connect()
        told = None
        await wire.send("message", id=name, body=body)
        while told is None or told["type"] not in {"ack", "refused"} or told["id"] != name:
            told = await self.take()
        if told["type"] == "refused":
            raise CallRefused(told["status"], told)
        self.acked[name] = told["seq"]
        self._hear(told["seq"], body)

    async def ask(self, type_: str, **fields: Any) -> None:
        """Send a command; its answer only matters when it is a refusal."""
        wire = await self.connect()
        name = str(uuid.uuid4())
        await wire.send(type_, id=name, **fields)
        while (told := await self.take()).get("id") != name:
            pass
        if told["type"] == "refused":
            raise CallRefused(told["status"], told)

    async def hear(self, seq: int) -> None:
        while len(self.heard) < seq:
            await self.take()

    async def wait_for(self, *statuses: str) -> None:
        await self.connect()
        while self.status not in statuses:
            await self.take()

    def _hear(self, seq: int, body: str) -> None:
        if seq <= len(self.heard):
            assert self.heard[seq - 1] == body, "a seq was given twice"
        else:
            assert seq == len(self.heard) + 1, f"seq {seq} after {len(self.heard)}: a gap"
            self.heard.append(body)


class Ordeal:
    """One play, on a database of its own. Each of `deaths` is one incarnation's: at its n-th commit, `before` or `after` it."""

    def __init__(
        self,
        zygote: str,
        number: int,
        database_url: str,
        valkey_url: str,
        deaths: Sequence[tuple[int, str]],
        *,
        minute_seconds: int,
    ) -> None:
        self._zygote = zygote
        self._where = f"127.{1 + os.getpid() % 250}.{2 + number // 250}.{1 + number % 250}:0"
        """An address of its own: a port of a dead server is soon somebody else's."""
        self._environment = environment_of(
            database_url,
            valkey_url,
            HALO_VALKEY_PREFIX=f"crash{number}-{minute_seconds}:",
            HALO_MINUTE_SECONDS=str(minute_seconds),
            HALO_WS_BIND=self._where,
            HALO_API_BIND=self._where,
            HALO_ADMIN_BIND=self._where,
        )
        self._minute_seconds = minute_seconds
        self._database_url = database_url
        self._deaths = deaths
        self._questions: Mapping[str, str] = QUESTIONS
        self.incarnations: list[Mortal] = []
        self.session_id = ""
        self.house: House

    async def play(self, log: Path) -> dict[str, Any]:
        """The outcome. What is not the same as ever raises, and so does `OutOfTime`."""
        self._log = log
        with trio.fail_after(PLAY_SECONDS):
            async with (
                open_postgres(self._database_url, size=2) as db,
                open_api("http://halo.test") as api,
                trio.open_nursery() as nursery,
            ):
                self._nursery, self._db, self._api = nursery, db, api
                await self._start()
                await self._insist(self._settle)
                await self._patch()
                try:
                    await self._live()
                except Exception as fault:
                    if await self._is_time_up():
                        raise OutOfTime from fault
                    raise
                finally:
                    for chat in self._chats:
                        await chat.close()
                outcome = await self._outcome()
                nursery.cancel_scope.cancel()
        return outcome

    @property
    def commits(self) -> list[str]:
        """What the first incarnation made durable, up to its death."""
        return self.incarnations[0].commits

    # ---- the server

    async def _start(self) -> None:
        """Again and again, if it is to die before it is ready."""
        while True:
            mortal = await self._bear()
            if mortal.ready:
                self.house = House(mortal.ready, self._db, self._api)
                return
            assert mortal.is_killed, f"the server died at its start: {self._log.read_text()[-2000:]}"

    async def _bear(self) -> Mortal:
        born = len(self.incarnations)
        at, side = self._deaths[born] if born < len(self._deaths) else NEVER
        stream = await trio.open_unix_socket(self._zygote)
        mortal = Mortal(stream)
        self.incarnations.append(mortal)
        self._nursery.start_soon(mortal.listen)
        request = {
            "environment": self._environment,
            "at": at,
            "side": side,
            "counts_recovery": born > 0,
            "log": str(self._log),
        }
        await stream.send_all(json.dumps(request).encode() + b"\n")
        with trio.fail_after(START_SECONDS):
            await mortal.is_ready.wait()
        return mortal

    async def _revive(self) -> None:
        for chat in self._chats:
            await chat.close()
        mortal = self.incarnations[-1]
        with trio.move_on_after(RETRY_SECONDS):
            await mortal.is_dead.wait()
        if mortal.is_dead.is_set():
            assert mortal.is_killed, f"the server died by itself: {self._log.read_text()[-2000:]}"
            await self._start()
            await self._insist(self._settle)
            if self._is_online:
                await self._insist(self._beat)

    async def _insist(self, step: Callable[..., Awaitable[T]], *arguments: Any) -> T:
        """`step` until it goes through: what may be repeated is repeated, whatever was broken is made anew."""
        while True:
            try:
                return await step(*arguments)
            except BROKEN:
                pass
            except Closed as closed:
                if closed.code not in COME_BACK:
                    raise
            except CallRefused as refused:
                if not refused.problem.get("retryable"):
                    raise
            except HandshakeRefused as refused:
                if refused.status != 503:
                    raise
            await self._revive()

    # ---- the people

    _mitra: Person | None = None
    _customer: Person | None = None
    _chats: tuple[Chat, ...] = ()
    _is_online = False
    _too_early: tuple[str, ...] = ("closing", "ended")
    """What the session must not have come to before the next thing is said."""

    async def _is_time_up(self) -> bool:
        return bool(
            await self._db.fetch_all(
                "SELECT FROM session_timeline WHERE to_status = ANY(%(statuses)s)", {"statuses": list(self._too_early)}
            )
        )

    async def _call(self, person: Person, method: str, path: str, body: Any = None, key: str | None = None) -> Any:
        headers = {} if key is None else {"Idempotency-Key": key}
        body = {} if body is None and method == "POST" else body
        return await self._api.call(method, self.house.ready["api"] + path, body, person.authorization | headers)

    async def _settle(self) -> None:
        """Of the server that lives now: the one before may have died while we asked."""
        await self.house.settle()

    async def _patch(self) -> None:
        await self.house.configure(**CONFIG, closure_grace_seconds=self._minute_seconds // 2)

    async def _admit(self, user_type: str, key: str | None = None) -> Person:
        headers = {"X-Halo-Key": SECRETS["HALO_SERVER_KEY"], "Idempotency-Key": key or user_type}
        opened = await self._api.call(
            "POST", self.house.ready["api"] + "/api/auth/sessions", {"user_type": user_type}, headers
        )
        return Person(opened["user_id"], opened["access_token"], opened["refresh_token"])

    async def _beat(self) -> None:
        assert self._mitra is not None
        await self._call(self._mitra, "POST", "/api/mitra/status/heartbeat")

    async def _live(self) -> None:
        customer = self._customer = await self._insist(self._admit, "customer")
        mitra = self._mitra = await self._insist(self._admit, "mitra")
        await self._insist(self._call, mitra, "POST", "/api/mitra/status/online")
        self._is_online = True
        await self._insist(self._beat)
        payment = await self._pay("the session", {"duration_minutes": 1, "is_first_session_discount": True})
        wish = {"duration_minutes": 1, "is_extension": True}
        first, second = await self._pay("an extension", wish), await self._pay("another", wish)  # before the clock runs
        self.session_id = await self._pair(payment["id"])
        one, other = self._chats = (Chat(self, customer), Chat(self, mitra))
        await self._talk("hello", one, other)
        await self._talk("hello yourself", other, one)
        await self._extend(first, accepted=True, by_socket=False)
        await self._talk("thank you", one, other)
        await self._extend(second, accepted=False, by_socket=True)
        await self._talk("sorry", other, one)
        self._too_early = ("ended",)
        for chat in self._chats:
            await self._insist(chat.wait_for, "closing")
        await self._talk("good night", one, other)
        self._too_early = ()
        for chat in self._chats:
            await self._insist(self._see_end, chat)
            await chat.close()

    async def _pay(self, key: str, wish: dict[str, Any]) -> Any:
        assert self._customer is not None
        made = await self._insist(self._call, self._customer, "POST", "/api/payments", wish, key)
        return await self._insist(self._call, self._customer, "POST", f"/api/sandbox/payments/{made['id']}/confirm")

    async def _pair(self, payment_request_id: str) -> str:
        assert self._customer is not None
        assert self._mitra is not None
        wish = {"payment_request_id": payment_request_id}
        pairing = await self._insist(self._call, self._customer, "POST", "/api/pairings", wish, "the pairing")
        while True:
            found = await self._insist(self._call, self._customer, "GET", f"/api/pairings/{pairing['pairing_id']}")
            if found["status"] == "matched":
                return str(found["session_id"])
            assert found["status"] == "searching", found
            await self._accept_offers(self._mitra)

    async def _accept_offers(self, mitra: Person) -> None:
        for offer in (await self._insist(self._call, mitra, "GET", "/api/offers"))["offers"]:
            try:
                await self._insist(self._call, mitra, "POST", f"/api/offers/{offer['offer_id']}/accept")
            except CallRefused as refused:
                if refused.code != "OFFER_RESOLVED":  # by ourselves, before the server died
                    raise
        await trio.sleep(0.005)

    async def _talk(self, body: str, speaker: Chat, listener: Chat) -> None:
        await self._insist(speaker.say, f"id of {body}", body)
        await self._insist(listener.hear, speaker.acked[f"id of {body}"])

    async def _extend(self, payment: dict[str, Any], *, accepted: bool, by_socket: bool) -> None:
        assert self._customer is not None
        assert self._mitra is not None
        ask = {"duration_minutes": 1, "price": payment["amount"], "extension_payment_request_id": payment["id"]}
        chat = f"/api/chat/{self.session_id}"
        while True:
            found = await self._insist(self._call, self._customer, "GET", f"/api/payments/{payment['id']}")
            if found["status"] in {"consumed", "failed"}:
                return
            if await self._is_time_up():
                raise OutOfTime
            pending = (await self._insist(self._call, self._mitra, "GET", f"{chat}/info"))["pending_extension"]
            try:
                if pending is None and by_socket:
                    await self._insist(lambda: self._chats[0].ask("extension_request", **ask))
                elif pending is None:
                    await self._insist(self._call, self._customer, "POST", f"{chat}/extensions", ask, payment["id"])
                elif by_socket:
                    answer = {"extension_id": pending["extension_id"], "accepted": accepted}
                    await self._insist(lambda answer=answer: self._chats[1].ask("extension_respond", **answer))
                else:
                    path = f"{chat}/extensions/{pending['extension_id']}/respond"
                    await self._insist(self._call, self._mitra, "POST", path, {"accepted": accepted})
            except CallRefused as refused:  # it was done, and the server died before it could say so
                if refused.code not in DONE_BEFORE:
                    raise

    async def _see_end(self, chat: Chat) -> None:
        try:
            await chat.wait_for("ended")
        except HandshakeRefused as refused:
            if refused.status != 404 or self._customer is None:
                raise
            info = await self._call(self._customer, "GET", f"/api/chat/{self.session_id}/info")
            assert info["session"]["status"] == "ended"

    # ---- what became of it

    async def _outcome(self) -> dict[str, Any]:
        assert "[error" not in self._log.read_text(), self._log.read_text()[-4000:]
        checked, violations = await find_violations(self._db)
        assert checked > 15
        assert violations == []
        one, other = self._chats
        stored = await self._db.fetch_all("SELECT seq, sender, id, body FROM messages ORDER BY seq")
        for chat in self._chats:
            assert chat.heard == [row.body for row in stored][: len(chat.heard)]
            assert all(stored[seq - 1].id == name for name, seq in chat.acked.items()), "acknowledged, and not there"
        assert one.heard == other.heard
        return {name: await self._rows(question) for name, question in self._questions.items()}

    async def _rows(self, question: str) -> list[tuple[Any, ...]]:
        return [tuple(row) for row in await self._db.fetch_all(question)]


QUESTIONS: Final = {
    "people": "SELECT (SELECT count(*) FROM customers) AS customers, (SELECT count(*) FROM mitras) AS mitras",
    "session": """SELECT status, end_reason, duration_minutes, paid_amount, paid_ms * 1000 / minute_ms AS paid,
                         served_ms * 1000 / minute_ms AS served, refunded_ms, forfeited_ms, remaining_ms, extensions_accepted
                  FROM chat_sessions""",
    "payments": "SELECT status, amount, is_extension, failure_cause FROM payment_requests ORDER BY created_at",
    "ledger": "SELECT type, amount, duration_minutes FROM customer_transactions ORDER BY at",
    "refunds": "SELECT kind, cause, amount, status FROM refunds ORDER BY created_at",
    "extensions": "SELECT status, decided_by, duration_minutes, price FROM session_extensions ORDER BY requested_at",
    "messages": "SELECT seq, sender, id, body FROM messages ORDER BY seq",
    "pairings": "SELECT status, cause FROM pairings",
    "offers": "SELECT status FROM offers",
    "failures": "SELECT cause FROM pairing_failures ORDER BY at",
    "outbox": "SELECT kind, template FROM outbox WHERE kind = 'refund' ORDER BY created_at",
    "history": "SELECT event, from_status, to_status, cause FROM session_timeline WHERE event <> 'downtime_credited' ORDER BY version",
}
"""Everything but ids and moments. Pushes depend on who was connected, and credits on the crash."""
