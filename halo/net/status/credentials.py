"""What a browser shows to be believed: its cookie, the token of its form, and where it says that it comes from.

Two cookies: the session's, and one for those who are not signed in, so that their forms carry a token too. Each form token is
derived from the cookie's secret, so none fits another session. It must never log a cookie, nor give the session's to a script. Read next:
`halo/net/status/frame.py`.
"""

import hashlib
import hmac
import secrets
from typing import Final

from quart import Response, request

from halo.errors import Forbidden

SESSION_COOKIE: Final = "halo_session"
FORM_COOKIE: Final = "halo_form"
HOST_PREFIX: Final = "__Host-"
"""A browser takes such a cookie only with Secure, which loopback without TLS cannot offer in every browser."""
FORM_SECRET_BYTES: Final = 32
TOKEN_FIELD: Final = "csrf_token"  # noqa: S105  # the name of a field


class Cookies:
    """The cookies of this listener. `always_secure`: browsers come through TLS only, so every cookie is Secure and bound to the host."""

    def __init__(self, *, always_secure: bool) -> None:
        self._always_secure = always_secure

    def shown(self, name: str) -> str | None:
        """The cookie's value. The one that only this host can have set counts before the other, and where all are Secure alone: a page on
        a neighbouring name can set the other."""
        own = request.cookies.get(HOST_PREFIX + name) or None
        return own if self._always_secure else own or request.cookies.get(name) or None

    def give(self, response: Response, name: str, value: str) -> None:
        """For as long as the browser is open; how long it counts is decided here and not there."""
        secure = self._always_secure or _came_by_tls()
        response.set_cookie(
            HOST_PREFIX + name if secure else name, value, secure=secure, httponly=True, samesite="Strict", path="/"
        )

    def take(self, response: Response, name: str) -> None:
        """Under both names; with the attributes that it was given with, without which a browser keeps it."""
        response.delete_cookie(HOST_PREFIX + name, secure=True, httponly=True, samesite="Strict", path="/")
        response.delete_cookie(name, httponly=True, samesite="Strict", path="/")


def new_form_secret() -> str:
    """For the forms of somebody who is not signed in."""
    return secrets.token_urlsafe(FORM_SECRET_BYTES)


def form_token(cookie: str) -> str:
    """What the forms of this cookie's holder carry. The cookie cannot be found from it."""
    return hashlib.sha256(b"halo form " + cookie.encode(errors="surrogatepass")).hexdigest()


def require_own_form(cookie: str | None, token: str) -> None:
    """This POST comes from a form that halo gave to this very browser. Raises `Forbidden`.

    `halo/net/own_pages.py` has let the request pass; here nothing may be missing, since every browser says where a form comes from.
    """
    site = request.headers.get("sec-fetch-site", "same-origin").lower()
    if request.headers.get("origin") is None or site != "same-origin":
        raise Forbidden("Forms are taken from halo's own pages only.")
    expected = "" if cookie is None else form_token(cookie)
    if not expected or not hmac.compare_digest(expected.encode(), token.encode(errors="surrogatepass")):
        raise Forbidden("This form is no longer good; go back, load the page again, and send it anew.")


def _came_by_tls() -> bool:
    """The listener itself speaks no TLS; a tunnel in front of it may, and then the browser says so with every POST, but with no GET: the
    cookie of the first form is Secure only where the operator said that all are."""
    return request.headers.get("origin", "").lower().startswith("https://") or request.scheme == "https"
