"""Those who may not: other web pages, and viewers."""

from html import escape

import pytest

from halo.operator_account import Role
from tests.browser.devtools import DevTools
from tests.browser.office import Office, live_a_little, open_office
from tests.browser.page import Page
from tests.browser.strange_site import open_strange_site

pytestmark = pytest.mark.timeout(180)


def form_to(address: str, fields: dict[str, str]) -> str:
    inputs = "".join(f'<input name="{name}" value="{escape(value)}">' for name, value in fields.items())
    return (
        '<!doctype html><html lang="en"><title>You have won</title><link rel="icon" href="data:,">'
        f'<form method="post" action="{address}">{inputs}<button>Take it</button></form></html>'
    )


async def token_of(page: Page) -> str:
    return str(await page.evaluate("document.querySelector('[name=csrf_token]').value"))


async def change_of_the_grace(page: Page) -> dict[str, str]:
    """What the form of the configuration would send for another grace, whole."""
    await page.open("/configuration")
    sent: dict[str, str] = await page.evaluate(
        "Object.fromEntries([...document.querySelectorAll('form.settings input')].map((i) => [i.name, i.value]))"
    )
    return {**sent, "csrf_token": await token_of(page), "closure_grace_seconds": "7"}


async def require_nothing_changed(office: Office) -> None:
    assert office.house.own.parts.configuration.current().closure_grace_seconds == 120
    assert await office.audited("change_config") == []


@pytest.mark.parametrize("knows_the_token", [False, True])
async def test_a_form_on_another_page_changes_nothing_even_with_the_token(
    database_url: str, valkey_url: str, devtools: DevTools, knows_the_token: bool
) -> None:
    async with open_office(database_url, valkey_url, devtools) as office:
        page = await office.sign_in()
        fields = await change_of_the_grace(page)
        if not knows_the_token:
            fields["csrf_token"] = "0" * len(fields["csrf_token"])
        async with open_strange_site(form_to(f"{office.base}/configuration", fields)) as address:
            await page.open(address)
            await page.submit("Take it")
        assert (page.status, await page.path) == (403, "/configuration")
        await require_nothing_changed(office)
        await page.open("/")
        assert await page.text("h1") == "Overview"  # and the operator is still signed in


async def test_a_form_without_the_token_changes_nothing_though_it_stands_on_the_page_itself(
    database_url: str, valkey_url: str, devtools: DevTools
) -> None:
    async with open_office(database_url, valkey_url, devtools) as office:
        page = await office.sign_in()
        await page.open("/configuration")
        await page.fill("closure_grace_seconds", "7")
        await page.evaluate(
            "for (const t of document.querySelectorAll('[name=csrf_token]')) t.value = '0'.repeat(t.value.length)"
        )
        await page.submit("Change")
        assert page.status == 403
        await require_nothing_changed(office)


async def test_a_viewer_has_no_buttons_and_is_refused_when_she_makes_one(
    database_url: str, valkey_url: str, devtools: DevTools
) -> None:
    async with open_office(database_url, valkey_url, devtools) as office:
        customer, mitra, session_id, _ = await live_a_little(office.house)
        page = await office.sign_in("vera", Role.VIEWER)
        for path in (
            "/configuration",
            f"/mitras/{mitra.user_id}",
            f"/mitras/{mitra.user_id}/deactivate",
            f"/sessions/{session_id}",
            f"/sessions/{session_id}/end",
            f"/sessions/{session_id}/transfer",
            "/refunds",
            "/outbox",
            "/tasks",
        ):
            await page.open(path)
            assert page.status == 200, path
            posting = "[...document.querySelectorAll('form')].filter((f) => f.method === 'post').map((f) => f.getAttribute('action'))"
            assert [a for a in await page.evaluate(posting) if a not in ("/sign-out", "/configuration")] == [], path
            assert not await page.has("main form[method=post] button"), path

        token = await token_of(page)
        made = (
            "(() => { const f = document.createElement('form'); f.method = 'post'; f.action = ADDRESS;"
            " for (const [n, v] of Object.entries(FIELDS)) { const i = document.createElement('input'); i.name = n; i.value = v; f.append(i); }"
            " document.body.append(f); f.submit(); })()"
        )
        for path, reason in (
            (f"/mitras/{mitra.user_id}/deactivate", ""),
            (f"/sessions/{session_id}/end", ""),
            (f"/sessions/{session_id}/messages", "out of sheer curiosity"),
        ):
            async with page.arriving():
                fields = {"csrf_token": token} | ({"reason": reason} if reason else {})
                await page.evaluate(made.replace("ADDRESS", repr(path)).replace("FIELDS", repr(fields)))
            assert (page.status, await page.path) == (403, path)
            assert "change nothing" in await page.text("[role=alert]")
        assert (await office.house.info(session_id, customer))["session"]["status"] == "active"
        assert "vera" not in {
            who for who, _ in await office.audited("end_session") + await office.audited("read_messages")
        }
