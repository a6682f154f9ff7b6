"""Every frame of the chat and lobby sockets, in and out, as typed structs.

The structs are the contract of spec 4: what is decoded into them is what `asyncapi.json` describes, because it is generated from them.
A field here is a promise to apps and is never renamed. No I/O, no clock. Read next: `halo/decoding.py`.
"""

from collections.abc import Mapping
from typing import Annotated, Literal, TypeAlias

import msgspec
from msgspec import Meta

ID_CHARACTERS_MAX = 64
ClientId: TypeAlias = Annotated[
    str, Meta(min_length=1, max_length=ID_CHARACTERS_MAX, description="chosen by the client; dedupes its retries")
]
Uuid: TypeAlias = Annotated[
    str, Meta(pattern="^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$", max_length=36)
]
"""The length is not idle: `$` alone lets a trailing newline through, which Postgres then refuses as a fault of ours."""
Timestamp: TypeAlias = Annotated[
    str, Meta(extra_json_schema={"format": "date-time"}, description="RFC 3339, UTC, milliseconds")
]
Minutes: TypeAlias = Annotated[int, Meta(ge=1, le=1440)]
Price: TypeAlias = Annotated[int, Meta(ge=0, le=10**15, description="minor units")]
Topic: TypeAlias = Literal["regular", "sensitive"]
PartyName: TypeAlias = Literal["customer", "mitra"]
SenderName: TypeAlias = Literal["customer", "mitra", "system"]

FRAME_BYTES_MAX = 64 * 1024
"""A larger frame closes the socket with 1009 (spec 4)."""
BODY_CHARACTERS_MAX = 4000


