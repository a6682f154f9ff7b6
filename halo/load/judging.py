"""Which checks a scenario has to pass, and what its unit of work is. PURE. Read next: `halo/load/verdict.py`."""

from collections.abc import Mapping, Sequence

from halo.load.ledger import Findings
from halo.load.plan import SCENARIOS, Plan
from halo.load.verdict import Check, invariants_check, message_checks, promise_check


def unit_of(plan: Plan) -> str:
    """The count that tells how much was done."""
    match plan.scenario:
        case "heartbeats":
            return "heartbeats"
        case "pairing-rush":
            return "matches"
        case "extension-rush":
            return "extensions"
        case _:
            return "acks"


def checks_of(
    plan: Plan, counts: Mapping[str, int], findings: Findings, *, asked: int, violations: Sequence[str]
) -> list[Check]:
    """All checks of this scenario, those of the database last."""
    match plan.scenario:
        case "heartbeats":
            checks = _heartbeats(counts)
        case "pairing-rush":
            checks = _pairings(counts)
        case "extension-rush":
            checks = _extensions(counts)
        case _:
            checks = message_checks(counts, findings.counts, findings.examples)
    if SCENARIOS[plan.scenario].company == "pairs":
        checks.append(
            promise_check(
                "whoever lost a connection came back",
                2 * plan.pairs,
                2 * plan.pairs - counts.get("gone_for_good", 0),
                "people",
            )
        )
    return [*checks, invariants_check(asked, violations)]


def _heartbeats(counts: Mapping[str, int]) -> list[Check]:
    beats, online = counts.get("beats", 0), counts.get("looked_at", 0)
    return [
        promise_check("every heartbeat was answered, once", beats, counts.get("heartbeats", 0), "heartbeats"),
        promise_check("whoever beats is online and reachable", online, counts.get("online", 0), "mitras asked for"),
    ]


def _pairings(counts: Mapping[str, int]) -> list[Check]:
    searches, matches = counts.get("searches", 0), counts.get("matches", 0)
    failed = sum(count for name, count in counts.items() if name.startswith(("failed_", "refused_")))
    return [
        promise_check("every search was answered", searches, searches - counts.get("unanswered", 0), "searches"),
        promise_check("every search found a mitra", searches, searches - failed, "searches"),
        promise_check("nobody was matched twice", matches, matches - counts.get("outcomes_repeated", 0), "matches"),
        promise_check(
            "whoever was matched has that session and no other", matches, counts.get("matches_kept", 0), "matches"
        ),
    ]


def _extensions(counts: Mapping[str, int]) -> list[Check]:
    requests, sold = counts.get("requests", 0), counts.get("extensions", 0)
    return [
        promise_check("every request for more time was answered with more time", requests, sold, "requests"),
        promise_check("both sides were told", 2 * requests, counts.get("resumed_both", 0), "people"),
        promise_check(
            "whoever was told has paid once and has the time", sold, counts.get("extensions_kept", 0), "purchases"
        ),
    ]
