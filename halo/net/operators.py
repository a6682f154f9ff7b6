"""The operators' API, health and metrics as one ASGI application for the admin listener (spec 4), which is never exposed.

Everything needs the admin key except health and metrics; every change is audited, by its store or here before it is tried. It must
never give out what was said in a chat. Read next: `halo/store/operators.py`, `halo/net/call.py`.
"""

from functools import partial
from http import HTTPStatus
from typing import Final

import msgspec
import structlog
import trio
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from quart import Response
from quart_trio import QuartTrio

from halo.clock import rfc3339, rfc3339_or_none
from halo.config import LiveConfig
from halo.errors import InvalidState, MitraDeactivated, Refusal, SessionNotActive
from halo.events import EndedBy
from halo.net.call import Call, Handler, Reception, new_app, serve_routes
from halo.net.callers import Callers
from halo.net.connection import CLOSE_DEACTIVATED
from halo.net.desk import Desk
from halo.net.own_pages import require_own
from halo.oversight import (
    Deactivated,
    Health,
    OperatedMitra,
    OperatedMitras,
    OperatedRefunds,
    OperatedSessions,
    Overview,
    PairingFailures,
    SessionRecord,
    SweepState,
)
from halo.protocol import SessionState
from halo.routes import OPERATOR_ROUTES
from halo.session import SessionStatus
from halo.store.mitras import MitraPresence, MitraStatus
from halo.sweep import SweepReport

OPERATOR: Final = "admin key"
"""Who is written down for a change made with the key; on the status page people have names."""
READY_SECONDS: Final = 1.0
"""A Postgres that takes longer to say yes is not one to send people to, and the asker's own patience is about two."""

_log: structlog.typing.FilteringBoundLogger = structlog.get_logger("halo.net")


def create_admin(desk: Desk) -> QuartTrio:
    """The application of the admin listener."""
    app = new_app(__name__)
    app.before_request(partial(require_own, desk.settings.admin_bind.host))
    callers = Callers(desk.settings, desk.clock, desk.tokens)
    reception = Reception(callers, desk.idempotency, desk.draining, sandbox=desk.settings.sandbox)
    handlers = _health_handlers(desk) | _people_handlers(desk) | _session_handlers(desk) | _book_handlers(desk)
    serve_routes(app, OPERATOR_ROUTES, handlers, reception)
    return app


def _health_handlers(desk: Desk) -> dict[str, Handler]:
    async def healthz(call: Call) -> Health:  # noqa: ARG001  # the same for everybody, here and below
        return Health(status="ok")

    async def readyz(call: Call) -> Response:  # noqa: ARG001
        degraded = not desk.mirror.trusted
        if desk.draining():
            return _health(Health(status="draining"))
        if desk.starting():
            return _health(Health(status="starting"))
        answers = False
        with trio.move_on_after(READY_SECONDS):
            answers = await desk.store_answers()
        if not answers:
            return _health(Health(status="unavailable", degraded=degraded))
        return _health(Health(status="ok", degraded=degraded))

    async def metrics(call: Call) -> Response:  # noqa: ARG001
        return Response(generate_latest(desk.metrics), content_type=CONTENT_TYPE_LATEST)

    return {"healthz": healthz, "readyz": readyz, "metrics": metrics}


def _people_handlers(desk: Desk) -> dict[str, Handler]:
    async def mitras(call: Call) -> OperatedMitras:
        status, limit, after = call.query["status"], call.query["limit"], call.query["cursor"]
        presence = None if status is None else MitraPresence(status)
        rows = await desk.mitras.list(presence, limit=limit, after=after)
        return OperatedMitras(
            mitras=tuple(map(_operated, rows)), next_cursor=rows[-1].mitra_id if len(rows) == limit else None
        )

    async def deactivate_mitra(call: Call) -> Deactivated:
        """Within a second on this node; the others hear of it from Postgres."""
        mitra_id = call.places["mitra_id"]
        done = await desk.mitras.deactivate(mitra_id, OPERATOR)
        for auth_session_id in done.auth_session_ids:
            desk.tokens.revocations.add(auth_session_id, MitraDeactivated)
        ended: list[str] = []
        async with (
            trio.open_nursery() as nursery
        ):  # side by side: a Valkey that hangs must not hold up the closing of sockets
            nursery.start_soon(desk.mirror.deactivated, mitra_id)
            nursery.start_soon(wake_searches, mitra_id)
            for session_id in done.session_ids:
                nursery.start_soon(end_for_deactivation, session_id, ended)
            desk.connections.close_user(mitra_id, CLOSE_DEACTIVATED)
        return Deactivated(
            mitra_id=mitra_id,
            is_active=False,
            ended_sessions=tuple(ended),
            revoked_auth_sessions=len(done.auth_session_ids),
        )

    async def wake_searches(mitra_id: str) -> None:
        try:
            await desk.pairings.rescind_for(mitra_id)
        except Refusal as refusal:  # a search that is not woken sees the withdrawn offer when its wave is over
            _log.warning("searches_not_woken", code=refusal.code)

    async def end_for_deactivation(session_id: str, ended: list[str]) -> None:
        try:
            await desk.sessions.end(session_id, EndedBy.DEACTIVATION, user_id=None)
        except SessionNotActive:
            return  # it ended by itself meanwhile
        except Refusal as refusal:  # the others must end all the same; deactivating again ends what is left
            _log.warning("session_outlived_deactivation", session_id=session_id, code=refusal.code)
            return
        ended.append(session_id)

    async def activate_mitra(call: Call) -> Deactivated:
        mitra_id = call.places["mitra_id"]
        await desk.mitras.activate(mitra_id, OPERATOR)
        await desk.mirror.activated(mitra_id)
        return Deactivated(mitra_id=mitra_id, is_active=True)

    return {"mitras": mitras, "deactivate_mitra": deactivate_mitra, "activate_mitra": activate_mitra}


