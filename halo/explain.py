"""`halo explain`: the timeline of a session as sentences, with the cause and the evidence of each step.

It must never show what was said, only that it was. Read next: `halo/rules.py`, which wrote the causes down.
"""

import json
from typing import Any

from halo.clock import rfc3339
from halo.session import Session
from halo.store.postgres import Postgres
from halo.store.sessions import Sessions


async def explain_session(db: Postgres, session_id: str, *, as_json: bool = False) -> str | None:
    """The story of the session, or None when there is none."""
    sessions = Sessions(db, owner="")
    stored = await sessions.load(session_id)
    if stored is None:
        return None
    session = stored.session
    steps = await sessions.list_timeline(session_id)
    if as_json:
        told = [
            {
                "version": step.version,
                "epoch": step.epoch,
                "at": rfc3339(step.at),
                "event": step.event,
                "from": step.from_status,
                "to": step.to_status,
                "cause": step.cause,
                "evidence": step.evidence,
            }
            for step in steps
        ]
        return json.dumps(
            {"session_id": session_id, "status": session.status, "end_reason": session.end_reason, "timeline": told}
        )
    lines = [
        f"session {session_id}: {session.status}" + (f" ({session.end_reason})" if session.end_reason else ""),
        f"{_accounts(session)}; {session.paid_amount} {session.currency} charged; {stored.last_seq} messages",
    ]
    lines += [_sentence(step) for step in steps]
    return "\n".join(lines)


def _accounts(session: Session) -> str:
    served, refunded, forfeited = (
        part / 1000 for part in (session.served_ms, session.refunded_ms, session.forfeited_ms)
    )
    left = session.remaining_ms / 1000
    return f"paid {session.paid_ms / 1000:g} s = served {served:g} + refunded {refunded:g} + forfeited {forfeited:g} + remaining {left:g}"


def _sentence(step: Any) -> str:
    way = step.to_status if step.from_status in {None, step.to_status} else f"{step.from_status} → {step.to_status}"
    evidence = ", ".join(f"{key} {value}" for key, value in step.evidence.items())
    return f"{rfc3339(step.at)}  {step.event:<20} {way:<24} because {step.cause}" + (
        f"  [{evidence}]" if evidence else ""
    )
