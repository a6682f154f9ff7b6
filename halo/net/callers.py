"""Who makes an HTTP call, whether they may, and how often.

Secrets are compared in constant time, and a wrong one is answered like a missing one. A good credential always comes in; a bad one
costs its address a token, and an address without tokens is told to wait. All of a machine's programs share one address, so a good
credential must come in whatever the others tried: a scraper with an old key may not lock the operators out. It must never log what it
was shown.
Read next: `halo/net/tokens.py`, `halo/net/call.py`.
"""

import hmac
from typing import Final

from standardwebhooks import Webhook, WebhookVerificationError
from werkzeug.datastructures import Headers

from halo.clock import Clock
from halo.errors import Forbidden, RateLimited, Refusal, TokenReused, Unauthenticated
from halo.net.limits import Buckets, Rate
from halo.net.tokens import Identity, Tokens
from halo.routes import Route, Who
from halo.session import Party
from halo.settings import Settings

FAILURES: Final = Rate(tokens=10, per_ms=60_000, burst=10)
"""Failed authentications of one address a minute (spec 4)."""
BURST_SECONDS: Final = 5
"""A user may spend five seconds' requests at once (spec 4: 20 a second, burst 100): an app that opens makes a dozen calls."""
WEBHOOK_ID_CHARACTERS_MAX: Final = 256

_PARTY_OF: Final = {Who.CUSTOMER: Party.CUSTOMER, Who.MITRA: Party.MITRA}


class Callers:
    """Tells who makes a call, or raises a `Refusal`; one for each application."""

    def __init__(self, settings: Settings, clock: Clock, tokens: Tokens) -> None:
        self._tokens = tokens
        self._server_key = settings.server_key
        self._admin_key = settings.admin_key
        self._webhook = Webhook(settings.webhook_secret)
        per_s, per_minute = settings.requests_per_s, settings.creates_per_minute
        self._requests = Buckets(Rate(tokens=per_s, per_ms=1000, burst=BURST_SECONDS * per_s), clock)
        self._creates = Buckets(Rate(tokens=per_minute, per_ms=60_000, burst=per_minute), clock)
        self._failures = Buckets(FAILURES, clock)

    def identify(self, route: Route, headers: Headers, raw: bytes) -> Identity | None:
        """Who makes this call; None where that is nobody in particular.

        Raises:
            Unauthenticated, MitraDeactivated, Forbidden, RateLimited
        """
        identity = None
        match route.who:
            case Who.ANYONE:
                pass
            case Who.BACKEND:
                _compare(headers.get("x-halo-key", ""), self._server_key)
            case Who.PROVIDER:
                self._verify(headers, raw)
            case Who.OPERATOR:
                _compare(_bearer(headers), self._admin_key)
            case Who.CUSTOMER | Who.MITRA | Who.USER:
                identity = self._tokens.verify(_bearer(headers))
        if identity is not None:
            self._count(route, identity)
        return identity

    def failed(self, refusal: Refusal, address: str) -> Refusal:
        """What to answer after a failed authentication: the refusal itself, or that there were too many."""
        wait = self._failures.take(address)
        return RateLimited("Too many failed authentications; wait a moment.", retry_after_ms=wait) if wait else refusal

    def _count(self, route: Route, identity: Identity) -> None:
        if wait := self._requests.take(identity.user_id):
            raise RateLimited(retry_after_ms=wait)
        if _PARTY_OF.get(route.who, identity.user_type) is not identity.user_type:
            raise Forbidden(f"This call is for {route.who}.")
        if route.creates and (wait := self._creates.take(identity.user_id)):
            raise RateLimited(retry_after_ms=wait)

    def _verify(self, headers: Headers, raw: bytes) -> None:
        signed = {name: headers.get(name, "") for name in ("webhook-id", "webhook-timestamp", "webhook-signature")}
        if len(signed["webhook-id"]) > WEBHOOK_ID_CHARACTERS_MAX:
            raise Unauthenticated("The webhook's signature does not hold.")
        try:
            self._webhook.verify(raw, signed, json_parse=False)
        except (WebhookVerificationError, ValueError):
            # ValueError comes of bytes and headers that the library cannot take apart: no UTF-8, no comma, no base64.
            raise Unauthenticated("The webhook's signature does not hold.") from None


FAILED_AUTHENTICATION: Final = (Unauthenticated, TokenReused)
"""What costs an address one of its `FAILURES`."""


def _bearer(headers: Headers) -> str:
    scheme, _, token = headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not token:
        raise Unauthenticated
    return token.strip()


def _compare(shown: str, secret: str | None) -> None:
    """In constant time, and over bytes: text outside ASCII would make the comparison itself fail."""
    same = hmac.compare_digest(shown.encode(errors="surrogatepass"), (secret or "").encode())
    if not same or not secret:
        raise Unauthenticated("This key does not open halo.")
