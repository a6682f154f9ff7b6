"""The lean client: a process of its own that holds the sockets of many sessions, and lets their people talk when it is told to.

One epoll loop over plain sockets: what it costs, the server cannot have. It reads one order a line from standard input and answers each
with one line of JSON: the first line says whom to connect (`Plan`), then `go`, `mark` (figures since the last mark), `hush` (say no more,
wait for every ack). Read next: `scripts/measuring/talker.py`.
"""

import json
import os
import select
import sys
import time
from collections.abc import Iterator
from typing import Any, Final

import msgspec

from scripts.measuring.talker import Plan, SocketLost, Talker, Tally

HUSH_SECONDS: Final = 10.0
"""Far longer than any ack takes; what has not come by then is lost, and the comparison with Postgres tells."""
SETTLE_SECONDS: Final = 0.3
"""A delivery may follow the last ack by a moment."""


class Crowd:
    """All talkers of this process, and the loop that they share."""

    def __init__(self, plan: Plan) -> None:
        self.tally = Tally()
        self._epoll = select.epoll()
        self._until_closed = plan.until_closed
        self._talkers: dict[int, Talker] = {}
        for first in range(0, len(plan.sessions), plan.at_once):
            here = plan.sessions[first : first + plan.at_once]
            coming = [Talker(plan, session_id, token, self.tally) for session_id, *tokens in here for token in tokens]
            for talker in coming:
                talker.shake_hands()
                self._talkers[talker.socket.fileno()] = talker
                self._epoll.register(talker.socket.fileno(), select.EPOLLIN)
            self._turn(0)  # pings, and what the other side hears of this one's coming
        self._epoll.register(sys.stdin.fileno(), select.EPOLLIN)

    def __len__(self) -> int:
        return len(self._talkers)

    def orders(self) -> Iterator[str]:
        """Each order from standard input, while everybody goes on talking; ends with the input."""
        os.set_blocking(sys.stdin.fileno(), False)
        waiting = ""
        while True:
            if self._turn(1.0):
                said = sys.stdin.read()
                if not said:
                    return
                *whole, waiting = (waiting + said).split("\n")
                yield from whole

    def go(self) -> None:
        self.tally.talking = True
        for talker in self._talkers.values():
            talker.say()

    def hush(self) -> None:
        """Nobody says more; returns when everything said is acknowledged, or after `HUSH_SECONDS`."""
        self.tally.talking = False
        until = time.monotonic() + HUSH_SECONDS
        while time.monotonic() < until and any(talker.is_waiting for talker in self._talkers.values()):
            self._turn(0.1)
        settled = time.monotonic() + SETTLE_SECONDS
        while time.monotonic() < settled:
            self._turn(0.05)

    def _turn(self, seconds: float) -> bool:
        """One look at all sockets; whether there is an order."""
        ordered = False
        for descriptor, _ in self._epoll.poll(seconds):
            talker = self._talkers.get(descriptor)
            if talker is None:
                ordered = True
            else:
                self._hear(talker)
        return ordered

    def _hear(self, talker: Talker) -> None:
        """Raises SocketLost where nobody expects it."""
        try:
            talker.hear()
        except (SocketLost, ConnectionError):
            if not self._until_closed:
                raise
            del self._talkers[talker.socket.fileno()]
            talker.socket.close()


def main() -> None:
    plan = msgspec.json.decode(sys.stdin.readline(), type=Plan)
    crowd = Crowd(plan)
    answer({"connected": len(crowd)})
    for order in crowd.orders():
        if order == "go":
            crowd.go()
            answer({"talking": len(crowd)})
        elif order == "mark":
            answer(crowd.tally.mark())
        elif order == "hush":
            crowd.hush()
            answer(crowd.tally.mark())


def answer(line: dict[str, Any]) -> None:
    print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
