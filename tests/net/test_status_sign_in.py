"""Signing in, on real sockets: cookies, tries, one-time links, and what a stranger learns, which is nothing."""

from collections.abc import AsyncIterator

import httpx
import pytest
import trio

from halo.errors import Busy
from halo.net.status.credentials import form_token
from halo.net.status.passwords import Passwords
from halo.operator_account import Role
from halo.store.operator_accounts import LINK_MS
from halo.store.sign_in_tries import TRIES, WINDOW_MS
from tests.net.status_site import ANOTHER, PASSWORD, Browser, Site, open_site, stored, token_of, told

FORM = {"name": "admin", "password": PASSWORD}


@pytest.fixture
async def site(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Site]:
    async with open_site(monkeypatch) as opened:
        await opened.add()
        yield opened


async def is_in(browser: Browser) -> bool:
    return (await browser.get("/")).status_code == 200


# ---- cookies


async def test_the_right_password_opens_a_session_whose_cookie_no_script_and_no_other_site_gets(site: Site) -> None:
    browser = site.browser()
    answer = await browser.sign_in()
    assert (answer.status_code, answer.headers["location"]) == (303, "/")
    session = [line for line in browser.given if line.startswith("halo_session=") and "Max-Age=0" not in line]
    assert len(session) == 1
    assert sorted(session[0].split("; ")[1:]) == ["HttpOnly", "Path=/", "SameSite=Strict"]
    assert await is_in(browser)


async def test_through_a_tunnel_with_tls_the_cookie_is_bound_to_its_host_and_secure(site: Site) -> None:
    browser = site.browser()
    page = await browser.get("/sign-in")
    secure_origin = {"Origin": site.base.replace("http://", "https://")}
    await browser.post("/sign-in", {**FORM, "csrf_token": token_of(page)}, secure_origin)
    session = [line for line in browser.given if line.startswith("__Host-halo_session=")]
    assert sorted(session[0].split("; ")[1:]) == ["HttpOnly", "Path=/", "SameSite=Strict", "Secure"]
    assert await is_in(browser)


async def test_where_browsers_come_by_tls_only_the_cookie_of_the_first_form_is_secure_too_and_no_other_is_believed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with open_site(monkeypatch, status_secure_cookies=True) as site:
        await site.add()
        browser = site.browser()
        page = await browser.get("/sign-in")
        await browser.post("/sign-in", {**FORM, "csrf_token": token_of(page)})
        assert sorted(browser.cookies) == ["__Host-halo_session"]
        assert all("Secure" in line for line in browser.given if "Max-Age=0" not in line)
        assert await is_in(browser)
        planted = site.browser()
        planted.cookies = {"halo_session": browser.cookies["__Host-halo_session"]}
        assert not await is_in(planted)


async def test_the_cookie_that_only_this_host_can_set_counts_before_the_other(site: Site) -> None:
    operator = await site.signed_in()
    operator.cookies = {"__Host-halo_session": "somebody's", "halo_session": operator.session_token}
    assert not await is_in(operator)


async def test_signing_in_makes_a_new_session_whatever_cookie_was_shown(site: Site) -> None:
    planted = await site.signed_in("vera", Role.VIEWER)
    before = planted.session_token
    browser = Browser(site.client, site.base, {"halo_session": "planted"})
    await browser.sign_in()
    assert browser.session_token != "planted"
    victim = Browser(site.client, site.base, {"halo_session": before, "halo_form": "form-secret"})
    answer = await victim.post("/sign-in", {**FORM, "csrf_token": form_token("form-secret")})
    assert answer.status_code == 303
    assert victim.session_token != before
    assert not await is_in(planted)  # what was planted is over, too
    assert await is_in(victim)


async def test_the_token_of_a_form_does_not_live_past_the_sign_in(site: Site) -> None:
    browser = site.browser()
    token = token_of(await browser.get("/sign-in"))
    await browser.post("/sign-in", {**FORM, "csrf_token": token})
    assert "halo_form" not in browser.cookies
    assert token_of(await browser.get("/")) != token


async def test_signing_out_ends_the_session_on_every_node_and_takes_the_cookie(site: Site) -> None:
    browser = site.browser()
    await browser.sign_in()
    kept = Browser(site.client, site.base, dict(browser.cookies))
    answer = await browser.submit("/", "/sign-out")
    assert (answer.status_code, answer.headers["location"]) == (303, "/sign-in")
    assert "halo_session" not in browser.cookies
    assert not await is_in(kept)
    assert (await browser.post("/sign-out", {})).headers["location"] == "/sign-in"


