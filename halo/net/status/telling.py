"""How decisions and ages are told on the status page: causes and evidence as sentences, moments with how long ago they were.

What is not known here is told in its own words rather than left out, so that a new kind of evidence is seen before somebody words it.
Plain text comes out, never HTML. Read next: `halo/net/status/wording.py`, `halo/rules.py`, which writes the evidence down.
"""

from collections.abc import Callable, Mapping
from datetime import datetime
from functools import partial
from typing import Any, Final

import msgspec

from halo.clock import Moment, rfc3339
from halo.net.status.wording import NOTHING, count, duration, moment, words
from halo.watch import WATCHES, Repair

_SECOND, _MINUTE, _HOUR, _DAY = 1_000, 60_000, 3_600_000, 86_400_000

CAUSES: Final[Mapping[str, str]] = {
    "payment_pending": "the payment is still waited for",
    "payment_confirmed": "the payment was confirmed",
    "payment_failed": "the payment failed",
    "payment_hold_over": "the payment did not come in time",
    "time_up": "the paid time was used up",
    "grace_over": "the time for goodbyes was over",
    "customer": "the customer wished it",
    "mitra": "the mitra wished it",
    "admin": "an operator wished it",
    "deactivation": "the mitra was deactivated",
    "mitra_accepted": "the mitra accepted",
    "mitra_refused": "the mitra refused",
    "policy_approved": "nobody answered in time, and the policy approves while the mitra is there",
    "policy_rejected": "nobody answered in time, and the policy rejects",
    "safeguard_tripped": "nobody answered in time, and the mitra was not there, so that nothing was charged",
    "mitra_silent": "the mitra had been silent for too long",
    "transfer": "an operator handed it on",
    "offer_accepted": "another mitra accepted",
    "no_mitra": "no other mitra was found",
    "no_owner": "no node had kept its clock, and the time was given back",
}


DECIDERS: Final[Mapping[str, tuple[str, str]]] = {
    "answered": ("the mitra", ""),
    "timeout": ("the policy", ", because nobody answered"),
    "safeguard": ("the safeguard", ", because the mitra was not there"),
    "cancelled": ("the customer", ", who took it back"),
    "session_ended": ("the end of the session", ""),
    "payment_failed": ("a payment that failed", ""),
}
"""Who decided about an extension, and why not the mitra; by what stands in its row."""

REPAIRS: Final[Mapping[str, str]] = {
    Repair.TAKE_UP: "a node took the session up, which nobody kept",
    Repair.NUDGE: "the session's actor was told to look at what is due",
    Repair.REVIVE: "the parked actor got one more attempt",
    Repair.RESTORE_SEARCHES: "a search that nobody kept was taken up",
    Repair.REOPEN_SEARCH: "a search for another mitra was opened anew",
    Repair.CLOSE_SEARCH: "a search that had outlived its session was closed",
    Repair.CANCEL_EXTENSION: "a stray request for more time was cancelled",
    Repair.FAIL_PAYMENT: "a payment that had stayed undecided failed",
    Repair.ADD_REFUND: "a refund that was missing was written",
    Repair.REFRESH_CAPACITY: "Valkey was told anew how many sessions the mitra has",
    Repair.RESEED_MIRROR: "Valkey was told anew who is there",
}
"""What the watchdog did, as half a sentence."""


def decider(text: str) -> str:
    """Who decided about an extension."""
    return DECIDERS[text][0] if text in DECIDERS else words(text)


def why_decided(text: str) -> str:
    """What is to be said behind the decider."""
    return DECIDERS[text][1] if text in DECIDERS else ""


def repair(action: str) -> str:
    """What the watchdog did."""
    return REPAIRS.get(action, words(action))


def found(details: Any) -> str:
    """What the watchdog had found; rows from before it wrote that down say nothing."""
    because = details.get("because") if isinstance(details, Mapping) else None
    if because is None:
        return "what it found was not written down"
    watch = WATCHES.get(str(because))
    return words(str(because)) if watch is None else f"{words(watch.name)}: {watch.sentence}"


def without_cause(details: Any) -> Any:
    """The evidence of a repair: what it says besides why, and besides the session on whose page it stands."""
    if not isinstance(details, Mapping):
        return details
    return {name: value for name, value in details.items() if name not in {"because", "session_id"}}


def cause(text: str) -> str:
    """Why a step was taken, as half a sentence after `because`."""
    return CAUSES.get(text, words(text))


def _heartbeat(value: Any) -> str:
    return "no heartbeat was known" if value is None else f"her last heartbeat was {duration(value)} old"


def _socket(value: Any) -> str:
    return "no socket of hers had answered" if value is None else f"her socket had answered {duration(value)} before"


def _offers(status: str, value: Any) -> str:
    return f"{value} {words(status)}"


