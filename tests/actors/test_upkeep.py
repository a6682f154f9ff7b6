"""What is remembered of supervised tasks: since when, how often they crashed, and of what kind of fault."""

import logging

import pytest
import trio
from trio.testing import MockClock

from halo.actors.supervisor import DaemonEnded, RestartBudget, keep
from halo.actors.upkeep import Upkeeps, kind_of
from halo.errors import ActorFault
from tests.actors.fakes import Broken, Fault, open_house
from tests.actors.test_registry import refused_with
from tests.net.desk_fakes import SetClock


class Told(Exception):
    """A fault whose text nobody may read."""


async def test_a_daemon_that_crashes_is_counted_by_the_kind_of_its_fault(
    autojump_clock: MockClock, claims_errors: list[logging.LogRecord]
) -> None:
    clock, runs = SetClock(), 0
    upkeeps, began = Upkeeps(clock), clock.moment

    async def run() -> None:
        nonlocal runs
        runs += 1
        clock.moment += 1_000
        if runs < 3:
            raise Told("what was said")
        await trio.lowlevel.checkpoint()

    with pytest.raises(DaemonEnded):  # it has returned
        await keep(run, "beacon", RestartBudget(), upkeeps)
    [upkeep] = upkeeps.list()
    assert (upkeep.name, upkeep.since, upkeep.crashes, upkeep.last_error) == ("beacon", began, 2, "Told")
    assert upkeep.last_crash_at == began + 2_000
    assert "what was said" not in repr(upkeeps.list())
    assert len(claims_errors) == 2


def test_what_is_over_is_forgotten() -> None:
    upkeeps = Upkeeps(SetClock())
    upkeeps.crashed("session", ValueError("x"))
    upkeeps.begun("beacon")
    assert [upkeep.name for upkeep in upkeeps.list()] == ["beacon", "session"]
    upkeeps.over("session")
    upkeeps.over("session")
    assert upkeeps.find("session") is None
    assert upkeeps.find("beacon") is not None


def test_a_group_is_called_by_what_is_in_it() -> None:
    group = ExceptionGroup("g", [ValueError(), ExceptionGroup("h", [KeyError(), ValueError()])])
    assert kind_of(group) == "KeyError, ValueError"


async def test_a_session_that_has_crashed_is_known_until_it_ends_and_a_parked_one_until_somebody_looks(
    autojump_clock: MockClock, claims_errors: list[logging.LogRecord]
) -> None:
    async with open_house(budget=RestartBudget(restarts=1)) as house:
        sick, well = await house.opens(), await house.opens()
        assert house.registry.upkeeps.list() == []
        for chat in (well, sick, sick):
            house.node.fails("commit", Fault(before=Broken))
            assert await refused_with(chat.asks()) is ActorFault
            await trio.sleep(0.2)
        crashes = {upkeep.name: upkeep.crashes for upkeep in house.registry.upkeeps.list()}
        assert crashes == {sick.session_id: 2, well.session_id: 1}
        await trio.sleep(10_000)  # the well one has ended meanwhile
        [kept] = house.registry.upkeeps.list()
        assert (kept.name, kept.last_error) == (sick.session_id, "Broken")