class Frame(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", omit_defaults=False, gc=False):
    """One flat JSON object with `type` first."""


# ---- what clients send on a chat socket


class SendMessage(Frame, frozen=True, kw_only=True, tag="message"):
    id: ClientId
    body: Annotated[str, Meta(min_length=1, max_length=BODY_CHARACTERS_MAX)]


class MarkRead(Frame, frozen=True, kw_only=True, tag="read"):
    seq: Annotated[int, Meta(ge=0, le=2**53)]


class SetTyping(Frame, frozen=True, kw_only=True, tag="typing"):
    on: bool


class RequestExtension(Frame, frozen=True, kw_only=True, tag="extension_request"):
    id: ClientId
    duration_minutes: int | None = None
    price: int | None = None
    extension_payment_request_id: str | None = None


class RespondExtension(Frame, frozen=True, kw_only=True, tag="extension_respond"):
    id: ClientId
    extension_id: Uuid
    accepted: bool


class CancelExtension(Frame, frozen=True, kw_only=True, tag="extension_cancel"):
    id: ClientId
    extension_id: Uuid


class EndSession(Frame, frozen=True, kw_only=True, tag="end_session"):
    id: ClientId


class Ping(Frame, frozen=True, kw_only=True, tag="ping"):
    id: ClientId


class Refresh(Frame, frozen=True, kw_only=True, tag="refresh"):
    id: ClientId
    access_token: Annotated[str, Meta(min_length=1, max_length=4096)]


ChatFrame: TypeAlias = (
    SendMessage
    | MarkRead
    | SetTyping
    | RequestExtension
    | RespondExtension
    | CancelExtension
    | EndSession
    | Ping
    | Refresh
)

# ---- what clients send on a lobby socket


class GoOnline(Frame, frozen=True, kw_only=True, tag="go_online"):
    id: ClientId


class GoOffline(Frame, frozen=True, kw_only=True, tag="go_offline"):
    id: ClientId


class Heartbeat(Frame, frozen=True, kw_only=True, tag="heartbeat"):
    id: ClientId | None = None


class AcceptOffer(Frame, frozen=True, kw_only=True, tag="offer_accept"):
    id: ClientId
    offer_id: Uuid


class DeclineOffer(Frame, frozen=True, kw_only=True, tag="offer_decline"):
    id: ClientId
    offer_id: Uuid


class RequestPairing(Frame, frozen=True, kw_only=True, tag="pairing_request"):
    id: ClientId
    payment_request_id: Uuid
    topic_sensitivity: Topic = "regular"


class CancelPairing(Frame, frozen=True, kw_only=True, tag="pairing_cancel"):
    id: ClientId
    pairing_id: Uuid


LobbyFrame: TypeAlias = (
    GoOnline | GoOffline | Heartbeat | AcceptOffer | DeclineOffer | RequestPairing | CancelPairing | Ping | Refresh
)

# ---- what the server sends


class SessionState(msgspec.Struct, frozen=True, kw_only=True):
    """A session as apps see it (spec 4)."""

    session_id: Uuid
    status: Literal["pending_payment", "active", "extending", "closing", "rerouting", "ended"]
    end_reason: str | None
    customer_id: Uuid
    mitra_id: Uuid
    topic_sensitivity: Topic
    duration_minutes: int
    started_at: Timestamp | None
    expires_at: Timestamp | None
    remaining_seconds: int
    deadline_at: Timestamp | None
    last_seq: int


class ExtensionState(msgspec.Struct, frozen=True, kw_only=True):
    """An extension as apps see it (spec 4)."""

    extension_id: Uuid
    session_id: Uuid
    status: Literal["pending", "accepted", "rejected", "timeout", "cancelled"]
    duration_minutes: int
    price: int
    requested_at: Timestamp
    deadline_at: Timestamp
    payment_request_id: Uuid


class Welcome(Frame, frozen=True, kw_only=True, tag="welcome"):
    role: PartyName
    session: SessionState
    pending_extension: ExtensionState | None
    last_seq: int
    replay_from: int
    server_time: Timestamp
    keepalive_seconds: int
    limits: Mapping[str, int]


class LobbyWelcomeMitra(Frame, frozen=True, kw_only=True, tag="welcome"):
    role: Literal["mitra"]
    is_online: bool
    heartbeat_seconds: int
    sessions: tuple[SessionState, ...]
    server_time: Timestamp


class LobbyWelcomeCustomer(Frame, frozen=True, kw_only=True, tag="welcome"):
    role: Literal["customer"]
    sessions: tuple[SessionState, ...]
    server_time: Timestamp


class Message(Frame, frozen=True, kw_only=True, tag="message"):
    session_id: Uuid
    seq: int
    id: str
    sender: SenderName
    body: str
    at: Timestamp


class Ack(Frame, frozen=True, kw_only=True, tag="ack", omit_defaults=True):
    """Only the fields that the acknowledged frame calls for are present."""

    id: str
    seq: int | None = None
    at: Timestamp | None = None
    extension_id: Uuid | None = None
    expires_at: Timestamp | None = None
    pairing_id: Uuid | None = None
    session_id: Uuid | None = None


class Refused(Frame, frozen=True, kw_only=True, tag="refused", omit_defaults=True):
    id: str | None
    code: str
    status: int
    message: str
    retryable: bool
    retry_after_ms: int | None = None


class Typing(Frame, frozen=True, kw_only=True, tag="typing"):
    sender: PartyName
    on: bool


class Read(Frame, frozen=True, kw_only=True, tag="read"):
    sender: PartyName
    seq: int


class Presence(Frame, frozen=True, kw_only=True, tag="presence"):
    party: PartyName
    connected: bool


class Pong(Frame, frozen=True, kw_only=True, tag="pong"):
    id: str
    server_time: Timestamp


class SessionTimer(Frame, frozen=True, kw_only=True, tag="session_timer"):
    session_id: Uuid
    remaining_seconds: int
    expires_at: Timestamp | None
    server_time: Timestamp


class ExtensionRequest(Frame, frozen=True, kw_only=True, tag="extension_request"):
    extension_id: Uuid
    session_id: Uuid
    duration_minutes: int
    price: int
    currency: str
    topic_sensitivity: Topic
    timeout_seconds: int
    deadline_at: Timestamp


class SessionPaused(Frame, frozen=True, kw_only=True, tag="session_paused"):
    session_id: Uuid
    reason: Literal["extension_pending"]
    extension_id: Uuid
    deadline_at: Timestamp


class ExtensionResponse(Frame, frozen=True, kw_only=True, tag="extension_response"):
    extension_id: Uuid
    session_id: Uuid
    accepted: bool
    duration_minutes: int
    expires_at: Timestamp | None
    reason: Literal["answered", "timeout", "safeguard", "cancelled"]
    via_timeout: bool


class SessionResumed(Frame, frozen=True, kw_only=True, tag="session_resumed"):
    session_id: Uuid
    expires_at: Timestamp
    remaining_seconds: int


class SessionClosing(Frame, frozen=True, kw_only=True, tag="session_closing"):
    session_id: Uuid
    reason: str
    closes_at: Timestamp
    grace_seconds: int


class SessionRerouting(Frame, frozen=True, kw_only=True, tag="session_rerouting"):
    session_id: Uuid


class SessionStarted(Frame, frozen=True, kw_only=True, tag="session_started"):
    session_id: Uuid
    mitra_id: Uuid
    expires_at: Timestamp


class PaymentPending(Frame, frozen=True, kw_only=True, tag="payment_pending"):
    session_id: Uuid
    payment_request_id: Uuid
    deadline_at: Timestamp


class SessionEnded(Frame, frozen=True, kw_only=True, tag="session_ended"):
    session_id: Uuid
    end_reason: str


class Reconnect(Frame, frozen=True, kw_only=True, tag="reconnect"):
    after_ms: int
    reason: str


class HeartbeatAck(Frame, frozen=True, kw_only=True, tag="heartbeat_ack"):
    id: str
    server_time: Timestamp


class Offer(Frame, frozen=True, kw_only=True, tag="offer"):
    offer_id: Uuid
    pairing_id: Uuid
    topic_sensitivity: Topic
    duration_minutes: int
    price: int
    currency: str
    deadline_at: Timestamp


class OfferRescinded(Frame, frozen=True, kw_only=True, tag="offer_rescinded"):
    offer_id: Uuid
    reason: Literal["taken", "cancelled", "timed_out"]


class Beacon(Frame, frozen=True, kw_only=True, tag="beacon"):
    available_mitras: int
    as_of: Timestamp


class PairingProgress(Frame, frozen=True, kw_only=True, tag="pairing_progress"):
    pairing_id: Uuid
    wave: int
    offered: int


class PairingMatched(Frame, frozen=True, kw_only=True, tag="pairing_matched"):
    pairing_id: Uuid
    session_id: Uuid


class PairingFailed(Frame, frozen=True, kw_only=True, tag="pairing_failed"):
    pairing_id: Uuid
    cause: str


ChatServerFrame: TypeAlias = (
    Welcome | Message | Ack | Refused | Typing | Read | Presence | Pong | SessionTimer | ExtensionRequest | SessionPaused
    | ExtensionResponse | SessionResumed | SessionClosing | SessionRerouting | SessionStarted | PaymentPending | SessionEnded | Reconnect
)  # fmt: skip
LobbyServerFrame: TypeAlias = (
    LobbyWelcomeMitra | LobbyWelcomeCustomer | Ack | Refused | Pong | HeartbeatAck | Offer | OfferRescinded | SessionStarted
    | SessionRerouting | ExtensionRequest | Beacon | PairingProgress | PairingMatched | PairingFailed | Reconnect
)  # fmt: skip

_encode = msgspec.json.Encoder().encode


def encode(frame: Frame) -> bytes:
    """The frame as UTF-8 JSON, `type` first."""
    return _encode(frame)
