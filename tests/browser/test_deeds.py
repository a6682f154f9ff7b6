"""What an operator does on the pages, and what it does to the people in the sessions."""

import pytest

from halo.net.connection import CLOSE_DEACTIVATED
from tests.browser.devtools import DevTools
from tests.browser.office import live_a_little, open_office
from tests.browser.well_made import list_faults, list_faults_of_looks
from tests.whole.house import refusal_of

pytestmark = pytest.mark.timeout(180)

LIMIT = "max_extensions_per_session"


async def test_a_mitra_is_deactivated_after_one_more_question_and_her_sockets_close(
    database_url: str, valkey_url: str, devtools: DevTools
) -> None:
    async with open_office(database_url, valkey_url, devtools) as office:
        house = office.house
        _, mitra, session_id = await house.open_pair()
        page = await office.sign_in()
        async with house.lobby(mitra) as lobby, house.chat(session_id, mitra) as chat:
            await lobby.expect("welcome")
            await chat.expect("welcome")
            await page.follow("Mitras")
            await page.follow("without a name")
            await page.follow("Deactivate …")
            assert session_id[:8] in await page.text("main")
            assert lobby.closed_with is None  # looking at the question does nothing
            await page.submit("Deactivate her")
            assert await page.path == f"/mitras/{mitra.user_id}"
            assert "She is shut out" in await page.text("[role=status]")
            assert "deactivated" in await page.text("#available")
            assert (await lobby.wait_closed(), await chat.wait_closed()) == (CLOSE_DEACTIVATED, CLOSE_DEACTIVATED)
        assert (await refusal_of(house.call(mitra, "GET", "/api/offers"))).status == 403
        assert await office.audited("deactivate_mitra") == [("admin", mitra.user_id)]
        await page.reload()  # asks nothing and repeats nothing
        assert "She is shut out" not in await page.text("main")
        await page.submit("Let her in again")
        assert not await page.has("#available .bad")
        assert await office.audited("deactivate_mitra") == [("admin", mitra.user_id)]
        assert await office.audited("activate_mitra") == [("admin", mitra.user_id)]


async def test_a_bad_value_is_told_beside_its_field_and_a_good_one_applies_to_the_session_that_runs(
    database_url: str, valkey_url: str, devtools: DevTools
) -> None:
    async with open_office(database_url, valkey_url, devtools) as office:
        house = office.house
        customer, _, session_id = await house.open_pair()
        payment = await house.pay_extension(customer, session_id)
        page = await office.sign_in()
        await page.follow("Configuration")
        await page.fill(LIMIT, "1001")
        await page.fill("max_minutes", "60")
        await page.submit("Change")
        assert page.status == 422
        assert "1000" in await page.text(f"#{LIMIT}-wrong")
        assert [*await list_faults(page), *await list_faults_of_looks(page)] == []
        field = f"document.getElementById('{LIMIT}')"
        assert await page.evaluate(f"[{field}.value, {field}.getAttribute('aria-invalid')]") == ["1001", "true"]
        assert await page.evaluate("document.getElementById('max_minutes').value") == "60"
        current = house.own.parts.configuration.current()
        assert (current.max_extensions_per_session, current.max_minutes) == (20, 240)
        assert await office.audited("change_config") == []
        assert await office.audited("change_config", "refused") == [("admin", "live_config")]

        await page.fill(LIMIT, "0")
        await page.fill("max_minutes", "240")
        await page.submit("Change")
        assert (page.status, await page.path) == (200, "/configuration")
        assert await page.evaluate(f"{field}.value") == "0"
        [row] = await page.evaluate("[...document.querySelectorAll('table tbody tr')].map((r) => r.innerText)")
        assert all(told in row for told in ("admin", LIMIT, "20", "0"))
        refusal = await refusal_of(house.ask_extension(customer, session_id, payment))
        assert refusal.code == "EXTENSION_LIMIT"


async def test_what_was_said_is_shown_only_after_a_reason_which_is_written_down(
    database_url: str, valkey_url: str, devtools: DevTools
) -> None:
    async with open_office(database_url, valkey_url, devtools) as office:
        _, _, session_id, _ = await live_a_little(office.house)
        page = await office.sign_in()
        await page.open(f"/sessions/{session_id}")
        assert "Here I am." not in await page.evaluate("document.documentElement.outerHTML")
        await page.click(
            "document.querySelector('form[action$=\"/messages\"] button')"
        )  # the browser asks for the reason
        await page.wait_for("document.activeElement.id === 'reason'")
        assert await office.audited("read_messages") == []
        await page.fill("Reason", "A complaint, number 17")
        await page.submit("Show the messages")
        assert "Here I am." in await page.text("table")
        assert "A complaint, number 17" in await page.text("main")
        assert [*await list_faults(page), *await list_faults_of_looks(page)] == []
        assert await office.audited("read_messages") == [("admin", session_id)]
        await page.open("/audit")
        assert "A complaint, number 17" in await page.text("table")
        assert "Here I am." not in await page.text()


async def test_ending_a_session_twice_is_done_once_and_refused_once_on_the_trail(
    database_url: str, valkey_url: str, devtools: DevTools
) -> None:
    async with open_office(database_url, valkey_url, devtools) as office:
        _, _, session_id = await office.house.open_pair()
        one = await office.sign_in()
        other = await office.sign_in()
        for page in (one, other):
            await page.open(f"/sessions/{session_id}/end")
        await one.submit("End the session")
        assert "The session has ended." in await one.text("[role=status]")
        await other.submit("End the session")
        assert other.status == 409
        await one.open(f"/audit?subject={session_id}")
        rows = await one.evaluate("[...document.querySelectorAll('tbody tr')].map((row) => row.innerText)")
        assert ["refused the session does not run" in rows[0], "done" in rows[1], len(rows)] == [True, True, 2]
        await one.open("/audit?outcome=refused")
        assert await one.count("tbody tr") == 1
        for size in ((1280, 900), (400, 800)):
            await one.resize(size)
            assert [*await list_faults(one), *await list_faults_of_looks(one)] == []
        await one.open("/?done=end_session")
        assert "The session has ended." not in await one.text("main")