def _session_handlers(desk: Desk) -> dict[str, Handler]:
    async def sessions(call: Call) -> OperatedSessions:
        return await desk.operators.list_sessions(call.query["status"], call.query["limit"], call.query["cursor"])

    async def session(call: Call) -> SessionRecord:
        return await desk.operators.load_session(call.places["session_id"])

    async def end_session(call: Call) -> SessionState:
        session_id = call.places["session_id"]
        before = await desk.sessions.view(session_id, user_id=None)
        await desk.operators.record(OPERATOR, "end_session", session_id, {"status": before.session.status.value})
        view = await desk.sessions.end(session_id, EndedBy.ADMIN, user_id=None)
        return view.session.state(desk.clock.now(), view.last_seq)

    async def transfer_session(call: Call) -> SessionState:
        view = await desk.sessions.view(call.places["session_id"], user_id=None)
        if view.session.status is SessionStatus.ENDED:
            raise SessionNotActive("The session has ended.")
        raise InvalidState(f"The session is {view.session.status}; this version of halo cannot transfer sessions.")

    return {
        "sessions": sessions,
        "session": session,
        "end_session": end_session,
        "transfer_session": transfer_session,
    }


def _book_handlers(desk: Desk) -> dict[str, Handler]:
    async def overview(call: Call) -> Overview:  # noqa: ARG001
        stale_after_ms = round(desk.settings.mitra_heartbeat_stale_seconds * 1000)
        counted = await desk.operators.load_overview(desk.clock.now(), stale_after_ms)
        sweeps = tuple(map(_sweep, desk.sweeps()))
        # As pairing and beacon see it: Postgres hears of heartbeats up to a minute late.
        return msgspec.structs.replace(
            counted,
            mitras_online=await desk.availability.count_online(),
            mitras_available=(await desk.availability.count_available()).count,
            degraded=not desk.mirror.trusted,
            sweeps=sweeps,
        )

    async def config(call: Call) -> LiveConfig:  # noqa: ARG001
        return desk.current_config()

    async def change_config(call: Call) -> LiveConfig:
        changed = await desk.live_config.change(call.body, OPERATOR)
        desk.config_changed(changed)
        return changed

    async def pairing_failures(call: Call) -> PairingFailures:
        return await desk.operators.list_failures(call.query["limit"], call.query["cursor"])

    async def refunds(call: Call) -> OperatedRefunds:
        return await desk.operators.list_refunds(call.query["status"], call.query["limit"], call.query["cursor"])

    return {
        "overview": overview,
        "config": config,
        "change_config": change_config,
        "pairing_failures": pairing_failures,
        "refunds": refunds,
    }


def _health(health: Health) -> Response:
    status = HTTPStatus.OK if health.status == "ok" else HTTPStatus.SERVICE_UNAVAILABLE
    return Response(msgspec.json.encode(health), status=status, content_type="application/json")


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


def _operated(row: MitraStatus) -> OperatedMitra:
    return OperatedMitra(
        mitra_id=row.mitra_id,
        display_name=row.display_name,
        is_active=row.is_active,
        is_online=row.is_online,
        capacity=row.capacity,
        max_sessions=row.max_sessions,
        last_heartbeat_at=rfc3339_or_none(row.last_heartbeat_at),
        created_at=rfc3339(row.created_at),
    )
