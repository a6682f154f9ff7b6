"""The frame of the status page, on real sockets: who gets in, what every answer carries, and what no form can do."""

from collections.abc import AsyncIterator
from dataclasses import replace
from html import escape
from typing import Any

import httpx
import pytest

from halo.errors import Busy
from halo.net.call import new_app
from halo.net.status.answers import HEADERS
from halo.net.status.contents import SECTIONS
from halo.net.status.credentials import form_token
from halo.net.status.frame import local_path
from halo.net.status.section import Action, Page
from halo.net.status.site import install_status_page
from halo.operator_account import Role
from halo.routes import OPERATOR_ROUTES
from halo.store.operator_sessions import IDLE_MS, LIFETIME_MS
from tests.net.desk_fakes import ADMIN_KEY, MITRA, SESSION, House
from tests.net.status_site import PASSWORD, Browser, Site, open_site, token_of, told

FRAME = install_status_page(new_app("tables only"), House().desk)
"""The tables as they are: a page or an action that is added is tried by every test here."""
PAGES: list[Page] = list(FRAME.pages)
ACTIONS: list[Action] = list(FRAME.actions)
OUTSIDE = (
    "/sign-in",
    "/set-password?link=none",
    "/nowhere",
    "/static/status.css",
    "/static/nothing.css",
    "/healthz",
    "/metrics",
)


def path_of(row: Page | Action) -> str:
    """With ids in their places: a session's and a mitra's that are there, otherwise any."""
    filled = row.path.replace("{session_id}", SESSION).replace("{mitra_id}", MITRA)
    while "{" in filled:
        filled = filled[: filled.index("{")] + SESSION + filled[filled.index("}") + 1 :]
    return filled


@pytest.fixture
async def site(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Site]:
    async with open_site(monkeypatch) as opened:
        yield opened


def assert_hardened(answer: httpx.Response) -> None:
    for name, value in HEADERS.items():
        assert answer.headers.get_list(name) == [value], (answer.request.url, name)
    assert "server" not in answer.headers
    assert "access-control-allow-origin" not in answer.headers


def test_the_tables_name_each_route_once() -> None:
    assert len({page.path for page in PAGES}) == len(PAGES)
    assert len({action.path for action in ACTIONS}) == len(ACTIONS)
    assert {page.path for page in PAGES}.isdisjoint({route.path for route in OPERATOR_ROUTES})
    assert len(SECTIONS) == len(set(SECTIONS))


def test_two_actions_of_one_name_are_refused_at_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("halo.net.status.site.SECTIONS", (*SECTIONS, SECTIONS[-1], SECTIONS[-1]))
    with pytest.raises(ValueError, match="same name"):
        install_status_page(new_app("twice"), House().desk)


# ---- headers


async def test_every_answer_of_the_listener_carries_every_header(site: Site) -> None:
    operator, stranger = await site.signed_in(), site.browser()
    for path in (*OUTSIDE, *map(path_of, PAGES)):
        for browser in (operator, stranger):
            assert_hardened(await browser.get(path))
            assert_hardened(await browser.get(path, {"Accept": "application/json"}))
    for path in (*map(path_of, ACTIONS), "/sign-in", "/sign-out", "/set-password", "/nowhere", "/"):
        assert_hardened(await operator.post(path, {}))
        assert_hardened(await stranger.post(path, {}))
    for route in OPERATOR_ROUTES:
        filled = route.path.replace("{session_id}", SESSION).replace("{mitra_id}", MITRA)
        for key in (ADMIN_KEY, "wrong"):
            answer = await site.client.request(
                route.method, site.base + filled, headers={"Authorization": f"Bearer {key}"}
            )
            assert_hardened(answer)


async def test_what_no_application_has_made_is_hardened_too(site: Site) -> None:
    answer = await site.client.get(site.base + "/", headers={"X": "x" * 20_000})
    assert answer.status_code == 431
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["content-security-policy"].startswith("default-src 'none'")
    assert answer.headers["cache-control"] == "no-store"


async def test_no_page_needs_what_the_policy_forbids(site: Site) -> None:
    operator = await site.signed_in()
    for path in ("/sign-in", *map(path_of, PAGES)):
        page = (await operator.get(path)).text.lower()
        for forbidden in (
            "<style",
            " style=",
            " onclick=",
            " onsubmit=",
            "javascript:",
            'src="http',
            'href="http',
            "data:image",
        ):
            assert forbidden not in page, (path, forbidden)
        assert page.count("<script") == page.count('<script src="/static/')


