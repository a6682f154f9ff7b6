"""The reason that somebody gives for reading what was said: a sentence that others can read a year later, or none.

What cannot be seen is no reason, and what turns writing around may show another one than was written. It must never guess what was
meant. Read next: `halo/net/status/messages.py`.
"""

import unicodedata
from typing import Final

from halo.errors import ValidationFailed

REASON_CHARACTERS: Final = (10, 500)
"""Ten make a sentence that can be understood a year later; more than 500 is a report, which belongs elsewhere."""

_BLANK: Final = dict.fromkeys(map(ord, "\u115f\u1160\u17b4\u17b5\u2800\u3164\uffa0\U0001d159"), " ")
"""Letters and symbols that are drawn as nothing, whatever their category says."""
_REFUSED: Final = frozenset({"Cc", "Cf", "Cs", "Co", "Cn"})
"""Control and format characters, among them joiners and what turns the direction of writing; halves of pairs; what nobody has defined."""
_ON_OTHERS: Final = frozenset({"Mn", "Me"})
"""Accents and the like: they are seen on another character only."""


def reason_of(text: str) -> str:
    """`text` with single spaces, in which every character but accents counts.

    Raises:
        ValidationFailed
    """
    reason = " ".join(text.translate(_BLANK).split())
    categories = [unicodedata.category(character) for character in reason]
    shortest, longest = REASON_CHARACTERS
    if not _REFUSED.isdisjoint(categories):
        raise _refusal("A reason is written in characters that can be seen, and none that steer others.")
    seen = sum(category not in _ON_OTHERS for category in categories)
    if seen < shortest or len(reason) > longest:
        raise _refusal(f"A reason of {shortest} to {longest} characters is needed.")
    return reason


def _refusal(sentence: str) -> ValidationFailed:
    return ValidationFailed(sentence, errors=[{"field": "reason", "message": sentence}])
