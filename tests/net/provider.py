"""A provider outside of halo for tests: a real HTTP server on loopback that notes what it was sent and answers what it is told.

As FCM it hands out access tokens at `/token` and takes messages; as a payment provider it takes webhooks. `credentials` makes the file of a
service account whose `token_uri` is here.
"""

import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import jwt
import trio
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa


@dataclass(frozen=True)
class Request:
    method: str
    path: str
    headers: dict[str, str]
    """With names in lower case."""
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def token(self) -> str:
        """Of the device that a push is for."""
        return str(self.json["message"]["token"])


@dataclass(frozen=True)
class Reply:
    """`raw` is sent as it stands; `hangs`: nothing is ever sent."""

    status: int = 200
    body: bytes = b"{}"
    headers: dict[str, str] = field(default_factory=dict)
    raw: bytes | None = None
    hangs: bool = False


def fcm_error(status: int, name: str, code: str = "", **headers: str) -> Reply:
    """An error as Google words it."""
    details = [{"@type": "type.googleapis.com/google.firebase.fcm.v1.FcmError", "errorCode": code}] if code else []
    error = {"error": {"code": status, "message": "Something.", "status": name, "details": details}}
    return Reply(status, json.dumps(error).encode(), headers)


@dataclass
class Provider:
    """The server; `answers` may be changed at any time."""

    url: str = ""
    answers: Callable[[Request], Reply] = lambda _: Reply(body=b'{"name": "projects/p/messages/1"}')
    requests: list[Request] = field(default_factory=list)
    """All but those for access tokens."""
    tokens_given: int = 0
    expires_in: int = 3600
    token_reply: Reply | None = None
    assertions: list[str] = field(default_factory=list)
    token_requests: list[Request] = field(default_factory=list)

    async def serve(self, *, task_status: trio.TaskStatus[list[trio.SocketListener]]) -> None:
        await trio.serve_tcp(self.converse, 0, host="127.0.0.1", task_status=task_status)

    async def converse(self, stream: trio.SocketStream) -> None:
        try:
            request = await _receive(stream)
            if request is None:
                return
            reply = self._give_token(request) if request.path == "/token" else self._take(request)
            if reply.hangs:
                await trio.sleep_forever()
            await stream.send_all(_encoded(reply))
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass  # whoever asked has left

    def _give_token(self, request: Request) -> Reply:
        self.token_requests.append(request)
        self.assertions += parse_qs(request.body.decode())["assertion"]
        if self.token_reply is not None:
            return self.token_reply
        self.tokens_given += 1
        given = {"access_token": f"access-{self.tokens_given}", "expires_in": self.expires_in, "token_type": "Bearer"}
        return Reply(body=json.dumps(given).encode())

    def _take(self, request: Request) -> Reply:
        self.requests.append(request)
        return self.answers(request)

    def credentials(self, folder: Path, **changes: Any) -> Path:
        """The file of a service account."""
        given = {
            "type": "service_account",
            "project_id": "halo-test",
            "private_key_id": "key-1",
            "private_key": private_key(),
            "client_email": "halo@halo-test.iam.gserviceaccount.com",
            "token_uri": f"{self.url}/token",
        }
        path = folder / "service-account.json"
        path.write_text(json.dumps(given | changes))
        path.chmod(0o600)
        return path


@lru_cache(maxsize=1)
def _key() -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(public_exponent=65537, key_size=2048)


def private_key() -> str:
    pem = _key().private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return pem.decode()


def claims_of(assertion: str, url: str, now_seconds: int) -> dict[str, Any]:
    """What the service account claims, if its signature is good."""
    options: Any = {"verify_exp": False, "verify_iat": False}
    found = jwt.decode(assertion, _key().public_key(), algorithms=["RS256"], audience=f"{url}/token", options=options)
    assert found["exp"] - found["iat"] == 3600
    assert found["iat"] == now_seconds
    return found


@asynccontextmanager
async def open_provider() -> AsyncIterator[Provider]:
    provider = Provider()
    async with trio.open_nursery() as nursery:
        [listener] = await nursery.start(provider.serve)
        provider.url = f"http://127.0.0.1:{listener.socket.getsockname()[1]}"
        yield provider
        nursery.cancel_scope.cancel()


async def _receive(stream: trio.SocketStream) -> Request | None:
    received = b""
    while b"\r\n\r\n" not in received:
        piece = await stream.receive_some()
        if not piece:
            return None
        received += piece
    head, _, body = received.partition(b"\r\n\r\n")
    first, *lines = head.decode().split("\r\n")
    method, path, _ = first.split(" ")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    while len(body) < int(headers.get("content-length", "0")):
        piece = await stream.receive_some()
        if not piece:
            return None
        body += piece
    return Request(method, path, headers, body)


def _encoded(reply: Reply) -> bytes:
    if reply.raw is not None:
        return reply.raw
    headers = {"content-length": str(len(reply.body)), "connection": "close", **reply.headers}
    lines = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in headers.items())
    return f"HTTP/1.1 {reply.status} Told\r\n{lines}\r\n".encode() + reply.body
