"""Which errors of psycopg mean "the store is away", and which mean "we wrote something wrong".

The first kind reaches callers as `StoreUnavailable` and may be tried again; the second stays what it is, because a constraint or
a typing error does not get better by waiting. An unknown error counts as ours: hiding a bug as an outage would retry it for
ever. Read next: `halo/store/postgres.py`.
"""

import psycopg

_AWAY_CLASSES = frozenset({"08", "40", "53", "57", "58"})
"""Connection, conflict, resources (too many connections, disk full), operator (shutdown, statement timeout), system."""
_AWAY_STATES = frozenset({"25006", "25P03", "25P04", "55P03"})
"""A standby after a failover, idle-in-transaction and transaction timeouts, lock timeout."""
_CONFLICTS = frozenset({"40001", "40P01"})


def is_away(error: psycopg.Error) -> bool:
    """Whether trying again later can help."""
    state = error.sqlstate
    if state is None:
        return isinstance(error, psycopg.OperationalError)  # libpq's own: refused, reset, closed
    return state[:2] in _AWAY_CLASSES or state in _AWAY_STATES or is_stale(error)


def is_conflict(error: psycopg.Error) -> bool:
    """Serialization failure or deadlock: nothing was done, the same again at once is right."""
    return error.sqlstate in _CONFLICTS


def is_stale(error: psycopg.Error) -> bool:
    """The connection's prepared statements no longer fit the schema, as after another node's migration: it needs replacing."""
    return error.sqlstate == "26000" or (
        error.sqlstate == "0A000" and error.diag.source_function == "RevalidateCachedQuery"
    )
