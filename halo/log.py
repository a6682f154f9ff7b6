"""How halo logs: structlog through stdlib logging, one line an event on standard error, as JSON or for people.

Every line carries what is bound to its task, above all `session_id`, and errors carry their `cause`. A log must never hold a token,
a name or the text of a message (X5): fields of such names are withheld here whoever logs them, and an exception is told by its
type, the first line of its message and the places it passed, never by values (what Postgres adds after the first line quotes
rows). Standard output belongs to the ready line. Read next: `halo/server.py`, which binds the fields.
"""

import logging
import sys
import traceback
from collections.abc import Iterator, Mapping
from typing import Final, Literal, TextIO, TypeAlias

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

LogFormat: TypeAlias = Literal["json", "console"]

WITHHELD_FIELDS: Final = frozenset(
    {
        "access_token",
        "authorization",
        "body",
        "cookie",
        "display_name",
        "name",
        "password",
        "push_token",
        "refresh_token",
        "secret",
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
    return value


def _told(error: BaseException, indent: str = "") -> Iterator[str]:
    """The exception, where it came from, what it was raised from, and its members if it is a group."""
    first_line = str(error).partition("\n")[0]
    yield f"{indent}{type(error).__name__}: {first_line}"
    for place in traceback.extract_tb(error.__traceback__)[-_FRAMES_MAX:]:
        yield f"{indent}  at {place.name} ({place.filename}:{place.lineno})"
    before = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    if before is not None:
        yield f"{indent}  because of"
        yield from _told(before, indent + "    ")
    if isinstance(error, BaseExceptionGroup):
        for member in error.exceptions:
            yield from _told(member, indent + "    ")
