"""Every body that the HTTP API takes and every answer that it gives, as typed structs (spec 4).

What decodes here is what `openapi.json` describes, because it is generated from these types. Bodies refuse fields that they do
not know: a misspelt `is_extention` would otherwise sell something else than was asked for. Answers may grow, so clients must
pass over what they do not know; the webhook, whose body others define, does the same. No I/O, no rules: what a value means is
decided in `halo/payment.py`, `halo/extension.py` and the rooms of the store. Read next: `halo/routes.py`, `halo/schema.py`.
"""

from typing import Annotated, Literal, TypeAlias
from uuid import UUID

import msgspec
from msgspec import Meta

from halo.errors import Refusal
from halo.protocol import ExtensionState, Message, Minutes, SessionState, Timestamp, Topic, Uuid

UserType: TypeAlias = Literal["customer", "mitra"]
Amount: TypeAlias = Annotated[int, Meta(ge=0, le=10**15, description="minor units of `currency`")]
Currency: TypeAlias = Annotated[str, Meta(pattern="^[A-Z]{3}$", description="ISO 4217")]
PaymentStatusName: TypeAlias = Literal["pending", "confirmed", "consumed", "failed"]


class BodyMalformed(Refusal):
    """The body is not JSON text."""

    code, status = "MALFORMED", 400


class MethodNotAllowed(Refusal):
    """This path does not answer to that method."""

    code, status = "METHOD_NOT_ALLOWED", 405


class BodyTooLarge(Refusal):
    """The body is larger than any that halo takes."""

    code, status = "BODY_TOO_LARGE", 413


class MediaTypeRefused(Refusal):
    """The body must be sent as application/json, in UTF-8 and without a content coding."""

    code, status = "UNSUPPORTED_MEDIA_TYPE", 415


# ---- bodies


class Body(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A JSON object whose fields are all known."""


class OpenAuthSession(Body, frozen=True, kw_only=True):
    """Who signs in; without a `user_id` a new user."""

    user_type: UserType
    user_id: UUID | None = None
    display_name: Annotated[str, Meta(max_length=200)] | None = None
    push_token: Annotated[str, Meta(max_length=4096)] | None = None
    locale: Annotated[Literal["id", "en"], Meta(description="the language of pushes to this device")] = "id"
    max_sessions: Annotated[int, Meta(ge=1, le=100, description="sessions at a time, of a mitra only")] | None = None


class RefreshTokens(Body, frozen=True, kw_only=True):
    """The refresh token that is traded for the next one."""

    refresh_token: Annotated[str, Meta(min_length=1, max_length=4096)]


class RequestPayment(Body, frozen=True, kw_only=True):
    """Minutes to buy; the server prices them."""

    duration_minutes: Minutes
    is_extension: bool = False
    is_first_session_discount: bool = False
    session_id: UUID | None = None


class PaymentWebhook(msgspec.Struct, frozen=True, kw_only=True):
    """What the payment provider reports; it may say more than halo reads."""

    type: Literal["payment.confirmed", "payment.failed"]
    payment_request_id: UUID
    provider_ref: Annotated[str, Meta(min_length=1, max_length=200)]
    amount: Amount
    currency: Currency


class StartPairing(Body, frozen=True, kw_only=True):
    """The payment, pending or confirmed, that a session is looked for with."""

    payment_request_id: UUID
    topic_sensitivity: Topic = "regular"


class AskExtension(Body, frozen=True, kw_only=True):
    """Nothing is required here: a session that is not active is told before a field that is missing (spec 2, asking)."""

    duration_minutes: int | None = None
    price: int | None = None
    extension_payment_request_id: UUID | None = None


class AnswerExtension(Body, frozen=True, kw_only=True):
    """The mitra's yes or no."""

    accepted: bool


# ---- answers to apps


class FieldProblem(msgspec.Struct, frozen=True, kw_only=True):
    """What is wrong with one field."""

    field: str
    message: str


class Problem(msgspec.Struct, frozen=True, kw_only=True):
    """An `application/problem+json` document; `code` is for programs, `detail` for people."""

    type: str
    title: str
    status: int
    detail: str
    instance: str | None
    code: str
    retryable: bool
    errors: tuple[FieldProblem, ...] = ()
    retry_after_ms: int | msgspec.UnsetType = msgspec.UNSET
    trace_id: (
        Annotated[str, Meta(description="Of this request, as halo's log has it: tell it to whoever helps.")]
        | msgspec.UnsetType
    ) = msgspec.UNSET


class TokenPair(msgspec.Struct, frozen=True, kw_only=True):
    """An access token with the refresh token that counts from now on."""

    user_id: Uuid
    access_token: str
    refresh_token: str
    expires_in: Annotated[int, Meta(description="seconds")]


class MitraStatus(msgspec.Struct, frozen=True, kw_only=True):
    """A mitra's own availability."""

    is_online: bool
    is_reachable: bool
    capacity: Annotated[int, Meta(description="sessions that hold a slot now")]
    max_sessions: int
    last_heartbeat_at: Timestamp | None


class BeaconState(msgspec.Struct, frozen=True, kw_only=True):
    """How many mitras could be asked now."""

    available_mitras: int
    as_of: Timestamp


class PaymentState(msgspec.Struct, frozen=True, kw_only=True):
    """A payment request as its customer sees it."""

    id: Uuid
    status: PaymentStatusName
    amount: Amount
    currency: Currency
    duration_minutes: int
    is_extension: bool
    is_first_session_discount: bool
    session_id: Uuid | None
    failure_cause: str | None
    created_at: Timestamp


class PairingState(msgspec.Struct, frozen=True, kw_only=True):
    """A search as its customer sees it; `cause` once it has come to nothing."""

    pairing_id: Uuid
    status: Literal["searching", "matched", "failed", "cancelled"]
    session_id: Uuid | None
    cause: str | None


class OpenOffer(msgspec.Struct, frozen=True, kw_only=True):
    """A session that a mitra is asked to take."""

    offer_id: Uuid
    pairing_id: Uuid
    topic_sensitivity: Topic
    duration_minutes: int
    price: int
    currency: Currency
    deadline_at: Timestamp


class OpenOffers(msgspec.Struct, frozen=True, kw_only=True):
    """All of those that stand open."""

    offers: tuple[OpenOffer, ...]


class OfferAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """`status` is the session's after an accept, and `declined` without a session after a decline."""

    session_id: Uuid | None
    status: str


class OwnSessions(msgspec.Struct, frozen=True, kw_only=True):
    """The caller's living sessions."""

    sessions: tuple[SessionState, ...]
    server_time: Timestamp


class SessionInfo(msgspec.Struct, frozen=True, kw_only=True):
    """A session as it is now, with the question that is pending in it."""

    session: SessionState
    pending_extension: ExtensionState | None
    last_seq: int
    server_time: Timestamp


class MessagePage(msgspec.Struct, frozen=True, kw_only=True):
    """Messages in the order of `seq`, each as the socket would send it."""

    messages: tuple[Message, ...]
    last_seq: int
