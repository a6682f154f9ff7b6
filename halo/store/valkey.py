"""Valkey behind one room: batched, quick to give up, and honest about having been away.

One task owns the connection. Callers hand over commands or items; all that gather while one round trip is under way
leave together in the next. A call never lasts longer than `CALL_SECONDS`. After `FAILURES_TO_OPEN` failures in a row
the breaker opens: calls fail at once, and one probe at a time asks for the server. It must never retry a command, and
never reconnect without saying so: every new connection raises `generation` and calls `on_ready`, since a server that
comes back may have come back empty. Read next: `halo/store/valkey_link.py` (the wire), `halo/store/valkey_batch.py`
(what leaves together), `halo/store/mirror.py` (the only one who speaks to this room).

    closed ──3 failures in a row──▶ open ──a probe answers──▶ closed, generation + 1
"""

from halo.store.valkey_link import LINK_FAULTS, Link, choose_link  # isort: skip  (trio_asyncio first)

from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from time import perf_counter
from typing import Literal, NoReturn, TypeVar, cast

import structlog
import trio
import trio_asyncio
from redis.exceptions import ResponseError

from halo.histogram import Histogram
from halo.store.valkey_batch import Batch, Unanswered, Variadic
from halo.store.valkey_wire import Command, Reply

Item = TypeVar("Item")
Answer = TypeVar("Answer")

CALL_SECONDS = 0.2
"""What a caller waits at most. 50 ms less than the 250 ms of the specification: those are left for the Postgres twin
to answer."""
ROUND_TRIP_SECONDS = 0.15
"""Connecting included. Hundreds of times a healthy round trip, and short enough that a call survives one that has
just hung."""
PATIENCE_SECONDS = 0.02
"""How long what nobody waits for (heartbeats) gathers before that, unless something leaves anyway: 100,000 mitras then share 50 round trips a
second instead of 400."""
LINGER_SECONDS = 0.002
"""A round trip costs 150 µs of CPU whatever it carries; two milliseconds let a burst gather, and cap the cost at some
6 % of a core."""
FAILURES_TO_OPEN = 3
"""One lost connection is a hiccup; three in a row are an outage. A hung server is found out within 0.45 s."""
PROBE_SECONDS = 0.5
"""Between probes: a server that is back is noticed within 0.65 s, well inside the two seconds of the specification."""
LOOK_SECONDS = 1.0
"""How often the server's identity is asked: finds a death while nobody calls, and a failover behind a proxy that
keeps the connection."""
BATCH_ITEMS = 2_000
"""About 10 ms of work for both sides. A larger batch would risk `ROUND_TRIP_SECONDS` and stall the other tasks of
this node."""

log = structlog.get_logger()


class ValkeyUnavailable(Exception):
    """Valkey did not answer in time, refused, or is known to be away; whether a write has landed is unknown."""


