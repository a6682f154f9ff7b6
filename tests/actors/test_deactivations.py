"""Deactivations on every node, with fakes on a clock that jumps: each port away at each step, repeated, on two nodes at once."""

from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest
import trio
from trio.testing import MockClock

from halo.actors.deactivations import LOOK_SECONDS, Deactivations
from halo.errors import Busy, Draining, Refusal, SessionNotActive, StoreUnavailable
from halo.events import EndedBy
from tests.actors.fakes import Broken

A_SECOND = 1.0
"""What the specification gives every node."""


@dataclass
class Rows:
    """What Postgres holds for all nodes."""

    mitra_of: dict[str, str] = field(default_factory=dict)
    """Of each session that lives."""
    owner_of: dict[str, str] = field(default_factory=dict)
    rerouting: set[str] = field(default_factory=set)
    offered_to: set[str] = field(default_factory=set)
    inactive: set[str] = field(default_factory=set)
    ended: list[str] = field(default_factory=list)
    rescinded: list[str] = field(default_factory=list)

    def add(self, session_id: str, mitra_id: str, owner: str = "one") -> None:
        self.mitra_of[session_id] = mitra_id
        self.owner_of[session_id] = owner


@dataclass
class Node:
    """All the ports of one node's Deactivations; what was asked, in order, and the fault that each name meets."""

    rows: Rows
    name: str = "one"
    calls: list[tuple[float, str]] = field(default_factory=list)
    faults: dict[str, list[Exception]] = field(default_factory=dict)
    """For the next calls of that name."""
    away: bool = False
    slow_seconds: float = 0.0
    """How long the end of a session takes."""
    hung: set[str] = field(default_factory=set)
    """Sessions whose actor never answers."""

    async def _meet(self, name: str) -> None:
        self.calls.append((round(trio.current_time(), 3), name))
        await trio.lowlevel.checkpoint()
        if self.away:
            raise StoreUnavailable
        if self.faults.get(name):
            raise self.faults[name].pop(0)

    def names(self) -> list[str]:
        return [name for _, name in self.calls]

    # ---- registry

    def __len__(self) -> int:
        return sum(
            owner == self.name for session_id, owner in self.rows.owner_of.items() if session_id in self.rows.mitra_of
        )

    async def end(self, session_id: str, by: EndedBy, *, user_id: str | None) -> object:
        assert by is EndedBy.DEACTIVATION
        assert user_id is not None  # whose they are: one that was handed on meanwhile is not hers any more
        await self._meet(f"end {session_id}")
        if session_id in self.hung:
            await trio.sleep_forever()
        await trio.sleep(self.slow_seconds)
        if session_id not in self.rows.mitra_of:
            raise SessionNotActive
        del self.rows.mitra_of[session_id]
        self.rows.ended.append(session_id)
        return None

    # ---- desk

    def asked(self) -> Collection[str]:
        return set(self.rows.offered_to)

    async def rescind_for(self, mitra_id: str) -> None:
        await self._meet(f"rescind {mitra_id}")
        self.rows.offered_to.discard(mitra_id)
        self.rows.rescinded.append(mitra_id)

    # ---- stores

    async def list_without_active_mitra(self) -> Mapping[str, str]:
        await self._meet("list sessions")
        return {
            session_id: mitra_id
            for session_id, mitra_id in self.rows.mitra_of.items()
            if mitra_id in self.rows.inactive
            and self.rows.owner_of[session_id] == self.name
            and session_id not in self.rows.rerouting
        }

    async def list_deactivated(self, mitra_ids: Collection[str]) -> Sequence[str]:
        await self._meet("list mitras")
        return sorted(self.rows.inactive & set(mitra_ids))

    async def close_sockets(self) -> None:
        await self._meet("close sockets")


@asynccontextmanager
async def served(*nodes: Node) -> AsyncIterator[None]:
    async with trio.open_nursery() as nursery:
        for node in nodes:
            nursery.start_soon(Deactivations(node, node, node, node, node.close_sockets).serve)
        yield
        nursery.cancel_scope.cancel()


@pytest.fixture
def rows() -> Rows:
    return Rows()


@pytest.fixture
def node(rows: Rows) -> Node:
    return Node(rows)


