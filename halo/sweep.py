"""Sweeps: what a run found and did, and when the one that sets mitras offline may believe what it sees.

Pure: moments and facts are handed in. A sweep that is wrong logs everybody out at once, so it must never act on a mirror that has
only just come back, nor at once on a verdict over so many that the mirror is likelier wrong than the mitras. Read next:
`halo/actors/sweeps.py`, which runs them; `halo/availability.py`, which says what is fresh.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Final, Literal

from halo.clock import Moment

SweepName = Literal["auto_offline", "heartbeat_mirror", "reseed"]
"""The three of the specification, as they are called on the wire and in the metrics."""
WaitsFor = Literal["warm_up", "second_opinion"]
"""Why a run that could have set somebody offline did not."""

FIRST_RUN: Final[Mapping[SweepName, float]] = {"auto_offline": 1, "heartbeat_mirror": 5 / 6, "reseed": 14 / 15}
"""After which part of its interval each runs for the first time: with the intervals of the specification (30, 60 and 300 s) never two of a
node within ten seconds. Together they would read and write the same mitras at once, every time."""
DOUBTED_ABOVE: Final = 10
"""So many may go offline at once without a second look: a network that is down takes a handful with it (A3)."""
DOUBTED_SHARE: Final = 0.2
"""Beyond this part of all who are online it is likelier that heartbeats were lost than that people have gone (A3)."""


class MirrorUnavailable(Exception):
    """Valkey does not answer, or what it holds is not to be believed now."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Swept:
    """What one run came to."""

    rows: int
    """Written, or moved, in the store that this sweep mends."""
    waits_for: WaitsFor | None = None
    error: str | None = None
    """What was missing from a run that did the rest of its work all the same."""
    found: Mapping[str, int] = field(default_factory=dict)
    """Counts by kind: of a reseed the drift, of the auto-offline sweep who was online and who was stale."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepReport:
    """One sweep of this node as operators and metrics see it."""

    name: SweepName
    interval_seconds: float
    runs: int = 0
    failures: int = 0
    """Runs with an error."""
    last_run_at: Moment | None = None
    """When the last run ended."""
    duration_ms: int = 0
    rows: int = 0
    error: str | None = None
    """Of the last run; None when it went well."""
    waits_for: WaitsFor | None = None
    found: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Opinion:
    """Who goes offline now, and who only if the next run says so too."""

    offline: frozenset[str]
    doubted: frozenset[str] = frozenset()


def is_doubtful(stale: int, online: int) -> bool:
    """Would setting `stale` of `online` offline need a second opinion?"""
    return stale > DOUBTED_ABOVE and stale > DOUBTED_SHARE * online


def form_opinion(stale: Collection[str], online: int, doubted: Collection[str]) -> Opinion:
    """`doubted` are those about whom the run before, on the same mirror, was in doubt: about them this is the second opinion."""
    if not is_doubtful(len(stale), online):
        return Opinion(offline=frozenset(stale))
    agreed = frozenset(stale).intersection(doubted)
    return Opinion(offline=agreed, doubted=frozenset(stale) - agreed)


def is_warm(known_since: Moment, now: Moment, stale_after_ms: int) -> bool:
    """Has everybody who is there had a whole freshness period to be heard of since `known_since`?"""
    return now - known_since > stale_after_ms
