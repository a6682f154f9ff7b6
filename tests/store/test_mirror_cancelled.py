"""Whoever goes away while the mirror is told of her harms nobody, at whatever line her task was: over both real stores."""

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass

import pytest
import trio

from halo.clock import SystemClock
from halo.net.presence import Presence
from halo.store.capacities import Capacities
from halo.store.mitras import Mitras
from tests.store.available_house import House, open_house

PATIENCE_SECONDS = 30.0


class CancelledAt(trio.abc.Instrument):
    """Cancels the scope when its task takes its step of this number, from 1."""

    def __init__(self, step: int, scope: trio.CancelScope) -> None:
        self._taken = 0
        self._step = step
        self._scope = scope
        self._task = trio.lowlevel.current_task()

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        if task is self._task:
            self._taken += 1
            if self._taken == self._step:
                self._scope.cancel()


async def cancelled_at(step: int, do: Callable[[], Awaitable[object]]) -> bool:
    """Was it not over before that step?"""
    with trio.CancelScope() as scope:
        instrument = CancelledAt(step, scope)
        if step == 0:
            scope.cancel()
        trio.lowlevel.add_instrument(instrument)
        try:
            await do()
        finally:
            trio.lowlevel.remove_instrument(instrument)
    return scope.cancel_called


@dataclass
class Node:
    house: House
    presence: Presence
    mitras: Mitras


@pytest.fixture
async def node(database_url: str, valkey_url: str) -> AsyncIterator[Node]:
    async with open_house(database_url, valkey_url) as house, trio.open_nursery() as nursery:
        nursery.start_soon(Capacities(house.mirror).serve)
        mitras = Mitras(house.db, SystemClock())
        yield Node(house, Presence(mitras, house.mirror, SystemClock()), mitras)
        nursery.cancel_scope.cancel()


async def go_online(node: Node, mitra_id: str) -> None:
    await node.presence.go_online(mitra_id)


async def go_offline(node: Node, mitra_id: str) -> None:
    await node.presence.go_offline(mitra_id)


async def deactivate(node: Node, mitra_id: str) -> None:
    await node.mitras.deactivate(mitra_id, "operator")
    await node.house.mirror.deactivated(mitra_id)


async def activate(node: Node, mitra_id: str) -> None:
    await node.mitras.activate(mitra_id, "operator")
    await node.house.mirror.activated(mitra_id)


async def beat(node: Node, mitra_id: str) -> None:
    await node.house.mirror.heartbeat(mitra_id, SystemClock().now())


DEEDS: Mapping[str, tuple[Callable[[Node, str], Awaitable[None]], bool, bool]] = {
    "go_online": (go_online, True, False),
    "go_offline": (go_offline, True, True),
    "deactivated": (deactivate, True, True),
    "activated": (activate, False, False),
    "heartbeat": (beat, True, True),
}
"""Each with whether the mitra is active and online before."""


async def presence_of(house: House) -> tuple[dict[str, object], dict[str, object]]:
    """What the mirror and what Postgres says, but for the heartbeats: they reach Postgres by a sweep."""
    mirrored, true = await house.in_valkey(), await house.in_postgres()
    del mirrored["heartbeats"], true["heartbeats"]
    return mirrored, true


@pytest.mark.parametrize("deed", DEEDS)
async def test_at_whatever_step_a_task_is_cancelled_the_mirror_stays_trusted_and_says_what_postgres_says(
    node: Node, deed: str
) -> None:
    do, active, online = DEEDS[deed]
    house, step = node.house, 0
    standing, seeds = house.mirror.standing, house.mirror.seeds
    while True:
        mitra_id = await house.add_mitra(active=active, online=online)
        if online:
            await house.mirror.went_online(mitra_id, house.clock.now())
        if not active:
            await house.mirror.deactivated(mitra_id)
        await house.mirror.refresh_capacities([mitra_id])
        was_cancelled = await cancelled_at(step, lambda mitra_id=mitra_id: do(node, mitra_id))  # type: ignore[misc]
        with trio.fail_after(PATIENCE_SECONDS):
            mirrored, true = await presence_of(house)
            while mirrored != true:
                await trio.sleep(0.01)
                mirrored, true = await presence_of(house)
        assert house.mirror.standing == standing, f"cancelled at step {step}"
        if not was_cancelled:
            break
        step += 1
    assert step >= 2
    assert house.mirror.seeds == seeds
