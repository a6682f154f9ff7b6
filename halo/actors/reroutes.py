"""Sessions that have lost their mitra, and sessions that no other mitra took over: what one node sees of its own, every two seconds.

A mitra is *silent* while no socket of hers answers on this node and the mirror says that she is offline or was not heard of lately. One
who was so at every look for `reroute_after_seconds` is lost. What was seen is kept in memory alone, and is forgotten at every doubt: when
Valkey was away or not believed (A3), or nobody looked for a while. It must never decide: it tells the session, which looks again, and
it tells it at every look until the session has moved on. Read next: `halo/actors/rerouting.py`.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Final, NoReturn, Protocol

import trio

from halo.actors.commands import MitraSilent, SearchOver, Sighting
from halo.actors.session import SessionActor
from halo.availability import Verdict
from halo.clock import Clock
from halo.config import LiveConfig
from halo.errors import StoreUnavailable
from halo.session import FailureCause, SessionStatus

LOOK_SECONDS: Final = 2.0
"""So much later at most is a mitra lost than the configuration says, whose least is five seconds."""
BLIND_SECONDS: Final = 10.0
"""Who has not looked for so long (the process was stopped, the loop hung) has not seen silence either."""
SESSIONS_AT_ONCE: Final = 1_000
"""Looked through between two turns of the loop: some 3 ms."""
ASKED_AT_ONCE: Final = 200
"""Mitras whom the mirror is asked about together, a task each: some 5 ms of the loop, one round trip."""
TOLD_AT_ONCE: Final = 200
"""Each has some sessions whose actors wake: their turns come between."""
_WATCHED: Final = {SessionStatus.ACTIVE, SessionStatus.EXTENDING}
"""A pending extension does not make a mitra heard; handed on is only what is `active`."""


class WatchedSessions(Protocol):
    """The registry."""

    def __iter__(self) -> Iterator[SessionActor]: ...

    def saw(self, session_id: str, sighting: Sighting) -> None: ...


class WatchedMirror(Protocol):
    """Who is there by Valkey. `standing` is None without trust in it, and another whenever trust was lost in between."""

    @property
    def standing(self) -> tuple[int, int] | None: ...

    async def reachability(self, mitra_id: str) -> Verdict: ...


class FailedSearch(Protocol):
    @property
    def session_id(self) -> str: ...

    @property
    def pairing_id(self) -> str: ...

    @property
    def cause(self) -> FailureCause: ...


class FailedSearches(Protocol):
    async def list_failed(self, session_ids: Collection[str]) -> Sequence[FailedSearch]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class ReroutePorts:
    """What the look is taken with."""

    clock: Clock
    mirror: WatchedMirror
    is_connected: Callable[[str], bool]
    """Whether a socket of this user answers here."""
    searches: FailedSearches
    config: Callable[[], LiveConfig]


class Reroutes:
    """See the module. Stores that are away are waited out: what is so still is seen by a later look."""

    def __init__(self, sessions: WatchedSessions, ports: ReroutePorts) -> None:
        self._sessions = sessions
        self._ports = ports
        self._silent_since: dict[str, float] = {}
        """By mitra; on Trio's clock, which no correction of the wall's moves."""
        self._standing: tuple[int, int] | None = None
        self._looked_at = -BLIND_SECONDS

    async def serve(self) -> NoReturn:
        while True:
            await trio.sleep(LOOK_SECONDS)
            await self._look_for_silent()
            await self._look_for_failed()
        raise AssertionError("the loop does not end")

    # ---- mitras

    async def _look_for_silent(self) -> None:
        began, standing = trio.current_time(), self._ports.mirror.standing
        if standing is None or standing != self._standing or began - self._looked_at > BLIND_SECONDS:
            self._silent_since = {}
        self._standing, self._looked_at = standing, began
        if standing is None:
            return
        absent = await self._find_absent()
        silent = await self._find_silent(absent)
        if silent is None or self._ports.mirror.standing != standing:
            self._silent_since, self._standing = {}, None
            return
        # Who was heard, or whose sessions are over, is forgotten; the new ones are silent from now on.
        self._silent_since = {mitra_id: self._silent_since.get(mitra_id, began) for mitra_id in silent}
        patience = self._ports.config().reroute_after_seconds
        lost = (
            (mitra_id, began - since) for mitra_id, since in self._silent_since.items() if began - since >= patience
        )
        while part := tuple(islice(lost, TOLD_AT_ONCE)):
            for mitra_id, silent_seconds in part:
                seen = MitraSilent(since=self._ports.clock.now() - round(silent_seconds * 1000))
                for session_id in absent[mitra_id]:
                    self._sessions.saw(session_id, seen)
            await trio.lowlevel.checkpoint()

    async def _find_absent(self) -> dict[str, list[str]]:
        """The mitras of running sessions who have no answering socket here, each with those sessions."""
        absent: dict[str, list[str]] = {}
        everyone = iter(self._sessions)
        while part := tuple(islice(everyone, SESSIONS_AT_ONCE)):
            for actor in part:
                session = actor.session
                if session.status in _WATCHED and not self._ports.is_connected(session.mitra_id):
                    absent.setdefault(session.mitra_id, []).append(session.session_id)
            await trio.lowlevel.checkpoint()
        return absent

    async def _find_silent(self, mitra_ids: Collection[str]) -> list[str] | None:
        """Those whom the mirror does not reach; None when it was not the mirror that answered for each of them."""
        silent: list[str] = []
        doubt = False

        async def ask(mitra_id: str) -> None:
            nonlocal doubt
            try:
                verdict = await self._ports.mirror.reachability(mitra_id)
            except StoreUnavailable:
                doubt = True
                return
            doubt |= verdict.source != "mirror"
            if not verdict.reachable:
                silent.append(mitra_id)

        everyone = iter(mitra_ids)
        while not doubt and (part := tuple(islice(everyone, ASKED_AT_ONCE))):
            async with trio.open_nursery() as nursery:
                for mitra_id in part:
                    nursery.start_soon(ask, mitra_id)
        return None if doubt else silent

    # ---- searches

    async def _look_for_failed(self) -> None:
        """Asks nothing while no session waits for another mitra."""
        waiting = [a.session.session_id for a in self._sessions if a.session.status is SessionStatus.REROUTING]
        if not waiting:
            return
        try:
            failed = await self._ports.searches.list_failed(waiting)
        except StoreUnavailable:
            return
        for search in failed:
            self._sessions.saw(search.session_id, SearchOver(pairing_id=search.pairing_id, cause=search.cause))
