"""How a session is handed on: it loses its mitra, and another takes over, or nobody does.

`transfer` and `assign` are asked for (`halo/actors/requests.py`); that a mitra is silent and that a search has come to nothing is only
seen (`halo/actors/duties.py`), and counts for no more than what is true when the session takes it up. Must never give a session to two,
or lose one to a rumour: every step is decided on facts that are gathered anew. Read next: `halo/actors/reroutes.py`, who sees it;
`halo/actors/search.py`, who asks the others.
"""

import uuid
from typing import Final

from halo.actors.commands import AssignMitra, MitraSilent, SearchOver, View
from halo.actors.decider import Decider
from halo.actors.ports import Ports
from halo.clock import Moment
from halo.config import LiveConfig
from halo.errors import OfferResolved
from halo.events import Event, LostBy, MitraAssigned, MitraLost, Reachability, SearchFailed
from halo.session import SessionStatus

SEARCH_SLACK_MS: Final = 10_000
"""How much longer than all its waves a session waits for its search: the search tells when it is over, this is for when nobody could."""


async def transfer(decider: Decider, ports: Ports) -> View:
    """Another mitra is sought, though the present one is there.

    Raises:
        SessionNotActive: only a session whose clock runs can be handed on.
    """

    async def gather() -> Event:
        return _lost(ports, LostBy.TRANSFER)

    await decider.decide_now(gather)
    return decider.view()


async def assign(command: AssignMitra, decider: Decider, ports: Ports) -> View:
    """The session as its new mitra gets it.

    Raises:
        OfferResolved: somebody or something was faster.
        MitraDeactivated, CapacityExceeded
    """

    async def gather() -> Event:
        if decider.session.status is not SessionStatus.REROUTING:
            raise OfferResolved
        return MitraAssigned(
            at=ports.clock.now(),
            mitra_id=command.mitra_id,
            pairing_id=command.pairing_id,
            offer_id=command.offer_id,
        )

    await decider.decide_now(gather)
    return decider.view()


async def lose_silent(seen: MitraSilent, decider: Decider, ports: Ports) -> None:
    """Another mitra is sought, if the present one is silent still, and if it is Valkey that says so (A3)."""

    async def gather() -> Event | None:
        if decider.session.status is not SessionStatus.ACTIVE:
            return None
        there = await ports.facts.reachability(decider.session.mitra_id)
        if there.source != "mirror" or is_there(there):
            return None
        lost = _lost(ports, LostBy.SILENT, silent_since=seen.since, reachability=there)
        # With no minutes left there is nothing to take over, and the deadline is on its way.
        return lost if decider.session.remaining_ms_at(lost.at) else None

    await decider.decide(gather)


async def give_up(seen: SearchOver, decider: Decider, ports: Ports) -> None:
    """The session ends, if it waits still: out of a search that has failed there is no other way."""

    async def gather() -> Event | None:
        if decider.session.status is not SessionStatus.REROUTING:
            return None
        return SearchFailed(at=ports.clock.now(), pairing_id=seen.pairing_id, cause=seen.cause)

    await decider.decide(gather)


def is_there(seen: Reachability) -> bool:
    """Reachable, or connected: either is enough for a session to keep its mitra."""
    return seen.connected or (seen.online and seen.heartbeat_fresh)


def _lost(
    ports: Ports, cause: LostBy, silent_since: Moment | None = None, reachability: Reachability | None = None
) -> MitraLost:
    now = ports.clock.now()
    return MitraLost(
        at=now,
        deadline_at=_search_ends_at(now, ports.facts.config()),
        cause=cause,
        pairing_id=str(uuid.uuid4()),
        silent_ms=None if silent_since is None else now - silent_since,
        reachability=reachability,
    )


def _search_ends_at(at: Moment, config: LiveConfig) -> Moment:
    return at + config.pairing_waves * config.pairing_offer_seconds * 1000 + SEARCH_SLACK_MS
