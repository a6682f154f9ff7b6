"""The last hour: one sample in ten seconds, the worst of the event loop in each, and gaps where a store was away."""

from dataclasses import dataclass, field

import pytest
import trio
from trio.testing import MockClock

from halo.actors.history import ANSWER_SECONDS, SAMPLE_SECONDS, SAMPLES, History, HistoryPorts
from halo.clock import Moment
from halo.errors import StoreUnavailable
from halo.watch import LagHistogram


@dataclass
class Node:
    """What is measured, as the test wants it."""

    messages: int = 0
    answers: bool = True
    answer_seconds: float = 0.25
    available: int | None = 7
    lag: LagHistogram = field(default_factory=LagHistogram)

    def now(self) -> Moment:
        return round(trio.current_time() * 1000)

    async def ask(self) -> bool:
        await trio.sleep(self.answer_seconds)
        return self.answers

    async def count(self) -> int:
        if self.available is None:
            raise StoreUnavailable
        return self.available

    def history(self) -> History:
        return History(
            HistoryPorts(
                clock=self,
                sessions=lambda: 3,
                messages=lambda: self.messages,
                commits=lambda: (self.messages // 10, self.messages / 1000),
                take_longest_lag=self.lag.take_longest_lately,
                ask_postgres=self.ask,
                count_available=self.count,
            )
        )


@pytest.fixture
def node() -> Node:
    return Node()


async def test_a_sample_is_taken_every_ten_seconds(node: Node, autojump_clock: MockClock) -> None:
    history = node.history()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(history.serve)
        await trio.sleep(SAMPLE_SECONDS / 2)
        assert history.list() == ()
        node.messages = 50
        node.lag.observe(0.3)
        await trio.sleep(SAMPLE_SECONDS)
        nursery.cancel_scope.cancel()
    [sample] = history.list()
    assert sample.messages_per_second == pytest.approx(5.0)
    assert sample.commit_ms == pytest.approx(10.0)
    assert (sample.sessions, sample.mitras_available) == (3, 7)
    assert sample.postgres_ms == pytest.approx(250)
    assert sample.lag_ms == pytest.approx(300)


async def test_the_hour_before_the_last_is_forgotten(node: Node, autojump_clock: MockClock) -> None:
    node.answer_seconds = 0
    history = node.history()
    with trio.move_on_after(2 * 3600 + 5):
        await history.serve()
    samples = history.list()
    assert len(samples) == SAMPLES
    assert samples[-1].at - samples[0].at == pytest.approx(3_600_000, abs=1_000)


async def test_a_store_that_is_away_leaves_a_gap_and_holds_nothing_up(node: Node, autojump_clock: MockClock) -> None:
    node.answers, node.available = False, None
    history = node.history()
    with trio.move_on_after(SAMPLE_SECONDS + 1):
        await history.serve()
    node.answers, node.answer_seconds = True, 10 * ANSWER_SECONDS
    with trio.move_on_after(SAMPLE_SECONDS + ANSWER_SECONDS + 1):
        await history.serve()
    told = [(sample.postgres_ms, sample.mitras_available, sample.commit_ms) for sample in history.list()]
    assert told == [(None, None, None)] * 2
