"""Who is signed in on the status page, in Postgres, so that a session counts on every node and ends on all of them at once.

The cookie's token is opaque and only its SHA-256 is stored. A session ends after 30 minutes without a person's request, after twelve
hours in any case, and with its operator's password. It must never be prolonged by a page that renews itself. Read next:
`halo/net/status/frame.py`, `halo/store/operator_accounts.py`.
"""

import hashlib
import secrets
from typing import Final

from halo.clock import Clock, Moment
from halo.operator_account import Role, SignedIn
from halo.store.postgres import Postgres
from halo.store.queries import load_queries
from halo.store.values import Value
from halo.trace import current_trace_id

SQL: Final = load_queries("operator_sessions")

IDLE_MS: Final = 30 * 60_000
"""A desk that was left is not everybody's for long."""
LIFETIME_MS: Final = 12 * 3_600_000
"""A working day; then the password is asked for again, however busy one was."""
TOUCH_MS: Final = 60_000
"""A request writes when it was made only when the last that did is older than this; so idle means 29 to 30 minutes."""
TOKEN_BYTES: Final = 32


class OperatorSessions:
    """The rows of sessions. Every method raises `StoreUnavailable` when Postgres does not answer."""

    def __init__(self, db: Postgres, clock: Clock) -> None:
        self._db = db
        self._clock = clock

    async def open(self, name: str, password_hash: str) -> str | None:
        """A new session's token, for whoever has shown the password of this hash; None when it is another one by now."""
        token = secrets.token_urlsafe(TOKEN_BYTES)
        values: dict[str, Value] = {
            "session_hash": _hash(token),
            "name": name,
            "password_hash": password_hash,
            "at": self._clock.now(),
            "trace_id": current_trace_id(),
        }
        return None if await self._db.fetch_one(SQL["open"], values) is None else token

    async def find(self, session_token: str, *, is_live: bool) -> SignedIn | None:
        """Whose session this is, while it lasts. `is_live`: no person asked, so it counts as no use."""
        now = self._clock.now()
        values: dict[str, Value] = {
            "session_hash": _hash(session_token),
            "idle_since": now - IDLE_MS,
            "opened_since": now - LIFETIME_MS,
        }
        row = await self._db.fetch_one(SQL["find"], values)
        if row is None:
            return None
        used_at: Moment = row.used_at
        if not is_live and used_at + TOUCH_MS <= now:
            await self._db.execute(SQL["touch"], {"session_hash": values["session_hash"], "at": now})
        return SignedIn(name=row.name, role=Role(row.role))

    async def close(self, session_token: str) -> None:
        """Sign out, which is written down; one that has ended is ended."""
        values: dict[str, Value] = {"session_hash": _hash(session_token), "trace_id": current_trace_id()}
        await self._db.execute(SQL["close"], values)

    async def delete_ended(self, before: Moment) -> int:
        """Forget those that were opened before `before`, which is longer ago than any lasts: how many."""
        return await self._db.execute(SQL["delete_ended"], {"before": before})


def _hash(session_token: str) -> bytes:
    # A client may send any text: a lone surrogate is hashed like the rest and found nowhere.
    return hashlib.sha256(session_token.encode(errors="surrogatepass")).digest()
