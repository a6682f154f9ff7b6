"""Looking for a mitra: `/api/pairings/…` (spec 3, 4).

The search itself runs elsewhere and outlives the call that started it. Read next: `halo/actors/pairing.py`.
"""

from halo.net.call import Call, Handler
from halo.net.desk import Desk
from halo.pairing import PairingView
from halo.resources import PairingState, StartPairing


def pairing_handlers(desk: Desk) -> dict[str, Handler]:
    """The handlers of these routes, by name."""

    async def start_pairing(call: Call) -> PairingState:
        body: StartPairing = call.body
        view = await desk.pairings.start(
            call.user.user_id, str(body.payment_request_id), body.topic_sensitivity, call.derived_id
        )
        return state_of(view)

    async def pairing(call: Call) -> PairingState:
        return state_of(await desk.pairings.view(call.places["pairing_id"], call.user.user_id))

    async def cancel_pairing(call: Call) -> PairingState:
        return state_of(await desk.pairings.cancel(call.places["pairing_id"], call.user.user_id))

    return {"start_pairing": start_pairing, "pairing": pairing, "cancel_pairing": cancel_pairing}


def state_of(view: PairingView) -> PairingState:
    """The pairing as its customer sees it."""
    return PairingState(
        pairing_id=view.pairing_id, status=view.status.value, session_id=view.session_id, cause=view.cause
    )
