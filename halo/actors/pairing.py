"""The pairing desk: where customers ask for a mitra and mitras answer, whichever way they came, HTTP or lobby socket.

Each call is one transaction in the rows, then a nudge to the task of that search, which tells everybody concerned. A transaction
under way is shielded from its caller: a socket that closes in the middle of an accept must not leave a committed session without
its actor. It must never decide a race by what it has in memory. Read next: `halo/actors/search.py`, `halo/pairing.py`.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Protocol
from uuid import uuid4

import structlog
import trio

from halo import protocol
from halo.actors.search import Searcher, SearchPorts
from halo.actors.supervisor import RestartBudget, supervise
from halo.clock import Moment
from halo.effects import Step
from halo.errors import OfferResolved, Refusal, StoreUnavailable
from halo.pairing import Opening, PairingStatus, PairingView, Search, open_match

log = structlog.get_logger(__name__)


class PairingRows(Protocol):
    """The customer's side of the rows."""

    async def open(
        self, pairing_id: str, customer_id: str, payment_request_id: str, topic_sensitivity: protocol.Topic, at: Moment
    ) -> PairingView: ...

    async def load_view(self, pairing_id: str, customer_id: str) -> PairingView: ...

    async def cancel(self, pairing_id: str, customer_id: str, at: Moment) -> PairingView: ...


class OrphanRows(Protocol):
    """Searches that nobody keeps."""

    async def take_up(self, not_before: Moment, kept: Collection[str]) -> list[str]: ...


class OpenedBefore(Protocol):
    """The session that this mitra's first yes to the offer has opened, as it is by now."""

    @property
    def session_id(self) -> str: ...

    @property
    def status(self) -> str: ...


class Answered(Protocol):
    """An accept that was not refused: a session `opened` now, or `before`; a session that may be taken over, by its actor alone; none
    of these when the payment had failed, and the search with it."""

    @property
    def pairing_id(self) -> str: ...

    @property
    def opened(self) -> Step | None: ...

    @property
    def before(self) -> OpenedBefore | None: ...

    @property
    def rerouted_session_id(self) -> str | None: ...


class AnswerRows(Protocol):
    """The mitra's answers."""

    async def accept(self, offer_id: str, mitra_id: str, open_: Callable[[Search], Step], at: Moment) -> Answered: ...

    async def decline(self, offer_id: str, mitra_id: str, at: Moment) -> str: ...


class OfferRows(Protocol):
    """All the offers of a mitra."""

    async def list_open(self, mitra_id: str) -> list[protocol.Offer]: ...

    async def rescind(self, mitra_id: str, at: Moment) -> list[str]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class DeskPorts:
    """What the desk is given beside what it hands on to its searches."""

    search: SearchPorts
    pairings: PairingRows
    orphans: OrphanRows
    answers: AnswerRows
    offers: OfferRows
    minute_ms: int
    """Length of a paid minute (`HALO_MINUTE_SECONDS`)."""