async def test_within_a_second_sockets_close_first_then_sessions_end_and_offers_are_withdrawn(
    rows: Rows, node: Node, autojump_clock: MockClock
) -> None:
    rows.add("s-1", "gone")
    rows.add("s-2", "gone")
    rows.add("s-3", "stays")
    rows.offered_to |= {"gone", "stays"}
    async with served(node):
        await trio.sleep(3.1)
        node.calls.clear()
        began = trio.current_time()
        rows.inactive.add("gone")
        await trio.sleep(A_SECOND)
        assert (sorted(rows.ended), rows.rescinded) == (["s-1", "s-2"], ["gone"])
        names = node.names()
        assert names.index("close sockets") < names.index("end s-1")
        assert {at - began <= LOOK_SECONDS for at, name in node.calls if name.startswith(("end", "rescind"))} == {True}


async def test_with_nothing_to_end_nothing_is_asked(rows: Rows, node: Node, autojump_clock: MockClock) -> None:
    rows.inactive.add("gone")
    rows.add("s-1", "gone", owner="two")
    async with served(node):
        await trio.sleep(60)
    assert node.calls == []


async def test_a_session_that_seeks_another_mitra_is_left_to_its_search(
    rows: Rows, node: Node, autojump_clock: MockClock
) -> None:
    rows.add("s-1", "gone")
    rows.add("s-2", "gone")
    rows.rerouting.add("s-1")
    rows.inactive.add("gone")
    async with served(node):
        await trio.sleep(10)
        assert rows.ended == ["s-2"]
        rows.mitra_of["s-1"] = "another"  # found
        rows.rerouting.clear()
        await trio.sleep(10)
        assert rows.ended == ["s-2"]


async def test_each_session_is_ended_once_however_long_its_end_takes(
    rows: Rows, node: Node, autojump_clock: MockClock
) -> None:
    rows.add("s-1", "gone")
    rows.inactive.add("gone")
    node.slow_seconds = 5.0
    async with served(node):
        await trio.sleep(20)
    assert node.names().count("end s-1") == 1
    assert node.names().count("close sockets") == 1
    assert rows.ended == ["s-1"]


async def test_a_session_that_hangs_keeps_no_other_from_ending_in_time(
    rows: Rows, node: Node, autojump_clock: MockClock
) -> None:
    rows.add("s-1", "gone")
    rows.inactive.add("gone")
    node.hung.add("s-1")
    async with served(node):
        await trio.sleep(5)
        rows.add("s-2", "late")
        rows.offered_to.add("late")
        rows.inactive.add("late")
        await trio.sleep(A_SECOND)
        assert (rows.ended, rows.rescinded) == (["s-2"], ["late"])


STEPS = ["list sessions", "close sockets", "end s-1", "list mitras", "rescind gone"]


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("times", [1, 7])
async def test_a_store_that_is_away_at_any_step_delays_the_rest_and_loses_nothing(
    rows: Rows, node: Node, autojump_clock: MockClock, step: str, times: int
) -> None:
    rows.add("s-1", "gone")
    rows.offered_to.add("gone")
    rows.inactive.add("gone")
    node.faults[step] = [StoreUnavailable() for _ in range(times)]
    async with served(node):
        await trio.sleep(times * LOOK_SECONDS + A_SECOND)
        assert (rows.ended, rows.rescinded) == (["s-1"], ["gone"])
        assert node.names().count(step) >= times + 1


async def test_no_session_ends_before_the_mitras_sockets_were_closed(
    rows: Rows, node: Node, autojump_clock: MockClock
) -> None:
    """Its end would close them as if in order, and not with 4403."""
    rows.add("s-1", "gone")
    rows.inactive.add("gone")
    node.faults["close sockets"] = [StoreUnavailable() for _ in range(4)]
    async with served(node):
        await trio.sleep(2.1)
        assert rows.ended == []
        await trio.sleep(A_SECOND)
        assert rows.ended == ["s-1"]


