"""Every "no" of the HTTP servers as `application/problem+json` (spec 4): refusals, unknown paths, and faults of our own.

A refusal says its code and its sentence. A fault says nothing but that it happened: it is logged once, by its type and the lines
that it passed, and never by its text, which may hold anything. Read next: `halo/errors.py`, `halo/net/call.py`.
"""

import traceback
from http import HTTPStatus
from pathlib import Path
from typing import Final

import msgspec
import structlog
from quart import Response, request
from quart_trio import QuartTrio
from werkzeug.exceptions import HTTPException

from halo.errors import ActorFault, NotFound, Refusal
from halo.resources import BodyTooLarge, FieldProblem, MethodNotAllowed, Problem
from halo.trace import current_trace

MEDIA_TYPE: Final = "application/problem+json"
COME_BACK_SECONDS: Final = 1
"""`Retry-After` of a 503: a drained node's neighbour, or a store that is back, answers within two."""

_log: structlog.typing.FilteringBoundLogger = structlog.get_logger("halo.net")

_BY_STATUS: Final[dict[int, type[Refusal]]] = {404: NotFound, 405: MethodNotAllowed, 413: BodyTooLarge}


class InternalFault(ActorFault):
    """halo met an internal fault."""

    retryable = False


def problem(refusal: Refusal, instance: str | None) -> Response:
    """The answer that says this "no"; `instance` is the path that was asked for."""
    headers = {}
    if refusal.status == HTTPStatus.UNAUTHORIZED:
        headers["WWW-Authenticate"] = "Bearer"
    if refusal.retry_after_ms is not None:
        headers["Retry-After"] = str(-(-refusal.retry_after_ms // 1000))
    elif refusal.status == HTTPStatus.SERVICE_UNAVAILABLE:
        headers["Retry-After"] = str(COME_BACK_SECONDS)
    return _answer(refusal.status, problem_of(refusal, instance), headers)


def problem_of(refusal: Refusal, instance: str | None) -> Problem:
    """The document itself."""
    return Problem(
        type="about:blank",
        title=HTTPStatus(refusal.status).phrase,
        status=refusal.status,
        detail=refusal.message,
        instance=instance,
        code=refusal.code,
        retryable=refusal.retryable,
        errors=tuple(FieldProblem(field=error["field"], message=error["message"]) for error in refusal.errors),
        retry_after_ms=msgspec.UNSET if refusal.retry_after_ms is None else refusal.retry_after_ms,
        trace_id=_trace_id(),
    )


def answer_problems(app: QuartTrio) -> None:
    """Let `app` answer everything that goes wrong in it with a problem document."""

    async def on_refusal(refusal: Refusal) -> Response:
        return problem(refusal, request.path)

    async def on_http_exception(raised: HTTPException) -> Response:
        status = raised.code or HTTPStatus.INTERNAL_SERVER_ERROR
        kind = _BY_STATUS.get(status)
        answer = problem(kind(), request.path) if kind is not None else _answer(status, _unforeseen(status), {})
        for name, value in raised.get_headers():
            if name in {"Allow", "Location"}:
                answer.headers[name] = value
        return answer

    async def on_fault(fault: Exception) -> Response:
        _log.error(
            "request_fault",
            route=None if request.url_rule is None else request.url_rule.rule,
            fault=type(fault).__name__,
            passed=[f"{Path(line.filename).name}:{line.lineno}" for line in traceback.extract_tb(fault.__traceback__)][
                -12:
            ],
        )
        return problem(InternalFault(), request.path)

    app.register_error_handler(Refusal, on_refusal)
    app.register_error_handler(HTTPException, on_http_exception)
    app.register_error_handler(Exception, on_fault)


def _unforeseen(status: int) -> Problem:
    phrase = HTTPStatus(status).phrase
    return Problem(
        type="about:blank",
        title=phrase,
        status=status,
        detail=f"{phrase}.",
        instance=request.path,
        code=phrase.upper().replace(" ", "_"),
        retryable=False,
        trace_id=_trace_id(),
    )


def _trace_id() -> str | msgspec.UnsetType:
    trace = current_trace()
    return msgspec.UNSET if trace is None else trace.trace_id


def _answer(status: int, document: Problem, headers: dict[str, str]) -> Response:
    return Response(msgspec.json.encode(document), status=status, content_type=MEDIA_TYPE, headers=headers)
