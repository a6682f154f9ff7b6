"""One HTTP call from its arrival to its answer, the same steps for every row of `halo/routes.py`.

draining? → read → who? → path, query, body decoded → Idempotency-Key → handler → answer. A handler gets a `Call` and gives a
struct; it knows nothing of HTTP. Whatever is not a GET runs to its end though the client has hung up, for a few seconds at most, so
that nothing is left half done between two stores. Read next: `halo/net/callers.py`, `halo/net/body.py`, `halo/net/api.py`.
"""

import hashlib
import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import msgspec
import structlog
import trio
from quart import Response, request
from quart_trio import QuartTrio

from halo.errors import Draining, NotFound, Refusal, StoreUnavailable
from halo.net.body import QueryValues, check_media_type, decode_body, decode_object, decode_places, decode_query
from halo.net.callers import FAILED_AUTHENTICATION, Callers
from halo.net.desk import IdempotencyKeys
from halo.net.problem import answer_problems
from halo.net.tokens import Identity
from halo.oversight import ConfigChange
from halo.resources import TokenPair
from halo.routes import Route
from halo.store.idempotency import Fresh, Repeated, derived_id
from halo.trace import HEADER, Trace, follow

BODY_BYTES_MAX: Final = 64 * 1024
"""As large as a frame may be; no call needs more."""
WRITE_SECONDS: Final = 6.0
"""Longer than the store's own deadline of 5 s, so that its "no" is the one that is told; shorter than a client's patience."""
BACKEND_NAME: Final = "server"
"""Whose idempotency keys those of the app's backend are; no user has this id."""
KEY_HEADER: Final = "Idempotency-Key"

