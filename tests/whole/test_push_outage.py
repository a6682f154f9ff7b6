"""A provider of pushes that is away for seconds, in every way there is: the short form of `scripts/simulate push-outage`."""

from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from halo.outbox import BACKOFFS, Backoff, OutboxKind
from halo.store import pairings, steps
from tests.whole.house import PATIENCE_SECONDS, open_house
from tests.whole.push_books import Post, PushesWrong, Taken, balance, open_post
from tests.whole.push_outage import Plan, play

PLAN = Plan(
    before_seconds=0.5,
    away_seconds=2.4,
    after_seconds=0.5,
    late_seconds=PATIENCE_SECONDS,
    offer_seconds=1,
    pairs=2,
    mitras=3,
    search_seconds=0.1,
)
"""What is right of it does not depend on how fast the machine is; how late a push may be is `tests/actors/test_outbox.py`'s."""


@pytest.fixture
async def post() -> AsyncIterator[Post]:
    async with open_post() as opened:
        yield opened


async def test_nothing_is_lost_or_sent_twice_by_a_provider_that_was_away_and_people_go_on(
    database_url: str, valkey_url: str, tmp_path: Path, post: Post, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a twentieth of the pauses, so that there are attempts in each kind of absence."""
    for room in (pairings, steps):
        monkeypatch.setattr(room, "PUSH_PATIENCE_MS", 200)
    assert isinstance(BACKOFFS, dict)
    monkeypatch.setitem(BACKOFFS, OutboxKind.PUSH, Backoff(first_ms=50, longest_ms=200))
    path = post.provider.credentials(tmp_path)
    async with open_house(
        database_url, valkey_url, HALO_FCM_CREDENTIALS=str(path), FCM_ENDPOINT=post.provider.url
    ) as house:
        street, figures = await play(house, post, PLAN)
    assert all(parts["away"] for parts in street.took.values()), "nobody has done anything meanwhile"
    assert figures["of the sent: had waited for the provider"] > 0
    assert figures["of these: attempts that failed"] > 0


def a_row(outbox_id: str, status: str, *, created_at: int = 0, expires_at: int = 1_000) -> Any:
    return SimpleNamespace(
        outbox_id=outbox_id,
        status=status,
        template="offer",
        collapse_key="key",
        attempts=1,
        last_error=None,
        created_at=created_at,
        due_at=created_at,
        finished_at=created_at,
        expires_at=expires_at,
    )


class Rows:
    """The outbox, from a list."""

    def __init__(self, *rows: Any) -> None:
        self.rows = rows

    async def fetch_all(self, query: str) -> Any:  # there is one
        return self.rows


@pytest.mark.parametrize(
    ("rows", "taken"),
    [
        ((a_row("a", "sent"),), ()),
        ((a_row("a", "sent"),), (("a", 1), ("a", 2))),
        ((a_row("a", "expired"),), (("a", 1),)),
        ((a_row("a", "expired", expires_at=100_000),), ()),
        ((a_row("a", "due"),), ()),
        ((a_row("a", "dead"),), ()),
        ((), (("a", 1),)),
        ((a_row("a", "sent", created_at=1), a_row("b", "sent", created_at=2)), (("b", 3), ("a", 4))),
    ],
)
async def test_the_books_find_what_was_lost_repeated_or_out_of_order(
    post: Post, rows: tuple[Any, ...], taken: tuple[tuple[str, int], ...]
) -> None:
    post.away_since, post.back_at = 0, 500
    post.taken += [Taken(outbox_id, "phone", at) for outbox_id, at in taken]
    db: Any = Rows(*rows)
    with pytest.raises(PushesWrong):
        await balance(db, post, late_ms_max=1_000)


async def test_the_books_are_content_with_what_is_right(post: Post) -> None:
    post.away_since, post.back_at = 0, 500
    post.taken += [Taken("a", "phone", 1), Taken("b", "phone", 600)]
    db: Any = Rows(
        a_row("a", "cancelled"), a_row("b", "sent", created_at=2), a_row("c", "expired"), a_row("d", "cancelled")
    )
    await balance(db, post, late_ms_max=1_000)
