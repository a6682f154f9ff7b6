"""The tree of tasks on its page, and trying a parked session again."""

from collections.abc import AsyncIterator

import pytest
import trio

from tests.net.desk_fakes import SESSION
from tests.net.status_rows import fill
from tests.net.status_site import Site, open_site, told


@pytest.fixture
async def site(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Site]:
    async with open_site(monkeypatch) as opened:
        yield opened


async def test_tasks_are_shown_where_they_run_and_thousands_are_counted(site: Site) -> None:
    operator = await site.signed_in()
    async with trio.open_nursery() as nursery:
        for number in range(2_000):
            nursery.start_soon(trio.sleep_forever, name=f"session {number:04}")
        nursery.start_soon(trio.sleep_forever, name="daemon of the test")
        answer = await operator.get("/tasks")
        nursery.cancel_scope.cancel()
    page = told(answer)
    assert "2 000 × session" in page
    assert "and 1 975 more: look for session" in page
    assert "session 0000" in page
    assert "session 1999" not in page
    assert "daemon of the test" in page
    assert len(answer.content) < 60_000


async def test_a_task_is_found_by_a_part_of_its_name_and_linked_to_its_session(site: Site) -> None:
    operator = await site.signed_in()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.sleep_forever, name=f"session {SESSION}")
        answer = await operator.get(f"/tasks?q={SESSION[-6:]}")
        nursery.cancel_scope.cancel()
    assert "1 found" in told(answer)
    assert f'<a href="/sessions/{SESSION}">' in answer.text
    assert "below <init> ›" in told(answer)
    assert "0 found" in told(await operator.get("/tasks?q=nobodys"))


async def test_daemons_and_sessions_tell_of_their_crashes_by_kind_only(site: Site) -> None:
    fill(site.house, text="ValueError")
    page = told(await (await site.signed_in()).get("/tasks"))
    assert "ValueError just now 1 just now ValueError" in page
    assert "Living sessions that have crashed: 1" in page


async def test_a_parked_session_is_tried_again_and_that_is_written_down_first(site: Site) -> None:
    fill(site.house)
    operator = await site.signed_in()
    answer = await operator.submit("/tasks", f"/tasks/{SESSION}/revive")
    assert (answer.status_code, answer.headers["location"]) == (303, "/tasks")
    assert site.house.inside.revived == [SESSION]
    assert site.house.operators.recorded == [("admin", "revive", SESSION, {})]
    assert "The session runs again." in told(await operator.get(answer.headers["location"]))


async def test_a_session_that_is_not_parked_is_left_alone_which_is_written_down(site: Site) -> None:
    operator = await site.signed_in()
    answer = await operator.submit("/tasks", f"/tasks/{SESSION}/revive")
    assert answer.status_code == 409
    assert "not parked on this node" in told(answer)
    assert site.house.inside.revived == []
    assert site.house.operators.recorded == [("admin", "revive", SESSION, {})]
    assert site.house.operators.outcomes == ["INVALID_STATE"]


async def test_a_session_that_has_gone_elsewhere_meanwhile_is_said_to_have(site: Site) -> None:
    fill(site.house)
    site.house.inside.can_revive = False
    answer = await (await site.signed_in()).submit("/tasks", f"/tasks/{SESSION}/revive")
    assert answer.status_code == 409
    assert "another node keeps it" in told(answer)
