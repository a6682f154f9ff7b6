"""Every HTTP call in one table: path, who may ask, what it takes, what it gives, and each refusal it may say (spec 4).

The servers register their handlers from this table and `halo/schema.py` draws `openapi.json` from it, so neither can offer what
the other does not know. A path written here is part of the contract and never changes. No I/O. Read next: `halo/net/api.py`.
"""

from dataclasses import KW_ONLY, dataclass
from enum import StrEnum

from halo import errors as no
from halo import oversight as ops
from halo import resources as res
from halo.config import LiveConfig
from halo.errors import Refusal
from halo.protocol import ExtensionState, SessionState


class Who(StrEnum):
    """Who may make a call, and by what it is known."""

    ANYONE = "anyone"
    BACKEND = "the app's backend, by X-Halo-Key"
    PROVIDER = "the payment provider, by its signature"
    CUSTOMER = "a customer, by access token"
    MITRA = "a mitra, by access token"
    USER = "a customer or a mitra, by access token"
    OPERATOR = "an operator, by the admin key"


@dataclass(frozen=True, slots=True, kw_only=True)
class Query:
    """One parameter of the query string: one of `values`, a whole number in `range` (both ends included), or a UUID."""

    name: str
    about: str
    values: tuple[str, ...] = ()
    range: tuple[int, int] | None = None
    default: int | None = None


@dataclass(frozen=True, slots=True)
class Route:
    """One call. `{name}` in a path is a UUID; `name` is its operationId and the key of its handler."""

    method: str
    path: str
    name: str
    who: Who
    about: str
    _: KW_ONLY
    body: type | None = None
    answer: type | None = None
    """None: the answer has no body, or is not JSON of a struct (documents, metrics)."""
    status: int = 200
    refusals: tuple[type[Refusal], ...] = ()
    """Those of its own; what every call of its kind may say is added by `refusals_of`."""
    query: tuple[Query, ...] = ()
    creates: bool = False
    """Counts against creates per minute, and honours `Idempotency-Key`."""
    sandbox: bool = False
    """Exists only with `HALO_SANDBOX`."""


MESSAGES_PER_PAGE_MAX = 500
"""Some 50 KB of usual messages; 8 MB if all were of the longest and of four-byte characters."""
ROWS_PER_PAGE_MAX = 200

_AFTER_SEQ = Query(name="after_seq", about="only messages with a greater seq", range=(0, 2**53), default=0)
_MESSAGES = Query(name="limit", about="messages in one answer", range=(1, MESSAGES_PER_PAGE_MAX), default=100)
_ROWS = Query(name="limit", about="rows in one answer", range=(1, ROWS_PER_PAGE_MAX), default=50)
_CURSOR = Query(name="cursor", about="`next_cursor` of the answer before")
_FAILURE_CURSOR = Query(name="cursor", about="`next_cursor` of the answer before", range=(1, 2**53))
SESSION_FILTERS = ("living", "pending_payment", "active", "extending", "closing", "rerouting", "ended")
MITRA_FILTERS = ("online", "offline", "deactivated")
REFUND_FILTERS = ("due", "delivered", "dead")

_EXTENSION = "/api/chat/{session_id}/extensions/{extension_id}"