_log: structlog.typing.FilteringBoundLogger = structlog.get_logger("halo.net")
_encode = msgspec.json.Encoder().encode
_PLACE: Final = re.compile(r"\{(\w+)\}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """What a handler is told: the request, checked and decoded."""

    places: Mapping[str, str]
    """The ids in the path, by name, in lower case."""
    query: QueryValues
    body: Any
    """The struct that the route names; for a change of the configuration a plain dict."""
    webhook_id: str
    identity: Identity | None
    derived_id: str | None
    """The primary key of what this call creates, so that a repeat finds it; None without an Idempotency-Key."""

    @property
    def user(self) -> Identity:
        """Whose access token this is; only for routes that demand one."""
        assert self.identity is not None
        return self.identity


Handler: TypeAlias = Callable[[Call], Awaitable[msgspec.Struct | Response | None]]


class Reception:
    """Takes calls for one application."""

    def __init__(
        self, callers: Callers, idempotency: IdempotencyKeys, draining: Callable[[], bool], *, sandbox: bool
    ) -> None:
        self._callers = callers
        self._idempotency = idempotency
        self._draining = draining
        self._sandbox = sandbox

    async def take(self, route: Route, handler: Handler, places: Mapping[str, str]) -> Response:
        """The answer. Raises `Refusal`s, which `halo/net/problem.py` turns into theirs."""
        if route.path.startswith("/api/") and self._draining():
            raise Draining
        if route.sandbox and not self._sandbox:
            raise NotFound
        address = request.remote_addr or ""
        raw = await _read() if route.body is not None else b""
        try:
            identity = self._callers.identify(route, request.headers, raw)
            key = request.headers.get(KEY_HEADER) if route.creates else None
            call = Call(
                places=decode_places(places),
                query=decode_query(route, request.args) if route.query else {},
                body=_decode(route, raw),
                webhook_id=request.headers.get("webhook-id", ""),
                identity=identity,
                derived_id=None if key is None else derived_id(_owner(identity), _place(route), key),
            )
            if route.method == "GET":
                return _answer(route, await handler(call))
            with trio.move_on_after(WRITE_SECONDS, shield=True):
                if key is None:
                    return _answer(route, await handler(call))
                return await self._once(route, handler, call, key, raw)
        except FAILED_AUTHENTICATION as refusal:
            raise self._callers.failed(refusal, address) from None
        raise StoreUnavailable("halo took too long; whether it was done is not known, so ask again.")

    async def _once(self, route: Route, handler: Handler, call: Call, key: str, raw: bytes) -> Response:
        """Do it, unless it was done before: then give that answer again."""
        begun = await self._idempotency.begin(_owner(call.identity), _place(route), key, hashlib.sha256(raw).digest())
        match begun:
            case Repeated(status=status, answer=answer) if not _holds_secrets(route):
                return _respond(status, answer)
            case Repeated():
                return _answer(route, await handler(call))
            case Fresh():
                return await self._first(route, handler, call, begun)

    async def _first(self, route: Route, handler: Handler, call: Call, fresh: Fresh) -> Response:
        try:
            struct = await handler(call)
        except Refusal:
            await self._note(self._idempotency.abandon(fresh))
            raise
        body = _encode(struct)
        await self._note(self._idempotency.finish(fresh, route.status, b"" if _holds_secrets(route) else body))
        return _respond(route.status, body)

    async def _note(self, noting: Awaitable[bool]) -> None:
        """What is done is done: a key that could not be noted frees itself, and a repeat finds what this call created."""
        try:
            await noting
        except StoreUnavailable:
            _log.warning("idempotency_key_unfinished")


def serve_routes(
    app: QuartTrio, routes: tuple[Route, ...], handlers: Mapping[str, Handler], reception: Reception
) -> None:
    """Let `app` answer `routes`, each with the handler of its name.

    Raises:
        ValueError: a route without a handler, or a handler without a route.
    """
    if unmatched := {route.name for route in routes} ^ handlers.keys():
        raise ValueError(f"routes and handlers differ: {', '.join(sorted(unmatched))}")
    app.url_map.merge_slashes = False  # `//api` is not `/api`, and no answer sends anybody elsewhere
    for route in routes:
        app.add_url_rule(
            _PLACE.sub(r"<\1>", route.path),
            endpoint=route.name,
            view_func=_view(route, handlers[route.name], reception),
            methods=[route.method],
            provide_automatic_options=False,
        )


def new_app(name: str) -> QuartTrio:
    """An application without pages, cookies or debugging, whose every "no" is a problem document."""
    app = QuartTrio(name, static_folder=None, template_folder=None)
    app.config.update(MAX_CONTENT_LENGTH=BODY_BYTES_MAX, PROPAGATE_EXCEPTIONS=False, DEBUG=False, RESPONSE_TIMEOUT=None)
    answer_problems(app)

    async def follow_trace() -> None:  # async, or Quart would run it in a thread, whose context is another
        follow(Trace.received(request.headers.getlist(HEADER)))

    app.before_request(follow_trace)

    async def harden(response: Response) -> Response:
        response.headers.setdefault("Cache-Control", "no-store")
        response.headers.setdefault("X-Content-Type-Options", "nosniff")
        return response

    app.after_request(harden)
    return app


def _view(route: Route, handler: Handler, reception: Reception) -> Callable[..., Awaitable[Response]]:
    async def view(**places: str) -> Response:
        return await reception.take(route, handler, places)

    return view


async def _read() -> bytes:
    raw = await request.get_data(cache=False, as_text=False)
    assert isinstance(raw, bytes)  # `as_text` decides, which Quart's types do not say
    return raw


def _decode(route: Route, raw: bytes) -> Any:
    if route.body is None:
        return None
    check_media_type(request.headers)
    return decode_object(raw) if route.body is ConfigChange else decode_body(route.body, raw)


def _answer(route: Route, answer: msgspec.Struct | Response | None) -> Response:
    if isinstance(answer, Response):
        return answer
    return _respond(route.status, b"" if answer is None else _encode(answer))


def _respond(status: int, body: bytes) -> Response:
    response = Response(body, status=status, content_type="application/json")
    if not body:  # nothing is of no type; left to themselves, Quart would call it HTML and count its bytes
        del response.headers["Content-Type"]
        response.headers.pop("Content-Length", None)
    return response


def _owner(identity: Identity | None) -> str:
    return BACKEND_NAME if identity is None else identity.user_id


def _place(route: Route) -> str:
    """Method and path as they were asked for: a key used on one session says nothing about another."""
    return f"{route.method} {request.path.lower()}"


def _holds_secrets(route: Route) -> bool:
    """Answers are kept in the clear, so those with tokens are not kept; a repeat opens the same family anew."""
    return route.answer is TokenPair
