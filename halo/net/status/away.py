"""What the status page can still say while Postgres does not answer: which store is away, how the other is, and how things stood last.

Who has signed in stands in Postgres, so nobody can be told from a stranger then; what is shown here are sums that `/metrics` gives to
every program of this machine anyway. It must never show an id, a name or a row, nor wait for a store any longer than a moment. Read
next: `halo/net/status/frame.py`, `halo/actors/history.py`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import trio

from halo.actors.history import Sample
from halo.clock import Moment
from halo.net.desk import Desk

ASK_SECONDS: Final = 1.0
"""As `/readyz` does; whoever sees this page has waited for the store's own deadline already."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Away:
    """How the stores are, and what was known of this node."""

    answers: bool
    """Postgres is back by now: whatever failed may be tried again."""
    answered_at: Moment | None
    """When Postgres last did, of the figures that are kept; None when none of them knows."""
    valkey_is_believed: bool
    latest: Sample | None
    """The figures of the last ten seconds; those that came from Postgres are missing in it."""
    mitras_available: int | None
    """The last time that somebody could count them."""
    watched_at: Moment | None
    """The watchdog's last round."""
    alarms: int
    now: Moment


async def look_around(desk: Desk) -> Away:
    """Takes `ASK_SECONDS` at most, and raises nothing."""
    answers, samples = False, desk.insight.samples()
    with trio.move_on_after(ASK_SECONDS):
        answers = await desk.store_answers()
    return Away(
        answers=answers,
        answered_at=next((sample.at for sample in reversed(samples) if sample.postgres_ms is not None), None),
        valkey_is_believed=desk.mirror.trusted,
        latest=samples[-1] if samples else None,
        mitras_available=_last_counted(samples),
        watched_at=desk.insight.watch.last_round_at,
        alarms=len(desk.alarms()),
        now=desk.clock.now(),
    )


def _last_counted(samples: Sequence[Sample]) -> int | None:
    return next((each.mitras_available for each in reversed(samples) if each.mitras_available is not None), None)
