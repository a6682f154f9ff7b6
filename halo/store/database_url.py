"""The URL of Postgres in words for the operator: why libpq cannot read it, and which database it means when that does not answer.

It must never say the URL itself, or libpq's own words about it: both may hold a password. Read next: `halo/store/dial.py`.
"""

import re
from typing import Final
from urllib.parse import parse_qsl, urlsplit

import psycopg
from psycopg import pq
from psycopg.conninfo import conninfo_to_dict

from halo.errors import StoreUnavailable

_PARAMETER: Final = re.compile(r"[a-z_]{1,40}")


class DatabaseUrlRefused(Exception):
    """HALO_DATABASE_URL is no URL that Postgres' own library can read; the message is one sentence for the operator."""


def require_readable(url: str) -> None:
    """Raises `DatabaseUrlRefused`."""
    try:
        conninfo_to_dict(url)
    except psycopg.ProgrammingError:
        unknown = _unknown_parameter(url)
        reason = (
            "cannot be taken apart" if unknown is None else f"has the parameter {unknown}, which libpq does not know"
        )
        raise DatabaseUrlRefused(
            f"HALO_DATABASE_URL {reason}; it must be like postgresql://user@host:5432/database?sslmode=require, with % and @ escaped."
        ) from None


def database_of(url: str) -> str:
    """Which database this is, without the password: `halo at db:5432 as user app`."""
    parts = conninfo_to_dict(url)
    hosts = str(parts.get("host") or parts.get("hostaddr") or "the local socket").split(",")
    ports = str(parts.get("port") or "5432").split(",")
    places = [f"{host}:{ports[number] if len(ports) == len(hosts) else ports[0]}" for number, host in enumerate(hosts)]
    name = parts.get("dbname") or parts.get("user") or "of the user's name"
    return f"{name} at {' or '.join(places)}" + (f" as user {parts['user']}" if parts.get("user") else "")


def unreachable(url: str, cause: BaseException | None) -> StoreUnavailable:
    """What to say at a start: which database does not answer, why, and what to look at."""
    reason = (str(cause).strip().splitlines() or [""])[0].strip() if isinstance(cause, psycopg.Error) else ""
    because = f" ({reason})" if reason else ""
    return StoreUnavailable(
        f"The database {database_of(url)} does not answer{because}; check that Postgres runs there and lets this user in, "
        "and that HALO_DATABASE_URL is right."
    )


def _unknown_parameter(url: str) -> str | None:
    known = {option.keyword.decode() for option in pq.Conninfo.get_defaults()} | {
        "ssl"
    }  # which libpq reads in URLs only
    try:
        asked = [name for name, _ in parse_qsl(urlsplit(url).query, keep_blank_values=True)]
    except ValueError:
        return None
    return next((name for name in asked if name not in known and _PARAMETER.fullmatch(name)), None)
