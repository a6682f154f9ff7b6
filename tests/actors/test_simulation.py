"""Two hundred stories of bad luck; a failure names its seed and the command that plays it again (`scripts/simulate --seed N`)."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from halo.actors.alarm import Alarm
from halo.actors.conversation import Conversation
from halo.actors.decider import Decider
from halo.config import LiveConfig
from tests.actors.fakes import FakeNode
from tests.actors.simulation import Violated, World, deterministic, run, simulate

STORIES, BATCH = 200, 20


@pytest.mark.parametrize("first", range(0, STORIES, BATCH))
def test_whatever_goes_wrong_every_promise_is_kept(first: int) -> None:
    total: Counter[str] = Counter()
    for seed in range(first, first + BATCH):
        total += simulate(seed).counts
    # Stories in which nothing happens would prove nothing.
    assert total["crashes"] > 10
    assert total["outages"] > 5
    assert total["faults"] > 300
    assert total["frame message"] > 1000
    assert total["frame extension_response"] > 100
    assert total["frame session_ended"] > BATCH
    assert total["reroutes"] > 20
    assert total["takeovers"] > 10
    assert total["nobody found"] > 0


def test_the_same_seed_plays_the_same_story() -> None:
    def play() -> list[tuple[int, str]]:
        with deterministic(41):
            world = World(41)
            trio.run(world.run, clock=MockClock(autojump_threshold=0))
            return world.trace

    assert play() == play()


# ---- the oracle sees


async def no_credit(self: Any) -> None:
    self._owed_ms = None
    await trio.lowlevel.checkpoint()


async def acknowledges_first(self: Any, said: Any, session: Any) -> None:
    fresh = await self._number(said, session)
    for row, items in fresh:
        self.last_seq = row.seq
        for item in items:
            item.speaker.stored(item.id, row.seq, row.at)
    if fresh:
        await self._ports.log.append(self._session_id, session.epoch, [row for row, _ in fresh])


async def never_looks_back(self: Any) -> None:
    self.is_uncertain, self._unspoken = False, None
    await trio.lowlevel.checkpoint()


def ignores_the_owner(append: Any) -> Any:
    async def appended(self: Any, session_id: str, epoch: int, rows: Any) -> None:
        await append(self, session_id, self.database.tables.sessions[session_id].session.epoch, rows)
        self.database.messages[session_id].pop()

    return appended


def keeps_the_old_mitra(self: Any, session: Any) -> None:
    self.session = session


MISTAKES: dict[str, Callable[[pytest.MonkeyPatch], None]] = {
    "downtime is not credited": lambda patch: patch.setattr(Decider, "credit", no_credit),
    "an ack before the commit": lambda patch: patch.setattr(Conversation, "store", acknowledges_first),
    "the row is not read again": lambda patch: patch.setattr(Decider, "reload", never_looks_back),
    "a store that loses": lambda patch: patch.setattr(FakeNode, "append", ignores_the_owner(FakeNode.append)),
    "the old mitra stays": lambda patch: patch.setattr(Decider, "_become", keeps_the_old_mitra),
    "a deadline is lost": lambda patch: patch.setattr(Alarm, "_move", lambda _, moment: moment),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_in_the_actor_is_found_within_a_few_stories(mistake: str, monkeypatch: pytest.MonkeyPatch) -> None:
    MISTAKES[mistake](monkeypatch)

    def play() -> None:
        for seed in range(40):
            simulate(seed)

    with pytest.raises((Violated, BaseExceptionGroup)) as found:
        play()
    assert any("scripts/simulate --seed" in note for note in found.value.__notes__)


def test_the_script_plays_one_story_and_tells_what_was_in_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--seed", "3"]) == 0
    assert "1 stories" in capsys.readouterr().out
    assert isinstance(World(3).config, LiveConfig)