API_ROUTES: tuple[Route, ...] = (
    Route("POST", "/api/auth/sessions", "open_auth_session", Who.BACKEND, "Sign a user in; creates the user when new",
          answer=res.TokenPair, status=201, body=res.OpenAuthSession, refusals=(no.MitraDeactivated, no.NotFound,
          no.InvalidState), creates=True),
    Route("POST", "/api/auth/refresh", "refresh_tokens", Who.ANYONE, "A new pair of tokens; the old refresh token is used up",
          answer=res.TokenPair, body=res.RefreshTokens, refusals=(no.Unauthenticated, no.TokenReused,
          no.MitraDeactivated, no.RateLimited)),
    Route("DELETE", "/api/auth/sessions/current", "close_auth_session", Who.USER, "Sign out; sockets of this token are closed",
          status=204),
    Route("POST", "/api/mitra/status/online", "go_online", Who.MITRA, "Be offered sessions",
          answer=res.MitraStatus, refusals=(no.MitraDeactivated,)),
    Route("POST", "/api/mitra/status/offline", "go_offline", Who.MITRA, "Be offered none", answer=res.MitraStatus),
    Route("POST", "/api/mitra/status/heartbeat", "heartbeat", Who.MITRA, "Still here",
          status=204, refusals=(no.MitraDeactivated, no.MitraOffline)),
    Route("GET", "/api/mitra/status", "mitra_status", Who.MITRA, "One's own availability", answer=res.MitraStatus),
    Route("GET", "/api/customer/beacon", "beacon", Who.CUSTOMER, "How many mitras are available",
          answer=res.BeaconState),
    Route("POST", "/api/payments", "request_payment", Who.CUSTOMER, "A payment request, priced by the server",
          answer=res.PaymentState, status=201, body=res.RequestPayment, refusals=(no.NotFound, no.DiscountUsed,
          no.DiscountNotForExtensions, no.SessionNotActive, no.PaymentMismatch, no.InvalidState), creates=True),
    Route("GET", "/api/payments/{payment_request_id}", "payment", Who.CUSTOMER, "One's own payment",
          answer=res.PaymentState, refusals=(no.NotFound,)),
    Route("POST", "/api/payments/webhook", "payment_webhook", Who.PROVIDER, "What became of a payment; idempotent by webhook-id",
          status=204, body=res.PaymentWebhook, refusals=(no.NotFound, no.PaymentMismatch, no.InvalidState)),
    Route("POST", "/api/sandbox/payments/{payment_request_id}/confirm", "sandbox_confirm", Who.CUSTOMER, "Pay without a provider",
          answer=res.PaymentState, refusals=(no.NotFound, no.InvalidState, no.DiscountUsed), sandbox=True),
    Route("POST", "/api/pairings", "start_pairing", Who.CUSTOMER, "Look for a mitra",
          answer=res.PairingState, status=202, body=res.StartPairing, refusals=(no.NotFound, no.InvalidState,
          no.PaymentInUse, no.IdReused), creates=True),
    Route("GET", "/api/pairings/{pairing_id}", "pairing", Who.CUSTOMER, "How the search goes",
          answer=res.PairingState, refusals=(no.NotFound,)),
    Route("DELETE", "/api/pairings/{pairing_id}", "cancel_pairing", Who.CUSTOMER, "Stop looking",
          answer=res.PairingState, refusals=(no.NotFound, no.InvalidState)),
    Route("GET", "/api/offers", "open_offers", Who.MITRA, "Offers that stand open", answer=res.OpenOffers),
    Route("POST", "/api/offers/{offer_id}/accept", "accept_offer", Who.MITRA, "Take the session",
          answer=res.OfferAnswer, refusals=(no.NotFound, no.OfferResolved, no.CapacityExceeded, no.MitraDeactivated,
          no.MitraOffline), creates=True),
    Route("POST", "/api/offers/{offer_id}/decline", "decline_offer", Who.MITRA, "Leave it to others",
          answer=res.OfferAnswer, refusals=(no.NotFound, no.OfferResolved)),
    Route("GET", "/api/chat", "own_sessions", Who.USER, "One's own living sessions", answer=res.OwnSessions),
    Route("GET", "/api/chat/{session_id}/info", "session_info", Who.USER, "The session as it is now",
          answer=res.SessionInfo, refusals=(no.NotFound,)),
    Route("GET", "/api/chat/{session_id}/messages", "messages", Who.USER, "What was said, in order",
          answer=res.MessagePage, refusals=(no.NotFound,), query=(_AFTER_SEQ, _MESSAGES)),
    Route("POST", "/api/chat/{session_id}/extensions", "request_extension", Who.CUSTOMER, "Ask for more time",
          answer=ExtensionState, status=201, body=res.AskExtension, refusals=(no.NotFound, no.SessionNotActive,
          no.InvalidState, no.DiscountNotForExtensions, no.PaymentMismatch, no.PaymentInUse, no.ExtensionLimit),
          creates=True),
    Route("POST", _EXTENSION + "/respond", "respond_extension", Who.MITRA, "Accept or refuse it",
          answer=ExtensionState, body=res.AnswerExtension, refusals=(no.NotFound, no.ExtensionResolved,
          no.SessionNotActive)),
    Route("DELETE", _EXTENSION, "cancel_extension", Who.CUSTOMER, "Take the question back",
          answer=ExtensionState, refusals=(no.NotFound, no.ExtensionResolved, no.SessionNotActive)),
    Route("POST", "/api/chat/{session_id}/end", "end_session", Who.USER, "End it now",
          answer=SessionState, refusals=(no.NotFound, no.SessionNotActive)),
    Route("GET", "/openapi.json", "openapi_document", Who.ANYONE, "This description"),
    Route("GET", "/asyncapi.json", "asyncapi_document", Who.ANYONE, "The same for the WebSockets"),
    Route("GET", "/docs", "docs_page", Who.ANYONE, "The same for people"),
)  # fmt: skip

