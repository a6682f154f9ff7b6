"""What leaves for Valkey together: plain commands as they came, and the items of each variadic question as one command.

A batch is filled by callers, composed and answered by the task that owns the wire, and read by the callers again. It
does no I/O and must never lose a place: every caller finds its own reply at the place it was given. Read next:
`halo/store/valkey.py`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any, Generic, TypeVar

import structlog
import trio
from redis.exceptions import ResponseError

from halo.store.valkey_wire import Command, Reply

Item = TypeVar("Item")
Answer = TypeVar("Answer")

log = structlog.get_logger()

VARIADIC_ITEMS = 1_000
"""Lua's `unpack` takes about 8,000 values, and a script stops Valkey while it runs: a thousand pings are about a
millisecond."""


class Unanswered(Enum):
    """What a listener gets when Valkey did not answer, or refused: not the same as its own nil, which is an answer."""

    UNANSWERED = auto()


@dataclass(frozen=True, eq=False)
class Variadic(Generic[Item, Answer]):
    """A question that many callers ask together: one command for all their items.

    Both functions run in the owning task: they must not fail, whatever the server replied.
    """

    compose: Callable[[Sequence[Item]], Command]
    split: Callable[[Reply, Sequence[Item]], Sequence[Answer]]


class Batch:
    """Once `done` is set, `failure` says why there is nothing, or `replies` and `answers` hold what came back, in
    place."""

    __slots__ = (
        "_asks", "_commands", "_listeners", "_plan", "answers", "done", "failure", "replies", "size", "unanswered",
    )  # fmt: skip

    def __init__(self) -> None:
        self.size = 0
        """Commands and items."""
        self.done = trio.Event()
        self.failure: str | None = None
        self.replies: Sequence[Reply] = ()
        self.answers: dict[Variadic[Any, Any], list[Any]] = {}
        """For each question an answer per item; a `ResponseError` where the server refused."""
        self.unanswered = 0
        """How many listeners had to be told `UNANSWERED`."""
        self._asks: dict[Variadic[Any, Any], list[Any]] = {}
        self._commands: list[Command] = []
        self._listeners: list[tuple[Variadic[Any, Any], int, Callable[[Any], None]]] = []
        self._plan: list[tuple[Variadic[Any, Any], list[Any]]] = []

    def add_item(self, question: Variadic[Item, Any], item: Item) -> int:
        """Its place in `answers[question]`."""
        items = self._asks.setdefault(question, [])
        items.append(item)
        self.size += 1
        return len(items) - 1

    def add_listener(
        self, question: Variadic[Item, Answer], place: int, settled: Callable[[Answer | Unanswered], None]
    ) -> None:
        """Call `settled` once, with the answer at `place` or `UNANSWERED`; it must be quick."""
        self._listeners.append((question, place, settled))

    def add_commands(self, commands: Sequence[Command]) -> int:
        """The place of the first in `replies`."""
        place = len(self._commands)
        self._commands.extend(commands)
        self.size += len(commands)
        return place

    def compose(self) -> list[Command]:
        """All of it as one pipeline; nothing may be added afterwards."""
        for question, items in self._asks.items():
            self._plan += [(question, items[at : at + VARIADIC_ITEMS]) for at in range(0, len(items), VARIADIC_ITEMS)]
        return [*self._commands, *(question.compose(part) for question, part in self._plan)]

    def fill(self, replies: Sequence[Reply]) -> None:
        """Hand everybody what came back."""
        count = len(self._commands)
        self.replies = replies[:count]
        for (question, part), reply in zip(self._plan, replies[count:], strict=True):
            refused = isinstance(reply, ResponseError)
            self.answers.setdefault(question, []).extend(
                [reply] * len(part) if refused else question.split(reply, part)
            )
        self._tell()

    def fail(self, failure: str) -> None:
        """Tell everybody that nothing came back; what was sent may have landed."""
        self.failure = failure
        self._tell()

    def _tell(self) -> None:
        """A supervisor of the listeners: the fault of one is logged, and ends neither the owner of the wire nor the others' answers."""
        self.done.set()
        listeners, self._listeners = self._listeners, []
        for question, place, settled in listeners:
            answer = Unanswered.UNANSWERED if self.failure is not None else self.answers[question][place]
            if isinstance(answer, Unanswered | ResponseError):
                answer = Unanswered.UNANSWERED
                self.unanswered += 1
            try:
                settled(answer)
            except Exception as fault:  # noqa: BLE001
                log.error("valkey_listener_failed", fault=type(fault).__name__)  # noqa: TRY400  its words may quote what was sent
