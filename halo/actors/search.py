"""One search: the task that asks wave after wave until a mitra accepts, the customer gives up, or nobody is left.

It keeps nothing that matters: at each turn it reads the search as it stands, says what has changed since the last turn, and makes the
next move. So it does not matter who resolved an offer, or whether this task was there: a nudge is enough, and a crash, an unknown
commit or a restart costs a turn. It must never write but through the guarded statements of `SearchRows`. Read next: `halo/pairing.py`,
the moves; `halo/actors/pairing.py`, the desk that starts searches and nudges them.
"""

from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol, assert_never

import structlog
import trio

from halo import protocol
from halo.actors.commands import SearchOver, Sighting, View
from halo.clock import Clock, Moment
from halo.config import LiveConfig
from halo.effects import PushIfAbsent, Send, Step
from halo.errors import NotFound, StepOvertaken, StoreUnavailable
from halo.histogram import PATIENCE_BOUNDS_SECONDS, Histogram
from halo.pairing import AskWave, GiveUp, Offer, OfferStatus, PairingStatus, Search, Wait, next_move
from halo.push import receipt
from halo.session import FailureCause

log = structlog.get_logger(__name__)

STORE_RETRY_SECONDS = 0.5
"""The store has waited and tried again before it says that it is away; this only keeps many searches from asking in a loop."""


class SearchRows(Protocol):
    """The rows of one search."""

    async def load(self, pairing_id: str) -> Search: ...

    async def send_wave(
        self, search: Search, mitra_ids: Sequence[str], *, absent: Collection[str], deadline_at: Moment, at: Moment
    ) -> int: ...

    async def give_up(self, search: Search, at: Moment) -> None: ...


class Available(Protocol):
    """Who can be asked: online, heard of lately, with room; longest idle first."""

    async def find_available(self, limit: int, exclude: Collection[str]) -> list[str]: ...


class Lobby(Protocol):
    """The lobby sockets. `tell` never waits, and is for nobody when there is no socket."""

    def tell(self, user_id: str, frame: protocol.Frame) -> None: ...

    def is_in_lobby(self, user_id: str) -> bool: ...

    def ask_receipt(self, user_id: str, receipt: str) -> None: ...


class SearchedSessions(Protocol):
    """The registry, as searches need it."""

    async def opened(self, decided: Step) -> None:
        """Start the actor of a session that has just been committed; once or twice is the same."""

    async def assign(self, session_id: str, *, mitra_id: str, pairing_id: str, offer_id: str) -> View: ...

    def saw(self, session_id: str, sighting: Sighting) -> None: ...


