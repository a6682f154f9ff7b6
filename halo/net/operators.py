"""The operators' API, health and metrics as one ASGI application for the admin listener (spec 4), which is never exposed.

Everything needs the admin key except health and metrics; the status page, for people with passwords, joins the same application. What
a call changes, `halo/net/operations.py` does. It must never give out what was said in a chat. Read next: `halo/net/operations.py`,
`halo/net/status/site.py`, `halo/net/call.py`.
"""

from functools import partial
from http import HTTPStatus
from typing import Final

import msgspec
import trio
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from quart import Response
from quart_trio import QuartTrio

from halo.clock import rfc3339, rfc3339_or_none
from halo.config import LiveConfig
from halo.net.call import Call, Handler, Reception, new_app, serve_routes
from halo.net.callers import Callers
from halo.net.desk import Desk
from halo.net.metrics_page import write_page
from halo.net.operations import Operations
from halo.net.own_pages import require_own
from halo.net.status.site import install_status_page
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
)
from halo.protocol import SessionState
from halo.routes import OPERATOR_ROUTES
from halo.store.mitras import MitraPresence, MitraStatus

OPERATOR: Final = "admin key"
"""Who is written down for a change made with the key; on the status page people have names."""
READY_SECONDS: Final = 1.0
"""A Postgres that takes longer to say yes is not one to send people to, and the asker's own patience is about two."""


def create_admin(desk: Desk) -> QuartTrio:
    """The application of the admin listener."""
    app = new_app(__name__)
    desk.http_meter.install(app, "admin")
    app.before_request(partial(require_own, desk.settings.admin_bind.host))
    callers = Callers(desk.settings, desk.clock, desk.tokens)
    reception = Reception(callers, desk.idempotency, desk.draining, sandbox=desk.settings.sandbox)
    operations = Operations(desk)
    handlers = (
        _health_handlers(desk)
        | _people_handlers(desk, operations)
        | _session_handlers(desk, operations)
        | _book_handlers(desk, operations)
    )
    serve_routes(app, OPERATOR_ROUTES, handlers, reception)
    install_status_page(app, desk)
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
        return Response(await write_page(desk.metrics), content_type=CONTENT_TYPE_LATEST)

    return {"healthz": healthz, "readyz": readyz, "metrics": metrics}


def _people_handlers(desk: Desk, operations: Operations) -> dict[str, Handler]:
    async def mitras(call: Call) -> OperatedMitras:
        status, limit, after = call.query["status"], call.query["limit"], call.query["cursor"]
        presence = None if status is None else MitraPresence(status)
        rows = await desk.mitras.list(presence, limit=limit, after=after)
        return OperatedMitras(
            mitras=tuple(map(_operated, rows)), next_cursor=rows[-1].mitra_id if len(rows) == limit else None
        )

    async def deactivate_mitra(call: Call) -> Deactivated:
        return await operations.deactivate_mitra(call.places["mitra_id"], OPERATOR)

    async def activate_mitra(call: Call) -> Deactivated:
        return await operations.activate_mitra(call.places["mitra_id"], OPERATOR)

    return {"mitras": mitras, "deactivate_mitra": deactivate_mitra, "activate_mitra": activate_mitra}


def _session_handlers(desk: Desk, operations: Operations) -> dict[str, Handler]:
    async def sessions(call: Call) -> OperatedSessions:
        return await desk.operators.list_sessions(call.query["status"], call.query["limit"], call.query["cursor"])

    async def session(call: Call) -> SessionRecord:
        return await desk.operators.load_session(call.places["session_id"])

    async def end_session(call: Call) -> SessionState:
        return await operations.end_session(call.places["session_id"], OPERATOR)

    async def transfer_session(call: Call) -> SessionState:
        return await operations.transfer_session(call.places["session_id"], OPERATOR)

    return {
        "sessions": sessions,
        "session": session,
        "end_session": end_session,
        "transfer_session": transfer_session,
    }


def _book_handlers(desk: Desk, operations: Operations) -> dict[str, Handler]:
    async def overview(call: Call) -> Overview:  # noqa: ARG001
        return await operations.overview()

    async def config(call: Call) -> LiveConfig:  # noqa: ARG001
        return desk.current_config()

    async def change_config(call: Call) -> LiveConfig:
        return await operations.change_config(call.body, OPERATOR)

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
