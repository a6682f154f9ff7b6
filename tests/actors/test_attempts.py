"""One attempt of the watchdog: what becomes of it, who is told, and that nothing is tried twice."""

import logging

import pytest
import trio
from trio.testing import MockClock

from halo.actors.attempts import Attempt, Attempts
from halo.errors import StoreUnavailable
from halo.watch import WatchReport

NAME = "c2_seq_is_dense"


async def made(attempts: Attempts, fault: Exception | None) -> tuple[Attempt, int]:
    """How an attempt came out, and how often it was made."""
    times = 0

    async def run() -> None:
        nonlocal times
        times += 1
        await trio.lowlevel.checkpoint()
        if fault is not None:
            raise fault

    return await attempts.make("question", NAME, run), times


async def test_what_goes_well_is_no_failure() -> None:
    attempts = Attempts(report := WatchReport(60))
    assert await made(attempts, None) == (Attempt.DONE, 1)
    assert (report.errors, attempts.take_crashed()) == ({}, [])


async def test_a_store_that_is_away_is_counted_and_no_fault_of_the_watchdog(caplog: pytest.LogCaptureFixture) -> None:
    attempts = Attempts(report := WatchReport(60))
    assert await made(attempts, StoreUnavailable()) == (Attempt.AWAY, 1)
    assert (report.errors, attempts.take_crashed()) == ({NAME: 1}, [])
    assert [record.levelno for record in caplog.records if "watchdog_attempt_failed" in str(record.msg)] == [
        logging.WARNING
    ]


async def test_any_other_error_is_told_with_its_name_once_and_waits_for_nothing(
    autojump_clock: MockClock, claims_errors: list[logging.LogRecord]
) -> None:
    attempts = Attempts(report := WatchReport(60))
    began = trio.current_time()
    assert await made(attempts, RuntimeError()) == (Attempt.CRASHED, 1)
    assert trio.current_time() == began
    assert report.errors == {NAME: 1}
    [said] = claims_errors
    assert (said.msg["actor"], said.msg["alarm"]) == (f"watchdog question {NAME}", NAME)  # type: ignore[index]
    assert attempts.take_crashed() == [NAME]
    assert attempts.take_crashed() == []


async def test_who_cancels_an_attempt_is_not_kept_waiting_and_it_counts_as_nothing() -> None:
    attempts = Attempts(report := WatchReport(60))
    with trio.move_on_after(0) as scope:
        await attempts.make("question", NAME, trio.sleep_forever)
    assert scope.cancelled_caught
    assert (report.errors, attempts.take_crashed()) == ({}, [])