async def test_nobody_is_signed_out_by_another_site(site: Site) -> None:
    operator = await site.signed_in()
    for fields, headers in (
        ({}, {}),
        ({"csrf_token": form_token(operator.session_token)}, {"Origin": "https://evil.example"}),
    ):
        assert (await operator.post("/sign-out", fields, headers)).status_code == 403
    assert await is_in(operator)


# ---- forms of those outside


@pytest.mark.parametrize("path", ["/sign-in", "/set-password"])
async def test_a_form_of_those_outside_needs_the_token_of_this_browser(site: Site, path: str) -> None:
    site.house.gatehouse.links["link"] = ("admin", site.house.clock.moment + LINK_MS)
    fields = {**FORM, "link": "link", "again": PASSWORD}
    other = token_of(await site.browser().get("/sign-in"))
    browser = site.browser()
    own = token_of(await browser.get("/sign-in"))
    wrong: list[tuple[dict[str, str], dict[str, str | None]]] = [
        ({}, {}),
        ({"csrf_token": other}, {}),
        ({"csrf_token": own}, {"Origin": None}),
        ({"csrf_token": own}, {"Origin": "null"}),
        ({"csrf_token": own}, {"Origin": "https://evil.example"}),
        ({"csrf_token": own}, {"Sec-Fetch-Site": "cross-site"}),
    ]
    for token, headers in wrong:
        answer = await browser.post(path, {**fields, **token}, headers)
        assert answer.status_code == 403, (token, headers)
    without = Browser(site.client, site.base)
    assert (await without.post(path, {**fields, "csrf_token": own})).status_code == 403
    assert site.house.gatehouse.open_sessions == {}
    assert site.house.gatehouse.counted == {}  # and it costs nobody a try


async def test_one_who_is_signed_in_is_sent_on_from_the_sign_in(site: Site) -> None:
    operator = await site.signed_in()
    for wanted, leads_to in (("/account", "/account"), ("//evil.example", "/"), ("https://evil.example", "/")):
        answer = await operator.get(f"/sign-in?next={wanted}")
        assert (answer.status_code, answer.headers["location"]) == (303, leads_to)


@pytest.mark.parametrize("wanted", ["//evil.example", "/\\evil.example", "https://evil.example", "/\t/evil.example"])
async def test_the_way_back_never_leads_to_another_site(site: Site, wanted: str) -> None:
    assert (await site.browser().sign_in(next=wanted)).headers["location"] == "/"
    page = await site.browser().get(str(httpx.URL("/sign-in", params={"next": wanted})))
    assert "evil.example" not in page.text


async def test_after_the_sign_in_one_is_where_one_wanted_to_be(site: Site) -> None:
    browser = site.browser()
    sent = (await browser.get("/audit?operator=vera")).headers["location"]
    page = await browser.get(sent)
    assert 'value="/audit?operator=vera"' in page.text
    answer = await browser.post("/sign-in", {**FORM, "csrf_token": token_of(page), "next": "/audit?operator=vera"})
    assert answer.headers["location"] == "/audit?operator=vera"


# ---- guessing


async def test_an_unknown_name_a_wrong_password_and_none_yet_get_the_same_answer(site: Site) -> None:
    await site.add("vera", Role.VIEWER, None)
    answers = []
    for name, password in (("admin", "wrong password"), ("nobody", PASSWORD), ("vera", PASSWORD), ("vera", "")):
        browser = site.browser()
        site.house.gatehouse.counted.clear()
        answer = await browser.sign_in(name, password)
        answers.append((answer.status_code, told(answer), sorted(answer.headers.keys())))
        assert "halo_session" not in browser.cookies
        assert f'value="{name}"' in answer.text  # the name was kept, nothing else differs
    assert answers[0][0] == 401
    assert len({repr(answer) for answer in answers}) == 1


