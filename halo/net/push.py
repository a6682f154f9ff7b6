"""The couriers of pushes: through FCM to every phone of a user, or into the log where no credentials are given.

Each phone gets the text in its own language; what one has received it is not sent again when another one failed. It must never log a
token or a text. Read next: `halo/push.py`, the message; `halo/net/fcm.py`, the provider.
"""

from functools import partial
from typing import Final, Protocol

import structlog
import trio

from halo.clock import Clock
from halo.net.fcm import Told, Verdict
from halo.outbox import Claim, Delivery, Device
from halo.push import Texts, fcm_message

log = structlog.get_logger(__name__)

PHONES_SECONDS: Final = 20.0
"""For all phones of one row: a new access token and the message itself may take 10 s each. Below the sender's own patience
(`halo.actors.outbox.DELIVERY_SECONDS`): who is cut off by the sender forgets which phones were reached, and rings at them again."""
UNHEARD: Final = Told(Verdict.FAILED, "no answer in time")
"""What is known of a phone until its answer is there."""


class Messaging(Protocol):
    """The provider; `halo.net.fcm.Fcm`."""

    async def send(self, message: dict[str, object], *, traceparent: str | None = None) -> Told: ...


class PushCourier:
    """Pushes by a provider."""

    def __init__(self, messaging: Messaging, texts: Texts, clock: Clock) -> None:
        self._messaging = messaging
        self._texts = texts
        self._clock = clock

    async def deliver(self, claim: Claim) -> Delivery:
        """To all phones that have it not yet, side by side."""
        if not claim.devices:
            return Delivery(nobody="no device")
        wanted = [device for device in claim.devices if device.auth_session_id not in claim.reached]
        told = dict.fromkeys(wanted, UNHEARD)
        with trio.move_on_after(PHONES_SECONDS):
            async with trio.open_nursery() as nursery:
                for device in wanted:
                    nursery.start_soon(partial(self._send, claim, device, told))
        return _delivery(told)

    async def _send(self, claim: Claim, device: Device, told: dict[Device, Told]) -> None:
        text = self._texts.find(claim.template, device.locale)
        if text is None:  # written by a newer node of a cluster that is being upgraded, or by hand
            told[device] = Told(Verdict.REFUSED, "no such template")
            return
        message = fcm_message(claim, device, text, self._clock.now())
        told[device] = await self._messaging.send(message, traceparent=claim.traceparent)


def _delivery(told: dict[Device, Told]) -> Delivery:
    failed = [each for each in told.values() if each.verdict is Verdict.FAILED]
    refused = [each for each in told.values() if each.verdict is Verdict.REFUSED]
    dropped = tuple(device.token for device, each in told.items() if each.verdict is Verdict.DROPPED)
    return Delivery(
        reached=tuple(device.auth_session_id for device, each in told.items() if each.verdict is Verdict.SENT),
        dropped=dropped,
        failure=failed[0].why or "failed" if failed else None,
        retry_after_ms=max((each.retry_after_ms or 0 for each in failed), default=None),
        refusal=refused[0].why or "refused" if refused else None,
        nobody="no device any more" if dropped else None,
    )


class PushLog:
    """Pushes for a first run without credentials: each is one line of the log."""

    async def deliver(self, claim: Claim) -> Delivery:
        log.info(
            "push",
            outbox_id=claim.outbox_id,
            session_id=claim.session_id,
            template=claim.template,
            devices=len(claim.devices),
        )
        return Delivery()
