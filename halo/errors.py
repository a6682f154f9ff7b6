"""Every "no" that halo says: a code, an HTTP status, one sentence, and whether trying again can help.

One root, `Refusal`; an exception's docstring is its message unless the raiser knows better. Codes are part of the contract with
the apps (spec 4) and never change. Nothing here decides anything; the rules that raise these live in `halo/rules.py`,
`halo/extension.py` and the rooms of `halo/store`.

    Refusal
     ├─ invalid input:  ValidationFailed, FrameMalformed, UnknownFrameType, IdempotencyMismatch, PaymentMismatch
     ├─ who:            Unauthenticated, Forbidden, NotFound, OriginRefused, MitraDeactivated
     ├─ state:          SessionNotActive, SessionIsPaused, InvalidState, PaymentInUse, ExtensionResolved, ExtensionLimit, …
     └─ try again:      RateLimited, Busy, StoreUnavailable, Draining
"""

from collections.abc import Mapping, Sequence


class Refusal(Exception):
    """The request was refused."""

    code = "REFUSED"
    status = 400
    retryable = False

    def __init__(
        self, message: str | None = None, *, errors: Sequence[Mapping[str, str]] = (), retry_after_ms: int | None = None
    ) -> None:
        self.message = message or (type(self).__doc__ or "").strip()
        self.errors = tuple(errors)
        """What is wrong, field by field: `{"field": …, "message": …}`."""
        self.retry_after_ms = retry_after_ms
        super().__init__(self.message)


class ValidationFailed(Refusal):
    """A field is missing or has a value that halo does not accept."""

    code, status = "VALIDATION_ERROR", 422


class FrameMalformed(Refusal):
    """The frame is not a JSON object with a `type`."""

    code, status = "MALFORMED", 400


class UnknownFrameType(Refusal):
    """halo knows no frame of this type."""

    code, status = "UNKNOWN_TYPE", 400


class IdempotencyMismatch(Refusal):
    """This Idempotency-Key was used before with another body."""

    code, status = "IDEMPOTENCY_MISMATCH", 422


class PaymentMismatch(Refusal):
    """What was asked for differs from what was paid for."""

    code, status = "PAYMENT_MISMATCH", 409


class IdReused(Refusal):
    """This id was used before for another message."""

    code, status = "ID_REUSED", 409


class Unauthenticated(Refusal):
    """A valid token is needed."""

    code, status = "UNAUTHENTICATED", 401


class TokenReused(Refusal):
    """This refresh token was used before; every token of its family is revoked."""

    code, status = "TOKEN_REUSED", 401


class Forbidden(Refusal):
    """This is not yours."""

    code, status = "FORBIDDEN", 403


class MitraDeactivated(Refusal):
    """This mitra has been deactivated."""

    code, status = "MITRA_DEACTIVATED", 403


class NotFound(Refusal):
    """There is no such thing for you."""

    code, status = "NOT_FOUND", 404


class MitraOffline(Refusal):
    """This mitra is not online."""

    code, status = "MITRA_OFFLINE", 409


class SessionNotActive(Refusal):
    """The session does not accept this now, or has ended."""

    code, status = "SESSION_NOT_ACTIVE", 409


class SessionIsPaused(Refusal):
    """The chat is paused until the pending question is answered."""

    code, status, retryable = "SESSION_PAUSED", 409, True


class InvalidState(Refusal):
    """That is not possible in the present state."""

    code, status = "INVALID_STATE", 409


class DiscountNotForExtensions(Refusal):
    """The first-session discount cannot pay for an extension."""

    code, status = "FIRST_SESSION_DISCOUNT_NOT_ALLOWED", 400


class DiscountUsed(Refusal):
    """The first-session discount is for a customer's first session only."""

    code, status = "FIRST_SESSION_DISCOUNT_USED", 409


class PaymentInUse(Refusal):
    """This payment is bound to another request."""

    code, status = "PAYMENT_IN_USE", 409


class ExtensionResolved(Refusal):
    """This extension has already been decided."""

    code, status = "EXTENSION_RESOLVED", 409


class ExtensionLimit(Refusal):
    """This session has had all the extensions that it may have."""

    code, status = "EXTENSION_LIMIT", 409


class OfferResolved(Refusal):
    """This offer is no longer open."""

    code, status = "OFFER_RESOLVED", 409


class CapacityExceeded(Refusal):
    """This mitra has no room for another session."""

    code, status = "CAPACITY_EXCEEDED", 409


class RateLimited(Refusal):
    """Too many requests; wait a moment."""

    code, status, retryable = "RATE_LIMITED", 429, True


class Busy(Refusal):
    """halo is too busy to take this; it changed nothing."""

    code, status, retryable = "BUSY", 503, True


class StoreUnavailable(Refusal):
    """The store does not answer; nothing was lost, try again."""

    code, status, retryable = "STORE_UNAVAILABLE", 503, True


class Draining(Refusal):
    """This node is shutting down; come back in a moment."""

    code, status, retryable = "DRAINING", 503, True


class ActorFault(Refusal):
    """The session met an internal fault; it restarts, and nothing of this request was kept."""

    code, status, retryable = "INTERNAL", 500, True


class StepOvertaken(Exception):
    """The row has moved on since the step was decided: another writer was first, nothing was written."""


class OwnershipLost(Exception):
    """Another node owns this session now; this actor must stop and write nothing more."""