async def test_assets_come_from_the_package_and_nothing_else_does(site: Site) -> None:
    browser = site.browser()
    types = {
        "status.css": "text/css; charset=utf-8",
        "status.js": "text/javascript; charset=utf-8",
        "halo.svg": "image/svg+xml",
    }
    for name, kind in types.items():
        answer = await browser.get(f"/static/{name}")
        assert (answer.status_code, answer.headers["content-type"]) == (200, kind)
    for path in (
        "/static/../frame.py",
        "/static/%2e%2e/frame.py",
        "/static/..%2fframe.py",
        "/static/",
        "/static//etc/passwd",
    ):
        assert (await browser.get(path)).status_code in {400, 404}  # 400: no path that a browser would send


# ---- who gets in


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.path)
async def test_a_page_is_shown_to_both_roles_and_sends_others_to_sign_in(site: Site, page: Page) -> None:
    path = path_of(page)
    for role in Role:
        answer = await (await site.signed_in(role.value, role)).get(path)
        assert answer.status_code in {200, 404}  # the fakes have not everything that a page may be about
        assert answer.headers["content-type"] == "text/html; charset=utf-8"
    answer = await site.browser().get(path)
    assert (answer.status_code, answer.text) == (303, "")
    assert answer.headers["location"] == ("/sign-in" if path == "/" else f"/sign-in?next={path}")


@pytest.mark.parametrize("action", ACTIONS, ids=lambda action: action.name)
async def test_a_viewer_is_refused_whatever_would_change_something(site: Site, action: Action) -> None:
    viewer = await site.signed_in("vera", Role.VIEWER)
    answer = await viewer.post(path_of(action), {"csrf_token": form_token(viewer.session_token)})
    if action.own:
        assert action.name == "change_password"  # the one thing that concerns nobody but oneself
        return
    assert answer.status_code == 403
    assert "change nothing" in told(answer)
    assert nothing_happened(site.house)


@pytest.mark.parametrize("action", ACTIONS, ids=lambda action: action.name)
async def test_an_action_that_nobody_signed_in_asks_for_leads_to_the_sign_in(site: Site, action: Action) -> None:
    for cookies in ({}, {"halo_session": "made up"}, {"__Host-halo_session": "made up"}):
        stranger = Browser(site.client, site.base, dict(cookies))
        answer = await stranger.post(path_of(action), {"csrf_token": form_token("made up")})
        assert (answer.status_code, answer.headers["location"]) == (303, "/sign-in")
    assert nothing_happened(site.house)


@pytest.mark.parametrize("row", [*PAGES, *ACTIONS], ids=lambda row: row.path)
async def test_nothing_changes_by_get_and_nothing_answers_other_methods(site: Site, row: Page | Action) -> None:
    operator = await site.signed_in()
    shared = {page.path for page in PAGES} & {action.path for action in ACTIONS}
    methods = ["PUT", "PATCH", "DELETE", "OPTIONS"] if row.path in shared else ["PUT", "OPTIONS"]
    if isinstance(row, Action) and row.path not in shared:
        methods.append("GET")
    if isinstance(row, Page) and row.path not in shared:
        methods.append("POST")
    for method in methods:
        answer = await operator._send(method, path_of(row), None, {"Origin": site.base})
        assert answer.status_code == 405, method
    assert nothing_happened(site.house)


def nothing_happened(house: House) -> bool:
    return not (house.sessions.asked or house.mirror.told or house.operators.recorded or house.live_config.changed_by)


# ---- forms


