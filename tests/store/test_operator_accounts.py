"""Operators on real Postgres: accounts and links, sessions, tries."""

from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest
import trio

from halo.clock import Moment
from halo.errors import NotFound
from halo.net.status import passwords as hashing
from halo.net.status.first_operator import admit_first
from halo.operator_account import FIRST_OPERATOR, LinkSpent, OperatorExists, Role
from halo.store.operator_accounts import LINK_MS, OperatorAccounts
from halo.store.operator_sessions import OperatorSessions
from halo.store.postgres import Postgres, Transaction, open_postgres
from tests.net.desk_fakes import settings

NOON: Moment = 1_795_521_600_000


@dataclass
class SetClock:
    moment: Moment = NOON

    def now(self) -> Moment:
        return self.moment


@dataclass
class Ground:
    db: Postgres
    clock: SetClock
    accounts: OperatorAccounts
    sessions: OperatorSessions

    async def trail(self) -> list[tuple[str, str, str]]:
        rows = await self.db.fetch_all("SELECT operator, action, subject FROM operator_actions ORDER BY action_id")
        return [(row.operator, row.action, row.subject) for row in rows]


@pytest.fixture
async def ground(database_url: str) -> AsyncIterator[Ground]:
    async with open_postgres(database_url) as db:
        clock = SetClock()
        yield Ground(db, clock, OperatorAccounts(db, clock), OperatorSessions(db, clock))


async def add(ground: Ground, name: str = "vera", password_hash: str = "hash") -> str:
    """With a password and a session, whose token this is."""
    await ground.accounts.add(name, Role.VIEWER, "test")
    await ground.accounts.accept(await ground.accounts.invite(name, "test"), password_hash)
    token = await ground.sessions.open(name, password_hash)
    assert token is not None
    return token


async def is_open(ground: Ground, token: str) -> bool:
    return await ground.sessions.find(token, is_live=False) is not None


async def test_a_new_operator_has_no_password_until_a_link_was_used(ground: Ground) -> None:
    await ground.accounts.add("vera", Role.VIEWER, "test")
    (vera,) = await ground.accounts.list()
    assert (vera.name, vera.role, vera.has_password, vera.created_at, vera.signed_in_at) == (
        "vera",
        Role.VIEWER,
        False,
        NOON,
        None,
    )
    assert await ground.accounts.find_password("vera") is None
    assert await ground.sessions.open("vera", "hash") is None
    link = await ground.accounts.invite("vera", "test")
    assert [await ground.accounts.find_invited(link) for _ in range(2)] == ["vera", "vera"]
    assert await ground.accounts.accept(link, "hash") == "vera"
    assert await ground.accounts.find_password("vera") == "hash"


async def test_a_name_is_taken_once(ground: Ground) -> None:
    await add(ground)
    with pytest.raises(OperatorExists):
        await ground.accounts.add("vera", Role.OPERATOR, "test")
    (vera,) = await ground.accounts.list()
    assert vera.role is Role.VIEWER


async def test_a_link_counts_once_for_an_hour_and_until_the_next_one(ground: Ground) -> None:
    await ground.accounts.add("vera", Role.VIEWER, "test")
    replaced = await ground.accounts.invite("vera", "test")
    expired = await ground.accounts.invite("vera", "test")
    ground.clock.moment += LINK_MS - 1
    assert await ground.accounts.find_invited(expired) == "vera"
    ground.clock.moment += 1
    for link in (replaced, expired, "", "made up", "\ud800"):
        assert await ground.accounts.find_invited(link) is None
        with pytest.raises(LinkSpent):
            await ground.accounts.accept(link, "hash")
    link = await ground.accounts.invite("vera", "test")
    await ground.accounts.accept(link, "first")
    with pytest.raises(LinkSpent):
        await ground.accounts.accept(link, "second")
    assert await ground.accounts.find_password("vera") == "first"


