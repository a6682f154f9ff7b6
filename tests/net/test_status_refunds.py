"""Refunds and dead letters on the status page."""

from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from halo.outbox import OutboxKind
from halo.oversight import OperatedRefunds
from halo.store.lookout import Waiting
from tests.net.desk_fakes import PAYMENT
from tests.net.status_rows import an_id, fill, refund
from tests.net.status_site import Site, open_site, told


@pytest.fixture
async def site(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Site]:
    async with open_site(monkeypatch) as opened:
        yield opened


async def test_refunds_are_summed_and_listed_with_why(site: Site) -> None:
    fill(site.house, text="ended_by_mitra")
    operator = await site.signed_in()
    page = told(await operator.get("/refunds?status=due"))
    assert "due IDR 2 IDR 10 000" in page
    assert "ended by mitra, 1 min 00 s left" in page
    assert "HALO_REFUND_URL" in page
    assert ("due", 50, None) in site.house.operators.asked


async def test_a_refund_is_shown_with_its_id_and_that_of_its_payment(site: Site) -> None:
    site.house.operators.refunds = OperatedRefunds(refunds=(refund(1, "x"),), next_cursor=None)
    page = (await (await site.signed_in()).get("/refunds")).text
    for each in (an_id(1), PAYMENT):
        assert f'href="/sessions?q={each}"' in page


async def test_the_next_page_of_refunds_keeps_the_filter(site: Site) -> None:
    site.house.operators.refunds = OperatedRefunds(refunds=(refund(1, "x"),), next_cursor=an_id(1))
    page = (await (await site.signed_in()).get("/refunds?status=dead")).text
    assert f'href="/refunds?status=dead&amp;cursor={an_id(1)}"' in page


async def test_a_dead_letter_is_tried_again_under_the_operators_name(site: Site) -> None:
    fill(site.house, text="the provider answered 410")
    operator = await site.signed_in()
    assert "the provider answered 410" in told(await operator.get("/outbox"))
    answer = await operator.submit("/outbox", f"/outbox/{an_id(0)}/replay")
    assert answer.headers["location"] == "/outbox"
    assert site.house.inside.letters.replayed == [(an_id(0), "admin")]
    missing = await operator.submit("/outbox", f"/outbox/{an_id(9)}/replay")
    assert missing.status_code == 404
    assert site.house.operators.refused == [("admin", "replay_outbox", an_id(9), "NOT_FOUND")]


async def test_dead_letters_of_one_kind_are_asked_for_and_the_next_page_keeps_to_it(site: Site) -> None:
    fill(site.house, count=50)
    operator = await site.signed_in()
    page = await operator.get("/outbox?kind=refund")
    asked = site.house.inside.letters.asked
    assert asked == [(50, None, OutboxKind.REFUND)]
    assert f'href="/outbox?kind=refund&amp;cursor={an_id(49)}"' in page.text
    assert '<option value="refund" selected>' in page.text
    await operator.get("/outbox")
    assert asked == [(50, None, OutboxKind.REFUND), (50, None, None)]
    assert (await operator.get("/outbox?kind=letters")).status_code == 422


async def test_dead_refunds_are_told_of_above_the_letters(site: Site) -> None:
    fill(site.house)
    dead = Waiting(kind="refund", status="dead", count=2, oldest_due_at=None)
    site.house.inside.lookout.census = replace(site.house.inside.lookout.census, outbox=(dead,))
    operator = await site.signed_in()
    page = (await operator.get("/outbox")).text
    assert 'href="/outbox?kind=refund"' in page
    assert "Money is owed: 2 refunds are dead" in told(await operator.get("/outbox"))
    assert 'href="/outbox?kind=refund"' in (await operator.get("/refunds")).text
