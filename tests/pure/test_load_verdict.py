import pytest

from halo.load.judging import checks_of, unit_of
from halo.load.ledger import Findings, Kind
from halo.load.plan import SCENARIOS, plan_of
from halo.load.verdict import Check, Outcome, Verdict, harness_bounds, invariants_check, message_checks, promise_check


def outcomes(checks: list[Check]) -> set[Outcome]:
    return {check.outcome for check in checks}


@pytest.mark.parametrize("kind", Kind)
def test_one_finding_of_any_kind_fails_its_check_and_no_other(kind: Kind) -> None:
    checks = message_checks({"acks": 9, "said": 9}, {kind: 1}, {kind: ["where"]})
    failed = [check for check in checks if check.outcome is Outcome.FAILED]
    assert [check.examples for check in failed] == [("where",)]
    assert Verdict(checks=tuple(checks), is_whole=True).status == 1


def test_without_findings_every_check_of_messages_holds() -> None:
    assert outcomes(message_checks({"acks": 9, "said": 9}, {}, {})) == {Outcome.HELD}


def test_where_nothing_was_said_nothing_is_claimed() -> None:
    assert outcomes(message_checks({}, {}, {})) == {Outcome.NOT_ASKED}


def test_an_unanswered_message_fails() -> None:
    assert Outcome.FAILED in outcomes(message_checks({"acks": 8, "said": 9, "unanswered": 1}, {}, {}))


def test_a_promise_that_was_not_kept_fails() -> None:
    assert promise_check("x", 3, 2, "things") == Check(name="x", outcome=Outcome.FAILED, fact="1 of 3 things not")
    assert promise_check("x", 3, 3, "things").outcome is Outcome.HELD
    assert promise_check("x", 0, 0, "things").outcome is Outcome.NOT_ASKED


def test_a_broken_invariant_fails_and_no_database_says_so() -> None:
    assert invariants_check(21, ["m1: twice"]).outcome is Outcome.FAILED
    assert invariants_check(21, []).outcome is Outcome.HELD
    assert invariants_check(0, []).outcome is Outcome.NOT_ASKED


GOOD = {
    "heartbeats": {"beats": 5, "heartbeats": 5, "looked_at": 2, "online": 2},
    "pairing-rush": {"searches": 5, "matches": 5, "matches_kept": 5},
    "extension-rush": {"requests": 5, "extensions": 5, "resumed_both": 10, "extensions_kept": 5},
}


@pytest.mark.parametrize("scenario", GOOD)
def test_a_rush_in_which_all_went_well_holds(scenario: str) -> None:
    checks = checks_of(plan_of(scenario, {}), GOOD[scenario], Findings(), asked=21, violations=[])
    assert outcomes(checks) == {Outcome.HELD}


@pytest.mark.parametrize(
    ("scenario", "change"),
    [
        ("heartbeats", {"heartbeats": 4}),
        ("heartbeats", {"online": 1}),
        ("pairing-rush", {"unanswered": 1}),
        ("pairing-rush", {"failed_no_mitra_available": 1}),
        ("pairing-rush", {"refused_BUSY": 1}),
        ("pairing-rush", {"outcomes_repeated": 1}),
        ("pairing-rush", {"matches_kept": 4}),
        ("extension-rush", {"extensions": 4}),
        ("extension-rush", {"resumed_both": 9}),
        ("extension-rush", {"extensions_kept": 4}),
        ("extension-rush", {"gone_for_good": 1}),
    ],
)
def test_whatever_is_missing_from_a_rush_fails_it(scenario: str, change: dict[str, int]) -> None:
    checks = checks_of(plan_of(scenario, {}), GOOD[scenario] | change, Findings(), asked=21, violations=[])
    assert Outcome.FAILED in outcomes(checks)


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_every_scenario_asks_for_its_invariants(scenario: str) -> None:
    checks = checks_of(plan_of(scenario, {}), {}, Findings(), asked=21, violations=["m1: twice"])
    assert Outcome.FAILED in outcomes(checks)
    assert unit_of(plan_of(scenario, {}))


def test_the_gravest_fault_is_the_status() -> None:
    failed = Check(name="x", outcome=Outcome.FAILED, fact="")
    assert Verdict(checks=(failed,), is_whole=False, harness_bound=("late",)).status == 1
    assert Verdict(checks=(), is_whole=False, harness_bound=("late",)).status == 130
    assert Verdict(checks=(), is_whole=True, harness_bound=("late",)).status == 3
    assert Verdict(checks=(), is_whole=True).status == 0


@pytest.mark.parametrize(
    ("lateness_us", "figure_us", "share", "reasons"),
    [
        (9_000, 9_000, 0.5, 0),  # little, whatever was measured
        (20_000, 200_000, 0.5, 0),  # a tenth of what was measured
        (20_000, 40_000, 0.5, 1),
        (100, 40_000, 0.95, 1),
        (20_000, 40_000, 0.95, 2),
    ],
)
def test_figures_that_are_the_harness_own_are_called_so(
    lateness_us: int, figure_us: int, share: float, reasons: int
) -> None:
    assert len(harness_bounds(lateness_us, figure_us, share)) == reasons
