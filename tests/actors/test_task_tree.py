"""The tree of tasks, as Trio has it."""

import pytest
import trio

from halo.actors import task_tree
from halo.actors.task_tree import SHOWN_OF_A_KIND, Branch, draw_tree, find_tasks, kind_of


def find(branch: Branch, name: str) -> Branch | None:
    if branch.name == name:
        return branch
    below = (child for groups in branch.nurseries for group in groups for child in group.shown)
    return next((found for child in below if (found := find(child, name)) is not None), None)


async def parent(*, children: int, task_status: trio.TaskStatus[None]) -> None:
    async with trio.open_nursery() as outer, trio.open_nursery() as inner:
        for number in range(children):
            outer.start_soon(trio.sleep_forever, name=f"session {number:06}")
        inner.start_soon(trio.sleep_forever, name="listener ws")
        task_status.started()


async def test_nurseries_stand_from_the_outside_in_and_thousands_are_counted() -> None:
    async with trio.open_nursery() as nursery:
        await nursery.start(lambda task_status: parent(children=3_000, task_status=task_status), name="server")
        tree = await draw_tree()
        server = find(tree, "server")
        nursery.cancel_scope.cancel()
    assert server is not None
    [[sessions], [listeners]] = server.nurseries
    assert (sessions.kind, sessions.count, sessions.more) == ("session", 3_000, 3_000 - SHOWN_OF_A_KIND)
    assert [each.name for each in sessions.shown] == [f"session {number:06}" for number in range(SHOWN_OF_A_KIND)]
    assert [each.name for each in listeners.shown] == ["listener ws"]
    assert tree.name == "<init>"


async def test_a_task_is_found_with_those_above_it() -> None:
    async with trio.open_nursery() as nursery:
        await nursery.start(lambda task_status: parent(children=30, task_status=task_status), name="server")
        found = await find_tasks("SESSION 00001")
        nursery.cancel_scope.cancel()
    assert [each.name for each in found] == [f"session {number:06}" for number in range(10, 20)]
    assert {each.above[-1] for each in found} == {"server"}


async def test_a_search_ends_at_its_bound_and_a_walk_at_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(task_tree, "FOUND_AT_MOST", 5)
    monkeypatch.setattr(task_tree, "LOOKED_AT_MOST", 50)
    async with trio.open_nursery() as nursery:
        await nursery.start(lambda task_status: parent(children=100, task_status=task_status), name="server")
        found = await find_tasks("session")
        server = find(await draw_tree(), "server")
        nursery.cancel_scope.cancel()
    assert len(found) == 5
    assert server is not None
    assert server.nurseries[0][0].count < 100


async def test_others_have_their_turns_while_the_tree_is_walked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every task that is looked at uses up its slice here, so that the walk must give way between any two."""
    monkeypatch.setattr(task_tree, "SLICE_SECONDS", -1.0)
    turns = 0

    async def other() -> None:
        nonlocal turns
        while True:
            await trio.lowlevel.checkpoint()
            turns += 1

    async with trio.open_nursery() as nursery:
        await nursery.start(lambda task_status: parent(children=100, task_status=task_status), name="server")
        nursery.start_soon(other)
        await draw_tree()
        nursery.cancel_scope.cancel()
    assert turns >= 90


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("session 0f", "session"),
        ("daemon sweep reseed", "daemon"),
        ("signals", "signals"),
        ("halo.net.guard.serve_guarded", "guard.serve_guarded"),
    ],
)
def test_a_kind_is_the_first_word_or_the_function(name: str, kind: str) -> None:
    assert kind_of(name) == kind
