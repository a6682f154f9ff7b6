"""Whether a run held: its checks, each with what it found, and whether the harness measured itself instead of the server. PURE.

A check is never skipped in silence: what could not be asked says so. It must never call a run good that is not whole. Read next:
`halo/load/record.py`, which keeps it.
"""

from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Final

import msgspec

from halo.load.ledger import Kind

LATE_US: Final = 10_000
"""Our own loop may be as late as this at the 99th percentile whatever is measured: two turns of the machine's scheduler."""
LATE_SHARE: Final = 0.25
"""Or a quarter of what is measured; then three quarters are the server's."""
BUSY_SHARE: Final = 0.9
"""Of a core: a process that has no more to give sends less than it was told to."""


class Outcome(StrEnum):
    HELD = "held"
    FAILED = "failed"
    NOT_ASKED = "not asked"


class Check(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that must hold."""

    name: str
    outcome: Outcome
    fact: str
    examples: tuple[str, ...] = ()


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """All checks, and whether the figures may be believed."""

    checks: tuple[Check, ...]
    is_whole: bool
    """False when the run was ended before its plan was played."""
    harness_bound: tuple[str, ...] = ()
    """Why the figures are the harness' rather than the server's; empty when they are not."""

    @property
    def held(self) -> bool:
        return not any(check.outcome is Outcome.FAILED for check in self.checks)

    @property
    def status(self) -> int:
        """For the shell: 1 a check failed, 130 it was ended early, 3 harness-bound, 0 otherwise; the gravest first."""
        if not self.held:
            return 1
        if not self.is_whole:
            return 130
        return 3 if self.harness_bound else 0


_SENTENCES: Final[Mapping[Kind, str]] = {
    Kind.MISSING: "everything acknowledged is in the history",
    Kind.UNDELIVERED: "everything acknowledged reached the other side",
    Kind.REPEATED: "nothing came, was acknowledged or is stored twice",
    Kind.DISORDERED: "seq came without a gap and in order on every socket, and in the history",
    Kind.ALTERED: "ids, seq and bodies agree wherever they appear",
}


def message_checks(
    counts: Mapping[str, int], findings: Mapping[str, int], examples: Mapping[str, Sequence[str]]
) -> list[Check]:
    """What the books say."""
    checks = []
    acks = counts.get("acks", 0)
    for kind, sentence in _SENTENCES.items():
        found = findings.get(kind, 0)
        checks.append(
            Check(
                name=sentence,
                outcome=Outcome.FAILED if found else Outcome.HELD if acks else Outcome.NOT_ASKED,
                fact=f"{found:,} times not" if found else f"{acks:,} acknowledged messages",
                examples=tuple(examples.get(kind, ())),
            )
        )
    said, unanswered = counts.get("said", 0), counts.get("unanswered", 0)
    checks.append(_counted("every message was answered", said, unanswered, "messages"))
    return checks


def promise_check(name: str, asked: int, kept: int, what: str) -> Check:
    """So many were asked for, and each must have come."""
    return _counted(name, asked, asked - kept, what)


def _counted(name: str, asked: int, missing: int, what: str) -> Check:
    return Check(
        name=name,
        outcome=Outcome.NOT_ASKED if not asked else Outcome.FAILED if missing else Outcome.HELD,
        fact=f"{missing:,} of {asked:,} {what} not" if missing else f"{asked:,} {what}",
    )


def invariants_check(asked: int, violations: Sequence[str]) -> Check:
    """What Postgres says of everything that it holds."""
    if not asked:
        return Check(
            name="the invariants hold in the database",
            outcome=Outcome.NOT_ASKED,
            fact="no database to ask: give HALO_DATABASE_URL",
        )
    return Check(
        name="the invariants hold in the database",
        outcome=Outcome.FAILED if violations else Outcome.HELD,
        fact=f"{len(violations)} places where not" if violations else f"{asked} invariants",
        examples=tuple(violations),
    )


def harness_bounds(lateness_p99_us: int, figure_p99_us: int, busiest_share: float) -> tuple[str, ...]:
    """Why the figures are not the server's: the loop's own lateness beside the figure, and the busiest process' share of a core."""
    reasons = []
    if lateness_p99_us > LATE_US and lateness_p99_us > LATE_SHARE * figure_p99_us:
        reasons.append(
            f"the harness was itself late by {lateness_p99_us / 1000:.1f} ms at the 99th percentile, of {figure_p99_us / 1000:.1f} ms measured"
        )
    if busiest_share > BUSY_SHARE:
        reasons.append(
            f"a load process used {busiest_share:.0%} of a core, so it could not send more; try more --processes"
        )
    return tuple(reasons)
