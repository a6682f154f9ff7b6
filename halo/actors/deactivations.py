"""Deactivations as every node hears of them: from Postgres, twice a second.

The operator's own node acts at once; the others, and this one when the operator's died half way, find here whose sessions must end
and whose offers are withdrawn (spec 3: within a second on every node). Sockets close by the revocation of their tokens. It must
never wait for one session before it looks at the next, and never end one in `rerouting`: its customer waits for another mitra already.
Read next: `halo/net/operators.py`, which deactivates.
"""

from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from typing import Final, NoReturn, Protocol

import structlog
import trio

from halo.errors import Refusal, StoreUnavailable
from halo.events import EndedBy

log = structlog.get_logger(__name__)

LOOK_SECONDS: Final = 0.5
"""Half of the second that there is; the other half is for ending what is found."""


class EndedSessions(Protocol):
    """The registry."""

    def __len__(self) -> int: ...

    async def end(self, session_id: str, by: EndedBy, *, user_id: str | None) -> object: ...


class AskedSearches(Protocol):
    """The pairing desk."""

    def asked(self) -> Collection[str]: ...

    async def rescind_for(self, mitra_id: str) -> None: ...


class SessionRows(Protocol):
    async def list_without_active_mitra(self) -> Mapping[str, str]: ...


class MitraRows(Protocol):
    async def list_deactivated(self, mitra_ids: Collection[str]) -> Sequence[str]: ...


class Deactivations:
    """See the module. A store that is away is waited out; what was deactivated meanwhile is found by the next look."""

    def __init__(
        self,
        sessions: EndedSessions,
        searches: AskedSearches,
        rows: SessionRows,
        mitras: MitraRows,
        close_sockets: Callable[[], Awaitable[None]],
    ) -> None:
        self._sessions = sessions
        self._searches = searches
        self._rows = rows
        self._mitras = mitras
        self._close_sockets = close_sockets
        """Closes what revoked tokens hold open. First of all: the end of her session would close a mitra's socket as if in order."""
        self._ending: set[str] = set()

    async def serve(self) -> NoReturn:
        async with trio.open_nursery() as nursery:
            while True:
                await trio.sleep(LOOK_SECONDS)
                try:
                    await self._look(nursery)
                except StoreUnavailable:
                    continue
        raise AssertionError("the loop does not end")

    async def _look(self, nursery: trio.Nursery) -> None:
        """Asks nothing while there is nothing here that a deactivation could end."""
        if len(self._sessions):
            mitra_of = await self._rows.list_without_active_mitra()
            found = [session_id for session_id in mitra_of if session_id not in self._ending]
            if found:
                await self._close_sockets()
            for session_id in found:
                self._ending.add(session_id)
                nursery.start_soon(self._end, session_id, mitra_of[session_id], name=f"end {session_id}")
        if asked := self._searches.asked():
            for mitra_id in await self._mitras.list_deactivated(asked):
                await self._searches.rescind_for(mitra_id)

    async def _end(self, session_id: str, mitra_id: str) -> None:
        try:
            await self._sessions.end(session_id, EndedBy.DEACTIVATION, user_id=mitra_id)
        except (
            Refusal
        ) as refusal:  # ended or handed on meanwhile, or busy: what is still hers and lives is listed again
            log.info("deactivated_session_not_ended", session_id=session_id, code=refusal.code)
        finally:
            self._ending.discard(session_id)
