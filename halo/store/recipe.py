"""What `halo/store/child.py` wants to know of a server that it runs, and how it says that one does not start.

The recipes themselves are in `halo/store/recipes.py`.
"""

import signal
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Final, Protocol

import trio

from halo.store.account import Account

_POLL_SECONDS: Final = 0.01
"""A start takes some hundred milliseconds; neither server tells when it is ready, nor the kernel when an orphan has ended."""


class ServerFailed(Exception):
    """An embedded server did not start; the message is one sentence for the operator."""


class Recipe(Protocol):
    """How one kind of server is run."""

    @property
    def name(self) -> str:
        """The name of its program, as the kernel shows it."""

    @property
    def mark(self) -> str:
        """A word in the command line of each of its processes that no other program has."""

    @property
    def account(self) -> Account: ...

    @property
    def log(self) -> Path: ...

    @property
    def farewell(self) -> Sequence[tuple[signal.Signals, float]]:
        """The signals that end it, from polite to final, with the patience of each in seconds."""

    def command(self) -> list[str]: ...

    def clear(self) -> None:
        """Remove what a dead predecessor left behind. Called only when none lives."""

    async def answers(self) -> bool:
        """Is it ready for clients?"""

    @property
    def start_seconds(self) -> float:
        """The time that it may take to answer."""


async def until(question: Callable[[], Awaitable[bool]]) -> None:
    """Bounded by the caller's deadline."""
    while not await question():  # noqa: ASYNC110  # what is asked for happens in other processes, which set no event of ours
        await trio.sleep(_POLL_SECONDS)
