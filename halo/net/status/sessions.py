"""Sessions: the list with its search, one session with everything that was decided about it and why, and ending or handing it on.

What was said is not here: that has an action of its own, with a reason. It must never end or move anything by a look. Read next:
`halo/net/operations.py`, `halo/net/status/telling.py`, `halo/net/status/messages.py`.
"""

from typing import Final

from halo.net.desk import Desk
from halo.net.operations import Operations
from halo.net.status import asked
from halo.net.status.section import Context, Done, Section, Visit
from halo.oversight import Accounts
from halo.routes import SESSION_FILTERS
from halo.session import EndReason, SessionStatus
from halo.store.lookout import PREFIX_CHARACTERS_MIN, SessionFilter

PATH: Final = "/sessions"
TOPICS: Final = ("regular", "sensitive")
BAR_WIDTH: Final = 600
"""Of the drawing of the accounts, in its own units."""

Slice = tuple[str, int, float, float]
"""An account: its name, its milliseconds, where it begins in the drawing and how wide it is."""


def sessions_section(desk: Desk) -> Section:
    """The pages `/sessions` and `/sessions/<id>`, and what can be done there."""
    section, operations = Section(), Operations(desk)

    @section.page(PATH, title="Sessions", template="sessions/list.html", menu="Sessions")
    async def sessions(visit: Visit) -> Context:  # noqa: ARG001  # the frame tells every page who looks at it
        now = desk.clock.now()
        span, since = asked.since("within", now)
        wanted = SessionFilter(
            status=asked.choice("status", SESSION_FILTERS),
            end_reason=asked.choice("end_reason", [reason.value for reason in EndReason]),
            topic=asked.choice("topic", TOPICS),
            since=since,
            beginning=asked.beginning("q", PREFIX_CHARACTERS_MIN),
        )
        cursor = asked.identifier("cursor")
        found = await desk.insight.lookout.list_sessions(wanted, asked.ROWS, cursor)
        return {
            "sessions": found,
            "wanted": wanted,
            "span": span,
            "statuses": SESSION_FILTERS,
            "reasons": [reason.value for reason in EndReason],
            "topics": TOPICS,
            "spans": list(asked.SPANS),
            "next_page": asked.next_page(found[-1].session_id if len(found) == asked.ROWS else None),
            "is_first": cursor is None,
            "now": now,
        }

    @section.page(PATH + "/{session_id}", title="Session", template="sessions/session.html")
    async def session(visit: Visit) -> Context:
        record = await desk.operators.load_session(visit.places["session_id"])
        now = desk.clock.now()
        parked = {each.session_id: each for each in desk.insight.parked()}
        return {
            "record": record,
            "session": record.session,
            "is_living": record.session.status != SessionStatus.ENDED,
            "is_active": record.session.status == SessionStatus.ACTIVE,
            "slices": slices(record.accounts),
            "bar_width": BAR_WIDTH,
            "parked": parked.get(record.session.session_id),
            "now": now,
        }

    _confirmed(section, desk, operations)
    return section


def _confirmed(section: Section, desk: Desk, operations: Operations) -> None:
    """What is asked about once more, and then done."""

    async def asking(visit: Visit) -> Context:
        record = await desk.operators.load_session(visit.places["session_id"])
        return {"session": record.session, "now": desk.clock.now()}

    end, transfer = PATH + "/{session_id}/end", PATH + "/{session_id}/transfer"
    section.page(end, title="End this session?", template="sessions/end.html")(asking)
    section.page(transfer, title="Hand this session on?", template="sessions/transfer.html")(asking)

    @section.action(end, name="end_session", done="The session has ended.")
    async def end_session(visit: Visit) -> Done:
        await operations.end_session(visit.places["session_id"], visit.operator)
        return Done(f"{PATH}/{visit.places['session_id']}")

    @section.action(transfer, name="transfer_session", done="Another mitra is sought for the session.")
    async def transfer_session(visit: Visit) -> Done:
        await operations.transfer_session(visit.places["session_id"], visit.operator)
        return Done(f"{PATH}/{visit.places['session_id']}")


def slices(accounts: Accounts) -> list[Slice]:
    """The four accounts side by side; nothing was paid, nothing is drawn."""
    parts = {
        "served": accounts.served_ms,
        "refunded": accounts.refunded_ms,
        "forfeited": accounts.forfeited_ms,
        "remaining": accounts.remaining_ms,
    }
    found, x = [], 0.0
    for name, length_ms in parts.items():
        width = length_ms / accounts.paid_ms * BAR_WIDTH if accounts.paid_ms else 0.0
        found.append((name, length_ms, round(x, 2), round(width, 2)))
        x += width
    return found
