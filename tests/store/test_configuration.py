"""The reading in force: replaced as a whole, never by an older one, kept while the store is away."""

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import cast

import pytest
import trio
from trio.testing import MockClock

from halo.config import LiveConfig, TimeoutAction
from halo.errors import StoreUnavailable
from halo.store.configuration import Configuration
from halo.store.live_config import LiveConfigStore
from halo.store.postgres import open_postgres


class Stored:
    """A store that answers what it is told."""

    def __init__(self) -> None:
        self.config = LiveConfig()
        self.unreadable: list[str] = []
        self.away = False

    async def load(self) -> tuple[LiveConfig, list[str]]:
        await trio.lowlevel.checkpoint()
        if self.away:
            raise StoreUnavailable
        return self.config, self.unreadable


def new_configuration(stored: Stored) -> Configuration:
    return Configuration(cast(LiveConfigStore, stored))


@asynccontextmanager
async def served(configuration: Configuration) -> AsyncIterator[None]:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(configuration.serve)
        yield
        nursery.cancel_scope.cancel()


async def test_before_anything_is_read_the_defaults_are_in_force() -> None:
    assert new_configuration(Stored()).current() == LiveConfig()


async def test_a_change_elsewhere_is_in_force_within_seconds(autojump_clock: MockClock) -> None:
    stored = Stored()
    configuration = new_configuration(stored)
    async with served(configuration):
        stored.config = LiveConfig(version=3, price_per_minute=7)
        await trio.sleep(1.5)
        assert configuration.current().price_per_minute == 7


async def test_while_the_store_is_away_the_last_reading_stays(autojump_clock: MockClock) -> None:
    stored = Stored()
    configuration = new_configuration(stored)
    async with served(configuration):
        stored.config = LiveConfig(version=3, price_per_minute=7)
        await trio.sleep(1.5)
        stored.away = True
        await trio.sleep(60)
        assert configuration.current().price_per_minute == 7
        stored.away, stored.config = False, LiveConfig(version=4, price_per_minute=8)
        await trio.sleep(1.5)
        assert configuration.current().price_per_minute == 8


async def test_a_start_without_the_store_is_told(autojump_clock: MockClock) -> None:
    stored = Stored()
    stored.away = True
    with pytest.raises(StoreUnavailable):
        await new_configuration(stored).load()


async def test_a_change_of_our_own_is_not_undone_by_a_reading_that_began_before_it(autojump_clock: MockClock) -> None:
    stored = Stored()
    configuration = new_configuration(stored)
    configuration.adopt(LiveConfig(version=5, price_per_minute=9))
    await configuration.load()
    assert configuration.current().price_per_minute == 9
    configuration.adopt(LiveConfig(version=4, price_per_minute=1))
    assert configuration.current().price_per_minute == 9


async def test_what_cannot_be_read_is_one_alarm_for_each_version(
    autojump_clock: MockClock, claims_errors: list[logging.LogRecord]
) -> None:
    stored = Stored()
    stored.unreadable = ["price_per_minute"]
    configuration = new_configuration(stored)
    async with served(configuration):
        await trio.sleep(10)
        assert len(claims_errors) == 1
        assert "price_per_minute" in claims_errors[0].getMessage()
        stored.config = LiveConfig(version=1)
        await trio.sleep(10)
        assert len(claims_errors) == 2
        stored.unreadable = ["price_per_minute", "currency"]  # by hand, which makes no version
        await trio.sleep(10)
    assert len(claims_errors) == 3


async def test_what_cannot_be_read_is_known_until_it_can_be_read(
    autojump_clock: MockClock, claims_errors: list[logging.LogRecord]
) -> None:
    stored = Stored()
    stored.config = LiveConfig(version=2)
    configuration = new_configuration(stored)
    for keys in ([], ["currency"], [], ["currency"]):
        stored.unreadable = keys
        await configuration.load()
        assert list(configuration.unreadable()) == keys
    assert len(claims_errors) == 2
    configuration.adopt(LiveConfig(version=3))  # replaced on this node; a reading that began before says nothing of it
    assert list(configuration.unreadable()) == []
    await configuration.load()
    assert list(configuration.unreadable()) == []


async def test_a_change_in_postgres_is_read_by_another_node(database_url: str) -> None:
    async with open_postgres(database_url) as db:
        mine, theirs = Configuration(LiveConfigStore(db)), Configuration(LiveConfigStore(db))
        changed = await LiveConfigStore(db).change({"extension_default_action_on_timeout": "auto_reject"}, "operator")
        mine.adopt(changed)
        assert (await theirs.load()) == mine.current()
        assert theirs.current().extension_default_action_on_timeout is TimeoutAction.AUTO_REJECT
