"""Two hundred markets, and the proof that the timeline would tell (`scripts/simulate capacity` plays thousands)."""

import pytest

from halo.store.postgres import Postgres
from tests.store.capacity_stories import make_story, open_market, play_all
from tests.store.rows import NOW

STORIES, BATCH = 200, 50

OPEN_AND_END = """
INSERT INTO chat_sessions (session_id, customer_id, mitra_id, payment_request_id, status, end_reason, deadline_at,
                           duration_minutes, minute_ms, price, currency, created_at, ended_at)
SELECT gen_random_uuid(), customer_id, %(mitra_id)s, payment_request_id, %(status)s, %(reason)s,
       CASE WHEN %(status)s <> 'ended' THEN now() END, 10, 60000, 10000, 'IDR', at(%(opened)s), at(%(ended)s::bigint)
FROM pairings WHERE pairing_id = %(pairing_id)s
"""


@pytest.mark.parametrize("first", range(0, STORIES, BATCH))
async def test_no_mitra_ever_holds_more_sessions_than_she_takes(database_url: str, first: int) -> None:
    told, wrong, full = await play_all(database_url, range(first, first + BATCH))
    assert wrong == []
    # Stories without a race for the last place would prove nothing.
    assert full > BATCH / 2
    assert told["no room"] > BATCH / 2
    assert told["too late"] > BATCH
    assert told["ended"] > BATCH / 2
    assert told["opened"] > BATCH


async def test_the_same_seed_makes_the_same_market() -> None:
    first, again = make_story(17), make_story(17)
    assert (first.rooms, first.offers) == (again.rooms, again.offers)
    assert first.offers != make_story(18).offers


@pytest.mark.parametrize(("second_opens_at", "overfull"), [(NOW + 99, True), (NOW + 100, False)])
async def test_two_sessions_that_overlap_for_a_millisecond_in_the_past_are_seen(
    database_url: str, second_opens_at: int, overfull: bool
) -> None:
    """One has ended long since, so that a count of those that live would find nothing."""
    story = make_story(3)
    async with open_market(database_url) as market:
        await market._stage([story])  # the rows alone, without their play
        [mitra_id] = await one_with_room_for_one(market.db, story.rooms)
        pairing_ids = sorted({pairing_id for _, pairing_id, _ in story.offers})
        first = {"mitra_id": mitra_id, "status": "ended", "reason": "completed", "pairing_id": pairing_ids[0]}
        await market.db.execute(OPEN_AND_END, first | {"opened": NOW, "ended": NOW + 100})
        second = {"mitra_id": mitra_id, "status": "rerouting", "reason": None, "pairing_id": pairing_ids[1]}
        await market.db.execute(OPEN_AND_END, second | {"opened": second_opens_at, "ended": None})
        found = await market.find_overfull()
        assert [(row.mitra_id, row.most, row.first_at) for row in found] == (
            [(mitra_id, 2, second_opens_at)] if overfull else []
        )


async def one_with_room_for_one(db: Postgres, rooms: dict[str, int]) -> list[str]:
    await db.execute("UPDATE mitras SET max_sessions = 1")
    return sorted(rooms)[:1]
