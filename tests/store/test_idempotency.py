from collections import Counter
from collections.abc import AsyncIterator
from uuid import UUID

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from halo.config import LiveConfig
from halo.errors import Busy, IdempotencyMismatch, ValidationFailed
from halo.store.idempotency import TAKEOVER_MS, Fresh, Idempotency, Repeated, derived_id
from halo.store.payments import Payments
from halo.store.postgres import Postgres, open_postgres
from tests.store.ground import only
from tests.store.rows import NOW, SetClock, add_customer, count

USER = "0c8a3f0e-3d4f-4a52-9a0b-7a0d3f6a1c11"
ROUTE = "POST /api/payments"
BODY, OTHER_BODY = b"\x01" * 32, b"\x02" * 32


@pytest.fixture
async def db(database_url: str) -> AsyncIterator[Postgres]:
    async with open_postgres(database_url) as postgres:
        yield postgres


@pytest.fixture
def idempotency(db: Postgres) -> Idempotency:
    return Idempotency(db)


async def take(idempotency: Idempotency, key: str = "k", body: bytes = BODY) -> Fresh:
    begun = await idempotency.begin(USER, ROUTE, key, body)
    assert isinstance(begun, Fresh)
    return begun


async def let_time_pass(db: Postgres, milliseconds: int) -> None:
    await db.execute(
        "UPDATE idempotency_keys SET created_at = created_at - %(ms)s * interval '1 millisecond'", {"ms": milliseconds}
    )


# ---- the same request again


async def test_the_same_request_again_gets_the_same_answer(idempotency: Idempotency) -> None:
    assert await idempotency.finish(await take(idempotency), 201, b'{"id":"\x00\xff"}')
    for _ in range(2):
        assert await idempotency.begin(USER, ROUTE, "k", BODY) == Repeated(status=201, answer=b'{"id":"\x00\xff"}')


async def test_an_answer_is_kept_however_old_it_is_until_it_is_deleted(idempotency: Idempotency, db: Postgres) -> None:
    await idempotency.finish(await take(idempotency), 201, b"{}")
    await let_time_pass(db, TAKEOVER_MS * 100)
    assert await idempotency.begin(USER, ROUTE, "k", BODY) == Repeated(status=201, answer=b"{}")


@pytest.mark.parametrize("finished", [True, False])
@pytest.mark.parametrize("age_ms", [0, 2 * TAKEOVER_MS])
async def test_a_key_used_with_another_body_is_refused(
    idempotency: Idempotency, db: Postgres, finished: bool, age_ms: int
) -> None:
    fresh = await take(idempotency)
    if finished:
        await idempotency.finish(fresh, 201, b"{}")
    await let_time_pass(db, age_ms)
    with pytest.raises(IdempotencyMismatch):
        await idempotency.begin(USER, ROUTE, "k", OTHER_BODY)


async def test_keys_of_others_and_of_other_routes_are_other_keys(idempotency: Idempotency) -> None:
    await take(idempotency)
    assert isinstance(await idempotency.begin("another", ROUTE, "k", OTHER_BODY), Fresh)
    assert isinstance(await idempotency.begin(USER, "POST /api/pairings", "k", OTHER_BODY), Fresh)
    assert isinstance(await idempotency.begin(USER, ROUTE, "K", OTHER_BODY), Fresh)


@pytest.mark.parametrize("key", ["", "x" * 256, "a\x00b", "a\nb", "schlüssel"])
async def test_a_key_that_is_no_key_is_refused(idempotency: Idempotency, db: Postgres, key: str) -> None:
    with pytest.raises(ValidationFailed):
        await idempotency.begin(USER, ROUTE, key, BODY)
    assert await count(db, "idempotency_keys") == 0


# ---- while it runs


async def test_a_request_that_still_runs_makes_its_repeat_wait(idempotency: Idempotency, db: Postgres) -> None:
    await take(idempotency)
    await let_time_pass(db, TAKEOVER_MS - 5_000)
    with pytest.raises(Busy) as refused:
        await idempotency.begin(USER, ROUTE, "k", BODY)
    assert refused.value.retryable
    assert refused.value.retry_after_ms


