"""Who hears a session: the sockets of its two participants on this node.

Everything here is synchronous and in memory: a socket's `send` never waits, and one that cannot keep up closes itself. What is encoded is
encoded once, and nothing is encoded for nobody. Read next: `halo/net/connection.py`, the ear itself.
"""

from collections.abc import Collection

from halo import protocol
from halo.actors.commands import Ear
from halo.session import Party

CLOSE_COME_BACK = 4000


class Audience:
    """The ears of one session, in the order of their arrival."""

    __slots__ = ("_ears",)

    def __init__(self) -> None:
        self._ears: list[Ear] = []

    def __len__(self) -> int:
        return len(self._ears)

    def join(self, ear: Ear) -> None:
        alone = not self.hears(ear.party)
        self._ears.append(ear)
        if alone:
            self.send(protocol.Presence(party=ear.party.value, connected=True), beside=ear)

    def leave(self, ear: Ear) -> None:
        """`ear` is gone; one that was shown the door, or never let in, has left already."""
        if ear not in self._ears:
            return
        self._ears.remove(ear)
        if not self.hears(ear.party):
            self.send(protocol.Presence(party=ear.party.value, connected=False))

    def expel(self, participants: Collection[str], code: int) -> None:
        """Close whoever is not among `participants` (any more): it hears nothing of what is said from now on (X1)."""
        for ear in [ear for ear in self._ears if ear.user_id not in participants]:
            self.leave(ear)
            ear.close(code)

    def has_others(self, beside: Ear | None) -> bool:
        """Whether anybody is there but `beside`, who may have left already: its last words are for the others all the same."""
        ears = self._ears
        return len(ears) > 1 or (len(ears) == 1 and ears[0] is not beside)

    def hears(self, party: Party) -> bool:
        """Whether anybody of `party` is on this chat."""
        return any(ear.party is party for ear in self._ears)

    def parties(self) -> frozenset[Party]:
        return frozenset(ear.party for ear in self._ears)

    def send(self, frame: protocol.Frame, *, to: Party | None = None, beside: Ear | None = None) -> None:
        """`frame` to one party, or to both, but not to `beside`."""
        encoded: bytes | None = None
        for ear in tuple(self._ears):
            if ear is not beside and (to is None or ear.party is to):
                if encoded is None:
                    encoded = protocol.encode(frame)
                ear.send(encoded)

    def hint(self, frame: protocol.Typing | protocol.Read, *, to: Party) -> None:
        """Pass on what is worth nothing a moment later."""
        encoded = protocol.encode(frame)
        for ear in tuple(self._ears):
            if ear.party is to:
                ear.hint(encoded)

    def close(self, code: int) -> None:
        for ear in tuple(self._ears):
            ear.close(code)

    def send_away(self) -> None:
        """Another node has the session, or had it to its end: everybody is told to come back, and finds out where."""
        self.send(protocol.Reconnect(after_ms=0, reason="moved"))
        self.close(CLOSE_COME_BACK)
