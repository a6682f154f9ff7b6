"""Pushes: which there are, what they say in each language, and the message that the provider is given.

Texts live in `halo/push_texts/<locale>.toml` and never in code. A message holds no name, price or word of a chat: it lies on a locked
screen and passes through other people's servers. Every value of `data` is a string, as FCM demands. Read next: `halo/outcomes.py` (who is
told what), `halo/net/push.py` (who carries it).
"""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from importlib import resources
from typing import Any, Final

from halo.clock import Moment
from halo.outbox import Claim, Device

LOCALES: Final = ("id", "en")
DEFAULT_LOCALE: Final = "id"
TTL_SECONDS_MAX: Final = 28 * 86_400
"""FCM keeps a message no longer."""
DATA_KEYS: Final = ("session_id", "offer_id", "pairing_id", "extension_id")
"""What of a row's payload a phone is told: where to look. Whatever else a payload may come to hold stays here."""


class Template(StrEnum):
    """Every push that halo sends; each has a title and a body in each locale."""

    OFFER = "offer"
    EXTENSION_REQUEST = "extension_request"
    PAYMENT_PENDING = "payment_pending"
    SESSION_STARTED = "session_started"
    PAIRING_FAILED = "pairing_failed"
    EXTENSION_ACCEPTED = "extension_accepted"
    EXTENSION_REFUSED = "extension_refused"
    EXTENSION_TIMED_OUT = "extension_timed_out"
    EXTENSION_UNPAID = "extension_unpaid"
    SESSION_REROUTING = "session_rerouting"
    SESSION_REROUTED = "session_rerouted"
    SESSION_CLOSING = "session_closing"
    SESSION_ENDED = "session_ended"


class TextMissing(Exception):
    """A template has no text in some locale: a fault of this build."""


@dataclass(frozen=True, slots=True)
class Text:
    title: str
    body: str


class Texts:
    """All texts, by locale and template.

    Raises:
        TextMissing: a template is without its text in one of `LOCALES`, or a file has one that no template asks for.
    """

    def __init__(self, files: Mapping[str, str]) -> None:
        self._texts: dict[str, dict[str, Text]] = {}
        for locale in LOCALES:
            found = tomllib.loads(files[locale])
            if sorted(found) != sorted(Template):
                raise TextMissing(f"{locale}: {sorted(set(found) ^ set(Template))}")
            self._texts[locale] = {template: Text(**text) for template, text in found.items()}

    def find(self, template: str, locale: str) -> Text | None:
        """In this locale, or in the default one for a locale that we do not have; None for a template of another version of halo."""
        return self._texts.get(locale, self._texts[DEFAULT_LOCALE]).get(template)


def load_texts() -> Texts:
    """The texts that are shipped with halo."""
    folder = resources.files("halo") / "push_texts"
    return Texts({locale: (folder / f"{locale}.toml").read_text(encoding="utf-8") for locale in LOCALES})


def receipt(collapse_key: str, version: int) -> str:
    """The name of the ping that follows the frame of a session's step; each step's is another one."""
    return f"{collapse_key}@{version}"


def fcm_message(claim: Claim, device: Device, text: Text, now: Moment) -> dict[str, Any]:
    """The body of FCM's HTTP v1 `messages:send`."""
    ttl_seconds = TTL_SECONDS_MAX
    if claim.expires_at is not None:
        ttl_seconds = max(0, min(TTL_SECONDS_MAX, (claim.expires_at - now) // 1000))
    data = {key: str(claim.payload[key]) for key in DATA_KEYS if claim.payload.get(key) is not None}
    data |= {"template": claim.template, "outbox_id": claim.outbox_id}
    return {
        "message": {
            "token": device.token,
            "notification": {"title": text.title, "body": text.body},
            "data": data,
            "android": {
                "priority": "HIGH",
                "ttl": f"{ttl_seconds}s",
                "collapse_key": claim.collapse_key,
                "notification": {"tag": claim.collapse_key},
            },
            "apns": {
                "headers": {
                    "apns-priority": "10",
                    "apns-expiration": str(now // 1000 + ttl_seconds),
                    "apns-collapse-id": claim.collapse_key,
                },
                "payload": {"aps": {"sound": "default"}},
            },
        }
    }
