"""A whole session with everything that people say, are called or hold as a key, and crashes that quote it: no log and no metric has any of it.

What must not be found carries a mark, or was given out by the server itself. The rooms crash with what was in their hands, as a library's
exception would quote it.
"""

import io
import json
import logging
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest
import structlog
import trio

from halo.actors.commands import Said
from halo.actors.conversation import Conversation
from halo.actors.supervisor import RestartBudget
from halo.log import LogFormat, configure_logging
from halo.outbox import OutboxKind
from halo.session import Session
from tests.net.provider import Provider, Reply, open_provider
from tests.net.status_site import Browser
from tests.whole.house import PATIENCE_SECONDS, SECRETS, House, Person, open_house, refusal_of
from tests.whole.test_races import deliver_webhook
from tests.whole.wire import HandshakeRefused, chat_path, open_wire

TEXTS = {
    "body": "marked-body selamat malam",
    "crashing body": "marked-crash rahasia",
    "second body": "marked-second apa kabar",
    "customer's name": "Marked-Budi",
    "mitra's name": "Marked-Siti",
    "push token": "marked-push-token",
    "provider's reference": "marked-provider-ref",
    "wrong token": "marked-wrong-token",
    "wrong key": "marked-wrong-key",
    "operator's password": "marked-operator-password",
    "wrong password": "marked-wrong-password",
    "query": "marked-query",
    "refresh token of nobody": "marked-refresh",
}
TRACE_ID = "4bf92f3577b34da6a3ce929d0e0e4736"
TRACEPARENT = f"00-{TRACE_ID}-00f067aa0ba902b7-01"

Claims = list[logging.LogRecord]


@pytest.fixture(params=["json", "console"])
def logged(request: pytest.FixtureRequest) -> Iterator[io.StringIO]:
    """All that a server writes to standard error at its most talkative."""
    form: LogFormat = request.param
    stream = io.StringIO()
    configure_logging("debug", form, stream)
    yield stream
    configure_logging("debug", "console")


