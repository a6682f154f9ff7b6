"""Supervision: what crashes is recovered and run again, with pauses, until its budget is spent."""

import logging

import pytest
import trio
from trio.testing import MockClock

from halo.actors.supervisor import DaemonEnded, RestartBudget, keep, supervise
from tests.actors.fakes import Broken

BUDGET = RestartBudget(restarts=3, period_seconds=60, first_wait_seconds=1, longest_wait_seconds=3)


class Patient:
    """Crashes as it is told to, and remembers what was done with it."""

    def __init__(self, *crashes: bool, recoveries_fail: int = 0) -> None:
        self._crashes = list(crashes)
        self._recoveries_fail = recoveries_fail
        self.story: list[str] = []
        self.runs_at: list[float] = []

    async def run(self) -> None:
        self.story.append("run")
        self.runs_at.append(trio.current_time())
        await trio.lowlevel.checkpoint()
        if self._crashes and self._crashes.pop(0):
            raise Broken

    async def recover(self, fault: Exception) -> None:
        assert isinstance(fault, Broken)
        self.story.append("recover")
        if self._recoveries_fail:
            self._recoveries_fail -= 1
            raise Broken

    def parked(self) -> None:
        self.story.append("parked")

    async def supervise(self, budget: RestartBudget = BUDGET) -> None:
        await supervise(
            self.run, name="patient", recover=self.recover, parked=self.parked, budget=budget, session_id="s-1"
        )


async def test_what_returns_is_not_run_again(autojump_clock: MockClock) -> None:
    patient = Patient(False)
    await patient.supervise()
    assert patient.story == ["run"]


async def test_what_crashes_is_recovered_and_run_again_after_pauses_that_double(
    autojump_clock: MockClock, claims_errors: list[logging.LogRecord]
) -> None:
    patient = Patient(True, True, True, False)
    await patient.supervise()
    assert patient.story == ["run", "recover", "run", "recover", "run", "recover", "run"]
    assert patient.runs_at == [0, 1, 3, 6]  # 1 s, 2 s, then the longest wait
    assert len(claims_errors) == 3
    assert "s-1" in claims_errors[0].getMessage()


async def test_a_spent_budget_parks_it_once(autojump_clock: MockClock, claims_errors: list[logging.LogRecord]) -> None:
    patient = Patient(*[True] * 10)
    await patient.supervise()
    assert patient.story.count("run") == 4
    assert patient.story[-1] == "parked"
    assert "actor_parked" in claims_errors[-1].getMessage()


async def test_a_crash_while_recovering_counts_as_well(
    autojump_clock: MockClock, claims_errors: list[logging.LogRecord]
) -> None:
    patient = Patient(True, recoveries_fail=9)
    await patient.supervise()
    assert patient.story == ["run", "recover", "recover", "recover", "parked"]


async def test_crashes_that_lie_far_apart_spend_no_budget(
    autojump_clock: MockClock, claims_errors: list[logging.LogRecord]
) -> None:
    patient = Patient(*[True] * 20, False)
    await patient.supervise(
        RestartBudget(restarts=1, period_seconds=10, first_wait_seconds=11, longest_wait_seconds=11)
    )
    assert patient.story.count("run") == 21
    assert "parked" not in patient.story


async def test_cancellation_passes_and_nobody_recovers(autojump_clock: MockClock) -> None:
    patient = Patient()

    async def run() -> None:
        patient.story.append("run")
        await trio.sleep_forever()

    with trio.move_on_after(5) as scope:
        await supervise(run, name="patient", recover=patient.recover, parked=patient.parked, budget=BUDGET)
    assert scope.cancelled_caught
    assert patient.story == ["run"]


async def test_the_end_of_the_process_passes(autojump_clock: MockClock) -> None:
    async def run() -> None:
        raise KeyboardInterrupt

    patient = Patient()
    with pytest.raises(KeyboardInterrupt):
        await supervise(run, name="patient", recover=patient.recover, parked=patient.parked, budget=BUDGET)
    assert patient.story == []


async def test_a_daemon_that_returns_ends_the_server(autojump_clock: MockClock) -> None:
    with pytest.raises(DaemonEnded, match="patient has returned"):
        await keep(Patient(False).run, "patient", BUDGET)


async def test_a_daemon_that_keeps_crashing_ends_the_server(
    autojump_clock: MockClock, claims_errors: list[logging.LogRecord]
) -> None:
    patient = Patient(*[True] * 10)
    with pytest.raises(DaemonEnded, match="patient has crashed 4 times within 60 s"):
        await keep(patient.run, "patient", BUDGET)
    assert patient.story == ["run"] * 4
