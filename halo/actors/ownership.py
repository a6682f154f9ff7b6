"""Ownership: which sessions are this node's to keep, by their rows, and that their actors are exactly those.

Three things may differ from what the rows say: nobody living has a session (it is taken up), it is ours and has no actor (the answer to
the commit that made it ours was lost), or it has an actor and is ours no longer (the lease was gone for a moment, and another node was
faster: who says something there is acknowledged and heard by nobody here). So the two are compared by id and epoch, in one snapshot, in
every round and whenever the lease was had again. It must never write a session but for the credit of its downtime. Read next:
`halo/actors/roster.py`.
"""

from collections.abc import Mapping, Sequence
from typing import Final, Protocol

import trio

from halo.actors.ports import Ports, StoredSession
from halo.actors.roster import Roster, Taken
from halo.clock import Moment
from halo.effects import Step
from halo.errors import StepOvertaken, StoreUnavailable
from halo.events import DowntimeCredited
from halo.rules import step
from halo.session import Session

TAKE_UP_PAGE: Final = 500
"""Sessions taken up in one statement: steps of some 23 ms (2,000 took 78), so that a large restore never holds the event loop for long."""


class TakenUp(Protocol):
    """A session that this node now owns, and until when somebody kept its clock."""

    @property
    def stored(self) -> StoredSession: ...

    @property
    def last_kept_at(self) -> Moment: ...


class Differences(Protocol):
    """Between the actors of a node and its rows."""

    @property
    def strays(self) -> Sequence[TakenUp]:
        """Ours, with nobody who keeps them at this epoch."""

    @property
    def lost(self) -> Mapping[str, int]:
        """Kept at an epoch at which they are not ours any more, or over."""


class Ownership(Protocol):
    """Where sessions without a living owner come from, and who took part in what."""

    async def take_up(self, limit: int) -> Sequence[TakenUp]: ...

    async def compare(self, kept: Mapping[str, int]) -> Differences: ...

    async def commit_credits(self, owed: Sequence[Step]) -> None: ...

    async def list_living_of(self, user_id: str) -> list[str]: ...


class TakeUp:
    """Makes the actors of a node those of its rows."""

    def __init__(self, roster: Roster, ports: Ports, ownership: Ownership) -> None:
        self._roster = roster
        self._ports = ports
        self._ownership = ownership

    async def run(self) -> int:
        """Take up every living session that nobody keeps; returns how many. Safe to call again and again.

        Raises:
            StoreUnavailable: those that were taken up are kept; call again for the others.
        """
        count = await self._compare()
        while page := await self._ownership.take_up(TAKE_UP_PAGE):
            for stored, credited_at in await self._credited(page):
                self._roster.start_late(stored, credited_at)
                self._mark_mitras(stored.session)
                await trio.lowlevel.checkpoint()
            count += len(page)
        return count

    async def _credited(self, page: Sequence[TakenUp]) -> list[tuple[StoredSession, Moment]]:
        """The sessions of `page` with their downtime made good, in one transaction: nobody is connected yet who could be told.

        Where that cannot be had each is started as it is, and owes it.
        """
        now = self._ports.clock.now()
        not_before = now + self._ports.facts.config().reconnect_grace_seconds * 1000
        owed = [
            step(
                taken.stored.session,
                DowntimeCredited(at=now, downtime_ms=max(0, now - taken.last_kept_at), not_before=not_before),
            )
            for taken in page
        ]
        try:
            await self._ownership.commit_credits(owed)
        except (StepOvertaken, StoreUnavailable):
            await self._compare()  # it may have been done all the same: only the rows know what is still owed
            return []
        return [(Taken(credit.session, taken.stored.last_seq), now) for credit, taken in zip(owed, page, strict=True)]

    async def _compare(self) -> int:
        """Start who is ours and has no actor, each owing the downtime since its row was written; put in doubt whose row is not ours."""
        count, kept = 0, self._roster.epochs()
        differences = await self._ownership.compare(kept)
        for stray in differences.strays:
            session = stray.stored.session
            actor = self._roster.find(session.session_id)
            if actor is None or actor.session.epoch < session.epoch:  # `opened` may have come meanwhile
                self._roster.start(stray.stored).owe_downtime(stray.last_kept_at, self._ports.clock.now())
                self._mark_mitras(session)
                count += 1
        self._roster.disown(differences.lost)
        return count

    def _mark_mitras(self, session: Session) -> None:
        """Who kept it may have died between a step's commit and the mirror's hearing that a mitra has one session more, or one less."""
        for mitra_id in (session.mitra_id, *session.former_mitra_ids):
            self._ports.outside.capacity_changed(mitra_id)
