"""The book of one session: what both sides said, what was acknowledged, and what each of them heard; and whether all of it agrees. PURE.

Nobody's word is taken for it: an ack must be found again in the history, a delivery must have the `seq` of its ack, and `seq` must come
without a gap on every socket. It must stay small: a message costs a few dozen bytes, for a run has millions. Read next:
`halo/load/verdict.py`, which judges the findings of all books.
"""

from array import array
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

import msgspec

SIDES: Final = ("customer", "mitra")
SHOWN_AT_MOST: Final = 5
"""Sentences kept of each kind: enough to look into, not a flood."""
_REFUSED: Final = -1
"""Stands where a `seq` would: the server said no, so nothing is owed."""


class Kind(StrEnum):
    """What may be wrong with a conversation."""

    MISSING = "missing"
    UNDELIVERED = "undelivered"
    REPEATED = "repeated"
    DISORDERED = "disordered"
    ALTERED = "altered"


class Stored(msgspec.Struct, frozen=True):
    """One message of a history, as the API gives it."""

    seq: int
    id: str
    sender: str
    body: str


@dataclass(slots=True)
class Findings:
    """How often what was wrong, with examples."""

    counts: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=dict)

    def note(self, kind: Kind, sentence: str) -> None:
        self.counts[kind] += 1
        shown = self.examples.setdefault(kind, [])
        if len(shown) < SHOWN_AT_MOST:
            shown.append(sentence)

    def add(self, counts: dict[str, int], examples: dict[str, list[str]]) -> None:
        """Those of another process."""
        self.counts.update(counts)
        for kind, sentences in examples.items():
            shown = self.examples.setdefault(kind, [])
            shown += sentences[: SHOWN_AT_MOST - len(shown)]


class _Side:
    """What one participant said and heard; messages are numbered from 0 in the order of intention."""

    __slots__ = ("acked", "heard", "intended", "last_seq", "resent", "unanswered")

    def __init__(self, last_seq: int) -> None:
        self.intended = array("d")
        self.acked = array("q")
        """The `seq` of each, 0 before its ack."""
        self.heard = array("q")
        """The `seq` under which the other side heard it, 0 before."""
        self.resent: set[int] = set()
        self.unanswered: set[int] = set()
        self.last_seq = last_seq


