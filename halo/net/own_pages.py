"""Who may talk to the admin listener at all: programs of this machine, and the listener's own page.

A browser on the operator's machine reaches loopback too, on behalf of any page that it shows. Such a page is known by its Origin or
Sec-Fetch-Site, and one that had its own name pointed at this machine (DNS rebinding) by the Host that it asks for. Both are refused
before any key is looked at, so they cost nobody a try. It must never let a header's absence close the door: probes and scrapers send
none of these. Read next: `halo/net/operators.py`, `halo/net/callers.py`.
"""

from typing import Final

from quart import request

from halo.errors import Forbidden, Refusal

LOOPBACK: Final = frozenset({"localhost", "127.0.0.1", "[::1]"})
STRANGE_SITES: Final = frozenset({"cross-site", "same-site"})
"""`same-site` is another port of this machine, such as a developer's server, which serves whatever it was given."""


class HostMisdirected(Refusal):
    """This listener does not answer to that name; use its address."""

    code, status = "MISDIRECTED", 421


async def require_own(bound_to: str) -> None:
    """Raises `HostMisdirected`, `Forbidden`; `bound_to` is the host of the listener's bind."""
    asked_for = request.headers.get("host", "").lower()
    own = f"[{bound_to}]" if ":" in bound_to else bound_to.lower()
    if asked_for and _host_of(asked_for) not in LOOPBACK | {own}:
        raise HostMisdirected
    origin, site = request.headers.get("origin"), request.headers.get("sec-fetch-site", "").lower()
    if site in STRANGE_SITES or (origin is not None and origin.lower() not in _own_origins(asked_for)):
        raise Forbidden("Other web pages may not call this listener.")


def _own_origins(asked_for: str) -> tuple[str, str]:
    """The listener speaks no TLS, but a tunnel in front of it may; what counts is whose host and port it is."""
    return f"http://{asked_for}", f"https://{asked_for}"


def _host_of(authority: str) -> str:
    """Without the port; brackets stay."""
    host, colon, port = authority.rpartition(":")
    return host if colon and port.isdigit() and not host.endswith(":") else authority
