"""Sessions of operators and tries to sign in: the same rules for the fakes of the net and for Postgres."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any

import pytest
import trio
import trio.testing

from halo.clock import Moment
from halo.errors import Busy, RateLimited, Refusal
from halo.net.status.ports import OperatorAccounts as AccountsPort
from halo.net.status.ports import OperatorSessions as SessionsPort
from halo.net.status.ports import SignInTries as TriesPort
from halo.operator_account import Role, SignedIn
from halo.store import sign_in_tries
from halo.store.operator_accounts import OperatorAccounts
from halo.store.operator_sessions import IDLE_MS, LIFETIME_MS, TOUCH_MS, OperatorSessions
from halo.store.postgres import Postgres, Transaction, open_postgres
from halo.store.sign_in_tries import (
    HOUSE_TRIES,
    LINE_MAX,
    STRANGER,
    TRIES,
    UNKNOWN,
    WINDOW_MS,
    SignInTries,
    lock_of,
    subjects_of,
)
from tests.net.gatehouse_fakes import FakeGatehouse, Row

NOON: Moment = 1_795_521_600_000
ADDRESS = "10.0.0.1"


@dataclass
class SetClock:
    moment: Moment = NOON

    def now(self) -> Moment:
        return self.moment


@dataclass
class Ground:
    clock: SetClock
    accounts: AccountsPort
    sessions: SessionsPort
    tries: TriesPort
    db: Postgres | None = None

    async def open(self, name: str = "vera") -> str:
        token = await self.sessions.open(name, "hash")
        assert token is not None
        return token

    async def find(self, token: str, *, is_live: bool = False) -> SignedIn | None:
        return await self.sessions.find(token, is_live=is_live)


@pytest.fixture(params=["fakes", "postgres"])
async def ground(request: pytest.FixtureRequest, database_url: str) -> AsyncIterator[Ground]:
    clock = SetClock()
    if request.param == "fakes":
        fake = FakeGatehouse(clock, {"vera": Row(Role.VIEWER, "hash"), "other": Row(Role.OPERATOR, "hash")})
        yield Ground(clock, fake, fake, fake)
        return
    async with open_postgres(database_url) as db:
        accounts = OperatorAccounts(db, clock)
        for name, role in (("vera", Role.VIEWER), ("other", Role.OPERATOR)):
            await accounts.add(name, role, "test")
            await accounts.change_password(name, "hash")
        yield Ground(clock, accounts, OperatorSessions(db, clock), SignInTries(db, clock), db)


async def test_a_session_is_its_owners_with_the_role_of_now(ground: Ground) -> None:
    assert await ground.find(await ground.open()) == SignedIn(name="vera", role=Role.VIEWER)
    assert await ground.find(await ground.open("other")) == SignedIn(name="other", role=Role.OPERATOR)


async def test_two_sessions_differ_and_one_that_was_closed_leaves_the_other(ground: Ground) -> None:
    first, second = await ground.open(), await ground.open()
    assert first != second
    for _ in range(2):
        await ground.sessions.close(first)
    assert await ground.find(first) is None
    assert await ground.find(second) is not None


@pytest.mark.parametrize("token", ["", "made up", "\ud800", "x" * 10_000])
async def test_what_is_no_token_opens_nothing(ground: Ground, token: str) -> None:
    await ground.open()
    assert await ground.find(token) is None
    await ground.sessions.close(token)


async def test_the_wrong_hash_opens_nothing(ground: Ground) -> None:
    assert await ground.sessions.open("vera", "another hash") is None
    assert await ground.sessions.open("nobody", "hash") is None


async def test_a_session_that_is_used_lasts_and_one_that_is_not_ends(ground: Ground) -> None:
    used, left = await ground.open(), await ground.open()
    ground.clock.moment += IDLE_MS - 1
    assert await ground.find(used) is not None
    ground.clock.moment += 1
    assert await ground.find(left) is None
    assert await ground.find(used) is not None
    ground.clock.moment += IDLE_MS
    assert await ground.find(used) is None


async def test_a_page_that_renews_itself_is_no_use(ground: Ground) -> None:
    token = await ground.open()
    ground.clock.moment += IDLE_MS - 1
    assert await ground.find(token, is_live=True) is not None
    ground.clock.moment += 1
    assert await ground.find(token, is_live=True) is None


async def test_use_is_noted_once_a_minute(ground: Ground) -> None:
    token = await ground.open()
    ground.clock.moment += TOUCH_MS - 1
    assert await ground.find(token) is not None  # not noted: the last was less than a minute ago
    ground.clock.moment = NOON + IDLE_MS
    assert await ground.find(token) is None


async def test_a_session_ends_after_twelve_hours_however_busy(ground: Ground) -> None:
    token = await ground.open()
    while ground.clock.moment + IDLE_MS // 2 < NOON + LIFETIME_MS:
        ground.clock.moment += IDLE_MS // 2
        assert await ground.find(token) is not None
    ground.clock.moment = NOON + LIFETIME_MS
    assert await ground.find(token) is None


async def test_sessions_that_are_over_are_forgotten(database_url: str) -> None:
    async with open_postgres(database_url) as db:
        clock = SetClock()
        accounts, sessions = OperatorAccounts(db, clock), OperatorSessions(db, clock)
        await accounts.add("vera", Role.VIEWER, "test")
        await accounts.change_password("vera", "hash")
        await sessions.open("vera", "hash")
        clock.moment += 1
        kept = await sessions.open("vera", "hash")
        assert kept is not None
        assert await sessions.delete_ended(clock.moment) == 1
        assert await sessions.find(kept, is_live=False) is not None


# ---- tries


async def refused(ground: Ground, name: str, address: str) -> int:
    """For how long, in ms."""
    with pytest.raises(RateLimited) as raised:
        await ground.tries.take(name, address)
    assert raised.value.retry_after_ms is not None
    return raised.value.retry_after_ms


async def test_an_account_has_five_tries_a_quarter_of_an_hour_from_all_addresses_together(ground: Ground) -> None:
    for number in range(TRIES):
        await ground.tries.take("vera", f"10.0.0.{number}")
        ground.clock.moment += 1_000
    assert await refused(ground, "vera", "10.0.1.1") == WINDOW_MS - TRIES * 1_000
    await ground.tries.take("other", "10.0.1.1")
    ground.clock.moment = NOON + WINDOW_MS - 1
    assert await refused(ground, "vera", "10.0.1.1") == 1
    ground.clock.moment += 1
    await ground.tries.take("vera", "10.0.1.1")
    assert await refused(ground, "vera", "10.0.1.1") == 1_000


async def test_an_address_has_five_tries_on_all_accounts_together(ground: Ground) -> None:
    for number in range(TRIES):
        await ground.tries.take(f"name {number}", "10.0.0.1")
    assert await refused(ground, "somebody else", "10.0.0.1") == WINDOW_MS
    await ground.tries.take("somebody else", "10.0.0.2")


async def test_the_machine_itself_has_many_more_tries_but_not_any_number(ground: Ground) -> None:
    for number in range(HOUSE_TRIES):
        await ground.tries.take(f"name {number // TRIES}", ("127.0.0.1", "::1")[number // TRIES % 2])
    for number in range(HOUSE_TRIES // 2):
        await ground.tries.take(f"other name {number}", "127.0.0.1")
    assert await refused(ground, "somebody else", "127.0.0.1") == WINDOW_MS
    await ground.tries.take("somebody else", "::1")


async def test_a_try_that_was_refused_is_not_counted_so_waiting_ends(ground: Ground) -> None:
    for _ in range(TRIES):
        await ground.tries.take("vera", "10.0.0.1")
    for _ in range(20):
        ground.clock.moment += WINDOW_MS // 40
        await refused(ground, "vera", "10.0.0.1")
    ground.clock.moment = NOON + WINDOW_MS
    await ground.tries.take("vera", "10.0.0.1")


async def test_a_try_that_was_right_is_given_back_and_the_wrong_ones_stay(ground: Ground) -> None:
    for _ in range(TRIES - 1):
        await ground.tries.take("vera", "10.0.0.1")
    for _ in range(3):
        await ground.tries.give_back(await ground.tries.take("vera", "10.0.0.1"))
    await ground.tries.take("vera", "10.0.0.1")
    await refused(ground, "vera", "10.0.0.1")


async def test_a_name_and_an_address_that_look_alike_are_two(ground: Ground) -> None:
    for _ in range(TRIES):
        await ground.tries.take("10.0.0.1", "elsewhere")
        await ground.tries.give_back([])
    await ground.tries.take("vera", "10.0.0.1")


async def test_many_tries_at_once_find_no_gap(ground: Ground) -> None:
    outcomes: list[bool] = []

    async def guess() -> None:
        try:
            await ground.tries.take("vera", "10.0.0.1")
        except RateLimited:
            outcomes.append(False)
        else:
            outcomes.append(True)

    async with trio.open_nursery() as nursery:
        for _ in range(3 * TRIES):
            nursery.start_soon(guess)
    assert (outcomes.count(True), len(outcomes)) == (TRIES, 3 * TRIES)


@dataclass
class Line:
    """This node's tries, while another node keeps everybody from one address waiting, until it is told to go on."""

    tries: SignInTries
    db: Postgres
    far: Postgres
    nursery: trio.Nursery
    may_go_on: trio.Event

    async def hold(self, *, task_status: trio.TaskStatus[None]) -> None:
        async def write(tx: Transaction) -> None:
            for subject in subjects_of("somebody", ADDRESS):
                await tx.fetch_one(sign_in_tries.SQL["lock"], lock_of(subject))
            task_status.started()
            await self.may_go_on.wait()

        await self.far.transact(write)

    async def attempt(self, name: str) -> None:
        with suppress(Refusal):  # what becomes of it is not the question
            await self.tries.take(name, ADDRESS)

    async def fill(self, number: int) -> None:
        for each in range(number):
            self.nursery.start_soon(self.attempt, f"name {each}")
        await trio.testing.wait_all_tasks_blocked()


