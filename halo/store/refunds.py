"""The time left of a session, given back on the payments that were charged for it.

The provider pays back on a payment, and no more than was paid on it; so the money of an extension is not asked back from the first
payment. How it is shared out is decided in `halo/accounts.py`, here it becomes rows. It must never write a refund without its row of
the outbox: nobody would be told. Read next: `halo/store/steps.py`, in whose transaction this stands;
`halo/net/refunds_out.py`, which tells the provider.
"""

from typing import Final

from halo import accounts
from halo.accounts import Charge
from halo.effects import RefundTimeLeft, Step
from halo.store.connection import Values
from halo.store.postgres import Transaction
from halo.store.queries import Query, load_queries
from halo.store.values import Value
from halo.trace import current_traceparent

SQL: Final = load_queries("refunds")


async def share_out(tx: Transaction, decided: Step) -> list[tuple[Query, Values]]:
    """What to write for the time that the step gives back, each statement touching one row: as many as payments that bear a part.

    What was charged is read before the guards of the step: somebody else's step that changes it meanwhile overtakes this one.
    """
    session, statements = decided.session, list[tuple[Query, Values]]()
    for refund in decided.effects:
        if not isinstance(refund, RefundTimeLeft):
            continue
        rows = await tx.fetch_all(SQL["list_charges"], {"session_id": session.session_id})
        charges = [Charge(row.payment_request_id, row.amount) for row in rows]
        for share in accounts.spread(refund.amount, refund.refunded_ms, charges):
            values: dict[str, Value] = {
                "payment_request_id": share.payment_request_id,
                "session_id": session.session_id,
                "cause": session.end_reason.value if session.end_reason else decided.cause,
                "amount": share.amount,
                "currency": refund.currency,
                "refunded_ms": share.refunded_ms,
                "at": decided.at,
                "traceparent": current_traceparent(),
            }
            statements.append((SQL["insert_time_left_refund"], values))
    return statements