class Valkey:
    """See the module. Made by `open_valkey` only."""

    def __init__(self, url: str, prefix: str) -> None:
        self.prefix = prefix
        self.generation = 0
        """How many times a server was met anew. What was known of the server's contents ends with its generation."""
        self.breaker: Literal["closed", "open"] = "closed"
        self.on_ready: list[Callable[[], None]] = []
        """Called, in the owning task, after each new generation; must be quick and must not fail (set an event)."""
        self.calls = self.failures = self.round_trips = self.round_trips_failed = self.breaker_opened = 0
        self.round_trip_seconds = Histogram()
        """Also those that failed: a server that hangs is seen at the bound of the wait."""
        self._make_link = choose_link(url, prefix)
        self._link: Link | None = None
        self._run_id: bytes | None = None
        self._failures_in_a_row = 0
        self._look_at = 0.0
        self._queue: deque[Batch] = deque()
        self._work = trio.Event()
        self._hurry = trio.Event()
        """Somebody waits for what is in the batch that gathers."""
        self._up = trio.Event()

    async def ask(self, question: Variadic[Item, Answer], item: Item) -> Answer:
        """Ask together with whoever else asks this now. At most `CALL_SECONDS`; cancelling it harms nobody else.

        Raises:
            ValkeyUnavailable
        """
        batch = self._open_batch(1)
        self._hurry.set()
        place = batch.add_item(question, item)
        await self._settle(batch)
        return cast("Answer", self._checked(batch.answers[question][place]))

    def hand_in(
        self, question: Variadic[Item, Answer], item: Item, settled: Callable[[Answer | Unanswered], None]
    ) -> bool:
        """Ask as `ask` does, but wait for nothing: `settled` is called exactly once, later, in the owning task.

        False, and nothing was asked: Valkey is known to be away.
        """
        try:
            batch = self._open_batch(1)
        except ValkeyUnavailable:
            return False
        batch.add_listener(question, batch.add_item(question, item), settled)
        return True

    async def call(self, *commands: Command) -> Sequence[Reply]:
        """Send idempotent commands in one pipeline, in order, and return their replies. At most `CALL_SECONDS`.

        A caller that is cancelled or gives up may have been heard all the same.

        Raises:
            ValkeyUnavailable: also when the server refuses one of the commands; the others may have been carried out.
        """
        batch = self._open_batch(len(commands))
        self._hurry.set()
        place = batch.add_commands(commands)
        await self._settle(batch)
        return [self._checked(reply) for reply in batch.replies[place : place + len(commands)]]

    @property
    def up(self) -> bool:
        """Did the last round trip succeed? Ends with the first failure, before the breaker opens."""
        return self._up.is_set()

    async def wait_up(self) -> None:
        """Return as soon as the server answers; at once while it does."""
        await self._up.wait()

    def _open_batch(self, size: int) -> Batch:
        self.calls += 1
        if self.breaker == "open":
            self.failures += 1
            raise ValkeyUnavailable("Valkey is away")
        if not self._queue or self._queue[-1].size + size > BATCH_ITEMS:
            self._queue.append(Batch())
            self._work.set()
        return self._queue[-1]

    def _checked(self, reply: Reply) -> Reply:
        if isinstance(reply, ResponseError):
            self.failures += 1
            raise ValkeyUnavailable(str(reply))
        return reply

    async def _settle(self, batch: Batch) -> None:
        with trio.move_on_after(CALL_SECONDS):
            await batch.done.wait()
        if not batch.done.is_set():
            self.failures += 1
            raise ValkeyUnavailable(f"no answer from Valkey within {CALL_SECONDS} s")
        if batch.failure is not None:
            self.failures += 1
            raise ValkeyUnavailable(batch.failure)

    async def _serve(self, *, task_status: trio.TaskStatus[None]) -> NoReturn:
        # The loop lives in this task alone: `open_loop` sets a context variable that would make every caller look
        # like asyncio.
        async with trio_asyncio.open_loop():
            try:
                await self._round_trip(())
                task_status.started()
                while True:
                    await self._turn()
            finally:
                self.breaker = "open"  # nobody serves from here on
                self._fail_queued("Valkey is being closed")
                await self._hang_up()

    async def _turn(self) -> None:
        if self.breaker == "open":
            await trio.sleep(PROBE_SECONDS)
            await self._round_trip(())
            return
        with trio.move_on_at(self._look_at):
            await self._work.wait()
        if trio.current_time() >= self._look_at:
            await self._round_trip(())
        if self._queue:
            if len(self._queue) == 1:
                with trio.move_on_after(PATIENCE_SECONDS):
                    await self._hurry.wait()
                await trio.sleep(LINGER_SECONDS)
            batch = self._queue.popleft()
            if not self._queue:
                self._work, self._hurry = trio.Event(), trio.Event()
            await self._carry(batch)

    async def _carry(self, batch: Batch) -> None:
        replies: list[Reply] | str = "Valkey is being closed"
        try:
            replies = await self._round_trip(batch.compose())
        finally:  # also when cancelled: who handed something in is told exactly once
            if isinstance(replies, str):
                batch.fail(replies)
            else:
                batch.fill(replies)
            self.failures += batch.unanswered

    async def _round_trip(self, commands: Sequence[Command]) -> list[Reply] | str:
        """The replies, or the sentence why there are none. Without commands: the breaker's probe, the watch's look."""
        self.round_trips += 1
        failure = f"no answer from Valkey within {ROUND_TRIP_SECONDS} s"
        replies: list[Reply] | None = None
        began = perf_counter()
        try:
            with trio.move_on_after(ROUND_TRIP_SECONDS):
                if self._link is None or trio.current_time() >= self._look_at:
                    await self._identify()
                replies = await cast("Link", self._link).exchange(commands) if commands else []
        except LINK_FAULTS as fault:
            failure = f"Valkey cannot be reached ({type(fault).__name__})"
        self.round_trip_seconds.observe(perf_counter() - began)
        if replies is None:
            await self._failed(failure)
            return failure
        self._failures_in_a_row = 0
        if self.breaker == "open":
            self.breaker = "closed"
            log.info("valkey_back", generation=self.generation)
        return replies

    async def _identify(self) -> None:
        fresh = self._link is None
        if self._link is None:
            self._link = self._make_link()
            await self._link.connect()
        run_id = await self._link.identify()
        self._look_at = trio.current_time() + LOOK_SECONDS
        if fresh or run_id != self._run_id:
            self._run_id = run_id
            self.generation += 1
            self._up.set()
            for ready in self.on_ready:
                ready()

    async def _failed(self, failure: str) -> None:
        self.round_trips_failed += 1
        self._failures_in_a_row += 1
        self._look_at = 0.0  # at once: a quick restart is over in one more try, an outage opens the breaker after two
        if self._up.is_set():
            self._up = trio.Event()
        await self._hang_up()
        if self._failures_in_a_row >= FAILURES_TO_OPEN and self.breaker == "closed":
            self.breaker = "open"
            self.breaker_opened += 1
            log.warning("valkey_away", failure=failure)
        if self.breaker == "open":
            # Whoever still waits would wait for nothing.
            self._fail_queued(failure)
            self._work = trio.Event()

    def _fail_queued(self, failure: str) -> None:
        while self._queue:
            batch = self._queue.popleft()
            batch.fail(failure)
            self.failures += batch.unanswered

    async def _hang_up(self) -> None:
        link, self._link = self._link, None
        if link is not None:
            try:
                # Shielded, for nobody else would close what is ours no longer; without a deadline, for a link waits for no server.
                with trio.CancelScope(shield=True):
                    await link.close()
            except LINK_FAULTS as fault:
                log.info("valkey_close_failed", fault=type(fault).__name__)


@asynccontextmanager
async def open_valkey(url: str, prefix: str = "") -> AsyncIterator[Valkey]:
    """Open Valkey for the time of the block. A server that is away is no error: it is looked for until it comes.

    The prefix stands before every key; a hash tag such as `{halo}:` keeps them in one slot of a cluster.

    Raises:
        ValkeyUrlRefused
    """
    valkey = Valkey(url, prefix)
    async with trio.open_nursery() as nursery:
        await nursery.start(valkey._serve, name="valkey")  # noqa: SLF001  the owner belongs to this room
        try:
            yield valkey
        finally:
            nursery.cancel_scope.cancel()
