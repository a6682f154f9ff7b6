"""Named SQL: the `-- name: foo` blocks of `halo/store/sql/queries/NAME.sql`, parsed once, at import of the room that uses them.

A block that is doubled, empty or malformed fails when the room that loads it is imported, and so does a name that the room asks
for and the file has not; `tests/store/test_queries.py` holds every `SQL["…"]` of the package against its file. This file never
talks to a database and never builds SQL from values: `%(name)s` becomes `$1`, and the values travel beside the text.
Read next: `halo/store/connection.py`, which runs them.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources
from types import MappingProxyType

from halo.store.values import Value, dump

_NAME_LINE = re.compile(r"^--\s*name:\s*(?P<name>\S*)\s*$", re.MULTILINE)
_PLACEHOLDER = re.compile(r"%\((?P<name>[a-z_][a-z0-9_]*)\)s|%%|(?P<stray>%[(sbt])")
_COMMENTS = re.compile(r"--[^\n]*")


class QueriesMismatch(Exception):
    """The named queries of a file differ from what the room that loads them asks for."""


@dataclass(frozen=True, slots=True, eq=False)
class Query:
    """One statement. Compared by identity: each connection prepares it once and finds it again by the object itself."""

    name: str
    sql: bytes
    """The statement as the server sees it, with `$1`, `$2`, …"""
    parameters: tuple[str, ...]
    """The names that `$1`, `$2`, … stand for; a name used twice is sent once."""

    def bind(self, values: Mapping[str, Value]) -> list[bytes | None]:
        """The values in the order of the placeholders. Raises KeyError for a name that is not given; more names are fine."""
        return [dump(values[name]) for name in self.parameters]


def parse_query(name: str, text: str) -> Query:
    """Turn `%(x)s` into `$n` and `%%` into `%`. Raises QueriesMismatch for positional placeholders."""
    order: dict[str, int] = {}

    def numbered(found: re.Match[str]) -> str:
        if found["stray"]:
            raise QueriesMismatch(f"query {name}: {found[0]!r} is not a named placeholder such as %(session_id)s")
        if found["name"] is None:
            return "%"
        return f"${order.setdefault(found['name'], len(order) + 1)}"

    sql = _PLACEHOLDER.sub(numbered, text).strip().removesuffix(";").rstrip()
    return Query(name, sql.encode(), tuple(order))


@lru_cache(
    maxsize=256
)  # ad-hoc statements are few and literal; the bound is against one that somebody builds in a loop
def unnamed_query(text: str) -> Query:
    """A statement that is not worth a name: a probe, a setting, a test's own SQL. It is never prepared."""
    return parse_query("(unnamed)", text)


def parse_queries(text: str, source: str) -> Mapping[str, Query]:
    """All blocks of a text, by name, in their order. `source` is for the error messages."""
    _, *parts = _NAME_LINE.split(text)
    lead = text[: found.start()] if (found := _NAME_LINE.search(text)) else text
    if _COMMENTS.sub("", lead).strip():
        raise QueriesMismatch(f"{source}: a statement stands before the first '-- name:' line")
    queries: dict[str, Query] = {}
    for name, body in zip(parts[::2], parts[1::2], strict=True):
        if not name.isidentifier():
            raise QueriesMismatch(f"{source}: {name!r} is not a name")
        if name in queries:
            raise QueriesMismatch(f"{source}: two queries are named {name}")
        if not _COMMENTS.sub("", body).strip():
            raise QueriesMismatch(f"{source}: {name} has no statement")
        queries[name] = parse_query(name, body)
    return MappingProxyType(queries)


def load_queries(file: str, *wanted: str) -> Mapping[str, Query]:
    """The queries of `halo/store/sql/queries/<file>.sql` by name; when `wanted` is given, these and no others.

    Raises QueriesMismatch if the file is malformed or has other names than `wanted`, FileNotFoundError without such a file.
    """
    source = resources.files("halo.store") / "sql" / "queries" / f"{file}.sql"
    queries = parse_queries(source.read_text(encoding="utf-8"), f"{file}.sql")
    missing, unused = sorted(set(wanted) - set(queries)), sorted(set(queries) - set(wanted))
    if wanted and (missing or unused):
        raise QueriesMismatch(f"{file}.sql: missing {missing}, asked for by nobody {unused}")
    return queries
