"""The overview and the last hour: what lives now, what is wrong, and how it went, on pages that renew themselves.

Whoever looks shares one answer of the stores for a moment, so that ten open pages cost what one costs. It only reads. Read next:
`halo/net/operations.py`, `halo/store/lookout.py`, `halo/net/status/charts.py`.
"""

from dataclasses import dataclass
from typing import Final

from halo.clock import Moment
from halo.net.desk import Desk
from halo.net.operations import Operations
from halo.net.status.charts import SERIES, Chart, draw, tabulate
from halo.net.status.insight import Insight
from halo.net.status.section import Context, Section, Visit
from halo.oversight import Overview
from halo.store.lookout import Census
from halo.store.shared_answer import SharedAnswer
from halo.watch import WatchReport

KEPT_SECONDS: Final = 2.0
"""Pages renew themselves every five; an answer that is two seconds old tells people the same."""

ROUNDS_MISSED: Final = 3
"""One that is long in asking is no news; of three in a row somebody should know."""


@dataclass(frozen=True, slots=True)
class Shown:
    """What the stores said, at one time."""

    overview: Overview
    census: Census


class Plots:
    """The charts, drawn once for each sample: the line moves every ten seconds, and pages ask more often."""

    def __init__(self, insight: Insight) -> None:
        self._insight = insight
        self._drawn: tuple[int, tuple[Chart, ...]] | None = None

    def draw(self, now: int) -> tuple[Chart, ...]:
        samples = self._insight.samples()
        latest = samples[-1].at if samples else 0
        if self._drawn is None or self._drawn[0] != latest:
            self._drawn = latest, draw(samples, latest or now)
        return self._drawn[1]


def is_late(watch: WatchReport, now: Moment) -> bool:
    """Whether the watchdog has missed rounds; before its first one nobody knows."""
    return watch.last_round_at is not None and now - watch.last_round_at > ROUNDS_MISSED * watch.interval_seconds * 1000


def overview_section(desk: Desk) -> Section:
    """The pages `/` and `/last-hour`."""
    section, operations, insight = Section(), Operations(desk), desk.insight
    plots = Plots(insight)

    async def ask() -> Shown:
        return Shown(
            await operations.overview(), await insight.lookout.load_census(desk.clock.now(), insight.heard_since())
        )

    shared = SharedAnswer(ask, KEPT_SECONDS)

    @section.page("/", title="Overview", template="overview/overview.html", menu="Overview")
    async def overview(visit: Visit) -> Context:  # noqa: ARG001  # the same for everybody
        shown, samples, now = await shared.load(), insight.samples(), desk.clock.now()
        return {
            "overview": shown.overview,
            "census": shown.census,
            "living": sum(count for status, count in shown.overview.sessions.items() if status != "ended"),
            "latest": samples[-1] if samples else None,
            "parked": len(insight.parked()),
            "crashed": len(insight.crashed()),
            "watched_at": insight.watch.last_round_at,
            "watch_is_late": is_late(insight.watch, now),
            "charts": plots.draw(now),
            "now": now,
        }

    @section.page("/last-hour", title="The last hour", template="overview/last_hour.html")
    async def last_hour(visit: Visit) -> Context:  # noqa: ARG001
        now = desk.clock.now()
        return {
            "charts": plots.draw(now),
            "rows": tabulate(insight.samples(), now),
            "series": SERIES,
            "now": now,
        }

    return section