async def test_of_many_who_use_a_link_at_once_one_is_first(ground: Ground) -> None:
    await ground.accounts.add("vera", Role.VIEWER, "test")
    link = await ground.accounts.invite("vera", "test")
    outcomes: list[str | None] = []

    async def use(number: int) -> None:
        try:
            await ground.accounts.accept(link, f"hash {number}")
        except LinkSpent:
            outcomes.append(None)
        else:
            outcomes.append(f"hash {number}")

    async with trio.open_nursery() as nursery:
        for number in range(4):
            nursery.start_soon(use, number)
    (winner,) = [outcome for outcome in outcomes if outcome]
    assert (len(outcomes), await ground.accounts.find_password("vera")) == (4, winner)


async def test_a_link_that_is_used_while_it_is_being_replaced_waits_with_nothing_locked(ground: Ground) -> None:
    """Whoever resets her has her row and wants the link's; holding that one meanwhile would be a deadlock."""
    await ground.accounts.add("vera", Role.VIEWER, "test")
    link = await ground.accounts.invite("vera", "test")
    outcomes: list[str] = []

    async def use() -> None:
        try:
            outcomes.append(await ground.accounts.accept(link, "hash"))
        except LinkSpent:
            outcomes.append("spent")

    async with trio.open_nursery() as nursery:

        async def replace(tx: Transaction) -> None:
            await tx.fetch_one("SELECT FROM operators WHERE name = 'vera' FOR UPDATE")
            nursery.start_soon(use)
            waits = "SELECT FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
            while not await ground.db.fetch_all(waits):
                await trio.sleep(0.005)
            await tx.fetch_one("SELECT FROM operator_links WHERE name = 'vera' FOR UPDATE NOWAIT")
            await tx.execute("UPDATE operator_links SET link_hash = 'another' WHERE name = 'vera'")

        await ground.db.transact(replace)
    assert outcomes == ["spent"]
    assert await ground.accounts.find_password("vera") is None


async def test_neither_a_link_nor_a_cookie_is_stored_in_the_clear(ground: Ground) -> None:
    token = await add(ground)
    link = await ground.accounts.invite("vera", "test")
    for table in ("operators", "operator_links", "operator_sessions", "operator_actions"):
        for row in await ground.db.fetch_all(f"SELECT to_jsonb(t)::text AS whole FROM {table} t"):
            assert token not in row.whole
            assert link not in row.whole
            assert token.encode().hex() not in row.whole
            assert link.encode().hex() not in row.whole


@pytest.mark.parametrize("how", ["change", "link", "reset", "remove"])
async def test_whatever_takes_a_password_away_ends_its_owners_sessions_and_no_others(ground: Ground, how: str) -> None:
    old, others = await add(ground), await add(ground, "other")
    accounts = ground.accounts
    match how:
        case "change":
            await accounts.change_password("vera", "new")
        case "link":
            await accounts.accept(await accounts.invite("vera", "test"), "new")
        case "reset":
            link = await accounts.reset("vera", "test")
            assert await accounts.find_password("vera") is None
            assert await accounts.find_invited(link) == "vera"
        case _:
            await accounts.remove("vera", "test")
            assert [account.name for account in await accounts.list()] == ["other"]
    assert not await is_open(ground, old)
    assert await is_open(ground, others)
    assert await ground.sessions.open("vera", "hash") is None


async def test_an_invitation_alone_ends_nothing(ground: Ground) -> None:
    token = await add(ground)
    await ground.accounts.invite("vera", "test")
    assert await is_open(ground, token)


async def test_a_changed_password_ends_a_link_that_was_open(ground: Ground) -> None:
    await add(ground)
    link = await ground.accounts.invite("vera", "test")
    await ground.accounts.change_password("vera", "new")
    assert await ground.accounts.find_invited(link) is None


async def test_nobody_can_do_anything_to_one_who_is_not_there(ground: Ground) -> None:
    accounts = ground.accounts
    for attempt in (
        accounts.remove("nobody", "test"),
        accounts.invite("nobody", "test"),
        accounts.reset("nobody", "test"),
        accounts.change_password("nobody", "hash"),
    ):
        with pytest.raises(NotFound):
            await attempt
    assert await ground.trail() == []


