"""What the head of any HTTP request must be like, on every listener: small, plain where it matters, and of a version we speak.

The rules stand in front of libraries that fail on other heads in ways of their own (spec 7), so they ask for a little more than
HTTP does. Nothing here reads sockets or knows what a request is for. Read next: `halo/net/handshake.py`, `halo/net/http_connection.py`.
"""

import re
from typing import Final

import h11

from halo.net.refusal import HeadRefused

HEAD_BYTES_MAX: Final = 16 * 1024
PATH_BYTES_MAX: Final = 512
"""Both from spec 7. The whole target, with its query, is bounded by the head."""

AMBIGUOUS: Final = re.compile(rb"//|.*(%2f|%5c|\\)|(.*/)?(\.|%2e){1,2}(/|\Z)", re.IGNORECASE | re.DOTALL)
"""Paths that a proxy in front of us may read as another path than we do, and so let through what it means to keep out."""

ONCE: Final = frozenset({b"authorization", b"x-halo-key", b"idempotency-key", b"content-type"})
"""Headers of which two would leave open which one is believed: here the first, behind some proxies the last."""

HOST: Final = re.compile(rb"(?:[A-Za-z0-9._~-]*|\[[0-9A-Fa-f:.]+\])(?::[0-9]{0,5})?")

PLAIN: Final = frozenset(
    {b"host", b"connection", b"upgrade", b"origin", b"authorization", b"content-type", b"transfer-encoding"}
)
"""Headers that some library decodes as ASCII, or that decide something. In others, such as a proxy's name of a city, bytes above 127
are nobody's business."""


def require_clean(request: h11.Request) -> None:
    """Raises `HeadRefused` for a head that no listener takes."""
    path = request.target.partition(b"?")[0]
    if len(path) > PATH_BYTES_MAX:
        raise HeadRefused(414, "PATH_TOO_LONG", "The path is longer than 512 bytes.")
    # h11 bounds only what it has not parsed yet; a head that arrives in one piece passes it at any length.
    if len(request.target) + sum(len(name) + len(value) + 4 for name, value in request.headers) > HEAD_BYTES_MAX:
        raise head_too_large()
    if request.http_version not in (b"1.1", b"1.0"):
        raise HeadRefused(400, "MALFORMED", "Only HTTP/1.1 is spoken here.")
    if AMBIGUOUS.match(path):
        raise HeadRefused(400, "MALFORMED", "The path begins with two slashes, or hides a slash or a dot segment.")
    names = [name for name, _ in request.headers]
    if (
        b"content-length" in names and b"transfer-encoding" in names
    ):  # h11 believes the second; who believes the first is smuggled to
        raise HeadRefused(400, "MALFORMED", "A body has a content-length or a transfer-encoding, not both.")
    for name in ONCE:
        if names.count(name) > 1:
            raise HeadRefused(400, "MALFORMED", f"The header {name.decode('ascii')} was sent twice.")
    for name, value in request.headers:
        if (name in PLAIN or name.startswith(b"sec-")) and not value.isascii():
            raise HeadRefused(400, "MALFORMED", f"The header {name.decode('ascii')} is not plain ASCII.")
        if name == b"host" and not is_host(value):
            raise HeadRefused(400, "MALFORMED", "The header host is not a host.")


def head_too_large() -> HeadRefused:
    """The same words wherever it is noticed."""
    return HeadRefused(431, "HEAD_TOO_LARGE", "The request's head is longer than 16 KiB.")


def is_host(value: bytes) -> bool:
    """Whether a Host header can be one. `xn--a` looks like one and is none, and wsproto and others fail on it."""
    try:
        value.decode("idna")
    except UnicodeError:
        return False
    return HOST.fullmatch(value) is not None