_MITRA, _SESSION = "/api/mitras/{mitra_id}", "/api/sessions/{session_id}"

OPERATOR_ROUTES: tuple[Route, ...] = (
    Route("GET", "/api/overview", "overview", Who.OPERATOR, "Counts of everything that lives", answer=ops.Overview),
    Route("GET", "/api/config", "config", Who.OPERATOR, "The live configuration", answer=LiveConfig),
    Route("PATCH", "/api/config", "change_config", Who.OPERATOR, "Change some keys, all or none",
          answer=LiveConfig, body=ops.ConfigChange, refusals=(no.InvalidState,)),
    Route("GET", "/api/mitras", "mitras", Who.OPERATOR, "Mitras, in the order of their ids",
          answer=ops.OperatedMitras, query=(Query(name="status", about="only these", values=MITRA_FILTERS), _ROWS,
          _CURSOR)),
    Route("POST", _MITRA + "/deactivate", "deactivate_mitra", Who.OPERATOR, "Shut a mitra out at once",
          answer=ops.Deactivated, refusals=(no.NotFound,)),
    Route("POST", _MITRA + "/activate", "activate_mitra", Who.OPERATOR, "Let a mitra in again",
          answer=ops.Deactivated, refusals=(no.NotFound,)),
    Route("GET", "/api/sessions", "sessions", Who.OPERATOR, "Sessions, newest first",
          answer=ops.OperatedSessions, query=(Query(name="status", about="only these", values=SESSION_FILTERS), _ROWS,
          _CURSOR)),
    Route("GET", _SESSION, "session", Who.OPERATOR, "One session with its timeline and money",
          answer=ops.SessionRecord, refusals=(no.NotFound,)),
    Route("POST", _SESSION + "/end", "end_session", Who.OPERATOR, "End it now",
          answer=SessionState, refusals=(no.NotFound, no.SessionNotActive)),
    Route("POST", _SESSION + "/transfer", "transfer_session", Who.OPERATOR, "Look for another mitra; refused when nobody else is available, for then it would end",
          answer=SessionState, refusals=(no.NotFound, no.SessionNotActive, no.InvalidState)),
    Route("GET", "/api/pairing-failures", "pairing_failures", Who.OPERATOR, "Why searches came to nothing",
          answer=ops.PairingFailures, query=(_ROWS, _FAILURE_CURSOR)),
    Route("GET", "/api/refunds", "refunds", Who.OPERATOR, "Money owed and given back",
          answer=ops.OperatedRefunds, query=(Query(name="status", about="only these", values=REFUND_FILTERS), _ROWS,
          _CURSOR)),
    Route("GET", "/healthz", "healthz", Who.ANYONE, "The process runs", answer=ops.Health),
    Route("GET", "/readyz", "readyz", Who.ANYONE, "It can serve; 503 with the same body when it cannot",
          answer=ops.Health),
    Route("GET", "/metrics", "metrics", Who.ANYONE, "Figures in the form of Prometheus"),
)  # fmt: skip


def refusals_of(route: Route) -> tuple[type[Refusal], ...]:
    """Every refusal that this call may answer with, its own and those of its kind, without repeats."""
    found: list[type[Refusal]] = []
    if route.path.startswith("/api/"):
        found += [no.Draining, no.StoreUnavailable, no.Busy, no.ActorFault]
    if route.who is not Who.ANYONE:
        found += [no.Unauthenticated, no.RateLimited]
    if route.who in {Who.CUSTOMER, Who.MITRA}:
        found.append(no.Forbidden)
    if route.who in {Who.MITRA, Who.USER}:  # her token is refused in these words, wherever she shows it
        found.append(no.MitraDeactivated)
    if route.body is not None:
        found += [res.BodyMalformed, res.BodyTooLarge, res.MediaTypeRefused, no.ValidationFailed]
    if route.query:
        found.append(no.ValidationFailed)
    if route.creates:
        found += [no.IdempotencyMismatch, no.ValidationFailed]
    return tuple(dict.fromkeys([*route.refusals, *found]))
