"""`halo explain`: the timeline of a session as sentences, with the cause and the evidence of each step, and what the watchdog mended.

It must never show what was said, only that it was. Read next: `halo/rules.py`, which wrote the causes down.
"""

import json
from collections.abc import Mapping
from typing import Any, Final

from halo.clock import rfc3339
from halo.session import Session
from halo.store.lookout import Lookout, OperatorAction
from halo.store.postgres import Postgres
from halo.store.sessions import Sessions
from halo.watch import WATCHES

BECAUSE: Final = "because"
"""Where the watchdog writes down the watch that found what it mended; rows from before it did lack it."""


async def explain_session(db: Postgres, session_id: str, *, as_json: bool = False) -> str | None:
    """The story of the session, or None when there is none."""
    sessions = Sessions(db, owner="")
    stored = await sessions.load(session_id)
    if stored is None:
        return None
    session = stored.session
    steps = await sessions.list_timeline(session_id)
    mended = await Lookout(db).list_watchdog_actions(session_id)
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
            {
                "session_id": session_id,
                "status": session.status,
                "end_reason": session.end_reason,
                "timeline": told,
                "watchdog": [
                    {
                        "at": rfc3339(action.at),
                        "action": action.action,
                        "subject": action.subject,
                        "because": action.details.get(BECAUSE),
                        "evidence": _evidence_of(action),
                    }
                    for action in reversed(mended)
                ],
            }
        )
    lines = [
        f"session {session_id}: {session.status}" + (f" ({session.end_reason})" if session.end_reason else ""),
        f"{_accounts(session)}; {session.paid_amount} {session.currency} charged; {stored.last_seq} messages",
    ]
    story = [(step.at, 0, step.version, _sentence(step)) for step in steps]
    story += [
        (action.at, 1, action.action_id, _mended(action)) for action in mended
    ]  # of one moment: after what it found
    return "\n".join([*lines, *(sentence for *_, sentence in sorted(story))])


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


def _mended(action: OperatorAction) -> str:
    because = action.details.get(BECAUSE)
    cause = "of what was not written down" if because is None else str(because)
    if because in WATCHES:
        cause += f" ({WATCHES[str(because)].sentence})"
    evidence = ", ".join(f"{key} {value}" for key, value in {"subject": action.subject, **_evidence_of(action)}.items())
    return f"{rfc3339(action.at)}  {action.operator:<20} {action.action:<24} because {cause}  [{evidence}]"


def _evidence_of(action: OperatorAction) -> Mapping[str, Any]:
    return {key: value for key, value in action.details.items() if key not in {BECAUSE, "session_id"}}
