"""How values are told to people: moments, durations, money, ids and the words of the wire. The filters of the templates.

What comes in is what `halo/oversight.py` carries: RFC 3339 text, milliseconds, minor units. Plain text comes out, never HTML. Read
next: `halo/net/status/rendering.py`.
"""

from collections.abc import Callable, Mapping
from typing import Any, Final

NOTHING: Final = "–"


def moment(text: str | None) -> str:
    """`2026-11-23 20:15:00 UTC`; the exact one belongs in the `datetime` attribute of a `<time>`."""
    return NOTHING if text is None else f"{text[:10]} {text[11:19]} UTC"


def clock_time(text: str | None) -> str:
    """`20:15:00`, where the day is told elsewhere."""
    return NOTHING if text is None else text[11:19]


def unit_of(milliseconds: int) -> int:
    """The smallest length that `duration` tells of one so long: 1 s, 100 ms or 1 ms."""
    return 1_000 if milliseconds >= 60_000 else 100 if milliseconds >= 1_000 else 1


def duration(milliseconds: int | None) -> str:
    """`1 h 02 min 03 s`, `4 min 05 s`, `12.3 s`, `180 ms`."""
    if milliseconds is None:
        return NOTHING
    sign, left = ("−" if milliseconds < 0 else ""), abs(milliseconds)
    if left < 1_000:
        return f"{sign}{left} ms"
    if left < 60_000:
        return f"{sign}{left / 1000:.1f} s"
    hours, left = divmod(left, 3_600_000)
    minutes, left = divmod(left, 60_000)
    tail = f"{minutes:02d} min {left // 1000:02d} s" if hours else f"{minutes} min {left // 1000:02d} s"
    return f"{sign}{hours} h {tail}" if hours else f"{sign}{tail}"


def money(amount: int, currency: str) -> str:
    """Minor units as they are, grouped: `IDR 10 000`. How many digits are behind a comma is the currency's matter, not ours."""
    return f"{currency} {amount:,}".replace(",", "\N{NARROW NO-BREAK SPACE}")


def count(number: int | None) -> str:
    """`12 345`."""
    return NOTHING if number is None else f"{number:,}".replace(",", "\N{NARROW NO-BREAK SPACE}")


def short_id(text: str | None) -> str:
    """The first eight characters of a UUID, where the whole one is in the link."""
    return NOTHING if text is None else text[:8]


def words(text: str | None) -> str:
    """`pending_payment` as `pending payment`."""
    return NOTHING if text is None else text.replace("_", " ")


_REFUSALS: Final[Mapping[str, str]] = {
    "FORBIDDEN": "that one may not, or the form was not halo's",
    "NOT_FOUND": "there is no such thing",
    "SESSION_NOT_ACTIVE": "the session does not run",
    "INVALID_STATE": "it cannot be done as things are",
    "VALIDATION_ERROR": "what was entered cannot be taken",
    "WRONG_PASSWORD": "the password was wrong",
    "RATE_LIMITED": "too many tries",
    "DRAINING": "halo was stopping",
    "BUSY": "halo was busy",
}


def outcome_told(of: str, code: str | None, times: int) -> str:
    """What became of what somebody tried, behind `done`, `refused` or `attempted`; empty for what is done."""
    if of == "attempted":
        return "what became of it is not known"
    why = [] if code is None else [_REFUSALS.get(code, words(code.lower()))]
    return ", ".join([*why, *([f"{count(times)} times within a minute"] if times > 1 else [])])


FILTERS: Final[dict[str, Callable[..., Any]]] = {
    "moment": moment,
    "clock_time": clock_time,
    "duration": duration,
    "money": money,
    "count_of": count,
    "short_id": short_id,
    "words": words,
    "outcome_told": outcome_told,
}
"""By the names that templates use; `count` itself is Jinja2's own."""
