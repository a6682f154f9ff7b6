"""Mitras in Postgres, the truth behind the mirror: who may work, who is online, when each was last heard of.

Every change here is committed before the mirror hears of it (`halo/store/mirror.py`), and can be made twice without harm. It must
never count sessions up and down (capacity is counted from the living sessions whenever somebody asks), never move a heartbeat back,
and never take a deactivated mitra for one that is online. Read next: `halo/store/auth_sessions.py`, whose families end with a
deactivation.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final
from uuid import uuid4

from halo.clock import Clock, Moment
from halo.errors import MitraDeactivated, NotFound
from halo.store.auth_sessions import RevokedBecause, revoke_families
from halo.store.postgres import Postgres, Transaction
from halo.store.queries import load_queries
from halo.store.values import Value
from halo.trace import current_trace_id

SQL: Final = load_queries("mitras")

BEFORE_ALL: Final = "00000000-0000-0000-0000-000000000000"
"""Sorts before every id: where the first page begins."""
PAGE_MAX: Final = 500
"""Mitras in one page: some 5 ms here and in Postgres."""


class MitraPresence(StrEnum):
    """The three sets that operators look at; each mitra is in exactly one."""

    ONLINE = "online"
    OFFLINE = "offline"
    DEACTIVATED = "deactivated"


@dataclass(frozen=True, slots=True, kw_only=True)
class MitraStatus:
    """One mitra as Postgres knows her, from one snapshot."""

    mitra_id: str
    display_name: str
    is_online: bool
    is_active: bool
    last_heartbeat_at: Moment | None
    """Up to a mirror cycle old; the newest is in the mirror."""
    capacity: int
    """Sessions that hold a slot now."""
    max_sessions: int
    created_at: Moment


@dataclass(frozen=True, slots=True, kw_only=True)
class Deactivation:
    """What a deactivation leaves to do: sockets to close, offers to take back on screens, sessions to end."""

    mitra_id: str
    auth_session_ids: Sequence[str]
    """Revoked by this call."""
    offer_ids: Sequence[str]
    """Rescinded by this call, with their pushes."""
    pairing_ids: Sequence[str]
    """The searches that lost an offer, and may have nobody left who was asked."""
    session_ids: Sequence[str]
    """To be ended: those that live, but not those in `rerouting`, which are without her already. The same again at a repeat, so that
    nobody is forgotten when the first caller died."""


class Mitras:
    """The rows of mitras."""

    def __init__(self, db: Postgres, clock: Clock) -> None:
        self._db = db
        self._clock = clock

    async def go_online(self, mitra_id: str, at: Moment) -> MitraStatus:
        """Online from `at`, which counts as a heartbeat.

        Raises:
            NotFound, MitraDeactivated, StoreUnavailable
        """

        async def write(tx: Transaction) -> MitraStatus:
            changed = await tx.execute(SQL["go_online"], {"mitra_id": mitra_id, "at": at})
            status = await _load_status(tx, mitra_id)
            if not changed:
                raise MitraDeactivated
            return status

        return await self._db.transact(write, str(uuid4()))

    async def go_offline(self, mitra_id: str, at: Moment) -> MitraStatus:  # noqa: ARG002  # the twin of go_online
        """Offline; sessions that live go on. Raises NotFound, StoreUnavailable."""

        async def write(tx: Transaction) -> MitraStatus:
            await tx.execute(SQL["go_offline"], {"mitra_id": mitra_id})
            return await _load_status(tx, mitra_id)

        return await self._db.transact(write, str(uuid4()))

    async def load_status(self, mitra_id: str) -> MitraStatus:
        """Raises NotFound, StoreUnavailable."""
        return await _load_status(self._db, mitra_id)

    async def list_deactivated(self, mitra_ids: Collection[str]) -> Sequence[str]:
        """Who of these is locked out. Raises StoreUnavailable."""
        rows = await self._db.fetch_all(SQL["list_deactivated"], {"mitra_ids": sorted(mitra_ids)})
        return [row.mitra_id for row in rows]

    async def deactivate(self, mitra_id: str, operator: str) -> Deactivation:
        """Lock a mitra out: offline, families revoked, open offers rescinded, audited; all of it or nothing.

        Raises:
            NotFound, StoreUnavailable
        """
        at = self._clock.now()

        async def write(tx: Transaction) -> Deactivation:
            # The row first: an accept or a new family that is under way on it is waited for, and seen by what follows.
            await self._set_active(tx, mitra_id, operator, is_active=False)
            auth_session_ids = await revoke_families(tx, mitra_id, RevokedBecause.DEACTIVATED, at)
            offers = await tx.fetch_all(SQL["rescind_offers"], {"mitra_id": mitra_id, "at": at})
            sessions = await tx.fetch_all(SQL["list_sessions_to_end"], {"mitra_id": mitra_id})
            return Deactivation(
                mitra_id=mitra_id,
                auth_session_ids=auth_session_ids,
                offer_ids=[row.offer_id for row in offers],
                pairing_ids=sorted({row.pairing_id for row in offers}),
                session_ids=[row.session_id for row in sessions],
            )

        return await self._db.transact(write, str(uuid4()))

    async def activate(self, mitra_id: str, operator: str) -> MitraStatus:
        """Let a mitra in again; she signs in and goes online by herself. Raises NotFound, StoreUnavailable."""

        async def write(tx: Transaction) -> MitraStatus:
            await self._set_active(tx, mitra_id, operator, is_active=True)
            return await _load_status(tx, mitra_id)

        return await self._db.transact(write, str(uuid4()))

    async def list(
        self, presence: MitraPresence | None = None, *, limit: int = 100, after: str | None = None
    ) -> list[MitraStatus]:
        """A page of mitras by id, those after `after`, at most `limit` (itself at most `PAGE_MAX`). Raises StoreUnavailable."""
        values: dict[str, Value] = {
            "presence": None if presence is None else presence.value,
            "limit": min(limit, PAGE_MAX),
            "after": after or BEFORE_ALL,
        }
        return [_status(row) for row in await self._db.fetch_all(SQL["list_mitras"], values)]

    async def _set_active(self, tx: Transaction, mitra_id: str, operator: str, *, is_active: bool) -> None:
        if await tx.fetch_one(SQL["set_active"], {"mitra_id": mitra_id, "is_active": is_active}) is None:
            raise NotFound("There is no such mitra.")
        action = "activate_mitra" if is_active else "deactivate_mitra"
        values: dict[str, Value] = {"operator": operator, "action": action, "mitra_id": mitra_id}
        await tx.execute(SQL["audit"], values | {"trace_id": current_trace_id()})


async def _load_status(source: Postgres | Transaction, mitra_id: str) -> MitraStatus:
    row = await source.fetch_one(SQL["find_status"], {"mitra_id": mitra_id})
    if row is None:
        raise NotFound("There is no such mitra.")
    return _status(row)


def _status(row: Any) -> MitraStatus:
    return MitraStatus(
        mitra_id=row.mitra_id,
        display_name=row.display_name,
        is_online=row.is_online,
        is_active=row.is_active,
        last_heartbeat_at=row.last_heartbeat_at,
        capacity=row.capacity,
        max_sessions=row.max_sessions,
        created_at=row.created_at,
    )