async def forms_that_are_not_halos(site: Site) -> list[tuple[str, dict[str, str], dict[str, str | None]]]:
    """What is wrong with each, its fields, its headers."""
    other = await site.signed_in("another")
    good = form_token(other.session_token)
    return [
        ("no token", {}, {}),
        ("an empty token", {"csrf_token": ""}, {}),
        ("another session's token", {"csrf_token": good}, {}),
        ("the cookie itself", {"csrf_token": "cookie"}, {}),
        ("a token that is no ASCII", {"csrf_token": "schlüssel"}, {}),
        ("no Origin", {"csrf_token": "good"}, {"Origin": None}),
        ("the Origin of nowhere", {"csrf_token": "good"}, {"Origin": "null"}),
        ("another site", {"csrf_token": "good"}, {"Origin": "https://evil.example"}),
        ("another port of this machine", {"csrf_token": "good"}, {"Origin": "http://127.0.0.1:1"}),
        (
            "another name of this machine",
            {"csrf_token": "good"},
            {"Origin": site.base.replace("127.0.0.1", "localhost")},
        ),
        ("a site that says so", {"csrf_token": "good"}, {"Sec-Fetch-Site": "cross-site"}),
        ("a sibling", {"csrf_token": "good"}, {"Sec-Fetch-Site": "same-site"}),
        ("no page at all", {"csrf_token": "good"}, {"Sec-Fetch-Site": "none"}),
    ]


@pytest.mark.parametrize("action", ACTIONS, ids=lambda action: action.name)
async def test_a_form_that_halo_has_not_given_to_this_session_does_nothing(site: Site, action: Action) -> None:
    operator = await site.signed_in()
    for wrong, fields, headers in await forms_that_are_not_halos(site):
        known = {"good": form_token(operator.session_token), "cookie": operator.session_token}
        sent = {name: known.get(value, value) for name, value in fields.items()}
        answer = await operator.post(path_of(action), {"reason": "a reason that is long enough", **sent}, headers)
        assert answer.status_code == 403, wrong
        assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert nothing_happened(site.house)


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (b"csrf_token=%s&csrf_token=%s", "application/x-www-form-urlencoded"),
        (b"csrf_token=%s&reason=a\0b", "application/x-www-form-urlencoded"),
        (b'{"csrf_token": "%s"}', "application/json"),
        (b"csrf_token=%s", "text/plain"),
        (b"csrf_token=%s" + b"".join(b"&f%d=1" % number for number in range(70)), "application/x-www-form-urlencoded"),
    ],
    ids=["doubled", "U+0000", "JSON", "text", "many fields"],
)
async def test_a_body_that_is_no_form_of_halos_is_refused(site: Site, body: bytes, kind: str) -> None:
    operator = await site.signed_in()
    sent = body.replace(b"%s", form_token(operator.session_token).encode())
    headers = {"Origin": site.base, "Content-Type": kind}
    answer = await operator._send("POST", "/account/password", sent, headers)
    assert answer.status_code == 422


async def test_a_token_that_fits_and_comes_from_the_page_is_let_through(site: Site) -> None:
    operator = await site.signed_in()
    token = token_of(await operator.get("/"))
    for headers in ({}, {"Sec-Fetch-Site": None}):  # an old browser sends none
        answer = await operator.post("/account/password", {"csrf_token": token}, headers)
        assert answer.status_code == 422  # the new password is missing, which is looked at last


# ---- what was said


async def test_messages_are_shown_to_an_operator_with_a_reason_which_is_written_down_first(site: Site) -> None:
    operator, reason = await site.signed_in(), "The customer complains of an insult."
    answer = await operator.submit("/", f"/sessions/{SESSION}/messages", reason=f"  {reason}\r\n")
    assert answer.status_code == 200
    assert site.house.operators.recorded == [("admin", "read_messages", SESSION, {"reason": reason, "after_seq": 0})]
    assert_hardened(answer)
    assert reason in told(answer)


@pytest.mark.parametrize("reason", ["", "too short", "x" * 501, " " * 40, "a      b\n\n\n\n"])
async def test_without_a_reason_that_says_something_nothing_is_read(site: Site, reason: str) -> None:
    operator = await site.signed_in()
    answer = await operator.submit("/", f"/sessions/{SESSION}/messages", reason=reason)
    assert answer.status_code == 422
    assert site.house.operators.recorded == []


@pytest.mark.parametrize(
    "reason",
    [
        "\u200b" * 12,
        "A reason \u202ethat turns",
        "\u3164" * 12,
        "a" + "\u0301" * 12,
        "\u2800" * 12,
        "A bell\x07 rings here",
    ],
)
async def test_a_reason_that_cannot_be_seen_opens_nothing(site: Site, reason: str) -> None:
    operator = await site.signed_in()
    answer = await operator.submit("/", f"/sessions/{SESSION}/messages", reason=reason)
    assert answer.status_code == 422
    assert site.house.operators.recorded == []
    assert site.house.operators.refused == [("admin", "read_messages", SESSION, "VALIDATION_ERROR")]