_EVIDENCE: Final[Mapping[str, Callable[[Any], str]]] = {
    "mitra_online": lambda value: f"the mitra was {'online' if value else 'not online'}",
    "heartbeat_age_ms": _heartbeat,
    "heartbeat_fresh": lambda value: "which counted as fresh" if value else "which did not count as fresh",
    "mitra_connected": lambda value: "she was connected" if value else "she was not connected",
    "socket_answered_age_ms": _socket,
    "source": lambda value: f"as {'Valkey' if value == 'mirror' else 'Postgres'} knew it",
    "default_action_on_timeout": lambda value: f"what silence meant: {words(str(value))}",
    "refusal_outcome": lambda value: f"after a refusal: {words(str(value))}",
    "timeout_seconds": lambda value: f"{value} s to answer",
    "duration_minutes": lambda value: f"{value} minutes",
    "price": lambda value: f"for {count(value)} minor units",
    "config_version": lambda value: f"under version {value} of the configuration",
    "deadline_at": lambda value: f"the deadline was {_exact(value)}",
    "not_before": lambda value: f"no deadline before {_exact(value)}",
    "downtime_ms": lambda value: f"{duration(value)} without a clock",
    "silent_ms": lambda value: f"silent for {duration(value)}",
    "waves": lambda value: "one wave of offers" if value == 1 else f"{value} waves of offers",
    **{
        status: partial(_offers, status)
        for status in ("open", "accepted", "declined", "taken", "cancelled", "timed_out")
    },
    "remaining_ms": lambda value: f"{duration(value)} of paid time were left",
    "grace_left_ms": lambda value: f"{duration(value)} of the grace were left",
    "asked_at": lambda value: f"asked at {_exact(value)}",
    "decided_at": lambda value: f"decided at {_exact(value)}",
    "payment_status": lambda value: f"its payment was {words(str(value))}",
    "time_left": lambda value: f"the time left was {value}",
    "by": lambda value: f"by the {value}",
}


def evidence(facts: Any) -> str:
    """`the mitra was online; her last heartbeat was 4.2 s old; …`, or nothing. Ids are left to `ids`."""
    if not isinstance(facts, Mapping):
        return "" if facts in (None, "") else str(facts)
    rank = {name: number for number, name in enumerate(_EVIDENCE)}
    names = sorted(facts, key=lambda name: rank.get(name, len(rank)))  # JSON in Postgres keeps no order
    return "; ".join(_fact(name, facts[name]) for name in names if not _is_id(facts[name]))


def ids(facts: Any) -> list[tuple[str, str]]:
    """What the evidence names by an id: `(what, id)`."""
    if not isinstance(facts, Mapping):
        return []
    return [(words(str(name).removesuffix("_id")), value) for name, value in facts.items() if _is_id(value)]


def _fact(name: str, value: Any) -> str:
    told = _EVIDENCE.get(name)
    if told is not None:
        try:
            return told(value)
        except (TypeError, ValueError):  # an older or a foreign row
            pass
    return f"{words(str(name))}: {value}"


def _is_id(value: Any) -> bool:
    return isinstance(value, str) and len(value) == 36 and value.count("-") == 4


def _exact(text: Any) -> str:
    return f"{str(text)[11:23]} UTC"


def as_json(value: Any) -> str:
    """What has no words of its own, as it is stored."""
    return msgspec.json.encode(value).decode()


# ---- moments


def milliseconds(at: Moment | str) -> Moment:
    """Of either form in which moments come."""
    return at if isinstance(at, int) else round(datetime.fromisoformat(at).timestamp() * 1000)


def iso(at: Moment | str | None) -> str:
    """For the `datetime` attribute."""
    return "" if at is None else rfc3339(at) if isinstance(at, int) else at


def at_utc(at: Moment | str | None) -> str:
    """`2026-11-23 20:15:00 UTC`."""
    return moment(iso(at) or None)


def age(at: Moment | str | None, now: Moment) -> str:
    """`just now`, `12 s ago`, `5 min ago`, `3 h ago`, `2 d ago`; `in 40 s` for what is to come."""
    if at is None:
        return NOTHING
    passed = now - milliseconds(at)
    told = _about(abs(passed))
    if told is None:
        return "just now"
    return f"{told} ago" if passed > 0 else f"in {told}"


def _about(length_ms: int) -> str | None:
    if length_ms < _SECOND:
        return None
    for unit, name, below in ((_SECOND, "s", 2 * _MINUTE), (_MINUTE, "min", 2 * _HOUR), (_HOUR, "h", 2 * _DAY)):
        if length_ms < below:
            return f"{length_ms // unit} {name}"
    return f"{length_ms // _DAY} d"


FILTERS: Final[Mapping[str, Callable[..., Any]]] = {
    "cause": cause,
    "decider": decider,
    "why_decided": why_decided,
    "repair": repair,
    "found": found,
    "without_cause": without_cause,
    "evidence": evidence,
    "ids_in": ids,
    "iso": iso,
    "at_utc": at_utc,
    "age": age,
    "as_json": as_json,
    "is_id": _is_id,
}
"""By the names that templates use."""
