"""Being there and being asked: `/api/mitra/status/…`, `/api/offers/…`, and the customers' beacon (spec 3, 4).

Postgres first, then the mirror, whose errors heal by themselves. A heartbeat must never cost Postgres a statement while the mirror
is trusted. Read next: `halo/store/mirror.py`, `halo/store/mitras.py`.
"""

import msgspec

from halo.clock import rfc3339, rfc3339_or_none
from halo.net.call import Call, Handler
from halo.net.desk import Desk
from halo.resources import BeaconState, MitraStatus, OfferAnswer, OpenOffer, OpenOffers
from halo.store.mitras import MitraStatus as StoredStatus


def mitra_handlers(desk: Desk) -> dict[str, Handler]:
    """The handlers of these routes, by name."""

    async def go_online(call: Call) -> MitraStatus:
        mitra_id, at = call.user.user_id, desk.clock.now()
        stored = await desk.mitras.go_online(mitra_id, at)
        await desk.mirror.went_online(mitra_id, at)
        return await status_of(stored)

    async def go_offline(call: Call) -> MitraStatus:
        mitra_id = call.user.user_id
        stored = await desk.mitras.go_offline(mitra_id, desk.clock.now())
        await desk.mirror.went_offline(mitra_id)
        return await status_of(stored)

    async def heartbeat(call: Call) -> None:
        await desk.mirror.heartbeat(call.user.user_id, desk.clock.now())

    async def mitra_status(call: Call) -> MitraStatus:
        return await status_of(await desk.mitras.load_status(call.user.user_id))

    async def beacon(call: Call) -> BeaconState:  # noqa: ARG001  # the same for every customer
        available = await desk.availability.count_available()
        return BeaconState(available_mitras=available.count, as_of=rfc3339(available.as_of))

    async def open_offers(call: Call) -> OpenOffers:
        offers = await desk.pairings.list_offers(call.user.user_id)
        return OpenOffers(offers=tuple(OpenOffer(**msgspec.structs.asdict(offer)) for offer in offers))

    async def accept_offer(call: Call) -> OfferAnswer:
        session_id, status = await desk.pairings.accept(call.places["offer_id"], call.user.user_id)
        return OfferAnswer(session_id=session_id, status=status)

    async def decline_offer(call: Call) -> OfferAnswer:
        await desk.pairings.decline(call.places["offer_id"], call.user.user_id)
        return OfferAnswer(session_id=None, status="declined")

    async def status_of(stored: StoredStatus) -> MitraStatus:
        """The row with what the mirror has heard since it was written."""
        now = desk.clock.now()
        reachability = await desk.mirror.reachability(stored.mitra_id)
        heard = stored.last_heartbeat_at
        if reachability.heartbeat_age_ms is not None:
            heard = max(heard or 0, now - reachability.heartbeat_age_ms)
        return MitraStatus(
            is_online=stored.is_online,
            is_reachable=stored.is_online and reachability.reachable,
            capacity=stored.capacity,
            max_sessions=stored.max_sessions,
            last_heartbeat_at=rfc3339_or_none(heard),
        )

    return {
        "go_online": go_online,
        "go_offline": go_offline,
        "heartbeat": heartbeat,
        "mitra_status": mitra_status,
        "beacon": beacon,
        "open_offers": open_offers,
        "accept_offer": accept_offer,
        "decline_offer": decline_offer,
    }
