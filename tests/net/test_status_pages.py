"""All pages alike: with nothing there, with hostile words, with more rows than fit, for those who may change and those who may not."""

import re
from collections.abc import AsyncIterator

import pytest

from halo.net.call import new_app
from halo.net.status.asked import ROWS
from halo.net.status.section import Page
from halo.net.status.site import install_status_page
from halo.operator_account import Role
from tests.net.desk_fakes import SESSION, House
from tests.net.status_rows import fill
from tests.net.status_site import Site, open_site, told
from tests.net.test_status_frame import HOSTILE, path_of

PAGES: list[Page] = [
    page for page in install_status_page(new_app("tables only"), House().desk).pages if page.path != "/account"
]
LISTS = ("/sessions", "/mitras", "/pairing-failures", "/extension-outcomes", "/outbox", "/audit")


@pytest.fixture
async def site(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Site]:
    async with open_site(monkeypatch) as opened:
        yield opened


def needs_a_session(page: Page) -> bool:
    return page.path.startswith("/sessions/")


@pytest.mark.parametrize("page", [page for page in PAGES if not needs_a_session(page)], ids=lambda page: page.path)
async def test_a_page_about_nothing_says_so_and_does_not_fail(site: Site, page: Page) -> None:
    answer = await (await site.signed_in()).get(path_of(page))
    assert answer.status_code == 200
    assert not re.search(r">\s*None\s*<", answer.text)


@pytest.mark.parametrize("page", [page for page in PAGES if needs_a_session(page)], ids=lambda page: page.path)
async def test_a_session_that_is_not_there_is_not_found(site: Site, page: Page) -> None:
    assert (await (await site.signed_in()).get(path_of(page))).status_code == 404


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.path)
async def test_whatever_a_row_holds_is_shown_as_text(site: Site, page: Page) -> None:
    operator = await site.signed_in()
    for text in HOSTILE:
        fill(site.house, text=text)
        answer = await operator.get(path_of(page))
        assert answer.status_code == 200, text
        if "<" in text or '"' in text:
            assert text not in answer.text
        assert "<script>alert" not in answer.text


@pytest.mark.parametrize("path", LISTS)
async def test_a_list_of_ten_thousand_is_shown_page_by_page(site: Site, path: str) -> None:
    fill(site.house, count=10_000)
    answer = await (await site.signed_in()).get(path)
    body = answer.text.rpartition("<tbody>")[2]
    assert body.count("<tr>") == ROWS
    assert len(answer.content) < 100_000
    found = re.search(r'rel="next" href="([^"]+)"', answer.text)
    assert found is not None
    assert found[1].startswith(f"{path}?cursor=")


async def test_of_ten_thousand_that_are_parked_a_hundred_are_listed(site: Site) -> None:
    fill(site.house, count=10_000)
    answer = await (await site.signed_in()).get("/tasks")
    assert answer.text.count("/revive") == 100
    assert "Parked sessions: 10 000" in told(answer)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.path)
async def test_a_viewer_sees_the_same_without_anything_to_press(site: Site, page: Page) -> None:
    fill(site.house)
    answer = await (await site.signed_in("vera", Role.VIEWER)).get(path_of(page))
    assert answer.status_code == 200
    forms = re.findall(r'<form[^>]*method="post"[^>]*action="([^"]+)"', answer.text)
    assert [action for action in forms if action not in {"/sign-out", "/configuration"}] == []
    main = answer.text.partition("<main")[2]
    if page.path == "/configuration":
        assert main.count(" disabled>") == main.count("<select") + main.count('type="text"')
        assert "<button" not in main
    assert 'class="button' not in main


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.path)
async def test_a_page_is_whole_for_those_who_do_not_see_it(site: Site, page: Page) -> None:
    fill(site.house, count=2)
    text = (await (await site.signed_in()).get(path_of(page))).text
    ids = re.findall(r' id="([^"]+)"', text)
    assert len(ids) == len(set(ids)), sorted(each for each in ids if ids.count(each) > 1)
    for named in re.findall(r' (?:for|aria-labelledby|aria-describedby)="([^"]+)"', text):
        assert set(named.split()) <= set(ids), named
    fields = re.findall(r'<(?:input|select|textarea)(?![^>]*type="hidden")[^>]* id="([^"]+)"', text)
    labels = re.findall(r'<label for="([^"]+)"', text)
    assert set(fields) == set(labels)
    for image in re.findall(r"<svg[^>]*>", text):
        assert 'role="img"' in image
        assert "aria-labelledby" in image
    assert text.count("<h1") == 1
    assert all("scope=" in head for head in re.findall(r"<th\b[^>]*>", text))


@pytest.mark.parametrize(
    "path",
    [
        "/sessions?status=strange", "/sessions?q=xyz", "/sessions?q=ab", "/sessions?cursor=no", "/sessions?within=ever",
        "/mitras?state=strange", "/mitras?cursor=1", "/audit?cursor=x", "/audit?operator=" + "x" * 101, "/pairing-failures?cause=none",
        "/extension-outcomes?status=pending", "/refunds?status=paid", "/tasks?q=%00", "/audit?cursor=-1",
    ],
)  # fmt: skip
async def test_a_filter_that_cannot_be_meant_is_refused_in_a_sentence(site: Site, path: str) -> None:
    answer = await (await site.signed_in()).get(path)
    assert answer.status_code == 422
    assert "422 VALIDATION_ERROR" in told(answer)


@pytest.mark.parametrize("path", ["/sessions", "/mitras", "/audit", "/tasks", "/pairing-failures", "/refunds"])
async def test_fields_that_were_left_empty_ask_for_nothing(site: Site, path: str) -> None:
    names = ("q", "status", "end_reason", "topic", "within", "state", "operator", "subject", "cause", "cursor")
    answer = await (await site.signed_in()).get(path + "?" + "&".join(f"{name}=" for name in names))
    assert answer.status_code == 200


async def test_what_was_said_stands_on_no_page(site: Site) -> None:
    fill(site.house)
    operator = await site.signed_in()
    for page in PAGES:
        assert "hello 1" not in (await operator.get(path_of(page))).text
    answer = await operator.submit(
        f"/sessions/{SESSION}", f"/sessions/{SESSION}/messages", reason="A long enough reason."
    )
    assert "hello 1" in told(answer)
