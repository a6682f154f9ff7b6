"""Sessions: the list with its search, one session with everything that was decided about it and why, and ending or handing it on.

What was said is not here: that has an action of its own, with a reason. It must never end or move anything by a look. Read next:
`halo/net/operations.py`, `halo/net/status/telling.py`, `halo/net/status/messages.py`.
"""

from collections.abc import Sequence
from typing import Final

from halo.accounts import in_whole_units
from halo.clock import Moment
from halo.net.desk import Desk
from halo.net.operations import Operations
from halo.net.status import asked
from halo.net.status.section import Context, Done, Section, Visit
from halo.net.status.telling import milliseconds
from halo.net.status.wording import unit_of
from halo.oversight import Accounts, TimelineEntry
from halo.routes import SESSION_FILTERS
from halo.session import EndReason, SessionStatus
from halo.store.lookout import PREFIX_CHARACTERS_MIN, OperatorAction, SessionFilter

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
            "things": []
            if wanted.beginning is None or cursor
            else await desk.insight.lookout.list_things(wanted.beginning),
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
        session_id = visit.places["session_id"]
        record = await desk.operators.load_session(session_id)
        now = desk.clock.now()
        parked = {each.session_id: each for each in desk.insight.parked()}
        return {
            "record": record,
            "story": story(record.timeline, await desk.insight.lookout.list_watchdog_actions(session_id)),
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


def story(
    timeline: Sequence[TimelineEntry], mended: Sequence[OperatorAction]
) -> list[tuple[TimelineEntry | None, OperatorAction | None]]:
    """The steps of a session and what the watchdog did to it, newest first, one of the two in each. Of the same millisecond the repair is
    told as the later one: the step may be what it found."""
    told: list[tuple[Moment, int, int, TimelineEntry | None, OperatorAction | None]] = [
        *((milliseconds(step.at), 0, step.version, step, None) for step in timeline),
        *((action.at, 1, action.action_id, None, action) for action in mended),
    ]
    return [(step, action) for *_, step, action in sorted(told, key=lambda each: each[:3], reverse=True)]


def slices(accounts: Accounts) -> list[Slice]:
    """The four accounts side by side, told in units in which they add up; nothing was paid, nothing is drawn."""
    parts = {
        "served": accounts.served_ms,
        "refunded": accounts.refunded_ms,
        "forfeited": accounts.forfeited_ms,
        "remaining": accounts.remaining_ms,
    }
    lengths = in_whole_units(tuple(parts.values()), unit_of(sum(parts.values())))
    found, x = [], 0.0
    for (name, length_ms), told_ms in zip(parts.items(), lengths, strict=True):
        width = length_ms / accounts.paid_ms * BAR_WIDTH if accounts.paid_ms else 0.0
        found.append((name, told_ms, round(x, 2), round(width, 2)))
        x += width
    return found
