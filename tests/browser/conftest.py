"""A browser for a worker's whole run, and a connection to it for each test. Without a browser this tier is skipped, in one sentence."""

from collections.abc import AsyncIterator, Iterator

import pytest

from halo.net.status import passwords
from tests.browser.chromium import ABSENT, Chromium, find_chromium, open_chromium
from tests.browser.devtools import DevTools, open_devtools
from tests.net.status_site import CHEAP


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Here and not in the fixture, so that the run ends with one line about it and not with one a test."""
    if "chromium" in getattr(item, "fixturenames", ()) and find_chromium() is None:
        pytest.skip(ABSENT)


@pytest.fixture(scope="session")
def chromium() -> Iterator[Chromium]:
    program = find_chromium()
    assert program is not None  # or the test was skipped
    with open_chromium(program) as opened:
        yield opened


@pytest.fixture
async def devtools(chromium: Chromium) -> AsyncIterator[DevTools]:
    async with open_devtools(chromium.devtools_url) as opened:
        yield opened


@pytest.fixture(autouse=True)
def _passwords_are_cheap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passwords, "COST", CHEAP)
