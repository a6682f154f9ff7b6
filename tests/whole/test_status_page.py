"""The status page of a running server: what is changed on it is in force for sessions that run, and its lists stay short."""

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
import pytest

from tests.net.status_site import PASSWORD, Browser, told
from tests.net.test_status_configuration import change, form_of
from tests.whole.house import House, open_house, refusal_of

ROWS = 10_000
PUT_PEOPLE = """
INSERT INTO customers (customer_id) SELECT ('00000000-0000-4000-8000-' || lpad(n::text, 12, '0'))::uuid FROM generate_series(1, %(rows)s) AS n
"""
PUT_MITRAS = """
INSERT INTO mitras (mitra_id, display_name)
SELECT ('10000000-0000-4000-8000-' || lpad(n::text, 12, '0'))::uuid, 'Mitra <b>' || n FROM generate_series(1, %(rows)s) AS n
"""
PUT_PAYMENTS = """
INSERT INTO payment_requests (payment_request_id, customer_id, status, amount, currency, duration_minutes, failure_cause, failed_at)
SELECT gen_random_uuid(), customer_id, 'failed', 5000, 'IDR', 5, 'payment_expired', now() FROM customers
"""
PUT_SESSIONS = """
INSERT INTO chat_sessions (session_id, customer_id, mitra_id, payment_request_id, status, end_reason, duration_minutes, minute_ms, price,
                           currency, ended_at)
SELECT gen_random_uuid(), p.customer_id, '10000000-0000-4000-8000-000000000001', p.payment_request_id, 'ended', 'payment_timeout', 5, 60000,
       5000, 'IDR', now()
FROM payment_requests p
"""
PUT_ACTIONS = """
INSERT INTO operator_actions (operator, action, subject) SELECT 'ani', 'end_session', n::text FROM generate_series(1, %(rows)s) AS n
"""


@asynccontextmanager
async def browsing(house: House) -> AsyncIterator[Browser]:
    async with httpx.AsyncClient(trust_env=False, timeout=30) as client:
        browser = Browser(client, house.ready["admin"])
        answer = await browser.sign_in()
        assert answer.status_code == 303, told(answer)
        yield browser


@pytest.fixture
async def house(database_url: str, valkey_url: str) -> AsyncIterator[House]:
    async with open_house(database_url, valkey_url, HALO_ADMIN_PASSWORD=PASSWORD) as opened:
        yield opened


async def test_a_change_on_the_page_is_in_force_at_the_next_decision_of_a_session_that_runs(house: House) -> None:
    customer, mitra, session_id = await house.open_pair()
    async with browsing(house) as browser:
        await change(browser, {"max_extensions_per_session": "0", "extension_timeout_seconds": "700"})
        payment = await house.pay_extension(customer, session_id)
        assert (await refusal_of(house.ask_extension(customer, session_id, payment))).code == "EXTENSION_LIMIT"

        await change(browser, {"max_extensions_per_session": "1"})
        asked = await house.ask_extension(customer, session_id, payment)
        assert await seconds_to_answer(house, asked["extension_id"]) == 700

        await change(browser, {"extension_timeout_seconds": "900"})  # what was asked keeps what it was asked under
        assert await seconds_to_answer(house, asked["extension_id"]) == 700
        path = f"/api/chat/{session_id}/extensions/{asked['extension_id']}/respond"
        await house.call(mitra, "POST", path, {"accepted": True})

        page = told(await browser.get(f"/sessions/{session_id}"))
        assert "because the mitra accepted" in page
        assert "700 s to answer" in page
        history = told(await browser.get("/configuration"))
        assert "extension_timeout_seconds 700 900" in history
        assert "max_extensions_per_session 20 default 0" in history
    await house.require_invariants()


async def seconds_to_answer(house: House, extension_id: str) -> int:
    row = await house.db.fetch_one(
        "SELECT timeout_seconds FROM session_extensions WHERE extension_id = %(id)s", {"id": extension_id}
    )
    assert row is not None
    return int(row.timeout_seconds)


async def test_a_value_that_is_not_acceptable_never_lands_nor_does_what_came_with_it(house: House) -> None:
    async with browsing(house) as browser:
        page = await browser.get("/configuration")
        for wrong in (
            {"price_per_minute": "-1"},
            {"min_minutes": "300"},
            {"currency": "rupiah"},
            {"pairing_waves": ""},
        ):
            answer = await change(browser, wrong | {"pairing_blast_size": "99"}, page)
            assert answer.status_code == 422
        await change(browser, {"price_per_minute": "250"})
        late = await change(browser, {"pairing_blast_size": "99"}, page)
        assert late.status_code == 409
        assert form_of(late)["pairing_blast_size"] == "99"
    config = await house.operate("GET", "/api/config")
    assert (config["version"], config["price_per_minute"], config["pairing_blast_size"]) == (1, 250, 10)
    rows = await house.db.fetch_all("SELECT key FROM live_config")
    assert [row.key for row in rows] == ["price_per_minute"]


async def test_ten_thousand_rows_are_walked_through_in_short_pages(house: House) -> None:
    for statement in (PUT_PEOPLE, PUT_MITRAS, PUT_PAYMENTS, PUT_SESSIONS, PUT_ACTIONS):
        await house.db.execute(statement, {"rows": ROWS} if "%(rows)s" in statement else {})
    async with browsing(house) as browser:
        for path in ("/sessions", "/sessions?q=10000000", "/mitras", "/mitras?q=Mitra+%3Cb%3E", "/audit?operator=ani"):
            seen: list[str] = []
            for _ in range(3):
                page = await browser.get(path)
                assert page.status_code == 200
                assert len(page.content) < 100_000
                assert "<b>" not in page.text
                seen += re.findall(r"<tr>.*?</tr>", page.text.rpartition("<tbody>")[2], re.DOTALL)
                found = re.search(r'rel="next" href="([^"]+)"', page.text)
                assert found is not None
                path = found[1].replace("&amp;", "&")  # noqa: PLW2901  # one list, page by page
            assert len(seen) == len(set(seen)) == 150
        overview = told(await browser.get("/"))
        assert "offline 10 000" in overview
        assert "ended 10 000 24 h" in overview


async def test_the_overview_of_a_running_server_tells_of_its_tasks_and_its_figures(house: House) -> None:
    _, mitra, session_id = await house.open_pair()
    async with browsing(house) as browser:
        page = told(await browser.get("/"))
        assert "living 1" in page
        assert "online 1" in page
        tasks = await browser.get("/tasks")
        for name in (
            f'session <a href="/sessions/{session_id}">',
            "daemon watchdog",
            "listener ws",
            "connection 127.0.0.1",
        ):
            assert name in tasks.text
        assert "take-up" in told(tasks)
        her = told(await browser.get(f"/mitras/{mitra.user_id}"))
        assert "Sessions 1 of 3" in her
        ended = await browser.submit(f"/sessions/{session_id}/end", f"/sessions/{session_id}/end")
        assert "ended by admin" in told(await browser.get(ended.headers["location"]))
        trail = told(await browser.get(f"/audit?subject={session_id}"))
        assert "admin end session" in trail
    await house.require_invariants()
