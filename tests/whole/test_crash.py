"""SIGKILL before and after every commit of a whole paid session, one after the other: the outcome is the same as without it."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trio

from tests.stores import _database
from tests.whole.ordeal import Ordeal, open_zygote

AT_ONCE = 6
"""Plays side by side: each mostly waits for its paid time to pass. The stores of the tests take 60 connections."""


async def play(
    zygote: str, number: int, stores: tuple[str, str, str], home: Path, at: int = 0, side: str = ""
) -> tuple[Ordeal, Any]:
    postgres_url, template, valkey_url = stores
    database = _database(postgres_url, f"crash_{number}", template)
    url = await trio.to_thread.run_sync(database.__enter__)
    try:
        ordeal = Ordeal(zygote, number, url, valkey_url, at, side)
        return ordeal, await ordeal.play(home / f"{number}.log")
    finally:
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(database.__exit__, None, None, None)


@pytest.fixture
def ordeal_stores(postgres_url: str, template: str, valkey_url: str) -> Iterator[tuple[str, str, str]]:
    yield postgres_url, template, valkey_url


@pytest.mark.parametrize("side", ["before", "after"])
async def test_a_server_killed_at_any_commit_leads_to_the_same_outcome(
    ordeal_stores: tuple[str, str, str], tmp_path: Path, side: str
) -> None:
    async with open_zygote() as zygote:
        undisturbed, expected = await play(zygote, 0, ordeal_stores, tmp_path)
        assert len(undisturbed.incarnations) == 1
        assert len(undisturbed.commits) > 30, "the scenario has become smaller than the session that it is to prove"
        places = trio.CapacityLimiter(AT_ONCE)
        failed: list[str] = []

        async def die(at: int) -> None:
            async with places:
                label = undisturbed.commits[at - 1]
                try:
                    ordeal, outcome = await play(zygote, at, ordeal_stores, tmp_path, at, side)
                except Exception as fault:  # noqa: BLE001  # each death is judged by itself
                    failed.append(f"{side} {at} ({label}): {leaves_of(fault)}")
                    return
                if ordeal.commits != undisturbed.commits[:at] or len(ordeal.incarnations) != 2:
                    failed.append(f"{side} {at} ({label}): died elsewhere, after {ordeal.commits}")
                failed.extend(
                    f"{side} {at} ({label}): {name} is {outcome[name]}"
                    for name in expected
                    if outcome[name] != expected[name]
                )

        async with trio.open_nursery() as nursery:
            for at in range(1, len(undisturbed.commits) + 1):
                nursery.start_soon(die, at)
        assert failed == []


def leaves_of(fault: BaseException) -> str:
    if isinstance(fault, BaseExceptionGroup):
        return "; ".join(leaves_of(leaf) for leaf in fault.exceptions)
    return f"{type(fault).__name__}: {fault}"