class Book:
    """One session; `tag` begins every id of this run, so that a history's other messages are told apart."""

    def __init__(self, session_id: str, tag: str, last_seq: int, findings: Findings) -> None:
        self.session_id = session_id
        self._tag = tag
        self.began_after = last_seq
        self._sides = (_Side(last_seq), _Side(last_seq))
        self._findings = findings

    # ---- what the participants do and see

    def intend(self, side: int, at: float) -> int:
        """A new message; its number."""
        book = self._sides[side]
        number = len(book.intended)
        book.intended.append(at)
        book.acked.append(0)
        book.heard.append(0)
        book.unanswered.add(number)
        return number

    def id_of(self, number: int) -> str:
        return f"{self._tag}.{number}"

    def unanswered(self, side: int) -> list[int]:
        """Neither acknowledged nor refused, in order: what a client that comes back sends again."""
        return sorted(self._sides[side].unanswered)

    def find_unanswered(self, side: int, message_id: str | None) -> int | None:
        """The number of this message, None unless it still waits for its answer."""
        number = self._number(message_id, self._sides[side])
        return number if number in self._sides[side].unanswered else None

    def resent(self, side: int, number: int) -> None:
        """Sent once more: its ack may have an old `seq`, and may come twice."""
        self._sides[side].resent.add(number)

    def last_seq(self, side: int) -> int:
        """What this side has seen: its `after_seq` when it comes back."""
        return self._sides[side].last_seq

    def acked(self, side: int, message_id: str | None, seq: int) -> float | None:
        """The intended moment of the message, None unless this is its first ack."""
        book = self._sides[side]
        number = self._number(message_id, book)
        if number is None:
            self._note(Kind.ALTERED, f"an ack for {message_id!r}, which nobody sent")
            return None
        if book.acked[number] > 0:
            if number not in book.resent or book.acked[number] != seq:
                self._note(Kind.REPEATED, f"{message_id} was acknowledged as {book.acked[number]} and as {seq}")
            return None
        book.acked[number] = seq
        book.unanswered.discard(number)
        if seq == book.last_seq + 1:
            book.last_seq = seq
        elif not (seq <= book.last_seq and number in book.resent):
            self._note(Kind.DISORDERED, f"ack {message_id} has seq {seq} after {book.last_seq}")
            book.last_seq = max(book.last_seq, seq)
        return book.intended[number]

    def refused(self, side: int, message_id: str | None) -> None:
        """The server said no: nothing is owed."""
        book = self._sides[side]
        number = self._number(message_id, book)
        if number is not None and not book.acked[number]:
            book.acked[number] = _REFUSED
            book.unanswered.discard(number)

    def heard(self, side: int, sender: str, message_id: str | None, seq: int) -> float | None:
        """A message came to `side`. The intended moment when it is the other's and new, else None."""
        book = self._sides[side]
        if seq == book.last_seq + 1:
            book.last_seq = seq
        elif seq <= book.last_seq:
            self._note(Kind.REPEATED, f"{SIDES[side]} got seq {seq} once more, after {book.last_seq}")
            return None
        else:
            self._note(Kind.DISORDERED, f"{SIDES[side]} got seq {seq} after {book.last_seq}")
            book.last_seq = seq
        if sender not in SIDES:
            return None
        said = self._sides[SIDES.index(sender)]
        number = self._number(message_id, said)
        if number is None:
            if message_id is not None and message_id.startswith(self._tag):
                self._note(Kind.ALTERED, f"{SIDES[side]} heard {message_id!r}, which nobody said")
            return None
        if sender == SIDES[side]:
            return None  # its own, in the replay after a lost connection; its ack is still asked for
        if said.heard[number]:
            self._note(Kind.REPEATED, f"{SIDES[side]} heard {message_id} as {said.heard[number]} and as {seq}")
            return None
        said.heard[number] = seq
        return said.intended[number]

    # ---- when it is over

    @property
    def is_settled(self) -> bool:
        """Whether everything is answered and whatever was acknowledged has been heard."""
        return not any(side.unanswered for side in self._sides) and all(
            heard or ack <= 0 for side in self._sides for ack, heard in zip(side.acked, side.heard, strict=True)
        )

    def waiting_since(self) -> list[float]:
        """The intended moments of what never was answered: it counts with the time that was waited."""
        return [side.intended[number] for side in self._sides for number in sorted(side.unanswered)]

    def close(self, history: Iterable[Stored], body_of: str) -> int:
        """Compare with the whole history from `began_after` on, whose bodies end with `body_of`; how many of ours are in it."""
        stored: dict[tuple[int, int], int] = {}
        expected = self.began_after
        for row in history:
            expected += 1
            if row.seq != expected:
                kind = Kind.DISORDERED if row.seq > expected else Kind.REPEATED
                self._note(kind, f"the history has seq {row.seq} where {expected} belongs")
                expected = max(row.seq, expected - 1)
            if row.sender not in SIDES:
                continue
            side = SIDES.index(row.sender)
            number = self._number(row.id, self._sides[side])
            if number is None:
                continue
            if (side, number) in stored:
                self._note(Kind.REPEATED, f"{row.id} is stored as {stored[side, number]} and as {row.seq}")
            stored[side, number] = row.seq
            if row.body != row.id + body_of:
                self._note(Kind.ALTERED, f"{row.id} is stored with another body")
        for side, book in enumerate(self._sides):
            self._compare(side, book, stored)
        return len(stored)

    def _compare(self, side: int, book: _Side, stored: dict[tuple[int, int], int]) -> None:
        other = SIDES[1 - side]
        for number, (acked, heard) in enumerate(zip(book.acked, book.heard, strict=True)):
            kept = stored.get((side, number), 0)
            if acked > 0 and not kept:
                self._note(Kind.MISSING, f"{self.id_of(number)} was acknowledged as {acked} and is not in the history")
            elif acked > 0 and kept != acked:
                self._note(
                    Kind.ALTERED, f"{self.id_of(number)} was acknowledged as {acked}, the history has it as {kept}"
                )
            if acked > 0 and not heard:
                self._note(Kind.UNDELIVERED, f"{self.id_of(number)} was acknowledged and never reached the {other}")
            elif heard and kept != heard:
                self._note(
                    Kind.ALTERED,
                    f"the {other} heard {self.id_of(number)} as {heard}, the history has {kept or 'nothing'}",
                )

    def _number(self, message_id: str | None, book: _Side) -> int | None:
        if message_id is None or not message_id.startswith(self._tag + "."):
            return None
        digits = message_id[len(self._tag) + 1 :]
        number = int(digits) if digits.isdecimal() else len(book.intended)
        return number if number < len(book.intended) else None

    def _note(self, kind: Kind, sentence: str) -> None:
        self._findings.note(kind, f"session {self.session_id}: {sentence}")
