import pytest
from hypothesis import given
from hypothesis import strategies as st

from halo.sweep import form_opinion, is_doubtful, is_warm

NAMES = [f"m{n}" for n in range(60)]


@pytest.mark.parametrize(
    ("stale", "online", "doubtful"),
    [
        (0, 0, False),
        (10, 10, False),
        (11, 11, True),
        (11, 55, False),
        (11, 54, True),
        (20, 100, False),
        (21, 100, True),
    ],
)
def test_more_than_a_fifth_and_more_than_ten_are_doubted(stale: int, online: int, doubtful: bool) -> None:
    assert is_doubtful(stale, online) is doubtful


def test_a_few_go_offline_at_once() -> None:
    opinion = form_opinion(NAMES[:10], 12, ())
    assert (opinion.offline, opinion.doubted) == (frozenset(NAMES[:10]), frozenset())


def test_many_go_offline_only_if_two_runs_in_a_row_say_so() -> None:
    first = form_opinion(NAMES[:30], 60, ())
    assert (first.offline, first.doubted) == (frozenset(), frozenset(NAMES[:30]))
    second = form_opinion(NAMES[5:40], 60, first.doubted)
    assert second.offline == frozenset(NAMES[5:30])
    assert second.doubted == frozenset(NAMES[30:40])


@given(stale=st.sets(st.sampled_from(NAMES)), doubted=st.sets(st.sampled_from(NAMES)), others=st.integers(0, 500))
def test_nobody_goes_offline_who_is_not_stale_and_a_doubted_verdict_never_falls_at_once(
    stale: set[str], doubted: set[str], others: int
) -> None:
    online = len(stale) + others
    opinion = form_opinion(stale, online, doubted)
    assert opinion.offline | opinion.doubted == stale
    assert not opinion.offline & opinion.doubted
    if is_doubtful(len(stale), online):
        assert opinion.offline <= doubted
    else:
        assert not opinion.doubted


def test_a_mirror_is_warm_after_more_than_one_whole_freshness_period() -> None:
    assert not is_warm(1_000, 91_000, 90_000)
    assert is_warm(1_000, 91_001, 90_000)
