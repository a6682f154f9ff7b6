"""The trail on its page: what became of what was tried, in words, and found by it."""

from collections.abc import AsyncIterator

import pytest

from halo.store.lookout import OperatorAction
from tests.net.desk_fakes import NOON, SESSION
from tests.net.status_site import Site, open_site, told


@pytest.fixture
async def site(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Site]:
    async with open_site(monkeypatch) as opened:
        yield opened


@pytest.mark.parametrize(
    ("outcome", "code", "times", "words"),
    [
        ("done", None, 1, "done"),
        ("attempted", None, 1, "attempted what became of it is not known"),
        ("refused", "SESSION_NOT_ACTIVE", 1, "refused the session does not run"),
        ("refused", "WRONG_PASSWORD", 1_234, "refused the password was wrong, 1 234 times within a minute"),
        ("refused", "A_CODE_TO_COME", 1, "refused a code to come"),
    ],
)
async def test_what_became_of_it_is_told_in_words(
    site: Site, outcome: str, code: str | None, times: int, words: str
) -> None:
    site.house.inside.lookout.actions = [
        OperatorAction(
            action_id=1, operator="ani", action="end_session", subject=SESSION, details={}, at=NOON, outcome=outcome, code=code,
            times=times, trace_id="4bf92f3577b34da6a3ce929d0e0e4736",
        )
    ]  # fmt: skip
    page = told(await (await site.signed_in()).get("/audit"))
    assert f"{SESSION} {words} –" in page.replace("\N{NARROW NO-BREAK SPACE}", " ")
    assert "trace 4bf92f3577b34da6a3ce929d0e0e4736" in page


async def test_the_trail_is_asked_for_by_what_became_of_it(site: Site) -> None:
    operator = await site.signed_in()
    page = await operator.get("/audit?operator=ani&outcome=refused")
    assert site.house.inside.lookout.asked == [("actions", "ani", None, "refused", 50, None)]
    assert '<option value="refused" selected>' in page.text
    assert (await operator.get("/audit?outcome=perhaps")).status_code == 422
