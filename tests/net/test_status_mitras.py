"""Mitras on the status page: why one is not available, and shutting her out with a question before."""

from collections.abc import AsyncIterator

import pytest

from halo.availability import Verdict
from halo.net.connection import CLOSE_DEACTIVATED
from halo.store.mitras import Deactivation
from tests.net.desk_fakes import MITRA, SESSION
from tests.net.insight_fakes import HEARD_SINCE
from tests.net.status_rows import an_id, fill, operated
from tests.net.status_site import Site, open_site, told


@pytest.fixture
async def site(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Site]:
    async with open_site(monkeypatch) as opened:
        yield opened


async def test_the_search_reaches_the_rows(site: Site) -> None:
    await (await site.signed_in()).get("/mitras?q=Sari&state=silent")
    assert site.house.inside.lookout.asked == [("mitras", "silent", "Sari", 50, None)]
    assert site.house.desk.insight.heard_since() == HEARD_SINCE


@pytest.mark.parametrize(
    ("online", "fresh", "sentence"),
    [
        (True, True, "available yes"),
        (True, False, "silent no: no heartbeat for too long"),
        (False, True, "offline no: she has not said that she is online"),
    ],
)
async def test_why_she_is_not_available_is_said(site: Site, online: bool, fresh: bool, sentence: str) -> None:
    site.house.mirror.verdict = Verdict(online=online, heartbeat_age_ms=90_000, heartbeat_fresh=fresh, source="mirror")
    page = told(await (await site.signed_in()).get(f"/mitras/{MITRA}"))
    assert f"Available {sentence}" in page
    assert "1 min 30 s ago as Valkey knows it" in page


async def test_deactivating_shows_what_would_end_and_then_does_it(site: Site) -> None:
    site.house.inside.lookout.sessions = [operated()]
    site.house.mitras.deactivation = Deactivation(
        mitra_id=MITRA, auth_session_ids=[], offer_ids=[], pairing_ids=[], session_ids=[SESSION]
    )
    operator = await site.signed_in()
    question = told(await operator.get(f"/mitras/{MITRA}/deactivate"))
    assert "her 1 living session ends." in question
    assert site.house.connections.closed == []
    answer = await operator.submit(f"/mitras/{MITRA}/deactivate", f"/mitras/{MITRA}/deactivate")
    assert answer.headers["location"] == f"/mitras/{MITRA}"
    assert site.house.connections.closed == [(MITRA, CLOSE_DEACTIVATED)]
    assert [asked[:2] for asked in site.house.sessions.asked] == [("end", SESSION)]
    page = await operator.get(f"/mitras/{MITRA}")
    assert "deactivated no: she was shut out" in told(page)
    answer = await operator.submit(f"/mitras/{MITRA}", f"/mitras/{MITRA}/activate")
    assert answer.headers["location"] == f"/mitras/{MITRA}"
    assert ("activated", MITRA) in site.house.mirror.told


async def test_sessions_that_wait_for_another_mitra_are_not_said_to_end_with_her(site: Site) -> None:
    site.house.inside.lookout.sessions = [operated(), operated(1, status="rerouting"), operated(2, status="closing")]
    page = told(await (await site.signed_in()).get(f"/mitras/{MITRA}/deactivate"))
    assert "her 2 living sessions end." in page
    assert f"1 session waits for another mitra already, and goes on waiting: {an_id(1)[:8]}" in page


async def test_her_active_sessions_can_be_handed_on_from_her_page(site: Site) -> None:
    fill(site.house)
    site.house.inside.lookout.sessions = [operated(), operated(1, status="closing")]
    page = (await (await site.signed_in()).get(f"/mitras/{MITRA}")).text
    assert page.count("/transfer") == 1
    assert f"/sessions/{SESSION}/transfer" in page