# ---- what is told of what was done


async def test_what_was_done_is_told_once_and_only_to_whom_did_it(site: Site) -> None:
    operator, other = await site.signed_in(), await site.signed_in("another")
    answer = await operator.submit("/", f"/mitras/{MITRA}/activate")
    assert answer.headers["location"] == f"/mitras/{MITRA}"
    other.cookies["halo_done"] = operator.cookies["halo_done"]
    assert "She may sign in again." not in told(await other.get("/mitras"))
    assert "She may sign in again." not in told(await operator.get("/mitras", {"X-Halo-Live": "1"}))
    assert "She may sign in again." in told(await operator.get("/mitras"))
    assert "halo_done" not in operator.cookies
    assert "She may sign in again." not in told(await operator.get("/mitras"))


@pytest.mark.parametrize("carried", ["end_session", "end_session.", "end_session." + "0" * 64, ".", ""])
async def test_no_link_and_no_made_up_cookie_makes_halo_say_that_something_was_done(site: Site, carried: str) -> None:
    operator = await site.signed_in()
    operator.cookies["halo_done"] = carried
    page = await operator.get("/?done=end_session")
    assert page.status_code == 200
    assert "The session has ended." not in told(page)


# ---- what was refused


@pytest.mark.parametrize("action", [action for action in ACTIONS if not action.own], ids=lambda action: action.name)
async def test_what_a_viewer_tried_and_what_came_with_a_foreign_form_is_on_the_trail(
    site: Site, action: Action
) -> None:
    viewer, operator = await site.signed_in("vera", Role.VIEWER), await site.signed_in()
    sent = {"csrf_token": form_token(viewer.session_token)}
    assert (await viewer.post(path_of(action), sent)).status_code == 403
    assert (await operator.post(path_of(action), sent)).status_code == 403
    entries = site.house.operators.refused
    assert [(who, what, code) for who, what, _, code in entries] == [
        ("vera", action.name, "FORBIDDEN"),
        ("admin", action.name, "FORBIDDEN"),
    ]
    assert all(subject in path_of(action) for _, _, subject, _ in entries)
    assert nothing_happened(site.house)


async def test_a_refusal_is_told_though_it_cannot_be_written_down(site: Site) -> None:
    site.house.operators.is_away = True
    viewer = await site.signed_in("vera", Role.VIEWER)
    assert (await viewer.submit("/", f"/sessions/{SESSION}/end")).status_code == 403


async def test_an_action_is_written_down_under_the_name_of_who_did_it(site: Site) -> None:
    for name in ("admin", "another"):
        operator = await site.signed_in(name)
        await operator.submit("/", f"/sessions/{SESSION}/messages", reason="A reason of enough characters.")
    assert [entry[0] for entry in site.house.operators.recorded] == ["admin", "another"]


HOSTILE = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "' onmouseover='x",
    "</textarea><b>",
    "{{ 7 * 7 }}",
    "&lt;b&gt;",
]


@pytest.mark.parametrize("text", HOSTILE)
async def test_whatever_people_write_is_shown_as_text(site: Site, text: str) -> None:
    operator, reason = await site.signed_in(), f"because of {text}"
    page = (await operator.submit("/", f"/sessions/{SESSION}/messages", reason=reason)).text
    assert escape(reason).replace("&#x27;", "&#39;").replace("&quot;", "&#34;") in page
    if "<" in text or '"' in text:
        assert text not in page
    refused = await site.browser().sign_in(name=text, password="wrong password")
    if "<" in text or '"' in text:
        assert text.lower() not in refused.text


# ---- errors are pages


async def test_what_is_not_there_is_a_page_for_browsers_and_a_problem_for_programs(site: Site) -> None:
    operator = await site.signed_in()
    page = await operator.get("/nowhere")
    assert (page.status_code, page.headers["content-type"]) == (404, "text/html; charset=utf-8")
    problem = await site.client.get(site.base + "/nowhere")
    assert (problem.status_code, problem.json()["code"]) == (404, "NOT_FOUND")
    api = await operator.get("/api/nowhere")
    assert api.headers["content-type"] == "application/problem+json"


