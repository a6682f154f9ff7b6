"""The shortest whole HTTP answer, as bytes: for those who are turned away before any library is at work for them.

It is also how a broken request is answered, since after one nothing may be taken for granted. Never put anything of the request
into it but a path that was found clean. Read next: `halo/net/guard.py`, which sends these.
"""

from http import HTTPStatus
from typing import Any, Final

import msgspec

from halo.trace import current_trace

HARDENED: Final = (
    ("cache-control", "no-store"),
    ("content-security-policy", "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"),
    ("cross-origin-resource-policy", "same-origin"),
    ("referrer-policy", "no-referrer"),
    ("x-content-type-options", "nosniff"),
)
"""On these answers too: a browser shows whatever comes, also what no application has made."""


class HeadRefused(Exception):
    """A request was refused because of its form, before anybody looked at what it wants.

    `status` is the HTTP status, `code` the stable word for programs, `detail` one sentence for people.
    """

    def __init__(self, status: int, code: str, detail: str, *, headers: tuple[tuple[str, str], ...] = ()) -> None:
        super().__init__(detail)
        self.status = status
        self.code = code
        self.detail = detail
        self.headers = headers


def problem_body(status: int, code: str, detail: str, *, retryable: bool = False, instance: str | None = None) -> bytes:
    """An `application/problem+json` document with the fields of spec 4; `instance` is the path, where it is known."""
    document: dict[str, Any] = {
        "type": "about:blank",
        "title": HTTPStatus(status).phrase,
        "status": status,
        "detail": detail,
        "instance": instance,
        "code": code,
        "retryable": retryable,
        "errors": [],
    }
    if (trace := current_trace()) is not None:
        document["trace_id"] = trace.trace_id
    return msgspec.json.encode(document)


def refusal_response(
    status: int,
    code: str,
    detail: str,
    *,
    retryable: bool = False,
    headers: tuple[tuple[str, str], ...] = (),
    instance: str | None = None,
) -> bytes:
    """The whole HTTP/1.1 response, after which the connection must be closed. `headers` must be ASCII and of our own making."""
    body = problem_body(status, code, detail, retryable=retryable, instance=instance)
    lines = [
        f"HTTP/1.1 {status} {HTTPStatus(status).phrase}",
        "content-type: application/problem+json",
        f"content-length: {len(body)}",
        "connection: close",
        *(f"{name}: {value}" for name, value in (*HARDENED, *headers)),
    ]
    return "\r\n".join(lines).encode("ascii") + b"\r\n\r\n" + body