@dataclass(frozen=True, slots=True)
class SearchMeters:
    """What all searches of a node observe together; those for a session that lost its mitra are counted elsewhere."""

    match_seconds: Histogram = field(default_factory=lambda: Histogram(PATIENCE_BOUNDS_SECONDS))
    """From a customer's wish to a mitra's yes, of those that began here."""
    outcomes: Counter[str] = field(default_factory=Counter)
    """`matched`, or the cause of the failure."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchPorts:
    """Everything that a search is given."""

    clock: Clock
    rows: SearchRows
    available: Available
    lobby: Lobby
    sessions: SearchedSessions
    config: Callable[[], LiveConfig]
    meters: SearchMeters = field(default_factory=SearchMeters)


_RESCINDED: dict[OfferStatus, Literal["taken", "cancelled", "timed_out"]] = {
    OfferStatus.TAKEN: "taken",
    OfferStatus.CANCELLED: "cancelled",
    OfferStatus.TIMED_OUT: "timed_out",
}
"""What a mitra is told about an offer that somebody else resolved."""


class Searcher:
    """The task of one pairing; see the module.

    Error handling: `run` outlives an absent store; what else it raises is a fault of ours, for its supervisor.
    """

    def __init__(self, pairing_id: str, ports: SearchPorts) -> None:
        self.pairing_id = pairing_id
        self.payment_request_id: str | None = None
        self.unopened: dict[str, Step] = {}
        """Sessions that an accept may have committed and whose actor was not started yet: the rows will tell which one was."""
        self._ports = ports
        self._woken = trio.Event()
        self._known: dict[str, Offer] = {}
        self._progress = 0
        self._matched = False
        self._not_before: Moment = 0
        self._began: float | None = None
        """On Trio's clock, in seconds; None when another task had begun it."""

    def wake(self) -> None:
        """The rows may have changed."""
        self._woken.set()

    def asked(self) -> set[str]:
        """The mitras whose answer is awaited."""
        return {offer.mitra_id for offer in self._known.values() if offer.status is OfferStatus.OPEN}

    def is_asking(self, mitra_id: str) -> bool:
        return mitra_id in self.asked()

    async def run(self) -> None:
        """Until the search is resolved and everybody knows."""
        while True:
            self._woken = (
                trio.Event()
            )  # before the rows are read, or a change during the reading would be slept through
            try:
                search = await self._ports.rows.load(self.pairing_id)
                self.payment_request_id = search.payment_request_id
                if not search.wave and self._began is None:
                    self._began = trio.current_time()
                if search.session_id is not None:
                    await self.open_session(search.session_id)
                self._announce(search)
                if search.status is not PairingStatus.SEARCHING:
                    self._observe(search)
                    return
                await self._move(search)
            except NotFound:
                return  # its insert was never committed
            except StepOvertaken:
                continue  # somebody was faster; the next turn sees what they did
            except StoreUnavailable:
                # Nobody could answer meanwhile, so nothing may run out the moment the store is back (spec 5, faults).
                self._not_before = self._ports.clock.now() + self._ports.config().reconnect_grace_seconds * 1000
                await trio.sleep(STORE_RETRY_SECONDS)

    def _observe(self, search: Search) -> None:
        if search.rerouted_session_id is not None:
            return
        meters = self._ports.meters
        meters.outcomes[search.cause or search.status.value] += 1
        if search.status is PairingStatus.MATCHED and self._began is not None:
            meters.match_seconds.observe(trio.current_time() - self._began)

    async def open_session(self, session_id: str) -> None:
        """Start the actor of a committed session, once, and tell both lobbies: first that it is, then, if the clock runs, since when."""
        decided = self.unopened.pop(session_id, None)
        if decided is None:
            return
        log.info(  # before anything is told of it: a crash in between must not leave a session of which the log knows no beginning
            "session_step",
            session_id=session_id,
            step=decided.event,
            before=None,
            after=decided.session.status.value,
            cause=decided.cause,
            version=decided.session.version,
        )
        await self._ports.sessions.opened(decided)
        self._tell_matched(decided.session.customer_id, session_id)
        for effect in decided.effects:
            if isinstance(effect, Send) and isinstance(effect.frame, protocol.SessionStarted):
                self._ports.lobby.tell(decided.session.mitra_id, effect.frame)
                self._ports.lobby.tell(decided.session.customer_id, effect.frame)
        for effect in decided.effects:
            if isinstance(effect, PushIfAbsent):
                named = receipt(effect.collapse_key, decided.session.version)
                self._ports.lobby.ask_receipt(decided.session.customer_id, named)

    def _announce(self, search: Search) -> None:
        for offer in search.offers:
            before = self._known.get(offer.offer_id)
            self._known[offer.offer_id] = offer
            if before is not None and before.status is offer.status:
                continue
            if offer.status is OfferStatus.OPEN:
                self._ports.lobby.tell(offer.mitra_id, search.frame(offer))
                self._ports.lobby.ask_receipt(offer.mitra_id, f"offer:{offer.offer_id}")
            elif offer.status in _RESCINDED and (before is not None or offer.wave == search.wave):
                rescinded = protocol.OfferRescinded(offer_id=offer.offer_id, reason=_RESCINDED[offer.status])
                self._ports.lobby.tell(offer.mitra_id, rescinded)
        if search.rerouted_session_id is not None:
            self._tell_session(search, search.rerouted_session_id)
            return
        if search.wave > self._progress:
            self._progress = search.wave
            offered = sum(offer.wave == search.wave for offer in search.offers)
            progress = protocol.PairingProgress(pairing_id=search.pairing_id, wave=search.wave, offered=offered)
            self._ports.lobby.tell(search.customer_id, progress)
        if search.session_id is not None:
            self._tell_matched(search.customer_id, search.session_id)
        elif search.cause is not None:
            failed = protocol.PairingFailed(pairing_id=search.pairing_id, cause=search.cause)
            self._ports.lobby.tell(search.customer_id, failed)
            self._ports.lobby.ask_receipt(search.customer_id, f"pairing:{search.pairing_id}")

    def _tell_session(self, search: Search, session_id: str) -> None:
        """The customer of a session that lost its mitra hears of it from the session alone; that it can end, it learns here."""
        if search.cause is not None:
            over = SearchOver(pairing_id=search.pairing_id, cause=FailureCause(search.cause))
            self._ports.sessions.saw(session_id, over)

    def _tell_matched(self, customer_id: str, session_id: str) -> None:
        if not self._matched:
            self._matched = True
            self._ports.lobby.tell(
                customer_id, protocol.PairingMatched(pairing_id=self.pairing_id, session_id=session_id)
            )

    async def _move(self, search: Search) -> None:
        now = self._ports.clock.now()
        move = next_move(search, now, waves=self._ports.config().pairing_waves, not_before=self._not_before)
        match move:
            case Wait():
                with trio.move_on_after((move.until - now) / 1000):
                    await self._woken.wait()
            case AskWave():
                await self._ask(search, move)
            case GiveUp():
                await self._ports.rows.give_up(search, now)
            case _:
                assert_never(move)

    async def _ask(self, search: Search, move: AskWave) -> None:
        """Candidates may turn out to be gone or full in the rows; then others are sought, until nobody is left."""
        config = self._ports.config()
        exclude = set(move.exclude)
        while mitra_ids := await self._ports.available.find_available(config.pairing_blast_size, exclude):
            now = self._ports.clock.now()
            absent = [mitra_id for mitra_id in mitra_ids if not self._ports.lobby.is_in_lobby(mitra_id)]
            deadline_at = search.offers_end_at(now + config.pairing_offer_seconds * 1000)
            if await self._ports.rows.send_wave(search, mitra_ids, absent=absent, deadline_at=deadline_at, at=now):
                return
            exclude.update(mitra_ids)
        await self._ports.rows.give_up(search, self._ports.clock.now())