async def test_each_change_is_written_down_with_who_made_it(ground: Ground) -> None:
    await ground.accounts.add("vera", Role.VIEWER, "command line")
    await ground.accounts.accept(await ground.accounts.invite("vera", "command line"), "hash")
    await ground.accounts.change_password("vera", "new")
    await ground.accounts.reset("vera", "command line")
    await ground.accounts.remove("vera", "command line")
    assert await ground.trail() == [
        ("command line", "add_operator", "vera"),
        ("command line", "invite_operator", "vera"),
        ("vera", "set_password", "vera"),
        ("vera", "change_password", "vera"),
        ("command line", "reset_operator", "vera"),
        ("command line", "remove_operator", "vera"),
    ]


async def test_that_somebody_signed_in_is_written_down_too(ground: Ground) -> None:
    await add(ground)
    ground.clock.moment += 1
    await ground.sessions.open("vera", "hash")
    await ground.sessions.open("vera", "wrong")
    assert [entry for entry in await ground.trail() if entry[1] == "sign_in"] == [("vera", "sign_in", "vera")] * 2
    (vera,) = await ground.accounts.list()
    assert vera.signed_in_at == NOON + 1
    assert await ground.accounts.has_anybody_signed_in()


# ---- the first operator


@pytest.fixture
def cheap(monkeypatch: pytest.MonkeyPatch) -> hashing.Passwords:
    monkeypatch.setattr(hashing, "COST", (2, 1, 1))
    return hashing.Passwords()


async def admit(
    ground: Ground, passwords: hashing.Passwords, password: str | None, *, links: bool = True
) -> str | None:
    return await admit_first(ground.accounts, passwords, settings(admin_password=password), links=links)


async def test_a_given_password_is_the_first_operators_and_no_link_is_made(
    ground: Ground, cheap: hashing.Passwords
) -> None:
    assert await admit(ground, cheap, "open sesame") is None
    (first,) = await ground.accounts.list()
    assert (first.name, first.role) == (FIRST_OPERATOR, Role.OPERATOR)
    stored = await ground.accounts.find_password(FIRST_OPERATOR)
    assert await cheap.verify("open sesame", stored)
    assert await admit(ground, cheap, "another one") is None
    assert await ground.accounts.find_password(FIRST_OPERATOR) == stored  # who has a password keeps it


async def test_a_given_password_is_nobodys_once_there_are_operators(ground: Ground, cheap: hashing.Passwords) -> None:
    await add(ground)
    await admit(ground, cheap, "open sesame")
    assert [account.name for account in await ground.accounts.list()] == ["vera"]


async def test_a_reset_operator_does_not_get_the_first_password_back(ground: Ground, cheap: hashing.Passwords) -> None:
    await admit(ground, cheap, "open sesame")
    await ground.accounts.reset(FIRST_OPERATOR, "test")
    await admit(ground, cheap, "open sesame")
    assert await ground.accounts.find_password(FIRST_OPERATOR) is None


async def test_without_a_password_each_start_makes_a_link_until_somebody_has_signed_in(
    ground: Ground, cheap: hashing.Passwords
) -> None:
    first = await admit(ground, cheap, None)
    second = await admit(ground, cheap, None)
    assert first is not None
    assert second is not None
    assert await ground.accounts.find_invited(first) is None
    await ground.accounts.accept(second, "hash")
    assert await ground.sessions.open(FIRST_OPERATOR, "hash") is not None
    assert await admit(ground, cheap, None) is None


async def test_without_somebody_to_tell_it_to_no_link_is_made(ground: Ground, cheap: hashing.Passwords) -> None:
    assert await admit(ground, cheap, None, links=False) is None
    assert await ground.db.fetch_all("SELECT FROM operator_links") == []


async def test_nodes_that_start_at_once_add_one_first_operator(ground: Ground, cheap: hashing.Passwords) -> None:
    async with trio.open_nursery() as nursery:
        for _ in range(4):
            nursery.start_soon(admit, ground, cheap, None)
    assert len(await ground.accounts.list()) == 1
    assert [entry[1] for entry in await ground.trail()].count("add_operator") == 1


async def test_a_first_operator_who_was_removed_is_not_brought_back(ground: Ground, cheap: hashing.Passwords) -> None:
    await admit(ground, cheap, None)
    await ground.accounts.add("vera", Role.OPERATOR, "test")
    await ground.accounts.remove(FIRST_OPERATOR, "test")
    assert await admit(ground, cheap, None) is None
