"""The admin listener of a desk of fakes on a real socket, and browsers that go to it: cookies, forms, and the headers of real ones."""

import re
import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from html import unescape
from typing import Any, Final
from urllib.parse import urlencode

import httpx
import pytest
import trio

from halo.net.admission import Gate
from halo.net.flusher import Flusher
from halo.net.guard import Door, open_listener
from halo.net.http import serve_http
from halo.net.status import passwords
from halo.operator_account import Role
from tests.net.desk_fakes import House
from tests.net.gatehouse_fakes import Row

PASSWORD = "correct horse battery"
ANOTHER = "staple of another battery"
_TOKEN = re.compile(r'name="csrf_token" value="([0-9a-f]+)"')
_KEPT: dict[str, str] = {}
CHEAP: Final = (2, 1, 1)
"""What a hash costs in these tests; that it costs more, and where that is paid, `tests/net/test_status_passwords.py` proves."""

UNUSED_TLS: Final = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
"""Everything here is plain HTTP; left alone, each client reads a whole machine's certificates, 20 ms a test."""


async def stored(password: str) -> str:
    """Always the same one, so that it can be told apart from another."""
    if password not in _KEPT:
        _KEPT[password] = await passwords.Passwords().hash(password)
    return _KEPT[password]


@dataclass
class Browser:
    """One person's browser: it keeps cookies, and says with each form where that comes from."""

    client: httpx.AsyncClient
    base: str
    cookies: dict[str, str] = field(default_factory=dict)
    given: list[str] = field(default_factory=list)
    """Every Set-Cookie, as it came."""

    async def get(self, path: str, headers: Mapping[str, str] | None = None) -> httpx.Response:
        sent = {"Accept": "text/html", "Sec-Fetch-Site": "same-origin", **(headers or {})}
        return await self._send("GET", path, None, sent)

    async def post(
        self,
        path: str,
        form: Mapping[str, str],
        headers: Mapping[str, str | None] | None = None,
    ) -> httpx.Response:
        """`headers` with None leave one out that a browser would send."""
        usual = {"Accept": "text/html", "Origin": self.base, "Sec-Fetch-Site": "same-origin", **(headers or {})}
        usual.setdefault("Content-Type", "application/x-www-form-urlencoded")
        sent = {name: value for name, value in usual.items() if value is not None}
        return await self._send("POST", path, urlencode(form).encode(), sent)

    async def submit(self, page: str, path: str, **fields: str) -> httpx.Response:
        """Load `page` and send its form's token with `fields` to `path`."""
        return await self.post(path, {"csrf_token": token_of(await self.get(page)), **fields})

    async def sign_in(self, name: str = "admin", password: str = PASSWORD, **fields: str) -> httpx.Response:
        return await self.submit("/sign-in", "/sign-in", name=name, password=password, **fields)

    @property
    def session_token(self) -> str:
        return self.cookies["halo_session"]

    async def _send(self, method: str, path: str, body: bytes | None, headers: Mapping[str, str]) -> httpx.Response:
        cookies = (
            {"Cookie": "; ".join(f"{name}={value}" for name, value in self.cookies.items())} if self.cookies else {}
        )
        response = await self.client.request(method, self.base + path, content=body, headers={**headers, **cookies})
        self.client.cookies.clear()  # httpx keeps one jar for everybody; here each browser has its own
        for line in response.headers.get_list("set-cookie"):
            self.given.append(line)
            name, _, value = line.partition(";")[0].partition("=")
            if "Max-Age=0" in line:
                self.cookies.pop(name, None)
            else:
                self.cookies[name] = value
        return response


@dataclass
class Site:
    """The listener, its house, and new browsers."""

    house: House
    base: str
    client: httpx.AsyncClient

    def browser(self) -> Browser:
        return Browser(self.client, self.base)

    async def add(self, name: str = "admin", role: Role = Role.OPERATOR, password: str | None = PASSWORD) -> None:
        self.house.gatehouse.rows[name] = Row(role, None if password is None else await stored(password))

    async def signed_in(self, name: str = "admin", role: Role = Role.OPERATOR) -> Browser:
        """Somebody with a session, by the store: the way through the door is proved by tests of its own."""
        await self.add(name, role)
        token = await self.house.gatehouse.open(name, await stored(PASSWORD))
        assert token is not None
        return Browser(self.client, self.base, {"halo_session": token})


@asynccontextmanager
async def open_site(monkeypatch: pytest.MonkeyPatch, **changes: Any) -> AsyncIterator[Site]:
    """Until the block is left, on a free port."""
    monkeypatch.setattr(passwords, "COST", CHEAP)
    house = House(**changes)
    gate = Gate(house.clock, total_at_most=64, per_address_at_most=0, handshakes_per_s=0, unauthenticated_at_most=0)
    flusher, stop = Flusher(), trio.Event()
    async with trio.open_nursery() as nursery:
        await nursery.start(flusher.serve)
        listener = await open_listener("127.0.0.1:0")
        [address] = await nursery.start(
            partial(serve_http, house.admin, [listener], stop=stop, door=Door(gate, flusher))
        )
        async with httpx.AsyncClient(verify=UNUSED_TLS, trust_env=False, timeout=20) as client:
            yield Site(house, f"http://{address}", client)
        nursery.cancel_scope.cancel()


def token_of(page: httpx.Response) -> str:
    """The token of the page's forms."""
    found = _TOKEN.search(page.text)
    assert found is not None, page.text
    return found[1]


def told(page: httpx.Response) -> str:
    """The text of a page, without its tags."""
    return " ".join(unescape(re.sub(r"<[^>]+>", " ", page.text)).split())
