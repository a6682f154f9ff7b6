"""The live configuration as a form: each key with its meaning, value, default and bounds; a change by all or none; and who changed what when.

What a person changed is found by comparing with what the form showed, so that a field nobody touched reverts nobody else's change. Of a key
whose stored value cannot be read the form says so instead of what it was, so that any saving replaces that value by what is shown. What
is acceptable is decided in `halo/config.py` and nowhere else. It must never write what was not validated there. Read next:
`halo/config.py`, `halo/store/live_config.py`.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from http import HTTPStatus
from types import NoneType
from typing import Any, Final, get_args, get_origin

import msgspec

from halo.config import KEYS, LiveConfig
from halo.errors import InvalidState, ValidationFailed
from halo.net.desk import Desk
from halo.net.operations import Operations
from halo.net.status.section import Context, Done, Section, Shown, Visit

PATH: Final = "/configuration"
TITLE: Final = "Configuration"
TEMPLATE: Final = "configuration/configuration.html"
HISTORY_AT_MOST: Final = 50
"""Changes on the page; the trail has them all."""
WAS: Final = "was-"
"""Prefix of the fields that say what the form showed."""

_WHOLE: Final = re.compile(r"-?[0-9]{1,18}", re.ASCII)
_DEFAULTS: Final = LiveConfig()
_UNITS: Final = (("_seconds", "seconds"), ("_minutes", "minutes"), ("_percent", "percent"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """One key, as the form shows it."""

    key: str
    about: str
    unit: str
    value: str
    was: str
    """What is in force; `value` is what was entered, when something was."""
    default: str
    choices: tuple[str, ...]
    """Empty for what is typed."""
    bounds: str
    is_number: bool
    wrong: str | None
    is_unreadable: bool
    """What is stored for it means nothing to this version; `was` is what stands in for it."""


@dataclass(frozen=True, slots=True)
class _Kind:
    """How a key is typed in: the innermost type, and what is said of it."""

    of: Any
    meta: msgspec.Meta


def configuration_section(desk: Desk) -> Section:
    """The page `/configuration`, and the action that changes it."""
    section, operations = Section(), Operations(desk)

    async def shown(form: Mapping[str, str], wrong: Mapping[str, str], message: str | None) -> Context:
        current, (_, unreadable) = desk.current_config(), await desk.live_config.load()
        return {
            "settings": [_setting(key, current, form, wrong, is_unreadable=key in unreadable) for key in KEYS],
            "unreadable": [key for key in unreadable if key in KEYS],
            "unknown": [key for key in unreadable if key not in KEYS],
            "config_version": current.version,
            "message": message,
            "errors": [{"field": key, "message": sentence} for key, sentence in wrong.items()],
            "steps": await desk.insight.lookout.list_config_steps(HISTORY_AT_MOST),
            "told": told,
            "default_of": lambda key: told(getattr(_DEFAULTS, key, "")),
            "now": desk.clock.now(),
        }

    @section.page(PATH, title=TITLE, template=TEMPLATE, menu="Configuration")
    async def configuration(visit: Visit) -> Context:  # noqa: ARG001  # the frame tells every page who looks at it
        return await shown({}, {}, None)

    @section.action(PATH, name="change_config", done="The configuration is changed; it applies at the next decision.")
    async def change(visit: Visit) -> Done | Shown:
        entered = {key: text.strip() for key, text in visit.form.items() if key in KEYS}
        entered = {key: text for key, text in entered.items() if text != visit.form.get(WAS + key)}
        try:
            if not entered:
                raise ValidationFailed("Nothing was changed: every value is as it was.")
            await operations.change_config(_parsed(entered), visit.operator, _version(visit.form))
        except ValidationFailed as refusal:
            wrong = {error["field"]: error["message"] for error in refusal.errors}
            context = await shown(entered, wrong, refusal.message)
            return Shown(TEMPLATE, context, TITLE, HTTPStatus.UNPROCESSABLE_ENTITY)
        except InvalidState as refusal:
            message = f"{refusal.message} What you entered is kept below, beside what is in force now: look again, then change it."
            return Shown(TEMPLATE, await shown(entered, {}, message), TITLE, HTTPStatus.CONFLICT)
        return Done(PATH)

    return section


def _version(form: Mapping[str, str]) -> int:
    text = form.get("version", "")
    if not _WHOLE.fullmatch(text):
        raise ValidationFailed("This is not a form of halo's.")
    return int(text)


def _setting(
    key: str, current: LiveConfig, entered: Mapping[str, str], wrong: Mapping[str, str], *, is_unreadable: bool
) -> Setting:
    kind = _kind(key)
    was = told(getattr(current, key))
    return Setting(
        key=key,
        about=(kind.meta.description or "").replace("`", ""),
        unit=next((unit for end, unit in _UNITS if key.endswith(end)), ""),
        value=entered.get(key, was),
        was=was,
        default=told(getattr(_DEFAULTS, key)),
        choices=tuple(each.value for each in kind.of) if _is_choice(kind) else (),
        bounds=_bounds(kind),
        is_number=kind.of is int,
        wrong=wrong.get(key),
        is_unreadable=is_unreadable,
    )


def _parsed(entered: Mapping[str, str]) -> dict[str, object]:
    """What was typed, as the values that `halo.config.change` judges. What is no number stays text, which it refuses."""
    return {key: _value(_kind(key), text) for key, text in entered.items()}


def _value(kind: _Kind, text: str) -> object:
    if kind.of is int:
        return _number(text)
    if get_origin(kind.of) is tuple:
        return [_number(part) for part in re.split(r"[\s,;]+", text) if part]
    return text


def _number(text: str) -> int | str:
    return int(text) if _WHOLE.fullmatch(text) else text


def _kind(key: str) -> _Kind:
    of, *extras = get_args(KEYS[key])
    return _Kind(of, next(extra for extra in extras if isinstance(extra, msgspec.Meta)))


def _is_choice(kind: _Kind) -> bool:
    return isinstance(kind.of, type) and issubclass(kind.of, Enum)


def _bounds(kind: _Kind) -> str:
    """In words; of a list those of its members."""
    meta, before = kind.meta, ""
    if get_origin(kind.of) is tuple:
        before = f"at most {meta.max_length} numbers, each "
        meta = next(extra for extra in get_args(get_args(kind.of)[0]) if isinstance(extra, msgspec.Meta))
    if isinstance(meta.ge, NoneType) or isinstance(meta.le, NoneType):
        return ""
    return before + f"{meta.ge:,} to {meta.le:,}".replace(",", "\N{NARROW NO-BREAK SPACE}")


def told(value: Any) -> str:
    """A value as a person types it; `None` is left to the caller."""
    if isinstance(value, Enum):
        return str(value.value)
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value))
    return str(value)
