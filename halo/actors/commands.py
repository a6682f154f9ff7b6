"""What may be handed to a session's actor, and how its answer comes back.

An asker is told exactly once, `resolved` or `refused`, and after the commit only. Sockets answer with frames, HTTP waits for a
`Answer`; the actor cannot tell them apart. Read next: `halo/actors/session.py`.
"""

from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeAlias, TypeVar

import trio

from halo.clock import Moment
from halo.errors import Refusal
from halo.events import EndedBy
from halo.extension import Asked
from halo.session import Extension, FailureCause, Party, Session
from halo.trace import Trace, current_trace

T = TypeVar("T")
T_contra = TypeVar("T_contra", contravariant=True)


class Asker(Protocol[T_contra]):
    """Whoever waits for an answer."""

    def resolved(self, value: T_contra) -> None: ...

    def refused(self, refusal: Refusal) -> None: ...


class Answer(Generic[T]):
    """An asker that a task can wait for."""

    def __init__(self) -> None:
        self._told = trio.Event()
        self._value: T | None = None
        self._refusal: Refusal | None = None

    def resolved(self, value: T) -> None:
        self._value = value
        self._told.set()

    def refused(self, refusal: Refusal) -> None:
        self._refusal = refusal
        self._told.set()

    async def wait(self) -> T:
        """The value.

        Raises:
            Refusal: what the actor said instead.
        """
        await self._told.wait()
        if self._refusal is not None:
            raise self._refusal
        assert self._value is not None  # resolved with a value, or refused
        return self._value


class Ear(Protocol):
    """A socket on a chat: `send` never waits, and what it cannot take closes it; a `hint` may be dropped."""

    party: Party

    @property
    def user_id(self) -> str: ...

    def send(self, frame: bytes) -> None: ...

    def hint(self, frame: bytes) -> None: ...

    def close(self, code: int) -> None: ...


class Speaker(Ear, Protocol):
    """An ear that also says things and is told what became of each."""

    def stored(self, client_id: str, seq: int, at: Moment) -> None: ...

    def not_stored(self, client_id: str, refusal: Refusal) -> None: ...


@dataclass(slots=True, eq=False)
class Said:
    """A message that waits for its `seq`; its speaker is told once, also when the actor crashes behind the first answer."""

    speaker: Speaker
    id: str
    body: str
    heard_at: float = 0.0
    """By the clock of `time.perf_counter`, in seconds: when its frame had been decoded."""
    is_answered: bool = False

    def stored(self, seq: int, at: Moment) -> None:
        if not self.is_answered:
            self.is_answered = True
            self.speaker.stored(self.id, seq, at)

    def not_stored(self, refusal: Refusal) -> None:
        if not self.is_answered:
            self.is_answered = True
            self.speaker.not_stored(self.id, refusal)


@dataclass(frozen=True, slots=True, kw_only=True)
class Asking:
    """What every command carries beside its wish: the trace of whoever asks, taken in the task that asks."""

    trace: Trace | None = field(default_factory=current_trace)


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestExtension(Asking):
    asker: Asker[Extension]
    asked: Asked
    extension_id: str | None = None
    """The id that the request is to have, where the asker can derive one: the same question asked again has the same answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerExtension(Asking):
    asker: Asker[Extension]
    mitra_id: str
    extension_id: str
    accepted: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class CancelExtension(Asking):
    asker: Asker[Extension]
    customer_id: str
    extension_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """A session as it stands, with the last `seq` of its messages."""

    session: Session
    last_seq: int


@dataclass(frozen=True, slots=True, kw_only=True)
class End(Asking):
    asker: Asker[View]
    by: EndedBy
    user_id: str | None
    """The participant who asks, or the mitra who was deactivated; None when an operator does."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Transfer(Asking):
    """An operator wants another mitra for the session."""

    asker: Asker[View]


@dataclass(frozen=True, slots=True, kw_only=True)
class AssignMitra(Asking):
    """Another mitra has said yes to an offer of the session's search."""

    asker: Asker[View]
    mitra_id: str
    pairing_id: str
    offer_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SettlePayment:
    """The payment of a session on hold may have been confirmed or failed: look."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MitraSilent:
    """The mitra was neither reachable nor connected at any look since `since`. Who saw it says it again while it is so."""

    since: Moment


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchOver:
    """The session's search for another mitra has come to nothing. Who saw it says it again while the session waits."""

    pairing_id: str
    cause: FailureCause


@dataclass(frozen=True, slots=True, kw_only=True)
class Due:
    """The alarm rang: a deadline, a timer, or something that is owed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stop:
    """Finish what came before this, then return."""


Command: TypeAlias = RequestExtension | AnswerExtension | CancelExtension | End | Transfer | AssignMitra
Sighting: TypeAlias = MitraSilent | SearchOver
"""What is told again and again while it is so: one that is lost, or refused for want of room, costs the next look."""
Item: TypeAlias = Said | Command | SettlePayment | Sighting | Due | Stop
