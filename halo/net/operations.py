"""What operators do, by whomever they were asked: the JSON API with its key, or a person on the status page. One function for each.

Every change is written down with the operator's name, by its store in the same transaction or here before it is tried and again with
its outcome; so is what was refused. It must never
give out what was said in a chat but to somebody who gave a reason, which is written down first. Read next: `halo/net/operators.py`,
`halo/store/operators.py`.
"""

from collections.abc import Mapping, Sequence
from typing import Final

import msgspec
import structlog
import trio

from halo.actors.ports import MessageRow
from halo.clock import rfc3339, rfc3339_or_none
from halo.config import LiveConfig
from halo.errors import InvalidState, MitraDeactivated, NotFound, Refusal, SessionNotActive
from halo.events import EndedBy
from halo.net.connection import CLOSE_DEACTIVATED
from halo.net.desk import Desk
from halo.net.trail import Trail
from halo.oversight import AlarmState, Deactivated, Overview, SweepState
from halo.protocol import SessionState
from halo.routes import MESSAGES_PER_PAGE_MAX
from halo.session import SessionStatus
from halo.sweep import SweepReport
from halo.watch import Alarm, Repair

READ_MESSAGES: Final = "read_messages"
CHANGE_CONFIG: Final = ("change_config", "live_config")
REPLAY: Final = "replay_outbox"
"""Action and subject, or action, as the stores write them down."""

_log: structlog.typing.FilteringBoundLogger = structlog.get_logger("halo.net")


