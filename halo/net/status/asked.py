"""What a list was asked for by its address: filters that a person has typed or chosen, and the page of the list.

A form sends its empty fields, too, so empty means not asked for; what cannot be meant is refused in a sentence. It must never hand on a
text that was not looked at. Read next: `halo/net/body.py`, which reads what programs send.
"""

import re
from collections.abc import Collection, Mapping
from typing import Final
from urllib.parse import urlencode
from uuid import UUID

from quart import request

from halo.clock import Moment
from halo.errors import ValidationFailed

ROWS: Final = 50
"""Of a list on one page: some 20 KB of HTML, and 3 ms of the event loop."""
SPANS: Final[Mapping[str, int]] = {
    "hour": 3_600_000,
    "day": 86_400_000,
    "week": 7 * 86_400_000,
    "month": 30 * 86_400_000,
}
"""How far back a list may be asked to go, in milliseconds."""

_TEXT_CHARACTERS_MAX: Final = 100
_NUMBER: Final = re.compile(r"[0-9]{1,15}", re.ASCII)
_ID_BEGINNING: Final = re.compile(r"[0-9a-fA-F-]{1,36}", re.ASCII)


def text(name: str) -> str | None:
    """What stands in a field, without spaces around it. Raises `ValidationFailed`."""
    given = request.args.get(name, "").strip()
    if len(given) > _TEXT_CHARACTERS_MAX or "\0" in given:
        raise ValidationFailed(f"{name}: at most {_TEXT_CHARACTERS_MAX} characters.")
    return given or None


def choice(name: str, values: Collection[str]) -> str | None:
    """One of `values`. Raises `ValidationFailed`."""
    given = text(name)
    if given is not None and given not in values:
        raise ValidationFailed(f"{name}: expected one of {', '.join(values)}.")
    return given


def number(name: str) -> int | None:
    """A whole number. Raises `ValidationFailed`."""
    given = text(name)
    if given is not None and not _NUMBER.fullmatch(given):
        raise ValidationFailed(f"{name}: expected a whole number.")
    return None if given is None else int(given)


def identifier(name: str) -> str | None:
    """A whole id. Raises `ValidationFailed`."""
    given = text(name)
    try:
        return None if given is None else str(UUID(given))
    except ValueError:
        raise ValidationFailed(f"{name}: expected an id.") from None


def beginning(name: str, shortest: int) -> str | None:
    """The first characters of an id, or all of them. Raises `ValidationFailed`."""
    given = text(name)
    if given is None:
        return None
    digits = given.replace("-", "")
    if not _ID_BEGINNING.fullmatch(given) or not shortest <= len(digits) <= 32:
        raise ValidationFailed(f"{name}: expected an id, or its first characters, at least {shortest} of 0–9 and a–f.")
    return given.lower()


def since(name: str, now: Moment) -> tuple[str | None, Moment | None]:
    """How far back: the choice and the moment. Raises `ValidationFailed`."""
    span = choice(name, SPANS)
    return span, None if span is None else now - SPANS[span]


def next_page(cursor: str | int | None) -> str | None:
    """This very list from `cursor` on, as an address; None at its end."""
    if cursor is None:
        return None
    kept = {name: value for name, value in request.args.items() if value and name != "cursor"}
    return f"{request.path}?{urlencode({**kept, 'cursor': cursor})}"
