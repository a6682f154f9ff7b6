"""Both applications behind real sockets and over real rows; only the actors and Valkey are fakes."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from typing import Any

import httpx
import pytest
import trio
from standardwebhooks import Webhook

from halo.clock import SystemClock
from halo.net.admission import Gate
from halo.net.api import create_api
from halo.net.flusher import Flusher
from halo.net.guard import Door, open_listener
from halo.net.http import serve_http
from halo.net.operators import create_admin
from halo.net.tokens import Tokens
from halo.store.auth_sessions import AuthSessions
from halo.store.idempotency import Idempotency
from halo.store.live_config import LiveConfigStore
from halo.store.mitras import Mitras
from halo.store.operators import Operators
from halo.store.payments import Payments
from halo.store.postgres import Postgres, open_postgres
from tests.net.desk_fakes import ADMIN_KEY, SERVER_KEY, WEBHOOK_SECRET, House


class Served:
    """The addresses of both applications, and one client of each."""

    def __init__(self, db: Postgres, house: House, api: httpx.AsyncClient, admin: httpx.AsyncClient) -> None:
        self.db = db
        self.house = house
        self.api = api
        self.admin = admin

    async def sign_in(self, user_type: str, **headers: str) -> Any:
        body = {"user_type": user_type, "display_name": "Sari"}
        answer = await self.api.post("/api/auth/sessions", json=body, headers={"X-Halo-Key": SERVER_KEY, **headers})
        assert answer.status_code == 201, answer.text
        return answer.json()


def bearer(tokens: Any) -> dict[str, str]:
    return {"Authorization": f"Bearer {tokens['access_token']}"}


@asynccontextmanager
async def open_served(db: Postgres) -> AsyncIterator[Served]:
    house, clock = House(), SystemClock()
    live_config = LiveConfigStore(db)
    desk = replace(
        house.desk,
        clock=clock,
        tokens=Tokens(house.settings.token_secret, 600, clock),
        auth_sessions=AuthSessions(db, clock),
        payments=Payments(db, clock),
        mitras=Mitras(db, clock),
        live_config=live_config,
        idempotency=Idempotency(db),
        operators=Operators(db),
        store_answers=db.healthy,
    )
    flusher, stop = Flusher(), trio.Event()
    gate = Gate(clock, total_at_most=0, per_address_at_most=0, handshakes_per_s=0, unauthenticated_at_most=0)
    door = Door(gate, flusher)
    async with trio.open_nursery() as nursery:
        await nursery.start(flusher.serve)
        addresses: list[str] = []
        for app in (create_api(desk), create_admin(desk)):
            listeners = [await open_listener("127.0.0.1:0")]
            addresses += await nursery.start(partial(serve_http, app, listeners, stop=stop, door=door))
        api, admin = (httpx.AsyncClient(base_url=f"http://{address}", trust_env=False) for address in addresses)
        admin.headers["Authorization"] = f"Bearer {ADMIN_KEY}"
        async with api, admin:
            yield Served(db, house, api, admin)
        nursery.cancel_scope.cancel()


@pytest.fixture
async def db(database_url: str) -> AsyncIterator[Postgres]:
    async with open_postgres(database_url) as postgres:
        yield postgres


async def test_from_signing_in_to_a_confirmed_payment(db: Postgres) -> None:
    async with open_served(db) as served:
        customer = await served.sign_in("customer")
        mine = bearer(customer)
        keyed = {**mine, "Idempotency-Key": "buy-1"}
        bought = await served.api.post("/api/payments", json={"duration_minutes": 5}, headers=keyed)
        again = await served.api.post("/api/payments", json={"duration_minutes": 5}, headers=keyed)
        assert (bought.status_code, again.status_code) == (201, 201)
        assert bought.content == again.content
        other = await served.api.post("/api/payments", json={"duration_minutes": 6}, headers=keyed)
        assert (other.status_code, other.json()["code"]) == (422, "IDEMPOTENCY_MISMATCH")

        payment = bought.json()
        text = json.dumps(
            {
                "type": "payment.confirmed",
                "payment_request_id": payment["id"],
                "provider_ref": "p-1",
                "amount": payment["amount"],
                "currency": payment["currency"],
            }
        )
        at = datetime.now(UTC)
        signed = {
            "webhook-id": "msg_1",
            "webhook-timestamp": str(int(at.timestamp())),
            "webhook-signature": Webhook(WEBHOOK_SECRET).sign("msg_1", at, text),
            "content-type": "application/json",
        }
        for _ in range(2):
            told = await served.api.post("/api/payments/webhook", content=text, headers=signed)
            assert (told.status_code, told.content) == (204, b"")
            assert not {"content-type", "content-length"} & told.headers.keys()  # nothing is of no type
        confirmed = await served.api.get(f"/api/payments/{payment['id']}", headers=mine)
        assert confirmed.json() == payment | {"status": "confirmed"}
        stranger = bearer(await served.sign_in("customer"))
        assert (await served.api.get(f"/api/payments/{payment['id']}", headers=stranger)).status_code == 404


async def test_a_sign_in_that_is_repeated_makes_one_user_and_keeps_no_token(db: Postgres) -> None:
    async with open_served(db) as served:
        first = await served.sign_in("customer", **{"Idempotency-Key": "in-1"})
        again = await served.sign_in("customer", **{"Idempotency-Key": "in-1"})
        assert first["user_id"] == again["user_id"]
        [row] = await db.fetch_all("SELECT count(*) AS count FROM customers")
        assert row.count == 1
        kept = await db.fetch_all("SELECT answer FROM idempotency_keys")
        assert [bytes(row.answer) for row in kept] == [b""]
        refreshed = await served.api.post("/api/auth/refresh", json={"refresh_token": again["refresh_token"]})
        assert refreshed.status_code == 200
        stolen = await served.api.post("/api/auth/refresh", json={"refresh_token": again["refresh_token"]})
        assert (stolen.status_code, stolen.json()["code"]) == (401, "TOKEN_REUSED")
        mine = bearer(refreshed.json())
        assert (await served.api.get("/api/customer/beacon", headers=mine)).status_code == 401


async def test_an_operator_changes_the_configuration_and_deactivates_a_mitra(db: Postgres) -> None:
    async with open_served(db) as served:
        changed = await served.admin.patch("/api/config", json={"price_per_minute": 250})
        assert (changed.status_code, changed.json()["price_per_minute"], changed.json()["version"]) == (200, 250, 1)
        bad = await served.admin.patch("/api/config", json={"price_per_minute": -1, "currency": "EUR"})
        assert [error["field"] for error in bad.json()["errors"]] == ["price_per_minute"]
        customer = bearer(await served.sign_in("customer"))
        bought = await served.api.post("/api/payments", json={"duration_minutes": 2}, headers=customer)
        assert (bought.json()["amount"], bought.json()["currency"]) == (500, "IDR")

        mitra = await served.sign_in("mitra")
        online = await served.api.post("/api/mitra/status/online", headers=bearer(mitra))
        assert (online.status_code, online.json()["is_online"], online.json()["max_sessions"]) == (200, True, 3)
        listed = (await served.admin.get("/api/mitras?status=online")).json()["mitras"]
        assert [row["mitra_id"] for row in listed] == [mitra["user_id"]]
        done = await served.admin.post(f"/api/mitras/{mitra['user_id']}/deactivate")
        assert (done.status_code, done.json()["revoked_auth_sessions"]) == (200, 1)
        refused = await served.api.get("/api/mitra/status", headers=bearer(mitra))
        assert (refused.status_code, refused.json()["code"]) == (403, "MITRA_DEACTIVATED")
        trail = await db.fetch_all("SELECT action, outcome, code FROM operator_actions ORDER BY action_id")
        assert [tuple(row) for row in trail] == [
            ("change_config", "done", None),
            ("change_config", "refused", "VALIDATION_ERROR"),
            ("deactivate_mitra", "done", None),
        ]
        assert (await served.admin.get("/api/overview")).json()["mitras_deactivated"] == 1
        assert (await served.admin.get("/readyz")).json()["status"] == "ok"
