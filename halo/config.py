"""Live configuration: what operators may change while halo runs, with bounds, units and meaning in one struct.

Values live in Postgres, one row a key, versioned; a change is validated here before it is written, all keys or none, and applies
at every actor's next decision. This room must never guess in the customer's disfavour: a stored value that cannot be read falls
back to the default, except the extension policy, which falls back to `auto_reject` (spec 1 B: never charge on a mistake).
Read next: `halo/extension.py`, which copies the policy onto each request.
"""

from collections.abc import Mapping
from enum import StrEnum
from typing import Annotated, Any, Final, get_args, get_origin, get_type_hints

import msgspec
from msgspec import Meta

from halo import currencies
from halo.errors import ValidationFailed

_PRICE_HIGHEST: Final = 10**11
"""For the longest purchase, a day, that is 1.44 · 10**14: amounts stay below the 10**15 that an extension's price may say."""


class TimeoutAction(StrEnum):
    """What silence of the mitra means when an extension's deadline passes."""

    AUTO_APPROVE = "auto_approve"
    AUTO_REJECT = "auto_reject"


class RefusalOutcome(StrEnum):
    """Where a session goes when an extension was refused while paid time is left (spec 1 B)."""

    RESUME = "resume"
    CLOSE = "close"


class LiveConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One consistent reading of all keys; `version` rises with each change."""

    extension_timeout_seconds: Annotated[
        int, Meta(ge=5, le=3600, description="how long a mitra may think about an extension")
    ] = 60
    extension_default_action_on_timeout: Annotated[TimeoutAction, Meta(description="what silence means")] = (
        TimeoutAction.AUTO_APPROVE
    )
    extension_refusal: Annotated[
        RefusalOutcome, Meta(description="after a refusal with time left: back to the chat, or goodbye")
    ] = RefusalOutcome.RESUME
    max_extensions_per_session: Annotated[
        int, Meta(ge=0, le=1000, description="accepted extensions a session may have")
    ] = 20
    closure_grace_seconds: Annotated[int, Meta(ge=1, le=3600, description="time for goodbyes after the paid time")] = (
        120
    )
    session_timer_interval_seconds: Annotated[
        int, Meta(ge=1, le=3600, description="how often session_timer is sent")
    ] = 60
    session_warning_seconds: Annotated[
        tuple[Annotated[int, Meta(ge=1, le=86_400)], ...],
        Meta(max_length=10, description="session_timer is sent as well when so many seconds remain"),
    ] = (300, 60)
    payment_hold_seconds: Annotated[
        int, Meta(ge=5, le=3600, description="how long a matched mitra waits for the payment")
    ] = 120
    pairing_offer_seconds: Annotated[int, Meta(ge=1, le=600, description="how long one wave of offers stands open")] = (
        30
    )
    pairing_blast_size: Annotated[int, Meta(ge=1, le=1000, description="mitras who are asked in one wave")] = 10
    pairing_waves: Annotated[int, Meta(ge=1, le=100, description="waves before a pairing gives up")] = 3
    reroute_after_seconds: Annotated[
        int, Meta(ge=5, le=86_400, description="silence after which a mitra counts as lost")
    ] = 120
    reconnect_grace_seconds: Annotated[
        int, Meta(ge=0, le=300, description="how long deadlines that fell during downtime wait for people to return")
    ] = 10
    price_per_minute: Annotated[int, Meta(ge=0, le=_PRICE_HIGHEST, description="minor units of `currency`")] = 1000
    currency: Annotated[str, Meta(pattern="^[A-Z]{3}$", max_length=3, description="ISO 4217")] = "IDR"
    first_session_discount_percent: Annotated[int, Meta(ge=0, le=100, description="off a customer's first session")] = (
        50
    )
    min_minutes: Annotated[int, Meta(ge=1, le=1440, description="shortest purchase")] = 1
    max_minutes: Annotated[int, Meta(ge=1, le=1440, description="longest purchase")] = 240
    version: int = 0


KEYS: dict[str, Any] = {
    name: hint for name, hint in get_type_hints(LiveConfig, include_extras=True).items() if name != "version"
}
"""Each key with its annotated type, in the order in which people should read them."""


def change(config: LiveConfig, changes: Mapping[str, object]) -> LiveConfig:
    """`config` with `changes` applied and its version raised by one: all keys or none.

    Raises:
        ValidationFailed: with one entry in `errors` for each bad key.
    """
    errors: list[dict[str, str]] = []
    accepted: dict[str, Any] = {}
    for key, value in changes.items():
        if key not in KEYS:
            errors.append({"field": key, "message": "halo has no such key"})
            continue
        try:
            accepted[key] = _accept(key, value)
        except msgspec.ValidationError:
            errors.append({"field": key, "message": _expected(key)})
    if not errors:
        changed = msgspec.structs.replace(config, **accepted, version=config.version + 1)
        if changed.min_minutes <= changed.max_minutes:
            return changed
        if "min_minutes" in changes:
            sentence = f"Expected at most {changed.max_minutes}, the longest purchase"
            errors.append({"field": "min_minutes", "message": sentence})
        else:
            sentence = f"Expected at least {changed.min_minutes}, the shortest purchase"
            errors.append({"field": "max_minutes", "message": sentence})
    raise ValidationFailed("Nothing was changed: some values are not acceptable.", errors=errors)


def _accept(key: str, value: object) -> Any:
    """Stricter than what is stored must be: what was accepted once stays what it was, whatever the list of currencies says by now.

    Raises:
        msgspec.ValidationError
    """
    accepted = msgspec.convert(value, KEYS[key], strict=True)
    if key == "currency" and accepted not in currencies.ACTIVE:
        raise msgspec.ValidationError("not a currency")
    if isinstance(accepted, tuple) and len(set(accepted)) < len(accepted):
        raise msgspec.ValidationError("a number twice")
    return accepted


def _expected(key: str) -> str:
    """What the key takes, for people: to them a type or a pattern says nothing."""
    kind, meta = get_args(KEYS[key])
    if key == "currency":
        return "Expected the three capital letters of a currency that ISO 4217 lists, such as IDR"
    if get_origin(kind) is tuple:
        each = get_args(get_args(kind)[0])[1]
        return f"Expected at most {meta.max_length} whole numbers from {each.ge} to {each.le}, none of them twice"
    if kind is int:
        return f"Expected a whole number from {meta.ge} to {meta.le}"
    return f"Expected {' or '.join(kind)}"


def read_stored(values: Mapping[str, object], version: int) -> tuple[LiveConfig, list[str]]:
    """The configuration from its stored rows, and the keys whose value could not be read.

    An unreadable key takes its default; the extension policy takes `auto_reject` instead.
    """
    unreadable: list[str] = []
    accepted: dict[str, Any] = {}
    for key, value in values.items():
        if key not in KEYS:
            unreadable.append(key)
            continue
        try:
            accepted[key] = msgspec.convert(value, KEYS[key], strict=True)
        except msgspec.ValidationError:
            unreadable.append(key)
            if key == "extension_default_action_on_timeout":
                accepted[key] = TimeoutAction.AUTO_REJECT
    return LiveConfig(**accepted, version=version), unreadable
