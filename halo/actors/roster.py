"""The roster: every session's actor on this node, from its start to its end.

Actors run under one nursery, each supervised on its own. One that crashes too often is parked and stays listed, with its sockets, until
somebody revives it; one whose session another node has by now sends its sockets there and goes. It must never reach into a session:
whatever changes one goes through its mailbox. Read next: `halo/actors/ownership.py`, which finds out who is to start and who has to go,
and `halo/actors/supervisor.py`.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial

import structlog
import trio

from halo.actors.commands import Stop
from halo.actors.ports import Ports, StoredSession
from halo.actors.session import SessionActor
from halo.actors.supervisor import RestartBudget, supervise
from halo.actors.upkeep import Upkeeps
from halo.clock import Moment
from halo.errors import ActorFault, Draining, OwnershipLost, SessionNotActive
from halo.session import Session, SessionStatus
from halo.trace import forget

log = structlog.get_logger(__name__)

LATE_MS = 1_000
"""An actor that starts so long after its session was opened makes up for it; what is less is the way of a commit."""

STOPPED_AT_ONCE = 100
"""Between two turns of the loop: each ends a task and its nursery, together some 8 ms."""


@dataclass(frozen=True, slots=True)
class Taken:
    """A session as it was committed last, here."""

    session: Session
    last_seq: int


class Roster:
    """All actors of this node.

    Resource handling: actors run in `nursery`, which the caller owns; `drain` stops them all.
    """

    def __init__(self, nursery: trio.Nursery, ports: Ports, budget: RestartBudget | None = None) -> None:
        self._nursery = nursery
        self._ports = ports
        self._budget = budget or RestartBudget()
        self._actors: dict[str, SessionActor] = {}
        self._running = 0
        """Actors with a task; a parked one has none any more, and stays listed."""
        self._parked_at: dict[str, Moment] = {}
        self.upkeeps = Upkeeps(ports.clock)
        """Of those sessions only that have crashed here."""
        self._all_gone = trio.Event()
        self.draining = False
        nursery.start_soon(ports.bell.serve, name="bell of all alarms")

    def __iter__(self) -> Iterator[SessionActor]:
        return iter(tuple(self._actors.values()))

    def __len__(self) -> int:
        return len(self._actors)

    def find(self, session_id: str) -> SessionActor | None:
        return self._actors.get(session_id)

    def epochs(self) -> dict[str, int]:
        """The epoch with which each session is kept here."""
        return {session_id: actor.session.epoch for session_id, actor in self._actors.items()}

    # ---- life

    def start_late(self, stored: StoredSession, stepped_at: Moment) -> None:
        """Start an actor some time after the step that it begins with: what the commit or its lost answer took long is made up for."""
        actor = self.start(stored, stepped_at)
        if (late := self._ports.clock.now()) - stepped_at > LATE_MS:
            actor.owe_downtime(stepped_at, late)

    def start(self, stored: StoredSession, stepped_at: Moment = 0) -> SessionActor:
        """Start an actor for what is ours; it takes the place of an incarnation with an older epoch."""
        actor = SessionActor(stored.session, stored.last_seq, self._ports, stepped_at)
        earlier = self._actors.get(actor.session.session_id)
        if earlier is not None:  # taken from ourselves, or lost and had again: its epoch is stale
            earlier.audience.send_away()
            earlier.mailbox.put(Stop(), urgent=True)
        self._actors[actor.session.session_id] = actor
        self._parked_at.pop(actor.session.session_id, None)
        if self.draining:  # it was committed while the others were told to stop
            actor.mailbox.put(Stop(), urgent=True)
        self._running += 1
        self._nursery.start_soon(self._keep, actor, name=f"session {actor.session.session_id}")
        return actor

    async def _keep(self, actor: SessionActor) -> None:
        session_id = actor.session.session_id
        # Started by whoever opened the session, which ends long before: from here on each step belongs to whoever asks for it.
        structlog.contextvars.clear_contextvars()
        structlog.contextvars.bind_contextvars(session_id=session_id)
        forget()
        lost = False

        async def run() -> None:
            nonlocal lost
            try:
                if not lost:
                    await actor.run()
            except* OwnershipLost:
                lost = True
            if lost:
                log.warning("session_ownership_lost", session_id=session_id)
                actor.audience.send_away()

        async def recover(_: Exception) -> None:
            nonlocal lost
            try:
                await actor.recover()
            except OwnershipLost:
                lost = True

        def parked() -> None:
            actor.retire(ActorFault)
            self._parked_at[session_id] = self._ports.clock.now()

        try:
            await supervise(
                run,
                name="session",
                recover=recover,
                parked=parked,
                budget=self._budget,
                crashed=partial(self.upkeeps.crashed, session_id),
                session_id=session_id,
            )
        finally:
            if not actor.is_parked:
                self.upkeeps.over(session_id)
                actor.retire(SessionNotActive if actor.session.status is SessionStatus.ENDED else Draining)
                if self._actors.get(session_id) is actor:
                    del self._actors[session_id]
            self._running -= 1
            if self.draining and not self._running:
                self._all_gone.set()

    def parked_at(self, session_id: str) -> Moment | None:
        """Since when this session's actor stands still, or None when it does not."""
        actor = self._actors.get(session_id)
        return self._parked_at.get(session_id) if actor is not None and actor.is_parked else None

    async def revive(self, session_id: str) -> bool:
        """One more attempt for a parked actor: from its row, with a fresh budget, and the time that it stood still credited.

        Returns whether it runs again. Raises StoreUnavailable; then it is parked as before.
        """
        actor = self._actors.get(session_id)
        if actor is None or not actor.is_parked:
            return False
        stored = await self._ports.rows.load(session_id)
        if self._actors.get(session_id) is not actor or self.draining:
            return False  # taken from ourselves meanwhile, or nobody starts any more
        parked_at = self._parked_at[session_id]
        if (
            stored is None
            or stored.session.epoch != actor.session.epoch
            or stored.session.status is SessionStatus.ENDED
        ):
            self._dismiss(session_id)
            return False
        self.start(stored).owe_downtime(parked_at, self._ports.clock.now())
        return True

    def disown(self, lost: Mapping[str, int]) -> None:
        """Sessions that are not ours any more at these epochs, or over: their actors look, and send their sockets away."""
        for session_id, epoch in lost.items():
            actor = self._actors.get(session_id)
            if actor is None or actor.session.epoch != epoch:  # it ended or was taken anew meanwhile
                continue
            if actor.is_parked:  # it has no task that could look
                self._dismiss(session_id)
            else:
                actor.doubt()

    def _dismiss(self, session_id: str) -> None:
        """A parked actor whose session another node has, or had to its end."""
        self._actors.pop(session_id).audience.send_away()
        del self._parked_at[session_id]
        self.upkeeps.over(session_id)

    def credit_downtime(self, since: Moment, until: Moment) -> None:
        """No clock was kept on this node meanwhile: every session of it gets the time back."""
        for actor in self:
            actor.owe_downtime(since, until)

    def owes_downtime(self) -> bool:
        """Whether some credit is not written down yet."""
        return any(actor.owes_downtime and not actor.is_parked for actor in self)

    async def drain(self) -> None:
        """Every actor finishes the step in hand and returns; the caller bounds the time."""
        self.draining = True
        for position, actor in enumerate(self):
            actor.mailbox.put(Stop(), urgent=True)
            if (position + 1) % STOPPED_AT_ONCE == 0:
                await trio.lowlevel.checkpoint()
        if self._running:
            await self._all_gone.wait()
