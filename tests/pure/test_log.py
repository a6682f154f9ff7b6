"""Log lines: whole, by field, on one stream, and without what no log may hold (X5)."""

import errno
import io
import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest
import structlog

from halo.errors import OwnershipLost, ValidationFailed
from halo.log import WITHHELD_FIELDS, LogFormat, chosen_format, configure_logging
from halo.trace import Trace, following

Claims = list[logging.LogRecord]


@pytest.fixture
def stream() -> Iterator[io.StringIO]:
    """Logging as the server configures it, into memory; afterwards as `tests/conftest.py` had it."""
    stream = io.StringIO()
    configure_logging("info", "json", stream)
    yield stream
    structlog.contextvars.clear_contextvars()
    configure_logging("debug", "console")


def lines(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_a_line_says_when_who_and_what_with_its_fields(stream: io.StringIO) -> None:
    structlog.get_logger("halo.actors.session").info("step taken", session_id="s1", cause="time_up", version=3)
    (line,) = lines(stream)
    assert line.pop("at").endswith("Z")
    assert line == {
        "event": "step taken",
        "level": "info",
        "logger": "halo.actors.session",
        "session_id": "s1",
        "cause": "time_up",
        "version": 3,
    }


def test_what_is_bound_to_the_task_stands_on_every_line(stream: io.StringIO) -> None:
    structlog.contextvars.bind_contextvars(session_id="s1")
    structlog.get_logger("halo.a").info("one")
    logging.getLogger("hypercorn.error").warning("two")
    assert [line["session_id"] for line in lines(stream)] == ["s1", "s1"]


@pytest.mark.parametrize("field", sorted(WITHHELD_FIELDS))
def test_no_token_name_or_text_is_ever_written(stream: io.StringIO, field: str) -> None:
    log = structlog.get_logger("halo.a")
    log.info("one", **{field: "hush"})
    log.info("two", frame={field.upper(): "hush", "seq": 4})
    structlog.contextvars.bind_contextvars(**{field: "hush"})
    log.info("three")
    assert "hush" not in stream.getvalue()
    assert lines(stream)[1]["frame"]["seq"] == 4


def test_an_exception_is_told_by_type_and_place_and_never_by_its_words(
    stream: io.StringIO, claims_errors: Claims
) -> None:
    """Whoever raises quotes what it stumbled over, in the first line or in a later one."""

    def fail() -> None:
        my_body = "hush"
        raise ValueError(f"{my_body} violates a constraint\nDETAIL: Failing row contains ({my_body}).")

    try:
        fail()
    except ValueError:
        structlog.get_logger("halo.a").exception("commit failed", session_id="s1")
    (line,) = lines(stream)
    assert "hush" not in stream.getvalue()
    assert line["level"] == "error"
    assert line["exception"].splitlines()[0] == "ValueError"
    assert "at fail (" in line["exception"]


def test_what_an_exception_was_raised_from_and_the_members_of_a_group_are_told_too(
    stream: io.StringIO, claims_errors: Claims
) -> None:
    try:
        try:
            raise KeyError("inner")
        except KeyError as inner:
            raise ExceptionGroup("several", [OSError("first"), RuntimeError("second")]) from inner
    except ExceptionGroup:
        logging.getLogger("trio").exception("crashed")
    told = lines(stream)[0]["exception"]
    assert [word for word in ("ExceptionGroup", "KeyError", "OSError", "RuntimeError") if word not in told] == []


class _OfPostgres(Exception):
    sqlstate = "23505"


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (ValidationFailed("hush is no price"), "ValidationFailed: VALIDATION_ERROR"),
        (OwnershipLost("3f0e"), "OwnershipLost: 3f0e"),
        (ConnectionResetError(errno.ECONNRESET, "hush"), "ConnectionResetError: ECONNRESET"),
        (_OfPostgres("duplicate key: hush"), "_OfPostgres: 23505"),
        (KeyError("hush"), "KeyError"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_can_be_said_of_an_error_without_quoting_anybody_is_said(
    error: Exception, told: str, stream: io.StringIO, claims_errors: Claims
) -> None:
    structlog.get_logger("halo.a").error("broke", exc_info=error)
    assert lines(stream)[0]["exception"] == told


def test_lists_are_looked_into(stream: io.StringIO) -> None:
    structlog.get_logger("halo.a").info("told", frames=[{"body": "hush", "seq": 4}, ({"token": "hush"},)])
    (line,) = lines(stream)
    assert line["frames"] == [{"body": "[withheld]", "seq": 4}, [{"token": "[withheld]"}]]


def test_a_line_belongs_to_the_trace_of_its_task(stream: io.StringIO) -> None:
    trace = Trace.begun()
    with following(trace):
        structlog.get_logger("halo.a").info("one")
    structlog.get_logger("halo.a").info("two")
    assert [line.get("trace_id") for line in lines(stream)] == [trace.trace_id, None]


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_is_told_readably_and_anything_else_by_line_unless_somebody_wishes_otherwise() -> None:
    assert [chosen_format("auto", _Terminal()), chosen_format("auto", io.StringIO())] == ["console", "json"]
    assert [chosen_format("json", _Terminal()), chosen_format("console", io.StringIO())] == ["json", "console"]


def test_libraries_are_heard_from_warning_on_and_halo_from_its_level_on(stream: io.StringIO) -> None:
    structlog.get_logger("halo.a").debug("no")
    structlog.get_logger("halo.a").info("yes")
    logging.getLogger("trio-websocket").info("no")
    logging.getLogger("trio-websocket").warning("yes")
    assert [line["event"] for line in lines(stream)] == ["yes", "yes"]


def test_configuring_again_replaces_and_does_not_double(stream: io.StringIO) -> None:
    configure_logging("info", "json", stream)
    structlog.get_logger("halo.a").info("once")
    assert len(lines(stream)) == 1


@pytest.mark.parametrize("form", ["json", "console"])
def test_both_forms_tell_an_exception(form: LogFormat, stream: io.StringIO, claims_errors: Claims) -> None:
    configure_logging("info", form, stream)
    try:
        raise RuntimeError("of this")
    except RuntimeError:
        structlog.get_logger("halo.a").exception("broke", session_id="s1")
    assert all(word in stream.getvalue() for word in ("broke", "s1", "RuntimeError"))


def test_a_level_that_logging_does_not_know_is_refused() -> None:
    with pytest.raises(ValueError, match="LOUD"):
        configure_logging("loud", "json", io.StringIO())
    configure_logging("debug", "console")