class Operations:
    """The operators' own calls. `operator` is the name that is written down."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self._trail = Trail(desk.operators)

    async def overview(self) -> Overview:
        """Counts of everything that lives, mitras as pairing and beacon see them: Postgres hears of heartbeats up to a minute late.

        Raises:
            StoreUnavailable
        """
        desk = self._desk
        counted = await desk.operators.load_overview(
            desk.clock.now(),
            online=await desk.availability.count_online(),
            available=(await desk.availability.count_available()).count,
            degraded=not desk.mirror.trusted,
        )
        return msgspec.structs.replace(
            counted, sweeps=tuple(map(_sweep, desk.sweeps())), alarms=tuple(map(_alarm, desk.alarms()))
        )

    async def deactivate_mitra(self, mitra_id: str, operator: str) -> Deactivated:
        """Shut a mitra out: within a second on this node; the others hear of it from Postgres.

        Raises:
            NotFound, StoreUnavailable
        """
        desk = self._desk
        async with self._trail.refusals(operator, "deactivate_mitra", mitra_id):
            done = await desk.mitras.deactivate(mitra_id, operator)
        for auth_session_id in done.auth_session_ids:
            desk.tokens.revocations.add(auth_session_id, MitraDeactivated)
        ended: list[str] = []
        async with (
            trio.open_nursery() as nursery
        ):  # side by side: a Valkey that hangs must not hold up the closing of sockets
            nursery.start_soon(desk.mirror.deactivated, mitra_id)
            nursery.start_soon(self._wake_searches, mitra_id)
            for session_id in done.session_ids:
                nursery.start_soon(self._end_for_deactivation, session_id, mitra_id, ended)
            desk.connections.close_user(mitra_id, CLOSE_DEACTIVATED)
        return Deactivated(
            mitra_id=mitra_id,
            is_active=False,
            ended_sessions=tuple(ended),
            revoked_auth_sessions=len(done.auth_session_ids),
        )

    async def activate_mitra(self, mitra_id: str, operator: str) -> Deactivated:
        """Let a mitra in again. Raises NotFound, StoreUnavailable."""
        async with self._trail.refusals(operator, "activate_mitra", mitra_id):
            await self._desk.mitras.activate(mitra_id, operator)
        await self._desk.mirror.activated(mitra_id)
        return Deactivated(mitra_id=mitra_id, is_active=True)

    async def end_session(self, session_id: str, operator: str) -> SessionState:
        """End it now.

        Raises:
            NotFound, SessionNotActive, StoreUnavailable, Busy
        """
        desk, what = self._desk, (operator, "end_session", session_id)
        async with self._trail.refusals(*what):
            before = await desk.sessions.view(session_id, user_id=None)
        async with self._trail.attempt(*what, {"status": before.session.status.value}):
            view = await desk.sessions.end(session_id, EndedBy.ADMIN, user_id=None)
        return view.session.state(desk.clock.now(), view.last_seq)

    async def transfer_session(self, session_id: str, operator: str) -> SessionState:
        """Look for another mitra; the present one stays until somebody has accepted, and the clock stands still.

        Raises:
            NotFound
            SessionNotActive: only an `active` session can be handed on.
            InvalidState: nobody else could take it, so the search would end it at once.
            StoreUnavailable, Busy
        """
        desk, what = self._desk, (operator, "transfer_session", session_id)
        async with self._trail.refusals(*what):
            before = await desk.sessions.view(session_id, user_id=None)
        details = {"status": before.session.status.value, "mitra_id": before.session.mitra_id}
        async with self._trail.attempt(*what, details):
            if before.session.status is SessionStatus.ACTIVE:  # else it will be refused anyway, and for that
                had_it = (*before.session.former_mitra_ids, before.session.mitra_id)
                if not await desk.availability.find_available(1, had_it):
                    raise InvalidState("No other mitra is available now; handing the session on would end it.")
            view = await desk.sessions.transfer(session_id)
        return view.session.state(desk.clock.now(), view.last_seq)

    async def change_config(
        self, changes: Mapping[str, object], operator: str, expected_version: int | None = None
    ) -> LiveConfig:
        """Change some keys of the live configuration, all or none, in force on this node when it returns.

        Raises:
            ValidationFailed: naming each bad key.
            InvalidState: it is no longer the `expected_version` that would be changed.
            StoreUnavailable
        """
        async with self._trail.refusals(operator, *CHANGE_CONFIG):
            changed = await self._desk.live_config.change(changes, operator, expected_version=expected_version)
        self._desk.config_changed(changed)
        return changed

    async def revive_session(self, session_id: str, operator: str) -> None:
        """One more attempt for a session that is parked on this node.

        Raises:
            InvalidState: it is not parked here, or another node has it by now.
            StoreUnavailable: it is parked as before.
        """
        async with self._trail.attempt(operator, Repair.REVIVE.value, session_id):
            if all(parked.session_id != session_id for parked in self._desk.insight.parked()):
                raise InvalidState("This session is not parked on this node.")
            if not await self._desk.insight.revive(session_id):
                raise InvalidState("This session has ended, or another node keeps it by now.")

    async def replay_letter(self, outbox_id: str, operator: str) -> None:
        """Try a dead letter of the outbox again.

        Raises:
            NotFound, StoreUnavailable
            InvalidState: it is not dead, or its time is over.
        """
        async with self._trail.refusals(operator, REPLAY, outbox_id):
            await self._desk.insight.letters.replay(outbox_id, operator)

    async def read_messages(
        self, session_id: str, operator: str, reason: str, after_seq: int = 0
    ) -> Sequence[MessageRow]:
        """What was said in a session, at most `MESSAGES_PER_PAGE_MAX` from `after_seq` on; who asked and why is durable before it is read.

        Raises:
            NotFound, StoreUnavailable
        """
        what = (operator, READ_MESSAGES, session_id)
        async with self._trail.refusals(*what):
            await self._desk.sessions.view(session_id, user_id=None)
        async with self._trail.attempt(*what, {"reason": reason, "after_seq": after_seq}):
            return await self._desk.messages.list_messages(session_id, after_seq, MESSAGES_PER_PAGE_MAX)

    async def _wake_searches(self, mitra_id: str) -> None:
        try:
            await self._desk.pairings.rescind_for(mitra_id)
        except Refusal as refusal:  # a search that is not woken sees the withdrawn offer when its wave is over
            _log.warning("searches_not_woken", code=refusal.code)

    async def _end_for_deactivation(self, session_id: str, mitra_id: str, ended: list[str]) -> None:
        try:
            await self._desk.sessions.end(session_id, EndedBy.DEACTIVATION, user_id=mitra_id)
        except (SessionNotActive, NotFound):
            return  # it ended by itself meanwhile, or was handed on
        except Refusal as refusal:  # the others must end all the same; deactivating again ends what is left
            _log.warning("session_outlived_deactivation", session_id=session_id, code=refusal.code)
            return
        ended.append(session_id)


def _alarm(alarm: Alarm) -> AlarmState:
    return AlarmState(
        name=alarm.name,
        sentence=alarm.sentence,
        since=rfc3339(alarm.since),
        violations=alarm.violations,
        subjects=alarm.subjects,
    )


def _sweep(report: SweepReport) -> SweepState:
    return SweepState(
        name=report.name,
        every_seconds=report.interval_seconds,
        runs=report.runs,
        failures=report.failures,
        last_run_at=rfc3339_or_none(report.last_run_at),
        duration_ms=report.duration_ms,
        rows=report.rows,
        error=report.error,
        waits_for=report.waits_for,
        found=report.found,
    )