@pytest.mark.parametrize("refusal", [Busy(), Draining(), StoreUnavailable()])
async def test_a_session_that_could_not_be_ended_now_is_ended_by_a_later_look(
    rows: Rows, node: Node, autojump_clock: MockClock, refusal: Refusal
) -> None:
    rows.add("s-1", "gone")
    rows.inactive.add("gone")
    node.faults["end s-1"] = [refusal]
    async with served(node):
        await trio.sleep(2 * A_SECOND)
    assert node.names().count("end s-1") == 2
    assert rows.ended == ["s-1"]


async def test_a_session_that_ended_by_itself_meanwhile_is_no_fault(
    rows: Rows, node: Node, autojump_clock: MockClock
) -> None:
    rows.add("s-1", "gone")
    rows.inactive.add("gone")
    node.faults["end s-1"] = [SessionNotActive()]
    async with served(node):
        await trio.sleep(0.6)
        del rows.mitra_of["s-1"]
        await trio.sleep(10)
    assert rows.ended == []
    assert node.names().count("end s-1") == 1


async def test_a_store_that_goes_away_in_the_middle_and_returns_finds_the_rest_within_a_second(
    rows: Rows, node: Node, autojump_clock: MockClock
) -> None:
    """The first session has ended when it goes; the second, deactivated while nobody can know, and the offer are left."""
    rows.add("s-1", "gone")
    rows.inactive.add("gone")
    async with served(node):
        await trio.sleep(0.6)
        assert rows.ended == ["s-1"]
        node.away = True
        rows.add("s-2", "gone")
        rows.offered_to.add("gone")
        await trio.sleep(120)
        assert (rows.ended, rows.rescinded) == (["s-1"], [])
        node.away = False
        await trio.sleep(A_SECOND)
        assert (rows.ended, rows.rescinded) == (["s-1", "s-2"], ["gone"])


async def test_the_same_deactivation_again_ends_nothing_twice(
    rows: Rows, node: Node, autojump_clock: MockClock
) -> None:
    rows.add("s-1", "gone")
    rows.offered_to.add("gone")
    rows.inactive.add("gone")
    async with served(node):
        await trio.sleep(A_SECOND)
        rows.inactive.add("gone")  # an operator is never sure
        await trio.sleep(30)
    assert (rows.ended, rows.rescinded) == (["s-1"], ["gone"])


async def test_two_nodes_end_each_its_own_sessions_and_the_offer_is_withdrawn_by_whoever_comes_first(
    rows: Rows, autojump_clock: MockClock
) -> None:
    one, two = Node(rows, "one"), Node(rows, "two")
    rows.add("s-1", "gone", owner="one")
    rows.add("s-2", "gone", owner="two")
    rows.offered_to.add("gone")
    rows.inactive.add("gone")
    async with served(one, two):
        await trio.sleep(A_SECOND)
    assert sorted(rows.ended) == ["s-1", "s-2"]
    assert [name for name in one.names() + two.names() if name.startswith("end")] == ["end s-1", "end s-2"]
    assert rows.offered_to == set()
    assert 1 <= len(rows.rescinded) <= 2  # a repeat changes no row: `halo/store/offers.py`


async def test_a_session_that_another_node_takes_up_is_ended_there(rows: Rows, autojump_clock: MockClock) -> None:
    one, two = Node(rows, "one"), Node(rows, "two")
    rows.add("s-1", "gone", owner="one")
    rows.inactive.add("gone")
    one.hung.add("s-1")
    async with served(one, two):
        await trio.sleep(A_SECOND)
        rows.owner_of["s-1"] = "two"  # the first node hangs for so long that it has lost its lease
        await trio.sleep(A_SECOND)
        assert rows.ended == ["s-1"]


@pytest.mark.parametrize("step", STEPS)
async def test_a_fault_of_the_program_is_for_the_supervisor_and_the_next_start_finishes(
    rows: Rows, node: Node, autojump_clock: MockClock, step: str
) -> None:
    rows.add("s-1", "gone")
    rows.offered_to.add("gone")
    rows.inactive.add("gone")
    node.faults[step] = [Broken()]
    with pytest.RaisesGroup(Broken, flatten_subgroups=True):
        async with served(node):
            await trio.sleep(A_SECOND)
    async with served(node):
        await trio.sleep(A_SECOND)
    assert (rows.ended, rows.rescinded) == (["s-1"], ["gone"])