async def test_five_tries_a_quarter_of_an_hour_and_the_right_password_does_not_help_then(site: Site) -> None:
    browser = site.browser()
    for _ in range(TRIES):
        assert (await browser.sign_in(password="wrong password")).status_code == 401
        site.house.clock.moment += 60_000
    answer = await browser.sign_in()
    assert answer.status_code == 429
    assert answer.headers["retry-after"] == str((WINDOW_MS - TRIES * 60_000) // 1000)
    assert "Try again in 10 minutes." in told(answer)
    assert "halo_session" not in browser.cookies
    site.house.clock.moment += WINDOW_MS - TRIES * 60_000 - 1
    assert (await browser.sign_in()).status_code == 429
    site.house.clock.moment += 1
    assert (await browser.sign_in()).status_code == 303


async def test_wrong_passwords_for_one_name_shut_out_nobody_else_on_the_machine(site: Site) -> None:
    await site.add("vera", Role.VIEWER)
    for _ in range(TRIES + 1):
        await site.browser().sign_in("vera", "wrong password")
    assert (await site.browser().sign_in("vera")).status_code == 429
    assert (await site.browser().sign_in()).status_code == 303


async def test_whatever_came_to_nothing_at_the_door_is_written_down(site: Site) -> None:
    for _ in range(TRIES + 1):
        await site.browser().sign_in(password="wrong password")
    assert site.house.gatehouse.failed == [("admin", "WRONG_PASSWORD")] * TRIES + [("admin", "RATE_LIMITED")]
    await site.browser().sign_in("vera", "wrong password")
    assert site.house.gatehouse.failed[-1] == ("vera", "WRONG_PASSWORD")


async def test_many_tries_at_once_find_no_gap(site: Site) -> None:
    browser = site.browser()
    token = token_of(await browser.get("/sign-in"))
    statuses = []

    async def guess(number: int) -> None:
        one = Browser(site.client, site.base, dict(browser.cookies))
        fields = {"name": "admin", "password": f"guess number {number}", "csrf_token": token}
        statuses.append((await one.post("/sign-in", fields)).status_code)

    async with trio.open_nursery() as nursery:
        for number in range(3 * TRIES):
            nursery.start_soon(guess, number)
    assert sorted(statuses) == [401] * TRIES + [429] * (2 * TRIES)


@pytest.mark.parametrize("page", ["/sign-in", "/account"])
async def test_a_password_that_nobody_had_time_to_look_at_costs_no_try(
    site: Site, monkeypatch: pytest.MonkeyPatch, page: str
) -> None:
    async def too_busy(*_: object) -> bool:
        raise Busy

    operator = await site.signed_in()
    browser, verify = site.browser() if page == "/sign-in" else operator, Passwords.verify
    monkeypatch.setattr(Passwords, "verify", too_busy)
    for _ in range(TRIES + 1):
        answer = await browser.sign_in() if page == "/sign-in" else await change(operator)
        assert answer.status_code == 503
    assert site.house.gatehouse.counted == {}
    monkeypatch.setattr(Passwords, "verify", verify)
    answer = await browser.sign_in() if page == "/sign-in" else await change(operator)
    assert answer.status_code == 303


async def test_signing_in_often_locks_nobody_out(site: Site) -> None:
    for _ in range(2 * TRIES):
        assert (await site.browser().sign_in()).status_code == 303


async def test_a_name_is_taken_as_people_type_it_and_a_password_as_it_is(site: Site) -> None:
    assert (await site.browser().sign_in("  Admin ")).status_code == 303
    for password in (PASSWORD.upper(), PASSWORD + " ", PASSWORD * 20, ""):
        assert (await site.browser().sign_in(password=password)).status_code == 401


async def test_a_password_that_was_changed_while_it_was_looked_at_opens_nothing(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    house, another = site.house.gatehouse, await stored(ANOTHER)
    find_password = house.find_password

    async def overtaken(name: str) -> str | None:
        found = await find_password(name)
        monkeypatch.setattr(house, "find_password", find_password)
        await house.change_password(name, another)
        return found

    monkeypatch.setattr(house, "find_password", overtaken)
    assert (await site.browser().sign_in()).status_code == 401


# ---- one-time links


def invite(site: Site, name: str = "admin", link: str = "one-time-link") -> str:
    site.house.gatehouse.links[link] = (name, site.house.clock.moment + LINK_MS)
    return link


async def accept(browser: Browser, link: str, password: str = ANOTHER, again: str | None = None) -> httpx.Response:
    token = token_of(await browser.get("/sign-in"))
    fields = {"link": link, "password": password, "again": password if again is None else again, "csrf_token": token}
    return await browser.post("/set-password", fields)


async def test_a_link_sets_a_password_once_and_signs_in(site: Site) -> None:
    await site.add("vera", Role.VIEWER, None)
    link, browser = invite(site, "vera"), site.browser()
    for _ in range(2):  # whoever only looks at it uses nothing up
        page = await browser.get(f"/set-password?link={link}")
        assert (page.status_code, "vera" in told(page)) == (200, True)
    assert (await accept(browser, link)).status_code == 303
    assert await is_in(browser)
    assert (await site.browser().get(f"/set-password?link={link}")).status_code == 410
    assert (await accept(site.browser(), link, PASSWORD)).status_code == 410
    assert (await site.browser().sign_in("vera", ANOTHER)).status_code == 303


async def test_a_link_is_over_after_an_hour(site: Site) -> None:
    link = invite(site)
    site.house.clock.moment += LINK_MS
    assert (await site.browser().get(f"/set-password?link={link}")).status_code == 410
    assert (await accept(site.browser(), link)).status_code == 410
    assert (await site.browser().sign_in()).status_code == 303


async def test_of_two_who_use_a_link_at_once_one_is_first(site: Site) -> None:
    link, statuses = invite(site), []

    async def use(password: str) -> None:
        statuses.append((await accept(site.browser(), link, password)).status_code)

    async with trio.open_nursery() as nursery:
        for number in range(3):
            nursery.start_soon(use, f"the password of number {number}")
    assert sorted(statuses) == [303, 410, 410]


@pytest.mark.parametrize(
    ("password", "again"), [("short", None), ("x" * 257, None), ("", None), (ANOTHER, "something else")]
)
async def test_a_password_that_is_refused_leaves_the_link_and_says_why(
    site: Site, password: str, again: str | None
) -> None:
    link, browser = invite(site), site.browser()
    answer = await accept(browser, link, password, again)
    assert answer.status_code == 422
    assert password not in answer.text or not password
    assert (await accept(browser, link)).status_code == 303


async def test_a_new_password_ends_every_session_of_its_owner_and_of_nobody_else(site: Site) -> None:
    old, other = await site.signed_in(), await site.signed_in("vera", Role.VIEWER)
    await accept(site.browser(), invite(site))
    assert not await is_in(old)
    assert await is_in(other)


@pytest.mark.parametrize("link", ["", "made-up", "%00", "%ed%a0%80", "x" * 400])
async def test_what_is_no_link_is_told_like_one_that_was_spent(site: Site, link: str) -> None:
    answer = await site.browser().get(f"/set-password?link={link}")
    assert answer.status_code == 410


# ---- one's own password


async def change(browser: Browser, old: str = PASSWORD, new: str = ANOTHER, again: str | None = None) -> httpx.Response:
    return await browser.submit(
        "/account", "/account/password", old=old, password=new, again=new if again is None else again
    )


@pytest.mark.parametrize("role", Role)
async def test_everybody_may_change_their_own_password_which_ends_all_their_sessions(site: Site, role: Role) -> None:
    one, same = await site.signed_in("vera", role), await site.signed_in("vera", role)
    answer = await change(one)
    assert (answer.status_code, answer.headers["location"]) == (303, "/account")
    assert not await is_in(one)
    assert not await is_in(same)
    assert (await site.browser().sign_in("vera", PASSWORD)).status_code == 401
    assert (await one.sign_in("vera", ANOTHER)).status_code == 303
    assert "Your password is changed." in told(await one.get("/account"))


async def test_the_old_password_cannot_be_guessed_faster_than_at_the_door(site: Site) -> None:
    operator = await site.signed_in()
    for _ in range(TRIES):
        assert (await change(operator, old="wrong password")).status_code == 422
    assert (await change(operator)).status_code == 429
    assert await is_in(operator)


@pytest.mark.parametrize(("new", "again"), [("short", None), (ANOTHER, "something else")])
async def test_a_new_password_that_is_refused_changes_nothing_and_costs_no_try(
    site: Site, new: str, again: str | None
) -> None:
    operator = await site.signed_in()
    for _ in range(TRIES + 1):
        assert (await change(operator, new=new, again=again)).status_code == 422
    assert await is_in(operator)


# ---- what stays hidden


async def test_no_password_link_or_cookie_reaches_the_log(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG")
    link, browser = invite(site), site.browser()
    await browser.sign_in(password="a wrong password")
    await accept(browser, link)
    again = site.browser()
    await again.sign_in(password=ANOTHER)
    said = " ".join(record.getMessage() for record in caplog.records if record.name.startswith("halo"))
    assert "sign_in_refused" in said
    for secret in ("a wrong password", link, ANOTHER, browser.session_token, again.session_token):
        assert secret not in said
