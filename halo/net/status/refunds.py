"""Refunds, with sums by status and currency; and the outbox's dead letters, with a button that has one tried again.

A refund is told to the payment provider by a row of the outbox, so a dead refund is mended by replaying that row. It must never pay, nor
mark anything as paid. Read next: `halo/outbox.py`, `halo/store/outbox.py`.
"""

from typing import Final

from halo.net.desk import Desk
from halo.net.operations import REPLAY, Operations
from halo.net.status import asked
from halo.net.status.section import Context, Done, Section, Visit
from halo.outbox import OutboxKind, OutboxStatus
from halo.routes import REFUND_FILTERS

REFUNDS_PATH: Final = "/refunds"
OUTBOX_PATH: Final = "/outbox"
KINDS: Final = tuple(kind.value for kind in OutboxKind)


def refunds_section(desk: Desk) -> Section:
    """The pages `/refunds` and `/outbox`, and the action that replays."""
    section, operations, insight = Section(), Operations(desk), desk.insight

    @section.page(REFUNDS_PATH, title="Refunds", template="refunds/refunds.html", menu="Refunds")
    async def refunds(visit: Visit) -> Context:  # noqa: ARG001  # the frame tells every page who looks at it
        status, cursor, now = asked.choice("status", REFUND_FILTERS), asked.identifier("cursor"), desk.clock.now()
        found = await desk.operators.list_refunds(status, asked.ROWS, cursor)
        return {
            "sums": await insight.lookout.sum_refunds(now),
            "refunds": found.refunds,
            "statuses": REFUND_FILTERS,
            "status": status,
            "next_page": asked.next_page(found.next_cursor),
            "is_first": cursor is None,
            "has_address": desk.settings.refund_url is not None,
            "now": now,
        }

    @section.page(OUTBOX_PATH, title="Outbox", template="outbox/outbox.html", menu="Outbox")
    async def outbox(visit: Visit) -> Context:  # noqa: ARG001
        kind, cursor = asked.choice("kind", KINDS), asked.identifier("cursor")
        letters = await insight.letters.list_dead(asked.ROWS, cursor, None if kind is None else OutboxKind(kind))
        waiting = (await insight.lookout.load_census(desk.clock.now(), insight.heard_since())).outbox
        return {
            "waiting": waiting,
            "dead_refunds": sum(
                row.count for row in waiting if (row.kind, row.status) == (OutboxKind.REFUND, OutboxStatus.DEAD)
            ),
            "kinds": KINDS,
            "kind": kind,
            "letters": letters,
            "next_page": asked.next_page(letters[-1].outbox_id if len(letters) == asked.ROWS else None),
            "is_first": cursor is None,
            "now": desk.clock.now(),
        }

    @section.action(OUTBOX_PATH + "/{outbox_id}/replay", name=REPLAY, done="It is tried again.")
    async def replay(visit: Visit) -> Done:
        await operations.replay_letter(visit.places["outbox_id"], visit.operator)
        return Done(OUTBOX_PATH)

    return section
