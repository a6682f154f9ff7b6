"""The DevTools protocol over one WebSocket: commands with their answers, and the events of each tab.

Over trio-websocket, which halo has anyway: a driver such as Selenium would bring a second program, threads and four packages for the
dozen commands that are needed here. Only commands are used that have been stable for years. Read next: `tests/browser/page.py`.
"""

import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from itertools import count
from typing import Any, Final

import trio
from trio_websocket import ConnectionClosed, WebSocketConnection, open_websocket_url

ANSWER_SECONDS: Final = 60.0
"""Answers take milliseconds; a machine under load may take its time, and a hung browser must not hang the tests."""
ANSWER_BYTES_MAX: Final = 64 * 1024 * 1024
"""A picture of a whole page comes in one message."""


class CommandRefused(Exception):
    """The browser did not do what it was told."""


class DevTools:
    """One connection to a browser."""

    def __init__(self, websocket: WebSocketConnection) -> None:
        self._websocket = websocket
        self._ids = count(1)
        self._answers: dict[int, trio.MemorySendChannel[dict[str, Any]]] = {}
        self._listeners: dict[str, Callable[[str, dict[str, Any]], None]] = {}

    async def call(self, method: str, tab: str | None = None, /, **parameters: Any) -> dict[str, Any]:
        """One command, to the browser or to a tab; what it answers.

        Raises:
            CommandRefused
            trio.TooSlowError: no answer within `ANSWER_SECONDS`.
        """
        number = next(self._ids)
        command: dict[str, Any] = {"id": number, "method": method, "params": parameters}
        if tab is not None:
            command["sessionId"] = tab
        send, receive = trio.open_memory_channel[dict[str, Any]](1)
        self._answers[number] = send
        try:
            with trio.fail_after(ANSWER_SECONDS):
                await self._websocket.send_message(json.dumps(command))
                answer = await receive.receive()
        except trio.EndOfChannel:
            raise CommandRefused(f"{method}: the browser is gone") from None
        finally:
            self._answers.pop(number, None)
        if "error" in answer:
            raise CommandRefused(f"{method}: {answer['error'].get('message')}")
        result: dict[str, Any] = answer["result"]
        return result

    def listen(self, tab: str, hear: Callable[[str, dict[str, Any]], None]) -> None:
        """Give every event of `tab` to `hear`, by name and contents, in the order in which they happened."""
        self._listeners[tab] = hear

    async def receive(self) -> None:
        """Take what comes until the connection closes; run by `open_devtools`."""
        try:
            while True:
                message = json.loads(await self._websocket.get_message())
                if "id" in message:
                    waiting = self._answers.get(message["id"])
                    if waiting is not None:
                        waiting.send_nowait(message)
                elif message.get("sessionId") in self._listeners:
                    self._listeners[message["sessionId"]](message["method"], message["params"])
        except ConnectionClosed:
            for waiting in self._answers.values():
                waiting.close()


@asynccontextmanager
async def open_devtools(url: str) -> AsyncIterator[DevTools]:
    """A connection to the browser at `url`, with its reader running."""
    async with open_websocket_url(url, max_message_size=ANSWER_BYTES_MAX) as websocket, trio.open_nursery() as nursery:
        devtools = DevTools(websocket)
        nursery.start_soon(devtools.receive)
        yield devtools
        nursery.cancel_scope.cancel()
