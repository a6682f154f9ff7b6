"""Housekeeping: rows that have outlived their purpose are deleted once an hour, so that nothing grows for ever.

Operation ids are kept for a day, far longer than any retry; idempotency keys for a day, which is what clients are told. Pushes that
could not be delivered stay for a week, so that an operator sees them, and then go, or they would bury the refunds among the dead letters.
Money, messages and timelines are never touched here. Read next: `halo/store/sql/queries/housekeeping.sql`.
"""

from collections.abc import Awaitable, Callable, Mapping
from typing import Final, NoReturn

import structlog
import trio

from halo.clock import Clock, Moment
from halo.errors import StoreUnavailable
from halo.store.postgres import Postgres
from halo.store.queries import load_queries

SQL = load_queries("housekeeping")
log = structlog.get_logger(__name__)

PERIOD_SECONDS: Final = 3600.0
KEPT_MS: Final = 24 * 3600 * 1000
DEAD_PUSHES_KEPT_MS: Final = 7 * 24 * 3600 * 1000
"""After their time, when nobody may replay them any more: over a weekend and a holiday somebody has looked why a provider refused them."""


async def keep_house(db: Postgres, clock: Clock, others: Mapping[str, Callable[[Moment], Awaitable[int]]]) -> NoReturn:
    """For ever; what fails is tried again an hour later. `others` delete what is older than a moment, and say how much."""

    async def delete_operations(before: Moment) -> int:
        return await db.execute(SQL["delete_operations"], {"before": before})

    async def delete_outbox(before: Moment) -> int:
        return await db.execute(SQL["delete_outbox"], {"before": before})

    async def delete_dead_pushes(before: Moment) -> int:
        return await db.execute(SQL["delete_dead_pushes"], {"before": before - (DEAD_PUSHES_KEPT_MS - KEPT_MS)})

    chores = {
        "operations": delete_operations,
        "outbox": delete_outbox,
        "dead_pushes": delete_dead_pushes,
        **others,
    }
    while True:
        await trio.sleep(PERIOD_SECONDS)
        for what, delete in chores.items():
            try:
                deleted = await delete(clock.now() - KEPT_MS)
            except StoreUnavailable:
                log.warning("housekeeping_postponed", what=what)
            else:
                log.info("housekeeping", what=what, deleted=deleted)
