"""Firebase Cloud Messaging, HTTP v1: one message to one device, and what Google's answer means.

A token that belongs to no phone any more is `dropped`; 429, 5xx and silence may pass (`failure`); 401 asks for a new access token, once;
what is left is a mistake of ours or of the operator's, and stays one (`refusal`). It must never put a device's token or a text into a log
or an error. Read next: `halo/net/push.py`, which calls it for each phone of a user.
"""

from dataclasses import dataclass
from enum import Enum, auto
from typing import Any, Final

import msgspec

from halo.clock import Clock
from halo.net.outgoing import Answer, CallFailed, Outgoing
from halo.net.service_account import AccessTokens

UNREGISTERED: Final = "UNREGISTERED"
TOKEN_FIELD: Final = "message.token"  # noqa: S105  # the name of a field


class Verdict(Enum):
    SENT = auto()
    DROPPED = auto()
    FAILED = auto()
    REFUSED = auto()


@dataclass(frozen=True, slots=True)
class Told:
    """What became of one message."""

    verdict: Verdict
    why: str | None = None
    retry_after_ms: int | None = None


class _Violation(msgspec.Struct, frozen=True):
    field: str = ""


class _Detail(msgspec.Struct, frozen=True):
    errorCode: str = ""  # noqa: N815  # Google's spelling
    fieldViolations: tuple[_Violation, ...] = ()  # noqa: N815


class _Error(msgspec.Struct, frozen=True):
    status: str = ""
    message: str = ""
    details: tuple[_Detail, ...] = ()


class _Refused(msgspec.Struct, frozen=True):
    error: _Error


class Fcm:
    """The `messages:send` of one project."""

    def __init__(self, endpoint: str, project_id: str, tokens: AccessTokens, outgoing: Outgoing, clock: Clock) -> None:
        self._url = f"{endpoint.rstrip('/')}/v1/projects/{project_id}/messages:send"
        self._tokens = tokens
        self._outgoing = outgoing
        self._clock = clock

    async def send(self, message: dict[str, Any], *, traceparent: str | None = None) -> Told:
        """Send; raises nothing."""
        content = msgspec.json.encode(message)
        try:
            access_token = await self._tokens.load(traceparent=traceparent)
            answer = await self._post(content, access_token, traceparent)
            if answer.status == 401:
                access_token = await self._tokens.load(refused=access_token, traceparent=traceparent)
                answer = await self._post(content, access_token, traceparent)
        except CallFailed as failed:
            return Told(Verdict.FAILED, str(failed))
        return self._judge(answer)

    async def _post(self, content: bytes, access_token: str, traceparent: str | None) -> Answer:
        headers = {"authorization": f"Bearer {access_token}", "content-type": "application/json"}
        return await self._outgoing.post(self._url, content, headers, traceparent=traceparent)

    def _judge(self, answer: Answer) -> Told:
        if 200 <= answer.status < 300:
            return Told(Verdict.SENT)
        error = _error_in(answer.body)
        why = f"FCM {answer.status} {error.status}".rstrip()
        if answer.status in {401, 408, 429} or answer.status >= 500:
            return Told(Verdict.FAILED, why, answer.retry_after_ms(self._clock.now()))
        if answer.status in {400, 404} and _is_about_token(error):
            return Told(Verdict.DROPPED, why)
        return Told(Verdict.REFUSED, why)


def _error_in(body: bytes) -> _Error:
    try:
        found = msgspec.json.decode(body, type=_Refused, strict=False).error
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        return _Error()  # not Google's own words: a proxy's page, or nothing
    return found if found.status.replace("_", "").isalpha() and found.status.isascii() else _Error()


def _is_about_token(error: _Error) -> bool:
    """No phone has this token any more, or none ever had: 404 alone may also be a wrong project."""
    codes = {detail.errorCode for detail in error.details}
    if UNREGISTERED in codes:
        return True
    named = {violation.field for detail in error.details for violation in detail.fieldViolations}
    return error.status == "INVALID_ARGUMENT" and (
        TOKEN_FIELD in named or "registration token" in error.message.lower()
    )