async def test_a_node_that_is_busy_is_a_page_that_says_when_to_come_back(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    operator = await site.signed_in()

    async def busy(*args: Any, **more: Any) -> Any:
        raise Busy

    monkeypatch.setattr(site.house.operators, "load_overview", busy)
    answer = await operator.get("/")
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
    assert "Try again in 1 second." in told(answer)
    assert "Sign out" in told(answer)  # one is still signed in


async def test_a_fault_is_a_page_that_says_nothing_of_it(
    site: Site, monkeypatch: pytest.MonkeyPatch, claims_errors: list[Any]
) -> None:
    operator = await site.signed_in()

    async def broken(*args: Any, **more: Any) -> Any:
        raise RuntimeError("the secret of the fault")

    monkeypatch.setattr(site.house.operators, "load_overview", broken)
    answer = await operator.get("/")
    assert (answer.status_code, answer.headers["content-type"]) == (500, "text/html; charset=utf-8")
    assert "secret of the fault" not in answer.text
    assert len(claims_errors) == 1


async def test_while_the_node_drains_pages_are_shown_and_nothing_is_done(site: Site) -> None:
    operator = await site.signed_in()
    site.house.draining = True
    token = token_of(await operator.get("/"))
    answer = await operator.post(
        f"/sessions/{SESSION}/messages", {"csrf_token": token, "reason": "A reason of enough characters."}
    )
    assert answer.status_code == 503
    assert nothing_happened(site.house)


async def test_another_host_reaches_no_page(site: Site) -> None:
    operator = await site.signed_in()
    answer = await operator.get("/", {"Host": "evil.example"})
    assert answer.status_code == 421
    assert_hardened(answer)


# ---- sessions


async def test_a_session_ends_after_half_an_hour_without_a_person(site: Site) -> None:
    operator = await site.signed_in()
    for _ in range(3):
        site.house.clock.moment += IDLE_MS - 60_000
        assert (await operator.get("/")).status_code == 200
    site.house.clock.moment += IDLE_MS
    assert (await operator.get("/")).status_code == 303


async def test_a_page_that_renews_itself_keeps_nobody_signed_in(site: Site) -> None:
    operator = await site.signed_in()
    for _ in range(4):
        assert (await operator.get("/", {"X-Halo-Live": "1"})).status_code == 200
        site.house.clock.moment += IDLE_MS // 4
    assert (await operator.get("/", {"X-Halo-Live": "1"})).status_code == 303


async def test_a_session_ends_after_twelve_hours_however_busy(site: Site) -> None:
    operator = await site.signed_in()
    for _ in range(LIFETIME_MS // (IDLE_MS // 2) - 1):
        site.house.clock.moment += IDLE_MS // 2
        assert (await operator.get("/")).status_code == 200
    site.house.clock.moment += IDLE_MS // 2
    assert (await operator.get("/")).status_code == 303


async def test_somebody_who_becomes_a_viewer_is_one_at_once(site: Site) -> None:
    operator = await site.signed_in()
    site.house.gatehouse.rows["admin"] = replace(site.house.gatehouse.rows["admin"], role=Role.VIEWER)
    answer = await operator.submit("/", f"/sessions/{SESSION}/messages", reason="A reason of enough characters.")
    assert answer.status_code == 403


# ---- where one is sent


@pytest.mark.parametrize(
    "text",
    [
        None, "", "x", "//evil.example", "///evil.example", "/\\evil.example", "\\\\evil.example", "https://evil.example",
        "javascript:alert(1)", "/\t/evil.example", "/\n/evil.example", " //evil.example", "/ä", "/" + "x" * 600, "http:/x", "/\x7f",
    ],
)  # fmt: skip
def test_a_way_back_that_could_lead_elsewhere_leads_to_the_overview(text: str | None) -> None:
    assert local_path(text) == "/"


@pytest.mark.parametrize("text", ["/", "/sessions", "/sessions?status=living&limit=50", "/a//b", "/a?next=//x"])
def test_a_way_back_on_this_listener_is_kept(text: str) -> None:
    assert local_path(text) == text


def test_the_password_of_these_tests_is_one() -> None:
    assert 12 <= len(PASSWORD) <= 256
