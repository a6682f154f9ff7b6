import json
from collections.abc import AsyncIterator

import psycopg
import pytest
import trio

from halo.config import LiveConfig, RefusalOutcome, TimeoutAction
from halo.errors import ValidationFailed
from halo.store.live_config import CHANGED_CHANNEL, LiveConfigStore
from halo.store.postgres import Postgres, open_postgres
from tests.store.rows import count


@pytest.fixture
async def db(database_url: str) -> AsyncIterator[Postgres]:
    async with open_postgres(database_url) as postgres:
        yield postgres


@pytest.fixture
def store(db: Postgres) -> LiveConfigStore:
    return LiveConfigStore(db)


async def test_a_fresh_database_has_the_defaults(store: LiveConfigStore) -> None:
    assert await store.load() == (LiveConfig(), [])


async def test_a_change_is_read_back_as_it_was_validated(store: LiveConfigStore) -> None:
    changes = {
        "extension_default_action_on_timeout": "auto_reject",
        "extension_refusal": "close",
        "session_warning_seconds": [120, 30],
        "currency": "EUR",
        "price_per_minute": 42,
    }
    changed = await store.change(changes, "ann")
    assert changed == LiveConfig(
        extension_default_action_on_timeout=TimeoutAction.AUTO_REJECT,
        extension_refusal=RefusalOutcome.CLOSE,
        session_warning_seconds=(120, 30),
        currency="EUR",
        price_per_minute=42,
        version=1,
    )
    assert await store.load() == (changed, [])


async def test_each_change_is_a_version_with_who_and_when(store: LiveConfigStore, db: Postgres) -> None:
    await store.change({"pairing_waves": 4, "max_minutes": 60}, "ann")
    await store.change({"pairing_waves": 5}, "bob")
    last, first = await store.history()
    assert (first.version, first.changed_by, first.changes) == (1, "ann", {"pairing_waves": 4, "max_minutes": 60})
    assert (last.version, last.changed_by, last.changes) == (2, "bob", {"pairing_waves": 5})
    assert first.changed_at <= last.changed_at
    assert [change.version for change in await store.history(limit=1)] == [2]
    rows = await db.fetch_all("SELECT operator, action, subject, details FROM operator_actions ORDER BY action_id")
    assert [(row.operator, row.action, row.subject) for row in rows] == [
        ("ann", "change_config", "live_config"),
        ("bob", "change_config", "live_config"),
    ]
    assert rows[1].details == {"version": 2, "before": {"pairing_waves": 4}, "changes": {"pairing_waves": 5}}


async def test_one_bad_key_leaves_everything_as_it_was(store: LiveConfigStore, db: Postgres) -> None:
    with pytest.raises(ValidationFailed) as refused:
        await store.change({"pairing_waves": 4, "max_minutes": 0, "extention_refusal": "close"}, "ann")
    assert {error["field"] for error in refused.value.errors} == {"max_minutes", "extention_refusal"}
    assert await store.load() == (LiveConfig(), [])
    assert await count(db, "live_config_history") == await count(db, "operator_actions") == 0


async def test_no_changes_make_no_version(store: LiveConfigStore) -> None:
    await store.change({"pairing_waves": 4}, "ann")
    assert (await store.change({}, "ann")).version == 1
    assert len(await store.history()) == 1


async def test_a_stored_value_that_cannot_be_read_never_charges(store: LiveConfigStore, db: Postgres) -> None:
    await db.execute(
        "INSERT INTO live_config (key, value) VALUES ('extension_default_action_on_timeout', '\"auto_aprove\"'), ('max_minutes', 'true'), ('gone', '1')"
    )
    config, unreadable = await store.load()
    assert config == LiveConfig(extension_default_action_on_timeout=TimeoutAction.AUTO_REJECT)
    assert set(unreadable) == {"extension_default_action_on_timeout", "max_minutes", "gone"}
    same = await store.change({"extension_default_action_on_timeout": "auto_reject"}, "ann")
    assert set((await store.load())[1]) == {"max_minutes", "gone"}
    assert same.version == 1
    repaired = await store.change({"extension_default_action_on_timeout": "auto_approve", "max_minutes": 90}, "ann")
    assert await store.load() == (repaired, ["gone"])


async def test_changes_at_once_are_all_kept_each_with_its_own_version(store: LiveConfigStore, db: Postgres) -> None:
    keys = ("pairing_waves", "max_minutes", "pairing_blast_size", "closure_grace_seconds")
    async with trio.open_nursery() as nursery:
        for number in range(12):
            nursery.start_soon(store.change, {keys[number % 4]: 10 + number}, f"op{number}")
    history = await store.history()
    assert [change.version for change in history] == list(range(12, 0, -1))
    expected = {key: value for change in reversed(history) for key, value in change.changes.items()}
    config, _ = await store.load()
    assert {key: getattr(config, key) for key in keys} == expected
    assert config.version == 12
    assert db.retries == 0  # they waited for each other; none met a conflict


async def test_two_changes_that_are_wrong_only_together_are_not_both_taken(store: LiveConfigStore) -> None:
    refused = 0

    async def change(key: str, value: int) -> None:
        nonlocal refused
        try:
            await store.change({key: value}, "ann")
        except ValidationFailed:
            refused += 1

    async with trio.open_nursery() as nursery:
        nursery.start_soon(change, "min_minutes", 100)
        nursery.start_soon(change, "max_minutes", 50)
    assert refused == 1
    config, _ = await store.load()
    assert config.min_minutes <= config.max_minutes


async def test_every_node_is_told_of_a_change_and_of_no_refused_one(store: LiveConfigStore, database_url: str) -> None:
    with psycopg.connect(database_url, autocommit=True) as node:
        node.execute(f"LISTEN {CHANGED_CHANNEL}")
        with pytest.raises(ValidationFailed):
            await store.change({"max_minutes": 0}, "ann")
        changed = await store.change({"max_minutes": 30}, "ann")
        heard = list(node.notifies(timeout=5, stop_after=1))
        assert [json.loads(notice.payload) for notice in heard] == [changed.version]
