"""What stays on the trail when an attempt is done, is refused, or dies on the way."""

import pytest
import trio

from halo.errors import ActorFault, NotFound, StoreUnavailable
from halo.net.trail import Trail
from tests.net.desk_fakes import FakeOperators

WHAT = ("ani", "end_session", "x")


@pytest.mark.parametrize("fault", [StoreUnavailable(), ActorFault(), ValueError()])
async def test_after_a_fault_nobody_claims_to_know_what_became_of_it(fault: Exception) -> None:
    rows = FakeOperators()
    with pytest.raises(type(fault)):
        async with Trail(rows).attempt(*WHAT, {}):
            raise fault
    assert (rows.outcomes, rows.refused) == (["attempted"], [])


async def test_an_attempt_that_is_given_up_halfway_stays_attempted() -> None:
    rows = FakeOperators()
    with trio.CancelScope() as scope:
        async with Trail(rows).attempt(*WHAT):
            assert rows.outcomes == ["attempted"]  # before anything is tried
            scope.cancel()
            await trio.lowlevel.checkpoint()
    assert rows.outcomes == ["attempted"]


async def test_done_and_refused_are_told_apart() -> None:
    rows = FakeOperators()
    trail = Trail(rows)
    async with trail.attempt(*WHAT):
        pass
    with pytest.raises(NotFound):
        async with trail.attempt(*WHAT):
            raise NotFound
    assert rows.outcomes == ["done", "NOT_FOUND"]


async def test_what_a_store_writes_down_itself_is_written_here_only_when_it_is_refused() -> None:
    rows = FakeOperators()
    trail = Trail(rows)
    async with trail.refusals(*WHAT):
        pass
    for fault in (NotFound, StoreUnavailable):
        with pytest.raises(fault):
            async with trail.refusals(*WHAT):
                raise fault
    assert (rows.recorded, rows.refused) == ([], [(*WHAT, "NOT_FOUND")])