class PairingDesk:
    """All searches of this node.

    Resource handling: searches run in `nursery`, which the caller owns; cancelling them loses nothing.
    Error handling: every public method raises `Refusal`s only.
    """

    def __init__(self, nursery: trio.Nursery, ports: DeskPorts, budget: RestartBudget | None = None) -> None:
        self._nursery = nursery
        self._ports = ports
        self._clock = ports.search.clock
        self._config = ports.search.config
        self._budget = budget or RestartBudget()
        self._searchers: dict[str, Searcher] = {}

    def __len__(self) -> int:
        return len(self._searchers)

    async def restore(self) -> int:
        """Take up every search that no living node keeps; returns how many. Safe to call again and again.

        What has run out meanwhile waits `reconnect_grace_seconds`. Raises StoreUnavailable.
        """
        pairing_ids = await self._ports.orphans.take_up(
            self._clock.now() + self._config().reconnect_grace_seconds * 1000, tuple(self._searchers)
        )
        for pairing_id in pairing_ids:
            self._nudge(pairing_id)
        return len(pairing_ids)

    # ---- customers

    async def start(
        self,
        customer_id: str,
        payment_request_id: str,
        topic_sensitivity: protocol.Topic = "regular",
        pairing_id: str | None = None,
    ) -> PairingView:
        """A new search; with the `pairing_id` of one that exists, that one as it is by now.

        Raises:
            NotFound: no such payment of this customer.
            InvalidState: the payment is for an extension, or neither pending nor confirmed.
            PaymentInUse: another search or session has it.
            IdReused: the `pairing_id` is that of another search.
            StoreUnavailable
        """
        pairing_id = pairing_id or str(uuid4())
        with trio.CancelScope(shield=True):
            try:
                view = await self._ports.pairings.open(
                    pairing_id, customer_id, payment_request_id, topic_sensitivity, self._clock.now()
                )
            except StoreUnavailable:
                self._nudge(pairing_id)  # if it was committed all the same, somebody must keep it
                raise
        if view.status is PairingStatus.SEARCHING:
            self._nudge(pairing_id)
        return view

    async def view(self, pairing_id: str, customer_id: str) -> PairingView:
        """Raises NotFound for a pairing that is not this customer's, StoreUnavailable."""
        return await self._ports.pairings.load_view(pairing_id, customer_id)

    async def cancel(self, pairing_id: str, customer_id: str) -> PairingView:
        """The customer gives up; cancelling what is over changes nothing.

        Raises:
            NotFound: not this customer's.
            InvalidState: a mitra was faster.
            StoreUnavailable
        """
        before = await self._ports.pairings.load_view(pairing_id, customer_id)
        if before.status in {PairingStatus.FAILED, PairingStatus.CANCELLED}:
            return before
        with trio.CancelScope(shield=True):
            try:
                view = await self._ports.pairings.cancel(pairing_id, customer_id, self._clock.now())
            finally:
                self._wake(pairing_id)
        return view

    def search_opened(self, pairing_id: str) -> None:
        """A session has lost its mitra, and its own step has opened the search for another."""
        self._nudge(pairing_id)

    def payment_settled(self, payment_request_id: str) -> None:
        """The payment was confirmed or has failed; a search that has it looks at it now."""
        for searcher in self._searchers.values():
            if searcher.payment_request_id == payment_request_id:
                searcher.wake()

    # ---- mitras

    async def list_offers(self, mitra_id: str) -> list[protocol.Offer]:
        """What this mitra is being asked, oldest first. Raises StoreUnavailable."""
        return await self._ports.offers.list_open(mitra_id)

    async def accept(self, offer_id: str, mitra_id: str) -> tuple[str, str]:
        """The mitra's yes: the id and the status of the session that it has opened or taken over, also when the winner says it again.

        Raises:
            NotFound: the offer is not this mitra's.
            OfferResolved: somebody or something was faster, or the payment has failed.
            MitraDeactivated, CapacityExceeded
            StoreUnavailable: whether the session was opened will show when the store is back.
        """
        session_id, asked = str(uuid4()), set[str]()

        def open_(search: Search) -> Step:
            # The clock starts now, under the locks, and not before the wait for them: that would be the customer's time.
            opening = Opening(
                session_id=session_id, at=self._clock.now(), minute_ms=self._ports.minute_ms, config=self._config()
            )
            decided = open_match(search, mitra_id, opening)
            self._searcher(search.pairing_id).unopened[session_id] = decided
            asked.add(search.pairing_id)
            return decided

        with trio.CancelScope(shield=True):
            try:
                answered = await self._ports.answers.accept(offer_id, mitra_id, open_, self._clock.now())
            except StoreUnavailable:
                for pairing_id in asked:
                    self._nudge(pairing_id)  # if it was committed all the same, its search opens the session
                raise
            except Refusal:
                for pairing_id in asked:
                    self._searcher(pairing_id).unopened.pop(session_id, None)
                raise
            if answered.before is not None:
                return await self._opened_before(answered.pairing_id, answered.before, session_id)
            if answered.rerouted_session_id is None:
                searcher = self._searcher(answered.pairing_id)
                await searcher.open_session(session_id)
                searcher.wake()
        if answered.rerouted_session_id is not None:
            return await self._take_over(answered.rerouted_session_id, answered.pairing_id, offer_id, mitra_id, open_)
        if answered.opened is None:
            raise OfferResolved("The customer's payment has failed.")
        return answered.opened.session.session_id, answered.opened.session.status.value

    async def _take_over(
        self, session_id: str, pairing_id: str, offer_id: str, mitra_id: str, open_: Callable[[Search], Step]
    ) -> tuple[str, str]:
        """The session's actor decides. It needs no shield: what it was handed it does, whoever waits."""
        try:
            view = await self._ports.search.sessions.assign(
                session_id, mitra_id=mitra_id, pairing_id=pairing_id, offer_id=offer_id
            )
        except OfferResolved:  # perhaps by her own yes, said twice at once: then the rows know it, or refuse it again
            answered = await self._ports.answers.accept(offer_id, mitra_id, open_, self._clock.now())
            if answered.before is None:
                raise
            return answered.before.session_id, answered.before.status
        finally:
            self._wake(pairing_id)  # only where it is kept: another node's search is not ours to run
        return view.session.session_id, view.session.status.value

    async def _opened_before(self, pairing_id: str, before: OpenedBefore, session_id: str) -> tuple[str, str]:
        """The answer to the winner's repeat. Its first answer may have been lost with the actor not started yet."""
        searcher = self._searchers.get(pairing_id)
        if searcher is not None:
            if before.session_id != session_id:  # decided for a commit that never came; the rows have another
                searcher.unopened.pop(session_id, None)
            await searcher.open_session(before.session_id)
        return before.session_id, before.status

    async def decline(self, offer_id: str, mitra_id: str) -> None:
        """The mitra's no, once or repeated.

        Raises:
            NotFound: the offer is not this mitra's.
            OfferResolved: it was resolved otherwise.
            StoreUnavailable
        """
        with trio.CancelScope(shield=True):
            self._nudge(await self._ports.answers.decline(offer_id, mitra_id, self._clock.now()))

    def asked(self) -> set[str]:
        """The mitras whom a search of this node is asking."""
        return set[str]().union(*(searcher.asked() for searcher in self._searchers.values()))

    async def rescind_for(self, mitra_id: str) -> None:
        """Withdraw every open offer of a mitra who was deactivated. Raises StoreUnavailable."""
        with trio.CancelScope(shield=True):
            try:
                for pairing_id in await self._ports.offers.rescind(mitra_id, self._clock.now()):
                    self._wake(pairing_id)
            finally:  # the deactivation's own transaction may have withdrawn them already
                for searcher in self._searchers.values():
                    if searcher.is_asking(mitra_id):
                        searcher.wake()

    # ---- searches

    def _wake(self, pairing_id: str) -> None:
        if pairing_id in self._searchers:
            self._searchers[pairing_id].wake()

    def _nudge(self, pairing_id: str) -> None:
        """Wake the search, or start it where there is none: parked, or not of this node."""
        self._searcher(pairing_id).wake()

    def _searcher(self, pairing_id: str) -> Searcher:
        searcher = self._searchers.get(pairing_id)
        if searcher is None:
            searcher = self._searchers[pairing_id] = Searcher(pairing_id, self._ports.search)
            self._nursery.start_soon(self._keep, searcher, name=f"search {pairing_id}")
        return searcher

    async def _keep(self, searcher: Searcher) -> None:
        # It goes on in the trace of whoever wanted it: its pushes belong to that wish.
        structlog.contextvars.clear_contextvars()
        structlog.contextvars.bind_contextvars(pairing_id=searcher.pairing_id)

        async def recover(_: Exception) -> None:
            """Nothing to do: each turn begins with the rows."""

        def parked() -> None:
            log.error("search_parked", pairing_id=searcher.pairing_id)

        try:
            await supervise(
                searcher.run, name=f"search {searcher.pairing_id}", recover=recover, parked=parked, budget=self._budget
            )
        finally:
            del self._searchers[searcher.pairing_id]
