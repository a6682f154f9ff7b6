"""SIGKILL before and after every commit of a whole paid session, one after the other: the outcome is the same as without it."""

import tempfile
from collections.abc import Awaitable, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import trio

from tests.store.postmaster import run_postmaster
from tests.stores import TEMPLATE, Stores, make_template, open_database, roomy_directory
from tests.whole.hand_over import HAND_OVER_MINUTE_SECONDS, HandOver
from tests.whole.ordeal import MINUTES_SECONDS, Ordeal, OutOfTime, open_zygote

AT_ONCE = 16
"""Plays side by side: each mostly waits for its paid time to pass."""
POSTGRES = {"max_connections": "300", "fsync": "off", "synchronous_commit": "off"}
"""A play takes up to twelve connections, and who is refused one would show what becomes of that. What dies here is halo, not Postgres."""

pytestmark = [
    pytest.mark.timeout(300),  # s; eighty plays on a busy machine
    # A server that dies while a request is on its way to it: httpx leaves the rest of the body to the garbage collector.
    pytest.mark.filterwarnings(r"ignore:Async generator 'httpx\._content\.ByteStream:ResourceWarning"),
]


async def play_once(
    zygote: str,
    number: int,
    stores: tuple[str, str, str],
    home: Path,
    *deaths: tuple[int, str],
    minute_seconds: int,
    kind: type[Ordeal] = Ordeal,
) -> tuple[Ordeal, dict[str, Any]]:
    postgres_url, template, valkey_url = stores
    database = open_database(postgres_url, f"crash_{number}", template)
    url = await trio.to_thread.run_sync(database.__enter__)
    try:
        ordeal = kind(zygote, number, url, valkey_url, deaths, minute_seconds=minute_seconds)
        return ordeal, await ordeal.play(home / f"{number}-{minute_seconds}.log")
    finally:
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(database.__exit__, None, None, None)


async def play(
    zygote: str, number: int, stores: tuple[str, str, str], home: Path, *deaths: tuple[int, str]
) -> tuple[Ordeal, dict[str, Any]]:
    """With minutes as short as the machine allows."""
    for minute_seconds in MINUTES_SECONDS[:-1]:
        try:
            return await play_once(zygote, number, stores, home, *deaths, minute_seconds=minute_seconds)
        except* OutOfTime:
            pass
    return await play_once(zygote, number, stores, home, *deaths, minute_seconds=MINUTES_SECONDS[-1])


@pytest.fixture(scope="module")
def many_connections() -> Iterator[str]:
    """A Postgres for more plays than the shared one has connections for, with halo's template in it."""
    place = tempfile.TemporaryDirectory(prefix="crash-", dir=roomy_directory())
    with place as home, run_postmaster(Path(home) / "data", **POSTGRES) as own:
        make_template(own.url)
        yield own.url


@pytest.fixture
def ordeal_stores(many_connections: str, valkey_url: str) -> tuple[str, str, str]:
    return many_connections, TEMPLATE, valkey_url


Told = tuple[list[str], dict[str, Any]]
"""The commits of a play that nobody disturbs, and its outcome."""


@pytest.fixture(scope="module")
def undisturbed(many_connections: str, stores: Stores, tmp_path_factory: pytest.TempPathFactory) -> Told:
    """Once a worker: it is the same for all."""

    async def play_through() -> Told:
        async with open_zygote() as zygote:
            where = many_connections, TEMPLATE, stores.valkey_url
            ordeal, outcome = await play(zygote, 0, where, tmp_path_factory.mktemp("undisturbed"))
            assert len(ordeal.incarnations) == 1
            return ordeal.commits, outcome

    told: Told = trio.run(play_through)
    return told


@pytest.mark.parametrize("side", ["before", "after"])
async def test_a_server_killed_at_any_commit_leads_to_the_same_outcome(
    ordeal_stores: tuple[str, str, str], undisturbed: Told, tmp_path: Path, side: str
) -> None:
    commits, expected = undisturbed
    assert len(commits) > 30, "the scenario has become smaller than the session that it is to prove"
    async with open_zygote() as zygote:
        deaths = [((at, side),) for at in range(1, len(commits) + 1)]
        failed = await play_all(zygote, ordeal_stores, tmp_path, deaths, commits, expected)
        assert failed == []


@pytest.mark.parametrize("status", ["extending", "closing"])
async def test_a_server_killed_again_while_it_takes_up_what_was_left_leads_to_the_same_outcome(
    ordeal_stores: tuple[str, str, str], undisturbed: Told, tmp_path: Path, status: str
) -> None:
    """Before and after it owns the session again, and before and after it has given back the time that nobody served."""
    commits, expected = undisturbed
    async with open_zygote() as zygote:
        steps = [at for at, label in enumerate(commits, 1) if label.startswith("step_session")]
        first = steps[0] if status == "extending" else steps[-2]
        deaths = [((first, "after"), (again, side)) for again in (1, 2) for side in ("before", "after")]
        failed = await play_all(zygote, ordeal_stores, tmp_path, deaths, commits, expected)
        assert failed == []


async def hand_over(
    zygote: str, number: int, stores: tuple[str, str, str], home: Path, *deaths: tuple[int, str]
) -> tuple[Ordeal, dict[str, Any]]:
    return await play_once(
        zygote, number, stores, home, *deaths, minute_seconds=HAND_OVER_MINUTE_SECONDS, kind=HandOver
    )


async def test_a_server_killed_at_any_step_of_a_hand_over_leads_to_the_same_outcome(
    ordeal_stores: tuple[str, str, str], tmp_path: Path
) -> None:
    """Before and after it is asked for, the mitra is lost, the other one asked, has the session, says her first word, and ends it."""
    async with open_zygote() as zygote:
        ordeal, expected = await hand_over(zygote, 0, ordeal_stores, tmp_path)
        commits = ordeal.commits
        lost = next(at for at, label in enumerate(commits, 1) if label.startswith("open_search"))
        assert commits[lost - 2] == "record_attempt"
        assert [label.split()[0] for label in commits[lost:]] == [
            "lock_pairing", "find_offer", "lock_mitras", "journal", "journal", "list_charges",  # the end: what is given back is shared out within its step
        ]  # fmt: skip
        deaths = [((at, side),) for at in range(lost - 1, len(commits) + 1) for side in ("before", "after")]
        assert await play_all(zygote, ordeal_stores, tmp_path, deaths, commits, expected, hand_over) == []


async def play_all(
    zygote: str,
    stores: tuple[str, str, str],
    home: Path,
    all_deaths: Sequence[tuple[tuple[int, str], ...]],
    commits: list[str],
    expected: dict[str, Any],
    play: Callable[..., Awaitable[tuple[Ordeal, dict[str, Any]]]] = play,
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