@asynccontextmanager
async def open_line(database_url: str, clock: SetClock) -> AsyncIterator[Line]:
    async with open_postgres(database_url) as db, open_postgres(database_url) as far, trio.open_nursery() as nursery:
        line = Line(SignInTries(db, clock), db, far, nursery, trio.Event())
        await nursery.start(line.hold)
        yield line
        nursery.cancel_scope.cancel()


async def test_tries_that_wait_for_one_another_leave_everybody_else_their_connections(database_url: str) -> None:
    async with open_line(database_url, SetClock()) as line:
        await line.fill(LINE_MAX)
        while not line.db.pool.in_use:
            await trio.sleep(0.005)
        await trio.testing.wait_all_tasks_blocked()
        assert line.db.pool.in_use <= 1
        assert await line.db.healthy()


async def test_whoever_comes_when_the_line_is_long_is_sent_away_and_nothing_is_counted(database_url: str) -> None:
    async with open_line(database_url, SetClock()) as line:
        await line.fill(1 + LINE_MAX)  # one has the turn, the others wait
        with pytest.raises(Busy):
            await line.tries.take("vera", "10.0.0.2")
        assert await line.far.fetch_all("SELECT FROM sign_in_tries") == []


async def test_a_line_that_does_not_move_is_not_waited_in_for_long(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sign_in_tries, "LINE_SECONDS", 0.05)
    async with open_line(database_url, SetClock()) as line:
        await line.fill(1)
        with pytest.raises(Busy):
            await line.tries.take("vera", "10.0.0.2")


