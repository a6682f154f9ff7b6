"""Operators: the people who look after a running halo, by name and role, and what is asked of a name and a password.

They are known to halo alone, unlike customers and mitras. It does no I/O and sees no password but to count its characters. Read next:
`halo/store/operator_accounts.py`, `halo/net/status/sign_in.py`.
"""

import re
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from halo.clock import Moment
from halo.errors import Refusal, ValidationFailed

FIRST_OPERATOR: Final = "admin"
"""Who exists from the start; `halo operator add` makes the others."""

PASSWORD_CHARACTERS: Final = (12, 256)
"""Twelve, of whatever kind: longer than what five tries in a quarter of an hour could ever find. The upper end bounds the hashing."""

_NAME: Final = re.compile(r"[a-z0-9][a-z0-9._@-]{0,63}", re.ASCII)


class Role(StrEnum):
    """What an operator may do."""

    VIEWER = "viewer"
    """See everything but the text of messages."""
    OPERATOR = "operator"
    """Change, too."""


class LinkSpent(Refusal):
    """This link was used before, has expired, or was replaced by a newer one; ask for another one."""

    code, status = "LINK_SPENT", 410


class OperatorExists(Refusal):
    """There is an operator of this name already."""

    code, status = "OPERATOR_EXISTS", 409


@dataclass(frozen=True, slots=True, kw_only=True)
class OperatorAccount:
    """One operator, without the secret."""

    name: str
    role: Role
    has_password: bool
    created_at: Moment
    signed_in_at: Moment | None
    """The last time."""


def operator_name(text: str) -> str:
    """A name as it is stored. Raises `ValidationFailed`."""
    name = text.strip().lower()
    if not _NAME.fullmatch(name):
        raise ValidationFailed(
            "An operator's name is 1 to 64 of a-z, 0-9, '.', '_', '@' and '-', and begins with a letter or a digit."
        )
    return name


def check_password(text: str) -> None:
    """Whether this may be somebody's password from now on. Raises `ValidationFailed`, which does not quote it."""
    shortest, longest = PASSWORD_CHARACTERS
    if not shortest <= len(text) <= longest or "\0" in text:
        wrong = {"field": "password", "message": f"A password has {shortest} to {longest} characters."}
        raise ValidationFailed(f"A password has {shortest} to {longest} characters.", errors=[wrong])


@dataclass(frozen=True, slots=True, kw_only=True)
class SignedIn:
    """Whose session this is, as of now."""

    name: str
    role: Role
