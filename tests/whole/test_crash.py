"""SIGKILL before and after every commit of a whole paid session, one after the other: the outcome is the same as without it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import trio

from tests.stores import _database
from tests.whole.ordeal import Ordeal, open_zygote

AT_ONCE = 8
"""Plays side by side: each mostly waits for its paid time to pass. The stores of the tests take 60 connections."""


async def play(
    zygote: str, number: int, stores: tuple[str, str, str], home: Path, *deaths: tuple[int, str]
) -> tuple[Ordeal, dict[str, Any]]:
    postgres_url, template, valkey_url = stores
    database = _database(postgres_url, f"crash_{number}", template)
    url = await trio.to_thread.run_sync(database.__enter__)
    try:
        ordeal = Ordeal(zygote, number, url, valkey_url, deaths)
        return ordeal, await ordeal.play(home / f"{number}.log")
    finally:
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(database.__exit__, None, None, None)


@pytest.fixture
def ordeal_stores(postgres_url: str, template: str, valkey_url: str) -> tuple[str, str, str]:
    return postgres_url, template, valkey_url


@pytest.mark.parametrize("side", ["before", "after"])
async def test_a_server_killed_at_any_commit_leads_to_the_same_outcome(
    ordeal_stores: tuple[str, str, str], tmp_path: Path, side: str
) -> None:
    async with open_zygote() as zygote:
        undisturbed, expected = await play(zygote, 0, ordeal_stores, tmp_path)
        assert len(undisturbed.incarnations) == 1
        commits = undisturbed.commits
        assert len(commits) > 30, "the scenario has become smaller than the session that it is to prove"
        deaths = [((at, side),) for at in range(1, len(commits) + 1)]
        failed = await play_all(zygote, ordeal_stores, tmp_path, deaths, commits, expected)
        assert failed == []


@pytest.mark.parametrize("status", ["extending", "closing"])
async def test_a_server_killed_again_while_it_takes_up_what_was_left_leads_to_the_same_outcome(
    ordeal_stores: tuple[str, str, str], tmp_path: Path, status: str
) -> None:
    """Before and after it owns the session again, and before and after it has given back the time that nobody served."""
    async with open_zygote() as zygote:
        undisturbed, expected = await play(zygote, 0, ordeal_stores, tmp_path)
        commits = undisturbed.commits
        steps = [at for at, label in enumerate(commits, 1) if label.startswith("step_session")]
        first = steps[0] if status == "extending" else steps[-2]
        deaths = [((first, "after"), (again, side)) for again in (1, 2) for side in ("before", "after")]
        failed = await play_all(zygote, ordeal_stores, tmp_path, deaths, commits, expected)
        assert failed == []


async def play_all(
    zygote: str,
    stores: tuple[str, str, str],
    home: Path,
    all_deaths: Sequence[tuple[tuple[int, str], ...]],
    commits: list[str],
    expected: dict[str, Any],
) -> list[str]:
    """A play for each row of deaths, several at once; what went otherwise than it should."""
    failed: list[str] = []
    places = trio.CapacityLimiter(AT_ONCE)

    async def die(number: int, deaths: tuple[tuple[int, str], ...]) -> None:
        where = f"{deaths} ({commits[deaths[0][0] - 1]})"
        async with places:
            try:
                ordeal, outcome = await play(zygote, number, stores, home, *deaths)
            except Exception as fault:  # noqa: BLE001  # each play is judged by itself
                failed.append(f"{where}: {leaves_of(fault)}")
                return
        if ordeal.commits != commits[: deaths[0][0]] or len(ordeal.incarnations) != len(deaths) + 1:
            failed.append(f"{where}: died elsewhere, at {[mortal.commits[-1:] for mortal in ordeal.incarnations]}")
        failed.extend(f"{where}: {name} is {outcome[name]}" for name in expected if outcome[name] != expected[name])

    async with trio.open_nursery() as nursery:
        for number, deaths in enumerate(all_deaths, 1):
            nursery.start_soon(die, number, deaths)
    return failed


def leaves_of(fault: BaseException) -> str:
    if isinstance(fault, BaseExceptionGroup):
        return "; ".join(leaves_of(leaf) for leaf in fault.exceptions)
    return f"{type(fault).__name__}: {fault}"
