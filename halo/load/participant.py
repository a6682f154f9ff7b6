"""One side of one session: who it is, whether it is connected, and to whom it hands what it hears.

It must never decide anything; the room does. Read next: `halo/load/chats.py`, the room.
"""

from typing import Protocol

from halo.load.hearing import Heard, decode
from halo.load.ledger import Book
from halo.load.orders import Person, Seat
from halo.load.wires import Wire


class Room(Protocol):
    """Who all participants of a process belong to."""

    def welcomed(self, participant: "Participant") -> None: ...

    def acked(self, participant: "Participant", frame: Heard) -> None: ...

    def heard(self, participant: "Participant", frame: Heard) -> None: ...

    def refused(self, participant: "Participant", frame: Heard) -> None: ...

    def told(self, participant: "Participant", frame: Heard) -> None: ...

    def lost(self, participant: "Participant", code: int) -> None: ...


class Participant:
    """One side of one session, connected or not."""

    __slots__ = (
        "_chats", "away_since", "book", "figure", "is_done", "is_here", "is_slow", "number", "person", "seat", "side", "wire",
    )  # fmt: skip

    def __init__(self, chats: Room, seat: Seat, side: int, person: Person, book: Book, number: int) -> None:
        self._chats = chats
        self.seat = seat
        self.side = side
        self.person = person
        self.book = book
        self.number = number
        self.wire: Wire | None = None
        self.is_here = False
        """Whether the server has said `welcome` on the wire that is open now."""
        self.is_slow = False
        self.is_done = False
        """Whether coming back is of no use any more."""
        self.away_since = 0.0
        self.figure = "connect"
        """What the time from `away_since` to the next welcome is."""

    def taken(self, payload: bytes) -> None:
        frame = decode(payload)
        match frame.type:
            case "ack":
                self._chats.acked(self, frame)
            case "message":
                self._chats.heard(self, frame)
            case "refused":
                self._chats.refused(self, frame)
            case "welcome":
                self._chats.welcomed(self)
            case "session_ended":
                self.is_done = True
            case _:
                self._chats.told(self, frame)

    def closed(self, code: int) -> None:
        self._chats.lost(self, code)
