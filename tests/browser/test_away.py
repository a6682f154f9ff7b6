"""Postgres really dies under somebody who looks at the status page, and comes back."""

import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from tests.browser.devtools import DevTools
from tests.browser.office import open_office
from tests.browser.well_made import list_faults, list_faults_of_looks
from tests.store.postmaster import Postmaster, run_postmaster

pytestmark = pytest.mark.timeout(240)


@pytest.fixture
def postmaster() -> Iterator[Postmaster]:
    """Its directory is short, since it holds sockets."""
    with tempfile.TemporaryDirectory(prefix="away-") as home, run_postmaster(Path(home) / "pg") as started:
        yield started


async def test_while_postgres_is_away_the_page_says_so_and_goes_on_by_itself_when_it_is_back(
    postmaster: Postmaster, valkey_url: str, devtools: DevTools
) -> None:
    async with open_office(postmaster.url, valkey_url, devtools) as office:
        open_page, page = await office.sign_in(), await office.sign_in("vera")
        await page.open("/sessions")
        postmaster.send(signal.SIGKILL)

        # Whoever has a page open keeps what it shows, and is told why it is not renewed.
        await open_page.wait_for("!document.getElementById('stale').hidden")
        assert (await open_page.text("#stale")).startswith("Postgres does not answer. This page could not be renewed")
        assert await open_page.text("#living") == "0"

        await page.reload()
        assert page.status == 503
        assert "Postgres does not answer." in await page.text("[role=alert]")
        assert "You are not signed out" in await page.text("main")
        assert (await page.text("#postgres")).startswith("away")
        assert await page.text("#valkey") == "in order"
        assert [*await list_faults(page), *await list_faults_of_looks(page)] == []

        await trio.to_thread.run_sync(postmaster.start)
        await page.wait_for(
            "location.pathname === '/sessions' && document.querySelector('h1')?.innerText === 'Sessions'"
        )
        assert page.status == 503  # of the last document that was gone to: this one came by itself
        assert "vera" in await page.text("header")
        await open_page.wait_for("document.getElementById('stale').hidden")
        assert [complaint for each in office.pages for complaint in each.complaints] == []
