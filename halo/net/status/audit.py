"""The trail: who did what to whom and when, by whatever way it was done; and what became of it.

It only reads, and there is nothing here by which a row could be changed or taken away. Read next: `halo/net/operations.py`, which writes
it.
"""

from typing import Final

from halo.net.desk import Desk
from halo.net.status import asked
from halo.net.status.section import Context, Section, Visit

PATH: Final = "/audit"
OUTCOMES: Final = ("done", "refused", "attempted")


def audit_section(desk: Desk) -> Section:
    """The page `/audit`."""
    section = Section()

    @section.page(PATH, title="What operators did", template="audit/audit.html", menu="Audit")
    async def audit(visit: Visit) -> Context:  # noqa: ARG001  # the frame tells every page who looks at it
        operator, subject, cursor = asked.text("operator"), asked.text("subject"), asked.number("cursor")
        outcome = asked.choice("outcome", OUTCOMES)
        found = await desk.insight.lookout.list_actions(operator, subject, outcome, asked.ROWS, cursor)
        return {
            "actions": found,
            "operator": operator,
            "subject": subject,
            "outcome": outcome,
            "outcomes": OUTCOMES,
            "next_page": asked.next_page(found[-1].action_id if len(found) == asked.ROWS else None),
            "is_first": cursor is None,
            "now": desk.clock.now(),
        }

    return section
