"""The door of the status page, in a browser: the first link, signing in and out, and being kept out."""

import re
from pathlib import Path

import pytest

from halo.net.status.sign_in import REFUSED
from halo.store.sign_in_tries import TRIES
from tests.browser.devtools import DevTools
from tests.browser.office import open_office, sign_in
from tests.browser.page import open_page
from tests.net.status_site import ANOTHER, PASSWORD
from tests.whole.house import open_process

pytestmark = pytest.mark.timeout(180)


async def test_the_link_of_the_first_start_sets_a_password_and_works_once(
    tmp_path: Path, database_url: str, valkey_url: str, devtools: DevTools
) -> None:
    async with open_process(tmp_path, database_url, valkey_url) as (stage, house):
        [link] = re.findall(r"http://\S+/set-password\?link=\S+", stage.log.read_text("utf-8"))
        async with open_page(devtools, house.ready["admin"]) as page:
            await page.open(link)
            assert "admin" in await page.text("main")
            await page.fill("Password", PASSWORD)
            await page.fill("The same again", ANOTHER)
            await page.submit("Set it and sign in")
            assert (page.status, await page.text("[role=alert]")) == (422, "The two passwords differ.")
            await page.fill("Password", PASSWORD)
            await page.fill("The same again", PASSWORD)
            await page.submit("Set it and sign in")
            assert (await page.path, page.status) == ("/", 200)
            assert await page.text("h1") == "Overview"
            assert page.complaints == []
        async with open_page(devtools, house.ready["admin"]) as another:
            await another.open(link)
            assert another.status == 410
            await another.open("/")
            await sign_in(another)
            assert (await another.path, another.status) == ("/", 200)


async def test_who_signs_in_comes_to_where_they_wanted_to_go_and_is_out_after_signing_out(
    database_url: str, valkey_url: str, devtools: DevTools
) -> None:
    async with open_office(database_url, valkey_url, devtools) as office:
        page = await office.tab()
        await page.open("/configuration")
        assert await page.path == "/sign-in"
        await sign_in(page)
        assert (await page.path, await page.text("h1")) == ("/configuration", "Configuration")
        await page.submit("Sign out")
        assert await page.path == "/sign-in"
        await page.open("/configuration")
        assert await page.path == "/sign-in"


async def test_a_wrong_password_is_told_beside_the_form_and_too_many_of_them_are_kept_waiting(
    database_url: str, valkey_url: str, devtools: DevTools
) -> None:
    async with open_office(database_url, valkey_url, devtools) as office:
        page = await office.tab()
        await page.open("/sign-in")
        for _ in range(TRIES):
            await sign_in(page, password="not the password")
            assert (page.status, await page.text("[role=alert]")) == (401, REFUSED)
            assert await page.evaluate("document.getElementById('name').value") == "admin"
            await page.wait_for("document.activeElement.id === 'password'")
        await sign_in(page)
        assert page.status == 429
        assert "Try again in 15 minutes." in await page.text("main")


async def test_a_tab_that_was_left_open_goes_to_the_door_when_its_session_is_over(
    database_url: str, valkey_url: str, devtools: DevTools
) -> None:
    async with open_office(database_url, valkey_url, devtools) as office:
        page = await office.sign_in()
        await office.house.own.parts.operator_accounts.reset("admin", "a test")
        await page.wait_for("location.pathname === '/sign-in'")
