"""The bell of all alarms of one node: it rings whoever is due, a part at a time, and lets those who need the store come in their turn.

Ten thousand sessions of one age fall due in one moment. Woken together they would keep the event loop for as long as all of them need, and
waiting together for the store they would wake each other again and again; so between two parts the loop has its turn, and who needs the store
waits in a line outside its actor, whose mailbox goes on. It must never know what is due, nor hold on to an alarm whose actor is gone.
Read next: `halo/actors/alarm.py`, one of them.
"""

import heapq
from math import inf
from typing import Final, NoReturn, Protocol

import trio

RUNG_AT_ONCE: Final = 100
"""Between two turns of the loop: each wakes an actor that says something to two sockets, together some 8 ms."""
LINE_SECONDS: Final = 0.25
"""Who was called and does not come for so long, because its actor waits for something else, holds up nobody: the next ones are called."""
STALE_ENTRIES: Final = 1_000
"""Entries of alarms that were moved stay in the heap until they are due, or until there are so many and more than half of all."""


class Ringing(Protocol):
    """An alarm."""

    def ring(self) -> None: ...


class Entry:
    """One alarm at one moment; without the alarm once it was moved."""

    __slots__ = ("alarm", "at", "number")

    def __init__(self, at: float, number: int, alarm: Ringing) -> None:
        self.at = at
        self.number = number
        self.alarm: Ringing | None = alarm

    def __lt__(self, other: "Entry") -> bool:
        return (self.at, self.number) < (other.at, other.number)


class Bell:
    """See the module.

    Resource handling: `serve` runs as long as the actors do; an alarm whose actor is gone must `leave`.
    """

    def __init__(self, turns: int) -> None:
        self.turns = trio.Semaphore(turns)
        """For what nobody asked for: many sessions with a deadline or a credit at once must not crowd out those who ask."""
        self._heap: list[Entry] = []
        self._entries: dict[Ringing, Entry] = {}
        self._number = 0
        self._line: dict[Ringing, None] = {}
        """In the order of their coming."""
        self._called: set[Ringing] = set()
        """It is their turn, and they have not come yet."""
        self._called_at = -inf
        self._sleep: trio.CancelScope | None = None

    def __len__(self) -> int:
        """Alarms that are set."""
        return len(self._entries)

    @property
    def waiting(self) -> int:
        """Alarms in the line."""
        return len(self._line)

    def set(self, alarm: Ringing, at: float) -> None:
        """Ring `alarm` at this moment of Trio's clock and not at the one that was set before; `inf` is never."""
        entry = self._entries.pop(alarm, None)
        if entry is not None:
            entry.alarm = None
        if at == inf:
            return
        self._number += 1
        entry = self._entries[alarm] = Entry(at, self._number, alarm)
        heapq.heappush(self._heap, entry)
        if len(self._heap) > 2 * len(self._entries) + STALE_ENTRIES:
            self._heap = list(self._entries.values())
            heapq.heapify(self._heap)
        self._wake(at)

    def take_turn(self, alarm: Ringing) -> bool:
        """Whether it is this one's turn now, and `turn_over` is owed; otherwise it is rung again when it is."""
        if not self._line or alarm in self._called:
            self._called.discard(alarm)
            try:
                self.turns.acquire_nowait()
            except trio.WouldBlock:
                pass
            else:
                return True
        self.line_up(alarm)
        return False

    def turn_over(self) -> None:
        """The next in the line is called at once."""
        self.turns.release()
        self._call_next()

    def stand_back(self, alarm: Ringing) -> None:
        """It was rung, and needs no turn (any more)."""
        self._line.pop(alarm, None)
        if alarm in self._called:
            self._called.discard(alarm)
            self._call_next()

    def line_up(self, alarm: Ringing) -> None:
        """Ring `alarm` when it is its turn."""
        if alarm not in self._called:
            self._line[alarm] = None
            self._wake(trio.current_time())

    def leave(self, alarm: Ringing) -> None:
        """Its actor is gone."""
        self.set(alarm, inf)
        self.stand_back(alarm)

    async def serve(self) -> NoReturn:
        while True:
            now = trio.current_time()
            self._call_next()
            for _ in range(RUNG_AT_ONCE):
                if self._next_at() > now:
                    break
                entry = heapq.heappop(self._heap)
                assert entry.alarm is not None  # `_next_at` has thrown those away
                del self._entries[entry.alarm]
                entry.alarm.ring()
            due_at = min(self._next_at(), now + LINE_SECONDS if self._line else inf)
            if due_at <= now:
                await trio.lowlevel.checkpoint()
                continue
            with trio.CancelScope(deadline=due_at) as self._sleep:
                await trio.sleep_forever()
            self._sleep = None

    def _next_at(self) -> float:
        while self._heap and self._heap[0].alarm is None:
            heapq.heappop(self._heap)
        return self._heap[0].at if self._heap else inf

    def _call_next(self) -> None:
        """As many as there are turns that nobody has or was called to."""
        if not self._line:
            return
        now = trio.current_time()
        if now >= self._called_at + LINE_SECONDS:
            self._called.clear()  # whoever comes later lines up again
        for _ in range(min(self.turns.value - len(self._called), len(self._line))):
            alarm = next(iter(self._line))
            del self._line[alarm]
            self._called.add(alarm)
            self._called_at = now
            alarm.ring()

    def _wake(self, at: float) -> None:
        if self._sleep is not None and at < self._sleep.deadline:
            self._sleep.deadline = at