async def test_a_try_counts_from_when_its_turn_came_and_not_from_when_it_began_to_wait(database_url: str) -> None:
    clock = SetClock()
    async with open_line(database_url, clock) as line:
        line.nursery.start_soon(line.attempt, "vera")
        waits = "SELECT FROM pg_stat_activity WHERE datname = current_database() AND wait_event = 'advisory'"
        while not await line.far.fetch_all(waits):
            await trio.sleep(0.005)
        clock.moment += 1_000
        line.may_go_on.set()
        rows: list[Any] = []
        while not rows:
            rows = await line.far.fetch_all("SELECT at FROM sign_in_tries")
        assert [row.at for row in rows] == [NOON + 1_000] * 2


async def test_names_are_kept_as_hashes_and_old_tries_are_forgotten(database_url: str) -> None:
    async with open_postgres(database_url) as db:
        clock = SetClock()
        tries = SignInTries(db, clock)
        await tries.take("a password typed into the wrong field", "10.0.0.1")
        rows: list[Any] = await db.fetch_all("SELECT subject FROM sign_in_tries")
        assert {len(row.subject) for row in rows} == {32}
        clock.moment += 1
        await tries.take("vera", "10.0.0.1")
        assert await tries.delete_old(clock.moment) == 2
        assert len(await db.fetch_all("SELECT FROM sign_in_tries")) == 2


async def test_what_came_to_nothing_at_the_door_is_a_row_for_a_name_and_a_minute(database_url: str) -> None:
    async with open_postgres(database_url) as db:
        await OperatorAccounts(db, SetClock()).add("vera", Role.VIEWER, "a test")
        tries = SignInTries(db, SetClock())
        for number in range(20):
            await tries.fail("vera")
            await tries.fail(f"my secret number {number}")
        for _ in range(TRIES):
            await tries.take("vera", "10.0.0.1")
        with pytest.raises(RateLimited):
            await tries.take("vera", "10.0.0.1")
        rows = await db.fetch_all("SELECT * FROM operator_actions WHERE action = 'sign_in'")
        assert {row.operator for row in rows} == {STRANGER}
        told = [(row.subject, row.code, row.times) for row in rows]
        assert "secret" not in str(rows)
        for subject, code, times in (
            ("vera", "WRONG_PASSWORD", 20),
            (UNKNOWN, "WRONG_PASSWORD", 20),
            ("vera", "RATE_LIMITED", 1),
        ):
            of = [row_times for row_subject, row_code, row_times in told if (row_subject, row_code) == (subject, code)]
            assert sum(of) == times
            assert len(of) <= 2  # a minute may end in between


async def test_coming_in_and_going_out_is_on_the_trail(database_url: str) -> None:
    async with open_postgres(database_url) as db:
        accounts, sessions = OperatorAccounts(db, SetClock()), OperatorSessions(db, SetClock())
        await accounts.add_first("vera", "hash", "a test")
        token = await sessions.open("vera", "hash")
        assert token is not None
        await sessions.close(token)
        await sessions.close(token)
        rows = await db.fetch_all("SELECT action, operator, subject, outcome FROM operator_actions ORDER BY action_id")
        assert [tuple(row) for row in rows[1:]] == [
            ("sign_in", "vera", "vera", "done"),
            ("sign_out", "vera", "vera", "done"),
        ]
