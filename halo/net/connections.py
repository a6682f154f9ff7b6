"""Who is connected to this node: every app's socket, by user and by token family, kept alive and kept honest.

One daemon serves all sockets: a ping every 20 s each, spread over the seconds; whoever has not sent a byte 10 s later is cut; a token
that has expired closes its socket within a second. A task for each socket would cost more than the socket. Never waits for
a socket, never looks at frames. Read next: `halo/net/connection.py`.
"""

from collections import Counter
from collections.abc import Iterator
from itertools import count, islice
from typing import Final, NoReturn

import trio

from halo import protocol
from halo.clock import Clock, Moment
from halo.net.connection import CLOSE_COME_BACK, CLOSE_REPLACED, CLOSE_UNAUTHENTICATED, Connection
from halo.net.receipts import Receipts

PING_SECONDS: Final = 20
"""Spec 4: shorter than the idle timeouts of mobile networks, longer than a radio's sleep."""
PONG_SECONDS: Final = 10
TICK_SECONDS: Final = 1.0
CLOSED_AT_ONCE: Final = 100
"""Between two turns of the loop: each closing socket says goodbye in a task of its own, together some 15 ms."""
GOODBYE_SECONDS: Final = 0.03
"""For so many to say goodbye before the next are asked: else the answers of a thousand come back in one turn. 20,000 are asked in 6 s."""


