"""What a provider of pushes has taken, held against the outbox: each push that was still wanted, once, and nothing that was not.

The provider is real HTTP on loopback that can hang, close, answer 503, or have nobody at its port. Read next: `tests/whole/push_outage.py`,
which lets it go away under a halo that goes on.
"""

from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import trio

from halo.clock import Moment, SystemClock
from halo.outbox import OutboxStatus
from halo.store.postgres import Postgres
from tests.net.provider import Provider, Reply, Request


class Absence(StrEnum):
    """The ways in which a provider is away."""

    HANGS = "hangs"
    REFUSES = "refuses"
    CLOSES = "closes"
    FAILS = "fails"


REPLIES = {
    Absence.HANGS: Reply(hangs=True),
    Absence.CLOSES: Reply(raw=b""),
    Absence.FAILS: Reply(503, b'{"error": {"status": "UNAVAILABLE"}}'),
}
"""To messages and to those who ask for an access token."""


class PushesWrong(Exception):
    """A push was lost, was sent twice, or went to somebody for whom it had no use any more."""


@dataclass(frozen=True)
class Taken:
    """A message that the provider has answered with 200."""

    outbox_id: str
    token: str
    at: Moment


@dataclass
class Post:
    """The provider, its door, and what it has taken. `provider.requests` has what was refused, too."""

    provider: Provider
    nursery: trio.Nursery
    taken: list[Taken] = field(default_factory=list)
    away_since: Moment | None = None
    back_at: Moment | None = None
    _port: int = 0
    _door: trio.CancelScope = field(default_factory=trio.CancelScope)

    async def start(self) -> None:
        self.provider.answers = self._take
        await self._open()
        self.provider.url = f"http://127.0.0.1:{self._port}"

    async def be_away(self, seconds: float, stays: Callable[[], Awaitable[object]]) -> None:
        """In each way for a part of the time, in the last one until `stays` returns; what hangs is cut off when the port is closed."""
        self.away_since = SystemClock().now()
        for absence in Absence:
            if absence is Absence.REFUSES:
                self._door.cancel()
            else:
                reply = REPLIES[absence]
                self.provider.answers, self.provider.token_reply = lambda _, reply=reply: reply, reply  # type: ignore[misc]
            await trio.sleep(seconds / len(Absence))
            if absence is Absence.REFUSES:
                await self._open()
        await stays()
        self.provider.answers, self.provider.token_reply = self._take, None
        self.back_at = SystemClock().now()

    async def _open(self) -> None:
        [listener] = await trio.open_tcp_listeners(self._port, host="127.0.0.1")
        self._port = listener.socket.getsockname()[1]
        self._door = trio.CancelScope()

        async def serve() -> None:
            with self._door:
                await trio.serve_listeners(self.provider.converse, [listener])

        self.nursery.start_soon(serve)

    def _take(self, request: Request) -> Reply:
        message = request.json["message"]
        self.taken.append(Taken(message["data"]["outbox_id"], message["token"], SystemClock().now()))
        return Reply(body=b'{"name": "projects/p/messages/1"}')


@asynccontextmanager
async def open_post() -> AsyncIterator[Post]:
    async with trio.open_nursery() as nursery:
        post = Post(Provider(), nursery)
        await post.start()
        yield post
        nursery.cancel_scope.cancel()


async def has_failed(db: Postgres) -> bool:
    """Whether the end of a session waits for its next attempt: nothing will replace it, and it is wanted for an hour."""
    query = "SELECT FROM outbox WHERE template = 'session_ended' AND status = 'due' AND last_error IS NOT NULL LIMIT 1"
    return await db.fetch_one(query) is not None


async def until_none_is_due(db: Postgres, seconds: float) -> None:
    """Until every search is over and every push has found its end. Raises PushesWrong."""
    with trio.move_on_after(seconds):
        while True:
            row = await db.fetch_one(
                """SELECT (SELECT count(*) FROM outbox WHERE kind = 'push' AND status = 'due')
                        + (SELECT count(*) FROM pairings WHERE status = 'searching') AS count"""
            )
            if row is not None and row.count == 0:
                return
            await trio.sleep(0.1)
    rows = await db.fetch_all(
        "SELECT template, attempts, last_error FROM outbox WHERE kind = 'push' AND status = 'due'"
    )
    raise PushesWrong(f"after {seconds:g} s these still wait: {rows[:5]}")


async def balance(db: Postgres, post: Post, late_ms_max: int) -> dict[str, int]:
    """The books of the whole story, in figures. Raises PushesWrong."""
    rows = await db.fetch_all("SELECT * FROM outbox WHERE kind = 'push' ORDER BY created_at, outbox_id")
    taken = defaultdict[str, list[Taken]](list)
    for each in post.taken:
        taken[each.outbox_id].append(each)
    if unknown := taken.keys() - {row.outbox_id for row in rows}:
        raise PushesWrong(f"nobody wanted {unknown}")
    assert post.away_since is not None
    assert post.back_at is not None
    for row in rows:
        _require_fate(row, taken[row.outbox_id], post.back_at + late_ms_max)
    _require_order(rows, taken)
    owed = [row for row in rows if row.status == OutboxStatus.SENT and row.created_at < post.back_at <= row.finished_at]
    figures = Counter[str](f"{row.status}: {row.last_error}" if row.last_error else row.status for row in rows)
    figures["of the sent: had waited for the provider"] = len(owed)
    figures["of these: attempts that failed"] = sum(row.attempts - 1 for row in owed)
    figures["of these: ms after its return, at most"] = max(
        (each.at - post.back_at for row in owed for each in taken[row.outbox_id]), default=0
    )
    figures["of the cancelled: under way just then"] = sum(
        len(taken[row.outbox_id]) for row in rows if row.status == OutboxStatus.CANCELLED
    )
    return dict(figures)


def _require_fate(row: Any, taken: Sequence[Taken], late: Moment) -> None:
    tokens = [each.token for each in taken]
    once = len(tokens) == len(set(tokens))
    match row.status:
        case OutboxStatus.SENT:
            is_right = once and len(tokens) == 1
        case OutboxStatus.EXPIRED:
            # What could not be tried again in time has expired; what had time enough after the provider was back has not.
            is_right = not tokens and row.expires_at <= late
        case OutboxStatus.CANCELLED:
            is_right = once
        case _:
            is_right = False
    if not is_right:
        raise PushesWrong(
            f"{row.template} is {row.status} ({row.last_error}) after {row.attempts} attempts, taken by {tokens}"
        )


def _require_order(rows: Sequence[Any], taken: dict[str, list[Taken]]) -> None:
    """On no phone has an older push of one collapse key replaced a newer one."""
    by_key = defaultdict[tuple[str, str], list[tuple[Moment, Moment]]](list)
    for row in rows:
        for each in taken[row.outbox_id]:
            by_key[row.collapse_key, each.token].append((row.created_at, each.at))
    for (key, _), moments in by_key.items():
        arrivals = [at for _, at in sorted(moments)]
        if arrivals != sorted(arrivals):
            raise PushesWrong(f"an old push of {key} came after a newer one")
