"""Operators, their sessions and tries in memory, with the rules of the real rooms; `tests/store/test_operator_fakes.py` compares."""

import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field

from halo.clock import Clock, Moment
from halo.errors import NotFound, RateLimited
from halo.net.status.ports import Gatehouse
from halo.operator_account import LinkSpent, Role, SignedIn
from halo.store.operator_sessions import IDLE_MS, LIFETIME_MS, TOUCH_MS
from halo.store.sign_in_tries import TRIES, WINDOW_MS, WRONG_PASSWORD, tries_of


@dataclass
class Row:
    role: Role
    password_hash: str | None = None


@dataclass
class OpenSession:
    name: str
    opened_at: Moment
    used_at: Moment


@dataclass
class FakeGatehouse:
    """All three in one, since a new password ends sessions."""

    clock: Clock
    rows: dict[str, Row] = field(default_factory=dict)
    links: dict[str, tuple[str, Moment]] = field(default_factory=dict)
    open_sessions: dict[str, OpenSession] = field(default_factory=dict)
    counted: dict[int, tuple[str, Moment]] = field(default_factory=dict)
    numbers: int = 0
    failed: list[tuple[str, str]] = field(default_factory=list)
    """Who did not come in, and why; the real room writes it into the trail."""

    async def find_password(self, name: str) -> str | None:
        return self.rows[name].password_hash if name in self.rows else None

    async def find_invited(self, link_token: str) -> str | None:
        name, expires_at = self.links.get(link_token, ("", 0))
        return name if expires_at > self.clock.now() else None

    async def accept(self, link_token: str, password_hash: str) -> str:
        name = await self.find_invited(link_token)
        if name is None:
            raise LinkSpent
        del self.links[link_token]
        await self.change_password(name, password_hash)
        return name

    async def change_password(self, name: str, password_hash: str) -> None:
        if name not in self.rows:
            raise NotFound
        self.rows[name].password_hash = password_hash
        self.open_sessions = {token: held for token, held in self.open_sessions.items() if held.name != name}

    async def open(self, name: str, password_hash: str) -> str | None:
        if await self.find_password(name) != password_hash:
            return None
        token, now = secrets.token_urlsafe(32), self.clock.now()
        self.open_sessions[token] = OpenSession(name, now, now)
        return token

    async def find(self, session_token: str, *, is_live: bool) -> SignedIn | None:
        held, now = self.open_sessions.get(session_token), self.clock.now()
        if held is None or held.used_at <= now - IDLE_MS or held.opened_at <= now - LIFETIME_MS:
            return None
        if not is_live and held.used_at + TOUCH_MS <= now:
            held.used_at = now
        return SignedIn(name=held.name, role=self.rows[held.name].role)

    async def close(self, session_token: str) -> None:
        self.open_sessions.pop(session_token, None)

    async def take(self, name: str, address: str) -> Sequence[int]:
        subjects, now = {f"account {name}": TRIES, f"address {address}": tries_of(address)}, self.clock.now()
        waits = [0]
        for subject, most in subjects.items():
            moments = sorted(at for of, at in self.counted.values() if of == subject and at > now - WINDOW_MS)
            if len(moments) >= most:
                waits.append(moments[-most] + WINDOW_MS - now)
        if max(waits) > 0:
            self.failed.append((name, RateLimited.code))
            raise RateLimited(retry_after_ms=max(waits))
        taken = []
        for subject in subjects:
            self.numbers += 1
            self.counted[self.numbers] = (subject, now)
            taken.append(self.numbers)
        return taken

    async def give_back(self, taken: Sequence[int]) -> None:
        for number in taken:
            self.counted.pop(number, None)

    async def fail(self, name: str) -> None:
        self.failed.append((name, WRONG_PASSWORD))

    def gatehouse(self) -> Gatehouse:
        return Gatehouse(accounts=self, sessions=self, tries=self)
