import pytest

from halo.load.plan import MINUTES_MOST, SCENARIOS, PlanRefused, plan_of
from halo.load.playbill import SCENES


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_every_scenario_has_a_plan_without_any_wish_and_is_played(scenario: str) -> None:
    plan = plan_of(scenario, {})
    assert plan.scenario == scenario
    assert scenario in SCENES
    assert set(SCENARIOS[scenario].defaults) <= {*SCENARIOS[scenario].knobs, "seconds", "pairs"}


def test_a_wish_wins_over_the_default_and_no_wish_does_not() -> None:
    plan = plan_of("day", {"rate": 7.0, "pairs": None})
    assert (plan.rate, plan.pairs, plan.seconds) == (7.0, 50, 120.0)


@pytest.mark.parametrize(
    ("scenario", "wishes", "says"),
    [
        ("rush-hour", {}, "There is no scenario 'rush-hour'; there are steady, day, connect-storm"),
        ("steady", {"mitras": 5}, "--mitras means nothing to steady, which takes --pairs, --rate, --body"),
        ("heartbeats", {"mitras": 0}, "--mitras is 0, but must be between 1 and 100000"),
        ("heartbeats", {"mitras": 100_001}, "--mitras is 100001, but must be between 1 and 100000"),
        ("steady", {"pairs": 0}, "--pairs is 0, but must be between 1 and"),
        ("steady", {"seconds": 0.0}, "--seconds is 0, but must be between 1 and"),
        ("steady", {"seconds": float("nan")}, "--seconds is nan, but must be between"),
        ("steady", {"rate": -1.0}, "--rate is -1, but must be between 0 and"),
        ("steady", {"body": 4001}, "--body is 4001, but must be between 40 and 4000"),
        ("steady", {"processes": 3, "pairs": 2}, "--processes is 3, but there are only 2 to share"),
        ("slow-readers", {"slow": 1.5}, "--slow is 1.5, but must be between 0 and 1"),
        ("connect-storm", {"window": 99.0}, "--window is 99, but must be between 0 and 15"),
        ("day", {"rate": 0.0}, "A day needs a --rate above 0"),
    ],
)
def test_what_makes_no_sense_is_told_in_one_sentence(scenario: str, wishes: dict[str, float], says: str) -> None:
    with pytest.raises(PlanRefused) as refused:
        plan_of(scenario, wishes)
    assert str(refused.value).startswith(says)
    assert "\n" not in str(refused.value)


def test_the_time_that_is_bought_outlasts_the_run() -> None:
    assert plan_of("steady", {"seconds": 30.0}).minutes * 60 >= 30 + 300
    assert plan_of("steady", {"seconds": 14_040.0}).minutes == MINUTES_MOST