async def test_of_twenty_at_once_one_is_fresh(idempotency: Idempotency) -> None:
    outcomes: Counter[type] = Counter()

    async def begin() -> None:
        try:
            outcomes[type(await idempotency.begin(USER, ROUTE, "k", BODY))] += 1
        except Busy:
            outcomes[Busy] += 1

    async with trio.open_nursery() as nursery:
        for _ in range(20):
            nursery.start_soon(begin)
    assert outcomes == {Fresh: 1, Busy: 19}


async def test_a_refused_request_may_be_tried_again_at_once_even_with_another_body(idempotency: Idempotency) -> None:
    assert await idempotency.abandon(await take(idempotency))
    await take(idempotency, body=OTHER_BODY)


# ---- when halo died on the way


async def test_a_key_whose_holder_died_is_taken_over_by_one_repeat(idempotency: Idempotency, db: Postgres) -> None:
    await take(idempotency)
    await let_time_pass(db, 2 * TAKEOVER_MS)
    outcomes: Counter[type] = Counter()

    async def begin() -> None:
        try:
            outcomes[type(await idempotency.begin(USER, ROUTE, "k", BODY))] += 1
        except Busy:
            outcomes[Busy] += 1

    async with trio.open_nursery() as nursery:
        for _ in range(10):
            nursery.start_soon(begin)
    assert outcomes == {Fresh: 1, Busy: 9}


async def test_who_was_taken_over_can_neither_answer_nor_free_the_key(idempotency: Idempotency, db: Postgres) -> None:
    """Not even when both took it in one moment, as after a clock was set back: the fence is no moment."""
    slow = await take(idempotency)
    first = await only(db, "SELECT created_at FROM idempotency_keys")
    await let_time_pass(db, 2 * TAKEOVER_MS)
    second = await take(idempotency)
    await db.execute("UPDATE idempotency_keys SET created_at = at(%(at)s)", {"at": first.created_at})
    assert not await idempotency.finish(slow, 201, b"slow")
    assert not await idempotency.abandon(slow)
    assert await idempotency.finish(second, 201, b"second")
    assert not await idempotency.abandon(second)
    assert await idempotency.begin(USER, ROUTE, "k", BODY) == Repeated(status=201, answer=b"second")


async def test_a_request_whose_node_died_after_its_effect_is_not_done_twice(
    idempotency: Idempotency, db: Postgres
) -> None:
    payments = Payments(db, SetClock())
    customer = await add_customer(db)

    async def request() -> str:
        created = await payments.create(
            customer, duration_minutes=5, config=LiveConfig(), payment_request_id=derived_id(customer, ROUTE, "k")
        )
        return created.payment_request_id

    await idempotency.begin(customer, ROUTE, "k", BODY)
    first = await request()  # and here the node dies, before `finish`
    with pytest.raises(Busy):
        await idempotency.begin(customer, ROUTE, "k", BODY)
    await let_time_pass(db, 2 * TAKEOVER_MS)
    again = await idempotency.begin(customer, ROUTE, "k", BODY)
    assert isinstance(again, Fresh)
    assert await request() == first
    assert await count(db, "payment_requests") == 1
    assert await idempotency.finish(again, 201, first.encode())


# ---- ids


def test_a_derived_id_is_the_same_for_ever() -> None:
    """Pinned: across an upgrade a repeat must find what the version before it created."""
    assert derived_id(USER, ROUTE, "k") == "f994723b-f793-56cd-802a-9a243f3f6156"


@given(st.lists(st.tuples(st.text(max_size=8), st.text(max_size=8), st.text(max_size=8)), unique=True, max_size=20))
def test_different_requests_have_different_derived_ids(requests: list[tuple[str, str, str]]) -> None:
    ids = {derived_id(*request) for request in requests}
    assert len(ids) == len(requests)
    assert all(str(UUID(one)) == one for one in ids)


# ---- forgetting


async def test_keys_of_long_ago_are_forgotten(idempotency: Idempotency, db: Postgres) -> None:
    await idempotency.finish(await take(idempotency, "old"), 201, b"{}")
    await db.execute("UPDATE idempotency_keys SET created_at = at(%(at)s)", {"at": NOW - 1})
    await take(idempotency, "young")
    await db.execute("UPDATE idempotency_keys SET created_at = at(%(at)s) WHERE key = 'young'", {"at": NOW})
    assert await idempotency.delete_old(NOW) == 1
    assert await count(db, "idempotency_keys", "key = 'young'") == 1
