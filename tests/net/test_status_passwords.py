import threading
import unicodedata
from typing import Any

import pytest
import trio

from halo.errors import Busy
from halo.net.status import passwords as room
from halo.net.status.passwords import AT_ONCE, COST, WAITING_MAX, Passwords, StoredHashUnreadable

PASSWORD = "correct horse battery"


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a test of the rules does not pay the price that guessing shall cost."""
    monkeypatch.setattr(room, "COST", (2, 1, 1))


def test_the_cost_is_what_decision_0026_says() -> None:
    assert COST == (2**15, 8, 3)
    assert 128 * COST[0] * COST[1] * AT_ONCE == 64 * 1024 * 1024


async def test_a_hash_fits_its_password_and_no_other() -> None:
    passwords = Passwords()
    stored = await passwords.hash(PASSWORD)
    assert PASSWORD not in stored
    assert await passwords.verify(PASSWORD, stored)
    assert not await passwords.verify(PASSWORD + "x", stored)


async def test_two_hashes_of_one_password_differ(quick: None) -> None:
    passwords = Passwords()
    assert await passwords.hash(PASSWORD) != await passwords.hash(PASSWORD)


async def test_the_same_letters_fit_however_a_keyboard_composes_them(quick: None) -> None:
    passwords, composed = Passwords(), "schlüssel für später"
    stored = await passwords.hash(composed)
    assert await passwords.verify(unicodedata.normalize("NFD", composed), stored)


async def test_a_hash_made_at_another_cost_is_still_checked_at_its_own(
    quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    passwords = Passwords()
    stored = await passwords.hash(PASSWORD)
    monkeypatch.setattr(room, "COST", (4, 1, 1))
    assert await passwords.verify(PASSWORD, stored)
    assert stored != await passwords.hash(PASSWORD)


async def test_nobody_has_no_password_but_the_work_is_done_all_the_same(
    quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    passwords, costs = Passwords(), []
    derive = room._derive

    def noted(password: str, salt: bytes, cost: tuple[int, int, int]) -> bytes:
        costs.append(cost)
        return derive(password, salt, cost)

    monkeypatch.setattr(room, "_derive", noted)
    stored = await passwords.hash(PASSWORD)
    assert not await passwords.verify(PASSWORD, None)
    assert not await passwords.verify("", None)
    assert not await passwords.verify("wrong", stored)
    assert costs == [(2, 1, 1)] * 4


async def test_what_halo_has_not_stored_is_a_fault_and_no_password() -> None:
    for stored in ("plain text", "scrypt$1$2$3$x", "argon2id$v=19$m=65536"):
        with pytest.raises(StoredHashUnreadable):
            await Passwords().verify(PASSWORD, stored)


async def test_no_hash_is_made_on_the_event_loop(quick: None, monkeypatch: pytest.MonkeyPatch) -> None:
    passwords, threads = Passwords(), []
    derive = room._derive

    def noted(*args: Any) -> bytes:
        threads.append(threading.current_thread())
        return derive(*args)

    monkeypatch.setattr(room, "_derive", noted)
    stored = await passwords.hash(PASSWORD)
    await passwords.verify(PASSWORD, stored)
    await passwords.verify(PASSWORD, None)
    assert len(threads) == 3
    assert threading.current_thread() not in threads


async def test_two_are_made_at_once_ten_are_waited_for_and_the_rest_come_again(monkeypatch: pytest.MonkeyPatch) -> None:
    go, lock = threading.Event(), threading.Lock()
    under_way = most = 0

    def held(*args: Any) -> bytes:
        nonlocal under_way, most
        with lock:
            under_way += 1
            most = max(most, under_way)
        go.wait(10)
        with lock:
            under_way -= 1
        return b"x" * 32

    monkeypatch.setattr(room, "_derive", held)
    limiter = trio.CapacityLimiter(AT_ONCE)
    passwords, done = Passwords(limiter), []

    async def make() -> None:
        done.append(await passwords.hash(PASSWORD))

    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            for _ in range(AT_ONCE + WAITING_MAX):
                nursery.start_soon(make)
            while under_way < AT_ONCE:
                await trio.sleep(0.001)
            assert limiter.statistics().tasks_waiting == WAITING_MAX
            with pytest.raises(Busy):
                await passwords.hash(PASSWORD)
            go.set()
    assert len(done) == AT_ONCE + WAITING_MAX
    assert most == AT_ONCE
