"""Who caused this: W3C's trace context, taken from whoever calls, carried by the task, given to whom halo calls.

A trace is the id that a request has everywhere on its way; a span is one leg of it. What a stranger sends is believed only if it is
exactly as the standard says; anything else begins a new trace. The trace of a task is in a context variable, which Trio copies
into each task that is started from it, so whatever outlives a request must `forget` it. `tracestate` is not carried on: halo has no vendor.
Read next: `halo/log.py`, which writes it on each line; `halo/net/outgoing.py`, which passes it on.
"""

import re
import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Final, Self

HEADER: Final = "traceparent"

_FORM: Final = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?", re.ASCII)
_VERSION: Final = "00"
_INVALID_VERSION: Final = "ff"
_SAMPLED: Final = 1
_CHARACTERS_MAX: Final = 256
"""A version to come may append fields; what is longer is nobody's header."""


@dataclass(frozen=True, slots=True)
class Trace:
    """One leg of a trace."""

    trace_id: str
    span_id: str
    is_sampled: bool = False
    """The caller's wish; halo records nothing itself and passes it on."""

    @classmethod
    def begun(cls) -> Self:
        """A new trace: nobody has caused this, or nobody said who."""
        return cls(_random_id(16), _random_id(8))

    @classmethod
    def parsed(cls, header: str) -> Self | None:
        """The leg that a `traceparent` names; None when it is not one."""
        found = _FORM.fullmatch(header) if len(header) <= _CHARACTERS_MAX else None
        if found is None:
            return None
        version, trace_id, span_id, flags, more = found.groups()
        if version == _INVALID_VERSION or (version == _VERSION and more is not None):
            return None
        if not int(trace_id, 16) or not int(span_id, 16):
            return None
        return cls(trace_id, span_id, bool(int(flags, 16) & _SAMPLED))

    @classmethod
    def received(cls, headers: Sequence[str]) -> Self:
        """Our leg of the trace that a request came with. With no header, two, or one that is wrong, a new trace."""
        caller = cls.parsed(headers[0]) if len(headers) == 1 else None
        return cls.begun() if caller is None else caller.next_leg()

    def next_leg(self) -> Self:
        return type(self)(self.trace_id, _random_id(8), self.is_sampled)

    def __str__(self) -> str:
        """As a `traceparent`."""
        return f"{_VERSION}-{self.trace_id}-{self.span_id}-{int(self.is_sampled):02x}"


def _random_id(size: int) -> str:
    while not int(made := secrets.token_hex(size), 16):
        pass  # all zeros means none
    return made


_CURRENT: Final[ContextVar[Trace | None]] = ContextVar("halo_trace", default=None)


def current_trace() -> Trace | None:
    """Of this task; None when nobody asked for what it does."""
    return _CURRENT.get()


def current_trace_id() -> str | None:
    """Of this task, for what is written down about it."""
    trace = _CURRENT.get()
    return None if trace is None else trace.trace_id


def current_traceparent() -> str | None:
    """The same as a header, for what is written down now and sent later."""
    trace = _CURRENT.get()
    return None if trace is None else str(trace)


def follow(trace: Trace | None) -> None:
    """From now on this task, and whatever it starts, belongs to `trace`."""
    _CURRENT.set(trace)


def forget() -> None:
    """For a task that outlives the request in which it was started."""
    _CURRENT.set(None)


@contextmanager
def following(trace: Trace | None) -> Iterator[None]:
    """For the time of the block, on somebody's behalf."""
    token = _CURRENT.set(trace)
    try:
        yield
    finally:
        _CURRENT.reset(token)
