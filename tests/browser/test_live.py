"""Pages that renew themselves: figures that change while somebody looks, without a reload."""

import pytest

from tests.browser.devtools import DevTools
from tests.browser.office import open_office

pytestmark = pytest.mark.timeout(180)


async def test_a_session_that_starts_is_counted_on_the_open_overview_and_its_deadline_ticks_on_its_own_page(
    database_url: str, valkey_url: str, devtools: DevTools
) -> None:
    async with open_office(database_url, valkey_url, devtools) as office:
        overview = await office.sign_in()
        assert await overview.text("#living") == "0"
        await overview.evaluate("window.isTheSame = true")
        _, _, session_id = await office.house.open_pair()

        session = await office.sign_in("vera")
        await session.open(f"/sessions/{session_id}")
        before = await session.wait_for(
            "document.getElementById('deadline').textContent.match(/^[0-9]+:[0-9][0-9]$/)?.[0]"
        )
        await session.wait_for(f"document.getElementById('deadline').textContent !== '{before}'")
        await session.evaluate("window.isTheSame = true")

        await overview.wait_for("document.getElementById('living').textContent === '1'")
        assert await overview.text("#sessions-active") == "1"
        assert await overview.evaluate("window.isTheSame")
        assert await overview.evaluate("document.getElementById('stale').hidden")

        await office.house.operate("POST", f"/api/sessions/{session_id}/end")
        await session.wait_for("document.getElementById('status').textContent.includes('ended')")
        assert await session.evaluate("window.isTheSame")
        assert await session.text("#end") == ""  # what has ended cannot be ended
