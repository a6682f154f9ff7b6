"""The row of a session, and of its pending extension beside it, as the pure rooms know them.

Each column has its field here once; nothing is asked of Postgres, and nothing decided. Read next: `halo/store/sessions.py`, which asks.
"""

from typing import Any

from halo.config import RefusalOutcome, TimeoutAction
from halo.session import EndReason, Extension, ExtensionStatus, Session, SessionStatus


def read_extension(row: Any, *, prefix: str, session_id: str) -> Extension:
    """An extension as its columns say, each behind `prefix`; with one, it is the pending one of a joined session."""

    def column(name: str) -> Any:
        return getattr(row, prefix + name)

    return Extension(
        extension_id=column("extension_id"),
        session_id=session_id,
        payment_request_id=column("payment_request_id"),
        status=ExtensionStatus.PENDING if prefix else ExtensionStatus(row.status),
        duration_minutes=column("duration_minutes"),
        price=column("price"),
        currency=column("currency"),
        requested_at=column("requested_at"),
        deadline_at=column("deadline_at"),
        timeout_seconds=column("timeout_seconds"),
        default_action_on_timeout=TimeoutAction(column("default_action_on_timeout")),
        refusal_outcome=RefusalOutcome(column("refusal_outcome")),
        config_version=column("config_version"),
    )


def read_session(row: Any) -> Session:
    """A session with its pending extension, from a row of `list_sessions`."""
    return Session(
        session_id=row.session_id,
        customer_id=row.customer_id,
        mitra_id=row.mitra_id,
        former_mitra_ids=tuple(row.former_mitra_ids),
        payment_request_id=row.payment_request_id,
        topic_sensitivity=row.topic_sensitivity,
        status=SessionStatus(row.status),
        end_reason=EndReason(row.end_reason) if row.end_reason else None,
        duration_minutes=row.duration_minutes,
        minute_ms=row.minute_ms,
        price=row.price,
        currency=row.currency,
        paid_amount=row.paid_amount,
        started_at=row.started_at,
        running_since=row.running_since,
        expires_at=row.expires_at,
        deadline_at=row.deadline_at,
        paid_ms=row.paid_ms,
        served_ms=row.served_ms,
        refunded_ms=row.refunded_ms,
        forfeited_ms=row.forfeited_ms,
        remaining_ms=row.remaining_ms,
        grace_left_ms=row.grace_left_ms,
        extension=read_extension(row, prefix="e_", session_id=row.session_id) if row.e_extension_id else None,
        extensions_accepted=row.extensions_accepted,
        epoch=row.epoch,
        version=row.version,
    )
