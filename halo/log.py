"""How halo logs: structlog through stdlib logging, one line an event on standard error, as JSON or for people.

Every line carries what is bound to its task (`session_id`) and the trace that it belongs to, and decisions carry their `cause`. A log
must never hold a token, a name or the text of a message (X5): fields of such names are withheld here whoever logs them, and an
exception is told by its type and the places that it passed. Its message is told only where none but us has written it: anybody else's
may quote what it stumbled over. Standard output belongs to the ready line. Read next: `halo/trace.py`.
"""

import errno
import logging
import sys
import traceback
from collections.abc import Iterator, Mapping
from typing import Final, Literal, TextIO, TypeAlias

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

from halo.errors import Refusal
from halo.trace import current_trace

LogFormat: TypeAlias = Literal["json", "console"]

WITHHELD_FIELDS: Final = frozenset(
    {
        "access_token",
        "admin_key",
        "authorization",
        "body",
        "cookie",
        "credentials",
        "display_name",
        "message",
        "name",
        "password",
        "provider_ref",
        "push_token",
        "refresh_token",
        "secret",
        "server_key",
        "text",
        "token",
    }
)
"""What would carry a secret or a person; a caller who logs one by mistake logs nothing of it."""

_WITHHELD: Final = "[withheld]"

_FRAMES_MAX: Final = 40
"""Places told of one exception, the innermost ones: a recursion a thousand deep is told by its end."""

_OTHERS_LEVEL: Final = logging.WARNING
"""Libraries log headers and frames below this, with whatever users put into them."""


def configure_logging(level: str, format: LogFormat, stream: TextIO | None = None) -> None:  # noqa: A002  # the setting's name
    """Send everything that is logged to `stream` (standard error): halo from `level` on, libraries from WARNING on.

    May be called again; the last call wins. Raises `ValueError` for a level that logging does not know.
    """
    renderer: Processor = (
        structlog.processors.JSONRenderer(default=str)
        if format == "json"
        else structlog.dev.ConsoleRenderer(colors=False, exception_formatter=structlog.dev.plain_traceback)
    )
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        tell_trace,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True, key="at"),
        tell_exception,
        withhold,
    ]
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            structlog.stdlib.PositionalArgumentsFormatter(),
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=False,  # so that tests may configure it again
    )
    handler = logging.StreamHandler(stream if stream is not None else sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
        )
    )
    handler.set_name("halo")
    root = logging.getLogger()
    for old in [handler_ for handler_ in root.handlers if handler_.get_name() == "halo"]:
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(_OTHERS_LEVEL)
    logging.getLogger("halo").setLevel(level.upper())


def chosen_format(wish: str, stream: TextIO) -> LogFormat:
    """`json` or `console`; with `auto`, what suits whoever reads `stream`."""
    if wish == "auto":
        return "console" if stream.isatty() else "json"
    return "json" if wish == "json" else "console"


def tell_trace(logger: WrappedLogger, method: str, event: EventDict) -> EventDict:  # noqa: ARG001  # structlog's signature
    """`trace_id`, where this task does what somebody asked for."""
    trace = current_trace()
    if trace is not None:
        event["trace_id"] = trace.trace_id
    return event


def withhold(logger: WrappedLogger, method: str, event: EventDict) -> EventDict:  # noqa: ARG001  # structlog's signature
    """The event without the values of fields that no log may hold, nested ones too."""
    return {key: _allowed(key, value) for key, value in event.items()}


def tell_exception(logger: WrappedLogger, method: str, event: EventDict) -> EventDict:  # noqa: ARG001  # structlog's signature
    """`exc_info` becomes `exception`, lines without values."""
    given = event.pop("exc_info", None)
    if not given:
        return event
    error = given if isinstance(given, BaseException) else (given if isinstance(given, tuple) else sys.exc_info())[1]
    if error is not None:
        event["exception"] = "\n".join(_told(error))
    return event


def _allowed(key: object, value: object) -> object:
    if isinstance(key, str) and key.lower() in WITHHELD_FIELDS:
        return _WITHHELD
    if isinstance(value, Mapping):
        return {inner: _allowed(inner, its) for inner, its in value.items()}
    if isinstance(value, list | tuple):
        return [_allowed(None, its) for its in value]
    return value


def _known(error: BaseException) -> str:
    """What may be said of it beside its type: nothing that can quote a value.

    A refusal is told by its code, since its sentence may name what a client sent; the system's and Postgres' errors by their number.
    """
    if isinstance(error, Refusal):
        return error.code
    if isinstance(error, OSError):
        return errno.errorcode.get(error.errno or 0, "")
    sqlstate = getattr(error, "sqlstate", None)
    if isinstance(sqlstate, str):
        return sqlstate
    if type(error).__module__.partition(".")[0] == __name__.partition(".")[0]:
        return str(error).partition("\n")[0]
    return ""


def _told(error: BaseException, indent: str = "") -> Iterator[str]:
    """The exception, where it came from, what it was raised from, and its members if it is a group."""
    known = _known(error)
    yield f"{indent}{type(error).__name__}{': ' if known else ''}{known}"
    for place in traceback.extract_tb(error.__traceback__)[-_FRAMES_MAX:]:
        yield f"{indent}  at {place.name} ({place.filename}:{place.lineno})"
    before = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    if before is not None:
        yield f"{indent}  because of"
        yield from _told(before, indent + "    ")
    if isinstance(error, BaseExceptionGroup):
        for member in error.exceptions:
            yield from _told(member, indent + "    ")
