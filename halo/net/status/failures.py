"""Why searches came to nothing, and, apart from them, how extensions were decided: sums by cause, and the rows behind them.

A refused extension is no failed search: one is money that nobody paid, the other a customer who found nobody. It only reads. Read next:
`halo/store/lookout.py`, `halo/net/status/telling.py`.
"""

from typing import Final

from halo.net.desk import Desk
from halo.net.status import asked
from halo.net.status.section import Context, Section, Visit
from halo.session import ExtensionStatus, FailureCause

FAILURES_PATH: Final = "/pairing-failures"
OUTCOMES_PATH: Final = "/extension-outcomes"
CAUSES: Final = tuple(cause.value for cause in FailureCause if not cause.value.startswith("extension_"))
STATUSES: Final = tuple(status.value for status in ExtensionStatus if status is not ExtensionStatus.PENDING)


def failures_section(desk: Desk) -> Section:
    """The pages `/pairing-failures` and `/extension-outcomes`."""
    section, lookout = Section(), desk.insight.lookout

    @section.page(FAILURES_PATH, title="Pairing failures", template="failures/failures.html", menu="Failures")
    async def failures(visit: Visit) -> Context:  # noqa: ARG001  # the frame tells every page who looks at it
        now = desk.clock.now()
        cause, cursor = asked.choice("cause", CAUSES), asked.number("cursor")
        found = await lookout.list_failures(cause, asked.ROWS, cursor)
        return {
            "counts": await lookout.count_failures(now),
            "outcomes": await lookout.count_outcomes(now),
            "failures": found,
            "causes": CAUSES,
            "cause": cause,
            "next_page": asked.next_page(found[-1].failure_id if len(found) == asked.ROWS else None),
            "is_first": cursor is None,
            "now": now,
        }

    @section.page(OUTCOMES_PATH, title="Extension outcomes", template="failures/outcomes.html", menu="Extensions")
    async def outcomes(visit: Visit) -> Context:  # noqa: ARG001
        now = desk.clock.now()
        status, cursor = asked.choice("status", STATUSES), asked.identifier("cursor")
        found = await lookout.list_outcomes(status, asked.ROWS, cursor)
        return {
            "counts": await lookout.count_outcomes(now),
            "outcomes": found,
            "statuses": STATUSES,
            "status": status,
            "next_page": asked.next_page(found[-1].extension_id if len(found) == asked.ROWS else None),
            "is_first": cursor is None,
            "now": now,
        }

    return section
