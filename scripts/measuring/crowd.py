"""The lean client as its owner sees it: started with a plan, told what to do, asked what it saw.

Resource handling: the process is ours and ends with the block. Error handling: `CrowdLost` with its last words when it has ended.
Read next: `scripts/measuring/talk.py`, the process itself.
"""

import json
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import urlsplit

import trio

from halo.clock import SystemClock
from halo.net.tokens import Tokens
from halo.session import Party
from scripts.measuring.sessions import LivingSession
from scripts.measuring.theatre import TOKEN_SECONDS

ANSWER_SECONDS = 120.0
"""The longest order is to connect: some thousands of handshakes at a few milliseconds each."""
END_SECONDS = 5.0


class CrowdLost(Exception):
    """The client ended or did not answer."""


class CrowdProcess:
    """One lean client."""

    def __init__(self, process: trio.Process) -> None:
        self._process = process
        self._unread = b""

    @property
    def pid(self) -> int:
        return self._process.pid

    async def ask(self, order: str) -> dict[str, Any]:
        """Raises CrowdLost."""
        assert self._process.stdin is not None  # pipes were asked for
        assert self._process.stdout is not None
        try:
            await self._process.stdin.send_all(order.encode() + b"\n")
            with trio.fail_after(ANSWER_SECONDS):
                while b"\n" not in self._unread:
                    more = await self._process.stdout.receive_some()
                    if not more:
                        raise CrowdLost("the client has ended; what it said last is above")
                    self._unread += more
        except (trio.BrokenResourceError, trio.TooSlowError) as lost:
            raise CrowdLost(f"the client did not answer {order[:10]!r}") from lost
        line, _, self._unread = self._unread.partition(b"\n")
        answer: dict[str, Any] = json.loads(line)
        return answer


@asynccontextmanager
async def open_crowd(
    ws: str,
    secret: str,
    sessions: Sequence[LivingSession],
    *,
    alone: bool = False,
    at_once: int = 1,
    until_closed: bool = False,
) -> AsyncIterator[CrowdProcess]:
    """Both people of every session, or only its customer when she is `alone`, connected and silent; `at_once` sessions at a time."""
    tokens = Tokens(secret, TOKEN_SECONDS, SystemClock())
    address = urlsplit(ws)

    def token(party: Party, user_id: str) -> str:
        return tokens.issue(party, user_id, user_id)  # a family of tokens needs an id, and any will do

    people = [
        [s.session_id, token(Party.CUSTOMER, s.customer_id), *(() if alone else (token(Party.MITRA, s.mitra_id),))]
        for s in sessions
    ]
    plan = {"host": address.hostname, "port": address.port, "sessions": people}
    plan |= {"at_once": at_once, "until_closed": until_closed}
    process = await trio.lowlevel.open_process(
        [sys.executable, "-m", "scripts.measuring.talk"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        crowd = CrowdProcess(process)
        connected = (await crowd.ask(json.dumps(plan)))["connected"]
        wanted = len(sessions) * (1 if alone else 2)
        if connected != wanted:
            raise CrowdLost(f"{connected} of {wanted} sockets were opened")
        yield crowd
    finally:
        with trio.CancelScope(shield=True):
            if process.stdin is not None:
                await process.stdin.aclose()
            with trio.move_on_after(END_SECONDS):
                await process.wait()
            if process.poll() is None:
                process.kill()
            await process.wait()
