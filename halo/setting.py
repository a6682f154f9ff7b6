"""One row of the table of settings, and how its value is found: flag, environment, file, data directory, default.

It must never show a secret or a URL's password in a message, and never take either from the arguments of the program. The
table itself: `halo/settings.py`; what a value may look like: `halo/parsing.py`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from halo import parsing, secrets


class SettingInvalid(Exception):
    """A setting has a value that halo does not accept; the message is one sentence for the operator."""


@dataclass(frozen=True, slots=True)
class Setting:
    """One row of the table."""

    name: str
    """As in the environment, `HALO_X_Y`."""
    field: str
    """The attribute of `Settings`, `x_y`; also the name under which a flag arrives."""
    default: str | None
    """As the operator would write it; None when halo decides (see `help`)."""
    unit: str
    help: str
    parse: Callable[[str], object]
    """From what was given to the value; raises ValueError whose message says what is accepted."""
    make: Callable[[], str] | None = None
    """For secrets: how to make one up."""
    demanded: bool = False
    """For secrets: without an embedded store it must be given."""

    @property
    def secret(self) -> bool:
        return self.make is not None

    @property
    def source(self) -> str:
        """The name that may be given as a flag: of a secret only the path of its file."""
        return f"{self.name}_FILE" if self.secret else self.name

    @property
    def flag(self) -> str:
        return "--" + self.source.removeprefix("HALO_").lower().replace("_", "-")


def value_of(row: Setting, environment: Mapping[str, str], flags: Mapping[str, str | None]) -> Any:
    """The value of a row that is no secret. Raises `SettingInvalid`."""
    flag = flags.get(row.field)
    if flag is not None and row.name.endswith("_URL") and parsing.holds_password(flag):
        raise SettingInvalid(
            f"{row.flag} must not hold a password, because every user of the machine can read the arguments of a program; "
            f"give the URL in {row.name}."
        )
    given = flag if flag is not None else environment.get(row.name)
    if not given:  # an empty value is a value not given: that is what `HALO_X= halo serve` and most orchestrators mean
        given = row.default
    return None if given is None else _parsed(row, given, row.flag if flag else row.name)


def secret_of(
    row: Setting, environment: Mapping[str, str], flags: Mapping[str, str | None], home: Path | None
) -> str | None:
    """From the flag's file, the environment, the environment's file, or the data directory: the first that is there. Raises `SettingInvalid`."""
    given, origin = environment.get(row.name), row.name
    named = flags.get(row.field)
    if named or not given:
        named, origin = (named, row.flag) if named else (environment.get(row.source), row.source)
        given = _file_of(Path(named), origin) if named else None
    if given is None and home is not None and row.make is not None:
        origin = str(home / row.field)
        try:
            given = secrets.keep(home, row.field, row.make)
        except secrets.SecretUnsafe as unsafe:
            raise SettingInvalid(f"{row.name}: {unsafe}") from unsafe
        except OSError as fault:
            raise SettingInvalid(f"{row.name} cannot be kept in {origin}: {fault.strerror}.") from fault
    if given is None:
        if row.demanded:
            raise SettingInvalid(
                f"{row.name} (or {row.source}) must be given when both stores are given by URL: {row.unit}."
            )
        return None
    return str(_parsed(row, given, origin))


def _file_of(path: Path, origin: str) -> str:
    try:
        return secrets.read(path)
    except (OSError, UnicodeDecodeError) as fault:
        reason = fault.strerror if isinstance(fault, OSError) else "it is not text"
        raise SettingInvalid(f"{origin} names {path}, which cannot be read: {reason}.") from fault


def _parsed(row: Setting, given: str, origin: str) -> object:
    """One sentence: which setting, what was given (never of a secret), what is accepted."""
    try:
        return row.parse(given.strip())
    except ValueError as accepted:
        hidden = row.secret or parsing.holds_password(given)
        shown = f"of {len(given)} characters" if hidden else repr(given)
        raise SettingInvalid(f"{origin} is {shown}, but must be {accepted}.") from None
