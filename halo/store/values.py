"""What a Python value looks like in Postgres, and back: moments are milliseconds, ids are strings.

Values go out as text without a type, so that the server takes the type from the statement (write `%(x)s::uuid[]` where it cannot
tell); they come back in binary through psycopg's loaders, two of which are ours. Nothing here may lose a character: libpq cuts
text at U+0000 without a word, so that is refused here. Read next: `halo/store/connection.py`; for bulk, `halo/store/arrays.py`.
"""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from enum import Enum
from typing import TypeAlias
from uuid import UUID

import psycopg
from psycopg.abc import Buffer
from psycopg.adapt import AdaptersMap, Loader, PyFormat
from psycopg.pq import Format
from psycopg.types.json import Json, Jsonb

Value: TypeAlias = "str | int | float | bytes | bool | UUID | Enum | Sequence[Value] | Jsonb | Json | None"
"""What a statement may be given. JSON is given wrapped, or as an encoded string."""

POSTGRES_EPOCH_US = 946_684_800_000_000
"""2000-01-01, the zero of Postgres' binary timestamps, in microseconds since 1970."""
_INFINITIES = (2**63 - 1, -(2**63))
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECOND = timedelta(milliseconds=1)


def dump(value: Value) -> bytes | None:
    """The text form of a value. Raises psycopg.DataError for U+0000, psycopg.ProgrammingError for what has no form."""
    match value:
        case str():  # first, for most values are; a StrEnum is its own value
            return _text(value)
        case None:
            return None
        case bool():
            return b"t" if value else b"f"
        case int():
            return b"%d" % value
        case float():
            return repr(value).encode()
        case Enum():
            return dump(value.value)
        case UUID():
            return str(value).encode()
        case bytes():
            return b"\\x" + value.hex().encode()
        case Sequence():
            return b"{" + b",".join([_element(element) for element in value]) + b"}"
        case _:
            adapted = psycopg.adapters.get_dumper(type(value), PyFormat.TEXT)(type(value), None).dump(value)
            return None if adapted is None else bytes(adapted)


def _text(value: str) -> bytes:
    if "\0" in value:
        raise psycopg.DataError("text for Postgres may not contain U+0000")
    return value.encode()


def _element(value: Value) -> bytes:
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return dump(value) or b"{}"
    text = dump(value)
    if text is None:
        return b"NULL"
    return b'"' + text.replace(b"\\", b"\\\\").replace(b'"', b'\\"') + b'"'


class MomentBinaryLoader(Loader):
    """A timestamptz as milliseconds since 1970; what is finer is cut off."""

    format = Format.BINARY

    def load(self, data: Buffer) -> int:
        microseconds = int.from_bytes(data, "big", signed=True)
        if microseconds in _INFINITIES:
            raise psycopg.DataError("an infinite timestamp is not a moment")
        return (microseconds + POSTGRES_EPOCH_US) // 1000


class MomentLoader(Loader):
    """The same from text, for results that somebody asks for in text."""

    def load(self, data: Buffer) -> int:
        text = bytes(data).decode()
        try:
            return (datetime.fromisoformat(text) - _EPOCH) // _MILLISECOND
        except ValueError:
            raise psycopg.DataError(f"{text!r} is not a moment") from None


class IdBinaryLoader(Loader):
    """A uuid as its lower-case string."""

    format = Format.BINARY

    def load(self, data: Buffer) -> str:
        digits = bytes(data).hex()
        return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"


class IdLoader(Loader):
    """The same from text."""

    def load(self, data: Buffer) -> str:
        return bytes(data).decode()


def halo_adapters() -> AdaptersMap:
    """psycopg's adapters with our two loaders, in both formats, for one connection."""
    adapters = AdaptersMap(psycopg.adapters)
    adapters.register_loader("timestamptz", MomentBinaryLoader)
    adapters.register_loader("timestamptz", MomentLoader)
    adapters.register_loader("uuid", IdBinaryLoader)
    adapters.register_loader("uuid", IdLoader)
    return adapters
