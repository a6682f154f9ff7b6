"""What was said in a session, for an operator who gave a reason: one action, whose answer is the only place where it is shown.

The reason and the name are durable before a line is read. It is an answer to a POST, in no cache and under no address that could be
kept or passed on. It must never be reached by a viewer, nor show a text anywhere else. Read next: `halo/net/operations.py`.
"""

from typing import Final

from halo.clock import rfc3339
from halo.errors import ValidationFailed
from halo.net.desk import Desk
from halo.net.operations import Operations
from halo.net.status.section import Section, Shown, Visit
from halo.routes import MESSAGES_PER_PAGE_MAX

ACTION_PATH: Final = "/sessions/{session_id}/messages"
_SEQ_DIGITS_MAX: Final = 15


def messages_section(desk: Desk) -> Section:
    """The action that reads; its form, with `reason`, stands on the session's page."""
    section, operations = Section(), Operations(desk)

    @section.action(ACTION_PATH, name="read_messages", done="")
    async def read_messages(visit: Visit) -> Shown:
        session_id, reason = visit.places["session_id"], visit.reason()
        after_seq = _seq(visit.form.get("after_seq", "0"))
        rows = await operations.read_messages(session_id, visit.operator, reason, after_seq)
        messages = [
            {"seq": row.seq, "sender": row.sender.replace(":", " "), "body": row.body, "at": rfc3339(row.at)}
            for row in rows
        ]
        context = {
            "session_id": session_id,
            "reason": reason,
            "messages": messages,
            "next_after": messages[-1]["seq"] if len(messages) == MESSAGES_PER_PAGE_MAX else None,
        }
        return Shown("messages.html", context, "What was said")

    return section


def _seq(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= _SEQ_DIGITS_MAX):
        raise ValidationFailed("Messages are numbered from 1.")
    return int(text)
