"""What each search of this node has last read of itself, held against its rows: it hears within a second of whoever else moved it.

A search sleeps until its offers run out, unless somebody wakes it. On its own node the desk does; an answer, a cancellation or a
deactivation that another node took has only written rows. So this room stands between the searches and their rows, notes what each
has read, and asks twice a second, in one statement for all of them, whether that is still so. It must never move a search: it only
wakes it, and a wake too many costs one reading. Read next: `halo/actors/search.py`.
"""

from collections.abc import Callable, Collection, Sequence
from typing import Final, NoReturn, Protocol

import trio

from halo.actors.search import SearchRows
from halo.clock import Moment
from halo.errors import NotFound, StoreUnavailable
from halo.pairing import OfferStatus, PairingStatus, Search

LOOK_SECONDS: Final = 0.5
"""Half of the second in which every node hears of a cancelled pairing; the other half is for reading it and telling."""


class SearchState(Protocol):
    """What another node may have changed."""

    @property
    def pairing_id(self) -> str: ...

    @property
    def status(self) -> str: ...

    @property
    def wave(self) -> int: ...

    @property
    def open_offers(self) -> int: ...

    @property
    def payment_status(self) -> str: ...


class SearchStates(Protocol):
    async def list_states(self, pairing_ids: Collection[str]) -> Sequence[SearchState]: ...


class Readings:
    """The rows of searches, as the searches of this node are given them; see the module.

    Error handling: what the rows raise goes to whoever asked; a store that is away is waited out by `serve`.
    """

    def __init__(self, rows: SearchRows, states: SearchStates) -> None:
        self._rows = rows
        self._states = states
        self._read: dict[str, Search] = {}
        """The last reading of each search that was not over then."""

    async def load(self, pairing_id: str) -> Search:
        try:
            search = await self._rows.load(pairing_id)
        except NotFound:
            self._read.pop(pairing_id, None)
            raise
        if search.status is PairingStatus.SEARCHING:
            self._read[pairing_id] = search
        else:
            self._read.pop(pairing_id, None)
        return search

    async def send_wave(
        self, search: Search, mitra_ids: Sequence[str], *, absent: Collection[str], deadline_at: Moment, at: Moment
    ) -> int:
        return await self._rows.send_wave(search, mitra_ids, absent=absent, deadline_at=deadline_at, at=at)

    async def give_up(self, search: Search, at: Moment) -> None:
        await self._rows.give_up(search, at)

    async def serve(self, wake: Callable[[Search], None]) -> NoReturn:
        while True:
            await trio.sleep(LOOK_SECONDS)
            try:
                await self._look(wake)
            except StoreUnavailable:
                continue  # what was moved meanwhile is found by the next look
        raise AssertionError("the loop does not end")

    async def _look(self, wake: Callable[[Search], None]) -> None:
        """Asks nothing while nothing is searched."""
        before = dict(self._read)
        if not before:
            return
        for state in await self._states.list_states(before):
            search = before[state.pairing_id]
            if self._read.get(search.pairing_id) is search and _has_moved(search, state):
                wake(search)


def _has_moved(search: Search, state: SearchState) -> bool:
    open_offers = sum(offer.status is OfferStatus.OPEN for offer in search.offers)
    return (search.status, search.wave, open_offers, search.payment_status) != (
        state.status,
        state.wave,
        state.open_offers,
        state.payment_status,
    )
