"""The status page while Postgres does not answer: what it can still say, to whom, and that nothing of anybody is in it."""

from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest
import trio
import trio.testing

from halo.errors import StoreUnavailable
from halo.net.status.away import ASK_SECONDS, look_around
from tests.net.desk_fakes import CUSTOMER, MITRA, NOON, SESSION, House
from tests.net.status_rows import fill
from tests.net.status_site import Browser, Site, open_site, token_of, told


async def away(*args: Any, **more: Any) -> Any:
    raise StoreUnavailable


@pytest.fixture
async def site(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Site]:
    async with open_site(monkeypatch) as opened:
        yield opened


@pytest.fixture
async def operator(site: Site, monkeypatch: pytest.MonkeyPatch) -> Browser:
    """Who signed in before everything that stands in Postgres was away."""
    browser = await site.signed_in()
    fill(site.house, text="word of a row")
    monkeypatch.setattr(site.house.gatehouse, "find", away)
    monkeypatch.setattr(site.house.gatehouse, "take", away)
    site.house.store_is_up = False
    return browser


async def test_it_says_which_store_is_away_how_the_other_is_and_where_programs_ask(
    site: Site, operator: Browser
) -> None:
    for valkey_is_believed, said in ((True, "Valkey in order"), (False, "Valkey degraded")):
        site.house.mirror.trusted = valkey_is_believed
        answer = await operator.get("/sessions")
        page = told(answer)
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
        assert "Postgres does not answer." in page
        assert "Postgres away had answered 20 s ago" in page
        assert said in page
        assert 'href="/readyz"' in answer.text


async def test_the_figures_of_the_node_are_told_with_their_age_and_no_row_of_anybody(
    site: Site, operator: Browser
) -> None:
    site.house.inside.watch.last_round_at = NOON - 30_000
    page = told(await operator.get("/"))
    assert "This node, as it was 10 s ago" in page
    assert "living sessions 10 messages 2.5 per s event-loop lag 40.0 ms mitras available 7" in page
    assert "alarms 1 30 s ago" in page
    for private in ("word of a row", SESSION, CUSTOMER, MITRA, "admin"):
        assert private not in page


async def test_before_the_first_figures_it_says_that_nothing_is_known(site: Site, operator: Browser) -> None:
    site.house.inside.samples = []
    page = told(await operator.get("/"))
    assert "no figure knows when it last answered" in page
    assert "Nothing is known yet" in page


async def test_nobody_is_recognised_and_nobody_is_signed_out(
    site: Site, operator: Browser, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = await operator.get("/")
    assert "nobody can be recognised at the moment. You are not signed out" in told(answer)
    assert "Sign out" not in told(answer)
    assert answer.headers.get_list("set-cookie") == []
    monkeypatch.undo()
    assert (await operator.get("/account")).status_code == 200


async def test_a_page_that_was_asked_for_renews_itself_and_a_deed_is_not_repeated(
    site: Site, operator: Browser
) -> None:
    assert 'data-live="5"' in (await operator.get("/")).text
    stranger = site.browser()
    form = await stranger.get("/sign-in")  # which needs no store
    answer = await stranger.post(
        "/sign-in", {"name": "admin", "password": "whatever it is", "csrf_token": token_of(form)}
    )
    assert answer.status_code == 503
    assert "data-live" not in answer.text
    assert "by itself" not in told(answer)


async def test_who_was_recognised_before_it_went_keeps_the_menu(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    browser = await site.signed_in()
    monkeypatch.setattr(site.house.operators, "load_overview", away)
    answer = await browser.get("/")
    assert answer.status_code == 503
    assert "Postgres answers again." in told(answer)  # by the time that the page was made
    assert "Sign out" in told(answer)


async def test_a_store_that_hangs_holds_the_page_up_for_a_second_at_most(
    autojump_clock: trio.testing.MockClock,  # time passes as soon as everybody waits
) -> None:
    async def hang() -> bool:
        await trio.sleep_forever()

    began = trio.current_time()
    seen = await look_around(replace(House().desk, store_answers=hang))
    assert not seen.answers
    assert trio.current_time() - began == pytest.approx(ASK_SECONDS)


async def test_programs_get_the_problem_document_as_ever(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(site.house.operators, "load_overview", away)
    key = {"Authorization": f"Bearer {site.house.settings.admin_key}"}
    answer = await site.client.get(site.base + "/api/overview", headers=key)
    assert (answer.status_code, answer.json()["code"]) == (503, "STORE_UNAVAILABLE")