class Crashes:
    """Lets methods raise once each, with what was in their hands."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._monkeypatch = monkeypatch
        self.happened: list[str] = []

    def arm(self, owner: Any, name: str, quote: Callable[..., str | None]) -> None:
        healthy = getattr(owner, name)

        async def crash(*args: Any, **kwargs: Any) -> Any:
            quoted = quote(*args, **kwargs)
            if quoted is None or name in self.happened:
                return await healthy(*args, **kwargs)
            self.happened.append(name)
            raise ExceptionGroup(quoted, [ValueError(quoted, {"said": quoted})]) from KeyError(quoted)

        self._monkeypatch.setattr(owner, name, crash)


async def test_nothing_that_anybody_says_is_called_or_holds_is_in_a_log_or_a_metric(
    database_url: str,
    valkey_url: str,
    tmp_path: Path,
    logged: io.StringIO,
    claims_errors: Claims,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("halo.server.DAEMON_BUDGET", RestartBudget(first_wait_seconds=0.01))
    hidden = TEXTS | SECRETS
    crashes = Crashes(monkeypatch)
    async with open_provider() as provider:
        provider.answers = lambda _: Reply(status=500, body=b"marked-push-token is not known")
        settings = {
            "HALO_FCM_CREDENTIALS": str(provider.credentials(tmp_path)),
            "FCM_ENDPOINT": provider.url,
            "HALO_ADMIN_PASSWORD": TEXTS["operator's password"],
        }
        async with open_house(database_url, valkey_url, clock=None, **settings) as house:
            people = await play(house, provider, crashes)
            page = await scrape(house)
        for number, person in enumerate(people):
            hidden |= {f"access token {number}": person.token, f"refresh token {number}": person.refresh_token}
    out, err = capfd.readouterr()
    written = logged.getvalue() + page + out + err
    assert set(crashes.happened) == {"store", "find_next_due", "create"}
    assert [what for what, value in hidden.items() if value in written] == []
    assert re.findall(r"(?i).*marked.*", written) == []
    assert "actor_crashed" in written
    assert "request_fault" in written
    assert TRACE_ID in logged.getvalue()
    if logged.getvalue().startswith("{"):
        require_told(logged)


async def play(house: House, provider: Provider, crashes: Crashes) -> list[Person]:
    """Everything goes wrong that can, and right in the end."""
    parts = house.own.parts
    customer = await house.admit("customer", display_name=TEXTS["customer's name"], push_token=TEXTS["push token"])
    mitra = await house.admit("mitra", display_name=TEXTS["mitra's name"], push_token=TEXTS["push token"] + "-2")
    await house.go_online(mitra)

    def tell_of_payment(*_: Any, **kwargs: Any) -> str:
        return " ".join([customer.token, TEXTS["provider's reference"], str(kwargs)])

    crashes.arm(parts.payments, "create", tell_of_payment)
    await refusal_of(house.call(customer, "POST", "/api/payments", {"duration_minutes": 5}))
    payment = await house.call(customer, "POST", "/api/payments", {"duration_minutes": 5})
    report = {
        "type": "payment.confirmed",
        "payment_request_id": payment["id"],
        "provider_ref": TEXTS["provider's reference"],
        "amount": payment["amount"] + 1,
        "currency": payment["currency"],
    }
    await refusal_of(deliver_webhook(house, report, "m-1"))  # another amount
    await deliver_webhook(house, report | {"amount": payment["amount"]}, "m-2")
    crashes.arm(parts.outbox, "find_next_due", lambda _: TEXTS["push token"])
    session_id = await find_mitra(house, provider, customer, mitra, payment["id"])
    cookie = await knock(house, session_id)
    await talk(house, crashes, customer, mitra, session_id)
    pair = await house.api.call("POST", "/api/auth/refresh", {"refresh_token": customer.refresh_token})
    again = Person(customer.user_id, pair["access_token"], pair["refresh_token"])
    return [customer, mitra, again, Person("operator", cookie, cookie)]


async def find_mitra(house: House, provider: Provider, customer: Person, mitra: Person, payment_id: str) -> str:
    """The search and the push of its offer belong to the trace in which the customer asked for it."""
    await house.call(customer, "POST", "/api/pairings", {"payment_request_id": payment_id}, traceparent=TRACEPARENT)
    with trio.fail_after(PATIENCE_SECONDS):
        while not house.own.parts.outbox_report.retried[OutboxKind.PUSH]:  # it is logged by then
            await trio.sleep(0.01)
    assert all(TRACE_ID in request.headers["traceparent"] for request in provider.requests)
    assert len({request.headers["traceparent"] for request in provider.requests}) == len(provider.requests)
    offers = (await house.call(mitra, "GET", "/api/offers"))["offers"]
    accepted = await house.call(mitra, "POST", f"/api/offers/{offers[0]['offer_id']}/accept")
    session_id: str = accepted["session_id"]
    return session_id


async def knock(house: House, session_id: str) -> str:
    """Whoever does not belong here; and an operator, whose cookie is returned."""
    wrong = {"Authorization": f"Bearer {TEXTS['wrong token']}"}
    await refusal_of(house.api.call("GET", f"/api/chat/{session_id}/info?{TEXTS['query']}=1", None, wrong))
    refresh = {"refresh_token": TEXTS["refresh token of nobody"]}
    await refusal_of(house.api.call("POST", "/api/auth/refresh", refresh))
    await refusal_of(house.api.call("POST", "/api/auth/sessions", {}, {"X-Halo-Key": TEXTS["wrong key"]}))
    with pytest.raises(HandshakeRefused):
        async with open_wire(house, chat_path(session_id), Person(str(uuid4()), TEXTS["wrong token"], "")):
            pass
    async with httpx.AsyncClient(trust_env=False) as client:
        browser = Browser(client, house.ready["admin"])
        assert (await browser.sign_in(TEXTS["customer's name"], TEXTS["wrong password"])).status_code == 401
        assert (await browser.sign_in("admin", TEXTS["operator's password"])).status_code == 303
        assert (await browser.get("/api/overview", headers=wrong)).status_code == 401
        return browser.session_token


async def talk(house: House, crashes: Crashes, customer: Person, mitra: Person, session_id: str) -> None:
    def quote(_: Conversation, said: list[Said], __: Session) -> str | None:
        quoted = " ".join(item.body for item in said)
        return quoted if TEXTS["crashing body"] in quoted else None

    crashes.arm(Conversation, "store", quote)
    async with house.chat(session_id, customer) as asking, house.chat(session_id, mitra) as answering:
        assert (await asking.ask("message", id="one", body=TEXTS["body"]))["type"] == "ack"
        assert (await asking.ask("message", id="two", body=TEXTS["crashing body"]))["code"] == "INTERNAL"
        assert (await asking.ask("message", id="one", body=TEXTS["second body"]))["code"] == "ID_REUSED"
        assert (await asking.ask("message", id="three", body=[TEXTS["second body"]]))["type"] == "refused"
        await asking.send_raw(TEXTS["second body"])
        await asking.expect("refused")
        assert (await answering.ask("message", id="four", body=TEXTS["second body"]))["type"] == "ack"
        payment = await house.pay_extension(customer)
        asked = await house.ask_extension(customer, session_id, payment)
        assert (await answering.ask("extension_response", extension_id=asked["extension_id"], accepted=True))["type"]
        await asking.send("end_session", id="five")
        await answering.expect("session_ended")


async def scrape(house: House) -> str:
    async with httpx.AsyncClient(trust_env=False) as client:
        answer = await client.get(house.ready["admin"] + "/metrics")
    answer.raise_for_status()
    return answer.text


def require_told(logged: io.StringIO) -> None:
    """What is left in the log says which session did what, and why."""
    lines = [json.loads(line) for line in logged.getvalue().splitlines()]
    steps = [line for line in lines if line["event"] == "session_step"]
    assert {"extension_requested", "end_requested"} <= {line["step"] for line in steps}
    for line in steps:
        assert {"session_id", "before", "after", "cause", "trace_id", "version"} <= line.keys()
    crash = next(line for line in lines if line["event"] == "actor_crashed" and line["actor"] == "session")
    assert crash["session_id"] == steps[0]["session_id"]
    assert "at _store_messages (" in crash["exception"]
    searches = [line for line in lines if line.get("trace_id") == TRACE_ID]
    assert all("pairing_id" in line or "outbox_id" in line or "session_id" in line for line in searches)
    assert structlog.contextvars.get_contextvars() == {}
