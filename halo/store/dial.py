"""Reaching Postgres: from a URL to an open connection with its time limits set, or an error within seconds.

Names are resolved by Trio (a worker thread, for real names only; sockets and addresses need none), addresses are tried one after
the other. The server is told how long anything of ours may take, so that what we abandon does not hold locks for long: this file
must never hand out a connection without those limits. Read next: `halo/store/connection.py`.
"""

from ipaddress import ip_address
from typing import Final, TypeAlias

import psycopg
import trio
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from halo.store.connection import TrioConnection

CONNECT_SECONDS: Final = 2.0
"""For one address. Postgres answers in milliseconds, even while it starts; a hung one must not use up a call's whole deadline."""

STATEMENT_MS: Final = 10_000
"""Twice the deadline of a call: we give up first and know why; this ends what we abandoned."""
LOCK_MS: Final = 5_000
"""As long as a whole transaction may take on our side, so that who waits for an abandoned COMMIT learns its outcome."""
IDLE_IN_TRANSACTION_MS: Final = 10_000
"""A transaction of ours never waits for anything but Postgres; one that idles belongs to a node that is gone."""
TRANSACTION_MS: Final = 30_000
"""The last resort (Postgres 17 and later)."""

Limits: TypeAlias = dict[str, int]
SERVING: Final[Limits] = {
    "statement_timeout": STATEMENT_MS,
    "lock_timeout": LOCK_MS,
    "idle_in_transaction_session_timeout": IDLE_IN_TRANSACTION_MS,
    "transaction_timeout": TRANSACTION_MS,
}

_ALIVE: Final = {
    "keepalives": 1,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 10_000,
}
"""A peer that vanished without a word is found after 10 to 25 s instead of two hours; deadlines cover the time before."""

_ALIVE_THERE: Final = {
    "tcp_keepalives_idle": 10,
    "tcp_keepalives_interval": 5,
    "tcp_keepalives_count": 3,
    "tcp_user_timeout": 10_000,
}
"""The same from the server's side: the locks of a node that lost its power must not live on for two hours."""

_TRANSACTION_TIMEOUT_SINCE: Final = 170_000


async def dial(url: str, limits: Limits = SERVING) -> TrioConnection:
    """A new connection. Limits are in ms, 0 for none.

    Raises psycopg.OperationalError when no address answers in time, psycopg.ProgrammingError for a malformed URL.
    """
    failure = psycopg.OperationalError("the URL names no address")
    for address in await _addresses(url, limits):
        with trio.move_on_after(CONNECT_SECONDS) as scope:
            try:
                connection = await TrioConnection.open(address)
            except psycopg.OperationalError as error:
                failure = error
                continue
            try:
                await _limit_transactions(connection, limits)
            except BaseException:
                connection.close_now()
                raise
            return connection
        if scope.cancelled_caught:
            failure = psycopg.errors.ConnectionTimeout(f"no answer within {CONNECT_SECONDS} s")
    raise failure


async def _limit_transactions(connection: TrioConnection, limits: Limits) -> None:
    """Older servers do not know this setting and would refuse a connection that asks for it."""
    if connection.pgconn.server_version >= _TRANSACTION_TIMEOUT_SINCE:
        await connection.control(b"SET transaction_timeout = %d" % limits["transaction_timeout"])


async def _addresses(url: str, limits: Limits) -> list[str]:
    """One connection string for each address behind the URL, in its order."""
    given = conninfo_to_dict(url)
    settings = (
        {name: value for name, value in limits.items() if name != "transaction_timeout"}
        | {"timezone": "UTC"}
        | _ALIVE_THERE
    )
    options = " ".join(
        [str(given.get("options") or ""), *(f"-c {name}={value}" for name, value in settings.items())]
    ).strip()
    ours = _ALIVE | {"application_name": "halo", "client_encoding": "utf8", "options": options}
    hosts = str(given.pop("host", None) or "").split(",")
    fixed = str(given.pop("hostaddr", None) or "").split(",")
    ports = str(given.pop("port", None) or "").split(",")
    found = []
    for place, host in enumerate(hosts):
        port = ports[place] if len(ports) > 1 else ports[0]
        addresses: list[str] = [fixed[place]] if place < len(fixed) and fixed[place] else await _resolve(host)
        found += [
            make_conninfo(
                "", **given | ours | {"host": host or None, "hostaddr": address or None, "port": port or None}
            )
            for address in addresses
        ]
    return found


async def _resolve(host: str) -> list[str]:
    """The addresses of a host; one empty string where libpq needs none, as for a socket."""
    if not host or host[0] in "/@" or _is_address(host):
        return [""]
    try:
        known = await trio.socket.getaddrinfo(host, None, type=trio.socket.SOCK_STREAM)
    except OSError as unknown:
        raise psycopg.OperationalError(f"the host {host} has no known address: {unknown}") from unknown
    return [str(sockaddr[0]) for *_, sockaddr in known]


def _is_address(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True