class Connections:
    """All open sockets.

    Resource handling: a connection adds itself when it is open and removes itself when it is gone; nobody else does.
    """

    def __init__(self, clock: Clock, per_user_at_most: int) -> None:
        self._clock = clock
        self._per_user_at_most = per_user_at_most
        self._by_user: dict[str, list[Connection]] = {}
        self._by_auth_session: dict[str, set[Connection]] = {}
        self._slots: list[set[Connection]] = [set() for _ in range(PING_SECONDS)]
        self._slot_of: dict[Connection, int] = {}
        self._next_slot = 0
        self._expiring: dict[int, set[Connection]] = {}
        """By the second in which their token ends. Not a heap: a socket that is gone must not be held until then."""
        self._expires_in: dict[Connection, int] = {}
        self._emptied = trio.Event()
        self._sent_away: str | None = None
        """Why everybody was asked to come back; whoever was let in before and is here only now is asked as well."""
        self._receipts = Receipts()
        self.cut_as_dead = 0
        self.refusals: Counter[str] = Counter()
        """Frames that were refused, by code."""
        self.closes: Counter[str] = Counter()
        """Sockets that are gone, by the code that we closed them with; `client` when it was not us."""

    def __len__(self) -> int:
        return len(self._slot_of)

    def __iter__(self) -> Iterator[Connection]:
        return iter(tuple(self._slot_of))

    def add(self, connection: Connection) -> None:
        """Let `connection` in; whom it replaces is closed with 4002: the same token on the same path, or the user's oldest."""
        connection.refusals, connection.heard = self.refusals, self.heard
        mine = self._by_user.setdefault(connection.identity.user_id, [])
        for other in tuple(mine):
            if other.identity.jti == connection.identity.jti and other.path == connection.path:
                other.close(CLOSE_REPLACED)
        open_now = [other for other in mine if not other.is_closing]
        if self._per_user_at_most and len(open_now) >= self._per_user_at_most:
            open_now[0].close(CLOSE_REPLACED)
        mine.append(connection)
        self._by_auth_session.setdefault(connection.identity.auth_session_id, set()).add(connection)
        self._slots[self._next_slot].add(connection)
        self._slot_of[connection] = self._next_slot
        self._next_slot = (self._next_slot + 1) % PING_SECONDS
        self.watch_expiry(connection)
        if self._sent_away is not None:
            _send_away(connection, 0, self._sent_away)

    def remove(self, connection: Connection) -> None:
        self.closes[str(connection.close_code or "client")] += 1
        self._slots[self._slot_of.pop(connection)].discard(connection)
        self._forget_expiry(connection)
        mine = self._by_user[connection.identity.user_id]
        mine.remove(connection)
        if not mine:
            del self._by_user[connection.identity.user_id]
        family = self._by_auth_session[connection.identity.auth_session_id]
        family.discard(connection)
        if not family:
            del self._by_auth_session[connection.identity.auth_session_id]
        if not self._slot_of:
            self._emptied.set()
            self._emptied = trio.Event()

    def watch_expiry(self, connection: Connection) -> None:
        """Close `connection` when its token ends; called again when it brings a newer one."""
        self._forget_expiry(connection)
        second = connection.identity.expires_at // 1000
        self._expiring.setdefault(second, set()).add(connection)
        self._expires_in[connection] = second

    def _forget_expiry(self, connection: Connection) -> None:
        second = self._expires_in.pop(connection, None)
        if second is not None:
            self._expiring[second].discard(connection)
            if not self._expiring[second]:
                del self._expiring[second]

    async def _close_expired(self, now: Moment) -> None:
        """A part at a time: whoever came back together after an outage has tokens that end together."""
        seconds = [second for second in self._expiring if second * 1000 <= now]
        ended = iter([connection for second in seconds for connection in self._expiring[second]])
        while part := tuple(islice(ended, CLOSED_AT_ONCE)):
            for connection in part:
                if connection.identity.expires_at <= now:  # it may have brought a newer one meanwhile
                    connection.close(CLOSE_UNAUTHENTICATED)
            await trio.lowlevel.checkpoint()

    def sockets_of(self, user_id: str) -> tuple[Connection, ...]:
        return tuple(self._by_user.get(user_id, ()))

    def is_connected(self, user_id: str) -> bool:
        """Whether a socket of this user has answered within the keepalive (spec 2: never mere membership of a session)."""
        age_ms = self.answered_age_ms(user_id)
        return age_ms is not None and age_ms <= (PING_SECONDS + PONG_SECONDS) * 1000

    def answered_age_ms(self, user_id: str) -> int | None:
        """How long ago the user's liveliest socket last sent a byte; None without a socket."""
        last = max((socket.last_received for socket in self.sockets_of(user_id) if not socket.is_closing), default=None)
        return None if last is None else round((trio.current_time() - last) * 1000)

    def tell(self, user_id: str, frame: protocol.Frame) -> None:
        """`frame` to every lobby socket of this user on this node; nobody there is no fault."""
        listeners = [socket for socket in self.sockets_of(user_id) if socket.is_lobby]
        if listeners:
            encoded = protocol.encode(frame)
            for socket in listeners:
                socket.send(encoded)

    def is_in_lobby(self, user_id: str) -> bool:
        """Whether a lobby socket of this user is there: who is on a chat alone hears no offers."""
        return any(socket.is_lobby and not socket.is_closing for socket in self.sockets_of(user_id))

    def ask_receipt(self, user_id: str, receipt: str, session_id: str | None = None) -> None:
        """Ping the sockets that have just been told something, on the chat of `session_id` or in the lobby, under the name `receipt`."""
        told = [
            socket
            for socket in self.sockets_of(user_id)
            if (socket.is_lobby if session_id is None else socket.path.endswith(session_id))
        ]
        if told:
            mark = self._receipts.ask(user_id, receipt)
            for socket in told:
                socket.ask_receipt(mark)

    def heard(self, mark: bytes) -> None:
        """A pong with this payload came in."""
        self._receipts.note(mark)

    def acknowledged(self, user_id: str, receipt: str) -> bool:
        """Whether a socket of this user has answered the ping of this name: what was said before it has arrived."""
        return self._receipts.has(user_id, receipt)

    def close_auth_session(self, auth_session_id: str, code: int) -> None:
        """Close every socket of a token family: it was revoked (4401) or its user deactivated (4403)."""
        for connection in tuple(self._by_auth_session.get(auth_session_id, ())):
            connection.close(code)

    def close_user(self, user_id: str, code: int) -> None:
        for connection in self.sockets_of(user_id):
            connection.close(code)

    async def send_all_away(self, after_ms: int, spread_ms: int, reason: str) -> None:
        """Ask everybody to come back, spread over `spread_ms` so that they do not come back all at once (drain)."""
        self._sent_away = reason
        everybody = tuple(self)
        for position, connection in enumerate(everybody):
            _send_away(connection, after_ms + spread_ms * position // len(everybody), reason)
            if (position + 1) % CLOSED_AT_ONCE == 0:
                await trio.sleep(GOODBYE_SECONDS)

    async def wait_empty(self) -> None:
        """Until the last socket has said goodbye; each does within its own two seconds."""
        while self._slot_of:
            await self._emptied.wait()

    async def serve(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> NoReturn:
        """Ping, cut the dead, close the expired; once a second, a twentieth of the sockets each."""
        task_status.started()
        started = trio.current_time()
        for tick in count():
            await trio.sleep_until(started + tick * TICK_SECONDS)
            for connection in self._slots[(tick - PONG_SECONDS) % PING_SECONDS]:
                if connection.is_dead():
                    self.cut_as_dead += 1
                    connection.cut()
            for connection in self._slots[tick % PING_SECONDS]:
                connection.ping()
            await self._close_expired(self._clock.now())
            self._receipts.forget_old()
        raise AssertionError("time does not end")


def _send_away(connection: Connection, after_ms: int, reason: str) -> None:
    connection.send(protocol.encode(protocol.Reconnect(after_ms=after_ms, reason=reason)))
    connection.close(CLOSE_COME_BACK)
