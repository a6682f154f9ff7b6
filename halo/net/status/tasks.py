"""The tree of tasks as it really is, which daemons and sessions have crashed, and parked sessions with a button to try them again.

The tree is Trio's own, walked anew for each look. It must never show the text of an error. Read next: `halo/actors/task_tree.py`,
`halo/actors/upkeep.py`, `halo/server.py`.
"""

from typing import Final

import trio

from halo.actors.task_tree import FOUND_AT_MOST, draw_tree, find_tasks
from halo.net.desk import Desk
from halo.net.operations import Operations
from halo.net.status import asked
from halo.net.status.section import Context, Done, Section, Visit
from halo.watch import Repair

PATH: Final = "/tasks"
LISTED_AT_MOST: Final = 100
"""Crashed and parked sessions on the page; when there are more, their number says enough."""


def tasks_section(desk: Desk) -> Section:
    """The page `/tasks`, and the action that revives."""
    section, operations, insight = Section(), Operations(desk), desk.insight

    @section.page(PATH, title="Tasks", template="tasks/tasks.html", menu="Tasks")
    async def tasks(visit: Visit) -> Context:  # noqa: ARG001  # the frame tells every page who looks at it
        wanted = asked.text("q")
        parked, crashed = insight.parked(), insight.crashed()
        return {
            "wanted": wanted,
            "found": None if wanted is None else await find_tasks(wanted),
            "found_at_most": FOUND_AT_MOST,
            "tree": await draw_tree() if wanted is None else None,
            "living": trio.lowlevel.current_statistics().tasks_living,
            "daemons": insight.daemons(),
            "parked": parked[:LISTED_AT_MOST],
            "parked_count": len(parked),
            "crashed": crashed[:LISTED_AT_MOST],
            "crashed_count": len(crashed),
            "now": desk.clock.now(),
        }

    @section.action("/tasks/{session_id}/revive", name=Repair.REVIVE.value, done="The session runs again.")
    async def revive(visit: Visit) -> Done:
        await operations.revive_session(visit.places["session_id"], visit.operator)
        return Done(PATH)

    return section
