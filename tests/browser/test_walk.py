"""Every page there is, as a browser sees it: no complaint in the console, no scrolling sideways on a telephone, dark where it is wished,
and everything that can be used has a name for those who do not see it."""

import pytest

from tests.browser.devtools import DevTools
from tests.browser.office import Office, live_a_little, open_office, search_in_vain
from tests.browser.page import Page
from tests.browser.well_made import list_faults, list_faults_of_looks
from tests.net.status_site import PASSWORD

pytestmark = pytest.mark.timeout(240)


async def every_page(page: Page, office: Office) -> list[str]:
    """All that the menu and the pages behind it lead to, of a house in which everything has happened once."""
    house = office.house
    await search_in_vain(house)
    named = await house.admit("mitra", display_name="W" * 200)  # as long as a name may be, and nowhere to break it
    customer, mitra, living, ended = await live_a_little(house)
    menu = await page.evaluate("[...document.querySelectorAll('nav.menu a')].map((a) => a.getAttribute('href'))")
    assert len(menu) >= 6
    return [
        *menu,
        "/account",
        "/last-hour",
        "/outbox",
        f"/sessions?q={customer.user_id}",
        "/sessions?status=ended",
        f"/sessions/{living}",
        f"/sessions/{ended}",
        f"/sessions/{living}/end",
        f"/sessions/{living}/transfer",
        f"/mitras/{mitra.user_id}",
        f"/mitras/{mitra.user_id}/deactivate",
        f"/mitras/{named.user_id}",
        "/tasks?q=session",
        "/audit?operator=admin",
    ]


async def test_every_page_is_well_made_and_fits_a_telephone_and_nothing_complains(
    database_url: str, valkey_url: str, devtools: DevTools
) -> None:
    async with open_office(database_url, valkey_url, devtools) as office:
        page = await office.sign_in()
        for path in await every_page(page, office):
            assert await walk(page, path) == (200, [])
        assert await walk(page, "/no-such-page") == (404, [])
        await page.open("/sessions")

        stranger = await office.tab()
        link = await office.house.own.parts.operator_accounts.invite("admin", "a test")
        assert await walk(stranger, "/sign-in") == (200, [])
        assert await walk(stranger, f"/set-password?link={link}") == (200, [])
        assert await walk(stranger, "/set-password?link=spent") == (410, [])


async def walk(page: Page, path: str) -> tuple[int, list[str]]:
    """Go there; the status, and whatever is wrong."""
    await page.open(path)
    faults = [*await list_faults(page), *await list_faults_of_looks(page), *page.complaints]
    return page.status, [f"{path}: {fault}" for fault in faults]


async def test_signing_in_and_a_deed_are_done_with_the_keyboard_alone_and_one_sees_where_one_is(
    database_url: str, valkey_url: str, devtools: DevTools
) -> None:
    async with open_office(database_url, valkey_url, devtools) as office:
        _, mitra, _, _ = await live_a_little(office.house)
        page = await office.tab()
        await page.open("/sign-in")
        await page.wait_for("document.activeElement.id === 'name'")  # one may type at once
        await page.type("admin")
        await page.press("Tab")
        await page.type(PASSWORD)
        async with page.arriving():
            await page.press("Enter")
        assert await page.path == "/"

        await page.press("Tab")
        assert await page.evaluate("document.activeElement.className") == "skip"
        await require_seen(page)
        await page.press("Enter")
        await page.wait_for("location.hash === '#main'")

        await page.open(f"/mitras/{mitra.user_id}")
        await tab_to(page, "document.activeElement.id === 'deactivate'")
        async with page.arriving():
            await page.press("Enter")
        await tab_to(page, "document.activeElement.matches('button.danger')")
        async with page.arriving():
            await page.press("Enter")
        assert "She is shut out" in await page.text("[role=status]")
        assert await office.audited("deactivate_mitra") == [("admin", mitra.user_id)]


async def test_everything_works_with_scripts_switched_off(
    database_url: str, valkey_url: str, devtools: DevTools
) -> None:
    async with open_office(database_url, valkey_url, devtools) as office:
        _, _, session_id, _ = await live_a_little(office.house)
        page = await office.tab()
        await page.switch_scripts_off()
        await page.open("/")
        await page.fill("Name", "admin")
        await page.fill("Password", PASSWORD)
        await page.submit("Sign in")
        assert (await page.text("#living"), await page.text("h1")) == ("1", "Overview")
        await page.open(f"/sessions/{session_id}")
        assert await page.text("#deadline") != ""
        await page.follow("End it …")
        await page.submit("End the session")
        assert "ended" in await page.text("#status")
        assert ("admin", session_id) in await office.audited("end_session")


async def tab_to(page: Page, there: str) -> None:
    """With Tab alone, and one sees the focus at every step."""
    for _ in range(60):
        await page.press("Tab")
        await require_seen(page)
        if await page.evaluate(there):
            return
    raise AssertionError(f"60 times Tab did not lead there: {there}")


async def require_seen(page: Page) -> None:
    """The element with the focus has an outline, and is in the window."""
    seen = (
        "(() => { const e = document.activeElement, s = getComputedStyle(e), b = e.getBoundingClientRect();"
        " return [e === document.body || s.outlineStyle !== 'none' && parseFloat(s.outlineWidth) >= 2,"
        " b.bottom > 0 && b.top < innerHeight, e.outerHTML.slice(0, 120)]; })()"
    )
    has_outline, is_in_window, what = await page.evaluate(seen)
    assert (has_outline, is_in_window) == (True, True), what
