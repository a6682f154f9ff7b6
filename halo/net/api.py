"""The apps' HTTP API as one ASGI application (spec 4).

Every row of `halo.routes.API_ROUTES` gets its handler from the room of its noun; the steps around a handler are the same for all.
It must never be served by Hypercorn's own server (spec 7): `halo/net/http.py` does that. Read next: `halo/net/call.py`.
"""

import msgspec
from quart import Response
from quart_trio import QuartTrio

from halo import schema
from halo.net.api_auth import auth_handlers
from halo.net.api_chat import chat_handlers
from halo.net.api_mitra import mitra_handlers
from halo.net.api_pairings import pairing_handlers
from halo.net.api_payments import payment_handlers
from halo.net.call import Call, Handler, Reception, new_app, serve_routes
from halo.net.callers import Callers
from halo.net.desk import Desk
from halo.net.docs_page import docs_page
from halo.routes import API_ROUTES

DESCRIPTION = (
    "What apps ask halo over HTTP. Times are RFC 3339 UTC with milliseconds, money is an integer in minor units beside an ISO 4217 "
    "code, ids are UUIDs. Bodies with fields that halo does not know are refused; clients pass over fields that they do not know."
)


def create_api(desk: Desk) -> QuartTrio:
    """The application; it keeps nothing but its limits' buckets, and starts nothing."""
    app = new_app(__name__)
    desk.http_meter.install(app, "api")
    callers = Callers(desk.settings, desk.clock, desk.tokens)
    reception = Reception(callers, desk.idempotency, desk.draining, sandbox=desk.settings.sandbox)
    handlers = (
        auth_handlers(desk)
        | mitra_handlers(desk)
        | payment_handlers(desk)
        | pairing_handlers(desk)
        | chat_handlers(desk)
    )
    serve_routes(app, API_ROUTES, handlers | document_handlers(), reception)
    return app


def document_handlers() -> dict[str, Handler]:
    """The three descriptions, built once."""
    openapi, asyncapi = schema.openapi(API_ROUTES, DESCRIPTION), schema.asyncapi()
    page = docs_page(openapi, asyncapi)
    return {
        "openapi_document": _static(msgspec.json.encode(openapi)),
        "asyncapi_document": _static(msgspec.json.encode(asyncapi)),
        "docs_page": _static(page.html, "text/html; charset=utf-8", {"Content-Security-Policy": page.policy}),
    }


def _static(body: bytes, content_type: str = "application/json", headers: dict[str, str] | None = None) -> Handler:
    async def give(call: Call) -> Response:  # noqa: ARG001  # the same for everybody
        return Response(body, content_type=content_type, headers=headers)

    return give
