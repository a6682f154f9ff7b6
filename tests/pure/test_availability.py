from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from halo.availability import Presence, check_heartbeat, is_fresh, judge, newest
from halo.errors import MitraDeactivated, MitraOffline

NOW = 1_795_464_900_123
STALE_MS = 90_000
moments = st.none() | st.integers(min_value=NOW - 10 * STALE_MS, max_value=NOW + STALE_MS)


@pytest.mark.parametrize(
    ("heartbeat_at", "fresh"),
    [(None, False), (NOW, True), (NOW - STALE_MS, True), (NOW - STALE_MS - 1, False), (NOW + 5_000, True)],
)
def test_a_heartbeat_is_fresh_up_to_and_including_the_period(heartbeat_at: int | None, fresh: bool) -> None:
    assert is_fresh(heartbeat_at, NOW, STALE_MS) is fresh


@pytest.mark.parametrize(("active", "online", "fresh"), list(product([False, True], repeat=3)))
def test_only_an_active_online_mitra_with_a_fresh_heartbeat_is_reachable(
    active: bool, online: bool, fresh: bool
) -> None:
    heartbeat_at = NOW - (1_000 if fresh else STALE_MS + 1_000)
    seen = judge(Presence(active=active, online=online, heartbeat_at=heartbeat_at), NOW, STALE_MS, "mirror")

    assert seen.reachable is (active and online and fresh)
    assert seen.online is (active and online)
    assert seen.heartbeat_fresh is fresh
    assert seen.heartbeat_age_ms == NOW - heartbeat_at
    assert seen.source == "mirror"


def test_the_age_of_a_heartbeat_from_another_nodes_future_is_zero() -> None:
    seen = judge(Presence(active=True, online=True, heartbeat_at=NOW + 700), NOW, STALE_MS, "postgres")

    assert seen.heartbeat_age_ms == 0
    assert seen.reachable


def test_without_a_heartbeat_there_is_no_age_and_no_reachability() -> None:
    seen = judge(Presence(active=True, online=True, heartbeat_at=None), NOW, STALE_MS, "mirror")

    assert seen.heartbeat_age_ms is None
    assert not seen.reachable


@given(active=st.booleans(), online=st.booleans(), heartbeat_at=moments)
def test_the_verdict_does_not_depend_on_where_the_facts_came_from(
    active: bool, online: bool, heartbeat_at: int | None
) -> None:
    presence = Presence(active=active, online=online, heartbeat_at=heartbeat_at)
    mirror, postgres = (judge(presence, NOW, STALE_MS, source) for source in ("mirror", "postgres"))

    assert mirror.reachable is postgres.reachable
    assert mirror.heartbeat_age_ms == postgres.heartbeat_age_ms


@pytest.mark.parametrize(
    ("active", "online", "refusal"),
    [
        (True, True, type(None)),
        (True, False, MitraOffline),
        (False, True, MitraDeactivated),
        (False, False, MitraDeactivated),
    ],
)
def test_a_ping_is_refused_with_deactivation_told_first(active: bool, online: bool, refusal: type) -> None:
    assert type(check_heartbeat(active=active, online=online)) is refusal


@given(st.lists(moments, max_size=4))
def test_the_newest_moment_never_moves_back(known: list[int | None]) -> None:
    result = newest(*known)

    assert result == max((moment for moment in known if moment is not None), default=None)
