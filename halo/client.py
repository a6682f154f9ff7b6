"""A small client for halo's own protocol: what the demo, the harness and the tests speak through.

It keeps what a good app keeps: the last `seq` it saw, messages that were not acknowledged yet, and the token to come back with. It
must never be imported by the server. Frames are plain dicts, as they came over the wire. Read next: `halo/demo/story.py`.
"""

import itertools
import json
import uuid
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any, TypeAlias

import httpx
import trio
from trio_websocket import ConnectionClosed, WebSocketConnection, open_websocket_url

Frame: TypeAlias = dict[str, Any]

EXPECT_SECONDS = 10.0
"""How long `expect` waits: far longer than any answer takes, short enough for a demo that fails."""


class CallRefused(Exception):
    """The HTTP API said no."""

    def __init__(self, status: int, problem: Mapping[str, Any]) -> None:
        self.status = status
        self.code = str(problem.get("code", ""))
        self.problem = problem
        super().__init__(f"{status} {self.code}: {problem.get('detail', '')}")


class NothingCame(Exception):
    """The frame that was waited for did not come in time."""


class ApiClient:
    """The HTTP API as one person: `await api.post("/api/payments", {...})`."""

    def __init__(self, base_url: str, headers: Mapping[str, str] | None = None, *, verify: bool = True) -> None:
        self._http = httpx.AsyncClient(
            base_url=base_url, headers=dict(headers or {}), timeout=10.0, trust_env=False, verify=verify
        )

    async def aclose(self) -> None:
        await self._http.aclose()

    async def call(self, method: str, path: str, body: Any = None, headers: Mapping[str, str] | None = None) -> Any:
        """The decoded answer, None for 204. A body of bytes is sent as it is, for whoever has signed it.

        Raises:
            CallRefused: any status of 400 or above.
            httpx.TransportError: nobody answered.
        """
        content = {"content": body} if isinstance(body, bytes) else {"json": body}
        answer = await self._http.request(method, path, headers=dict(headers or {}), **content)
        if answer.status_code >= 400:
            raise CallRefused(answer.status_code, _decoded(answer))
        return answer.json() if answer.content else None

    async def get(self, path: str) -> Any:
        return await self.call("GET", path)

    async def post(self, path: str, body: Any = None, headers: Mapping[str, str] | None = None) -> Any:
        return await self.call("POST", path, {} if body is None else body, headers)

    async def delete(self, path: str) -> Any:
        return await self.call("DELETE", path)


def _decoded(answer: httpx.Response) -> Mapping[str, Any]:
    try:
        problem = answer.json()
    except json.JSONDecodeError:
        return {"detail": answer.text[:200]}
    return problem if isinstance(problem, dict) else {"detail": str(problem)}


@asynccontextmanager
async def open_api(base_url: str, headers: Mapping[str, str] | None = None) -> AsyncIterator[ApiClient]:
    client = ApiClient(base_url, headers)
    try:
        yield client
    finally:
        with trio.CancelScope(shield=True):
            await client.aclose()


class Socket:
    """One open socket: every frame that came is kept in order, `expect` takes the next that fits."""

    def __init__(self, websocket: WebSocketConnection) -> None:
        self._websocket = websocket
        self._ids = itertools.count(1)
        self._name = uuid.uuid4().hex[:8]
        """Ids of an earlier socket must not be used again for something else."""
        self._arrived = trio.Event()
        self.frames: list[Frame] = []
        """Everything that came and was not yet expected."""
        self.seqs: list[int] = []
        """`seq` of every message that came, in the order of coming."""
        self.closed_with: int | None = None

    async def send(self, type_: str, **fields: Any) -> str:
        """Send one frame; returns its `id` (made up unless given)."""
        frame_id = str(fields.pop("id", None) or f"{self._name}-{next(self._ids)}")
        await self._websocket.send_message(json.dumps({"type": type_, "id": frame_id, **fields}))
        return frame_id

    async def send_raw(self, text: str | bytes) -> None:
        await self._websocket.send_message(text)

    async def ask(self, type_: str, **fields: Any) -> Frame:
        """Send, and wait for this frame's own `ack`, `refused` or `pong`."""
        frame_id = await self.send(type_, **fields)
        return await self.expect(
            lambda frame: frame.get("id") == frame_id and frame["type"] in {"ack", "refused", "pong"}
        )

    async def expect(self, wanted: str | Callable[[Frame], bool], seconds: float = EXPECT_SECONDS) -> Frame:
        """The first frame of that type (or that fits) that was not taken yet; earlier ones stay for others to expect.

        Raises:
            NothingCame: not within `seconds`, or the socket closed before.
        """
        fits = (lambda frame: frame["type"] == wanted) if isinstance(wanted, str) else wanted
        with trio.move_on_after(seconds):
            while True:
                for position, frame in enumerate(self.frames):
                    if fits(frame):
                        return self.frames.pop(position)
                if self.closed_with is not None:
                    break
                await self._arrived.wait()
        raise NothingCame(
            f"{wanted} did not come; closed with {self.closed_with}; came: {[frame['type'] for frame in self.frames]}"
        )

    async def wait_closed(self, seconds: float = EXPECT_SECONDS) -> int:
        """The close code. Raises NothingCame."""
        with trio.move_on_after(seconds):
            while self.closed_with is None:
                await self._arrived.wait()
            return self.closed_with
        raise NothingCame("the socket did not close")

    async def aclose(self, code: int = 1000) -> None:
        await self._websocket.aclose(code)

    async def receive(self) -> None:
        """Take what comes until the socket closes; run by `open_socket`."""
        try:
            while True:
                frame = json.loads(await self._websocket.get_message())
                if frame["type"] == "message":
                    self.seqs.append(frame["seq"])
                self.frames.append(frame)
                self._wake()
        except ConnectionClosed as closed:
            self.closed_with = closed.reason.code if closed.reason is not None else 1006
            self._wake()

    def _wake(self) -> None:
        self._arrived.set()
        self._arrived = trio.Event()


@asynccontextmanager
async def open_socket(url: str, access_token: str) -> AsyncIterator[Socket]:
    """A socket with its reader running. Raises what trio-websocket raises when the handshake is refused."""
    async with open_websocket_url(url, subprotocols=["halo.v1", f"bearer.{access_token}"]) as websocket:
        try:
            socket = Socket(websocket)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(socket.receive)
                yield socket
                nursery.cancel_scope.cancel()
        finally:  # the library leaves the TCP socket to the garbage collector when the server was the first to close
            await trio.aclose_forcefully(websocket._stream)  # noqa: SLF001  # it offers no other way
