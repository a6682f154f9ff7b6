"""Builds the mirror anew from Postgres, so that no reader ever sees half of it, or less than it held before.

The sets are built under scratch names and renamed into place in one script; heartbeats only move forward, and a
capacity never gives way to an older one. What changed in Postgres while the seed ran is looked up again before the sets
are published; what the nodes wrote to the mirror meanwhile is in a log, which is applied in the step that publishes.
Pages travel packed, as texts that Postgres writes and Valkey reads, and the next one is read while the last one is
written: 100,000 mitras row by row are two seconds of this node. It must never leave a mark that says "seeded" on a
mirror that is not. Read next: `halo/store/mirror.py`, which decides when.
"""

from halo.store.valkey import Valkey, ValkeyUnavailable  # isort: skip  (trio_asyncio first)

import uuid
from collections.abc import Callable, Sequence
from itertools import chain
from typing import Final

import trio

from halo.clock import Clock, Moment, rfc3339
from halo.errors import StoreUnavailable
from halo.store.mirror_keys import Keys
from halo.store.mirror_seed_scripts import COMPARE_SEED, OPEN_LOG, PUBLISH_SEED, SEED_MITRAS
from halo.store.mirror_twin import (
    BEAT_WIDTH,
    ID_WIDTH,
    LAST_MITRA,
    NO_BEAT,
    NO_MITRA,
    MirrorTwin,
    PackedPage,
)
from halo.store.valkey_wire import Command

SCRATCH_SECONDS: Final = 60
"""How long the scratch sets and the log of a seed that died lie about. A seed of 100,000 mitras takes a second."""
CHUNK: Final = 250
"""Mitras per script: about a millisecond during which Valkey serves nobody else."""
PAGES_AHEAD: Final = 1
"""Read while one is written. More would only hold more memory: one of the two sides is always the slower."""

DRIFTS = ("online", "deactivated", "waiting", "heartbeats", "capacities")
"""The fields of the mirror that can be wrong; first the sets, in the order in which a seed publishes them."""

CATCH_UPS: Final = 5
"""Passes over what changed meanwhile. Each is short; what changes for ever is in the log, or in the next reseed."""


class Seed:
    """One run; the next one needs a new seed."""

    def __init__(self, valkey: Valkey, twin: MirrorTwin, clock: Clock, heard: Callable[[str], Moment | None]) -> None:
        self._valkey = valkey
        self._twin = twin
        self._clock = clock
        self._heard = heard
        """The last ping that this node took itself; Postgres learns of it only later."""
        self._keys = Keys(valkey.prefix)
        token = uuid.uuid4().hex
        self._scratch = tuple(self._keys.scratch(name, token) for name in ("online", "deactivated", "waiting"))
        self._log = self._keys.scratch("log", token)
        """What every node changes in the mirror while this seed runs."""
        self._states: dict[str, str] = {}
        """What lies in the sets that are built anew, as Postgres gave it: pages by the id behind which they begin."""
        self._mitras = 0
        self._counts = [0, 0, 0]
        """How many each scratch set must hold."""
        self.drift = dict.fromkeys(DRIFTS, 0)
        """What was found otherwise than Postgres says, by kind; never more than there was, since who changes while the
        seed runs is taken off."""

    async def run(self) -> int:
        """Build all of it; the number of mitras. Afterwards the mirror equals what Postgres says.

        Raises:
            ValkeyUnavailable, StoreUnavailable: the mirror is as it was, but for heartbeats and capacities, which are
            right.
        """
        await self._valkey.call(("EVAL", OPEN_LOG, 2, self._keys.seeding, self._log, SCRATCH_SECONDS))
        try:
            since, _ = await self._twin.list_touched((), None)  # before the first page: what is older, all pages have
            await self._build()
            changed = noted = 0
            for _ in range(CATCH_UPS):  # a pass may be late itself: somebody changed between its look and its write
                noted = await self._count_noted()
                since, found = await self._catch_up(since)
                changed += found
                if not found:
                    break
        except StoreUnavailable:  # nobody needs to note any more; a seed that lost Valkey leaves that to the expiry
            await self._valkey.call(("DEL", self._log), ("SREM", self._keys.seeding, self._log))
            raise
        changed += await self._publish() - noted
        self.drift = {kind: max(0, found - changed) for kind, found in self.drift.items()}
        return self._mitras

    async def _build(self) -> None:
        """The scratch sets, heartbeats and capacities of all; reading and writing at once."""
        ahead, pages = trio.open_memory_channel[PackedPage](PAGES_AHEAD)
        fault: StoreUnavailable | ValkeyUnavailable | None = None

        async def read() -> None:
            nonlocal fault
            async with ahead:
                after = NO_MITRA
                try:
                    while page := await self._twin.find_page_after(after):
                        after = page.last
                        await ahead.send(page)
                except StoreUnavailable as away:
                    fault = away

        async with trio.open_nursery() as nursery:
            nursery.start_soon(read)
            try:
                async for page in pages:
                    await self._write(page)
            except ValkeyUnavailable as away:
                fault = away  # raised outside of the nursery, which would wrap it into a group
                nursery.cancel_scope.cancel()
        if fault is not None:
            raise fault

    async def _write(self, page: PackedPage) -> None:
        self._states[page.after] = page.states
        self._count(page.states, 1)
        lines = page.states.split("\n")
        for beats_wrong, capacities_wrong in await self._valkey.call(*await self._compose(page.beats, lines)):
            self.drift["heartbeats"] += beats_wrong
            self.drift["capacities"] += capacities_wrong

    async def _compose(self, beats: str, lines: Sequence[str]) -> list[Command]:
        """What puts these down; one journey for a page."""
        keys = self._keys
        prefixes = (keys.heartbeat(""), keys.capacity(""), keys.capacity_version(""))
        commands: list[Command] = []
        for start in range(0, len(lines), CHUNK):
            part = lines[start : start + CHUNK]
            packed = self._hear(beats[start * BEAT_WIDTH : (start + CHUNK) * BEAT_WIDTH], part), "\n".join(part)
            commands.append(("EVAL", SEED_MITRAS, 4, *self._scratch, self._log, *prefixes, SCRATCH_SECONDS, *packed))
            await trio.lowlevel.checkpoint()  # a page of pings that Postgres has not heard of is 10 ms of work
        return commands

    def _count(self, states: str, sign: int) -> None:
        """Those of a page come in, or are taken off."""
        with_room, full, shut_out = (states.count(f" {letter} ") for letter in "wfd")
        for place, found in enumerate((with_room + full, shut_out, with_room)):
            self._counts[place] += sign * found
        self._mitras += sign * (states.count("\n") + 1 if states else 0)

    def _hear(self, beats: str, lines: Sequence[str]) -> str:
        """The heartbeats of these lines, with what this node knows better."""
        newer: dict[int, str] = {}
        for place, line in enumerate(lines):
            at = self._heard(line[:ID_WIDTH])
            if at is not None:
                beat, known = rfc3339(at), _beat(beats, place)
                if known != NO_BEAT and beat > known:
                    newer[place] = beat
        if not newer:
            return beats
        return "".join(newer.get(place) or _beat(beats, place) for place in range(len(lines)))

    async def _count_noted(self) -> int:
        """How many changes the log holds by now."""
        (noted,) = await self._valkey.call(("HGET", self._log, "#"))
        return int(noted or 0)  # one that is gone is refused when the sets are published

    async def _publish(self) -> int:
        """How many changes the log held."""
        keys = self._keys
        targets = (keys.online, keys.deactivated, keys.waiting)
        names = (keys.seeded, keys.seeding, self._log, *chain(*zip(self._scratch, targets, strict=True)))
        now = rfc3339(self._clock.now())
        for drift, kind, scratch, target in zip(DRIFTS, "SSZ", self._scratch, targets, strict=False):
            # A journey each: together they would come near to the time that Valkey has for one.
            (self.drift[drift],) = await self._valkey.call(("EVAL", COMPARE_SEED, 2, scratch, target, kind))
        noted, _ = await self._valkey.call(
            ("EVAL", PUBLISH_SEED, len(names), *names, now, keys.capacity_version(""), *self._counts),
            ("SET", keys.standing_since, now, "NX"),
        )
        return int(noted)

    async def _catch_up(self, since: str) -> tuple[str, int]:
        """Who went online or offline, or took a session, while the sets were built, and whose node may have died before it
        told the mirror: how many, and since when the next look is to look."""
        count = 0
        begins = [*(self._states or [NO_MITRA]), LAST_MITRA]
        since, touched = await self._twin.list_touched(begins[:-1], since)
        for number in touched:
            after, upto = begins[number : number + 2]
            page = await self._twin.find_page_between(after, upto)
            known, states = self._states.get(after, ""), "" if page is None else page.states
            if states == known:
                continue
            self._count(known, -1)
            self._count(states, 1)
            self._states[after] = states
            before, lines = frozenset(known.split("\n")), states.split("\n") if states else []
            changed = [place for place, line in enumerate(lines) if line not in before]
            beats = "" if page is None else "".join(_beat(page.beats, place) for place in changed)
            ids = [line[:ID_WIDTH] for line in before.difference(lines) if line]
            await self._correct(ids, beats, [lines[place] for place in changed])
            count += len(changed)
        return since, count

    async def _correct(self, ids: Sequence[str], beats: str, lines: Sequence[str]) -> None:
        """Put down what is true by now of those who stand in the scratch sets with something else."""
        commands: list[Command] = []
        online, deactivated, waiting = self._scratch
        for start in range(0, len(ids), CHUNK):
            part = ids[start : start + CHUNK]
            commands += (("SREM", online, *part), ("SREM", deactivated, *part), ("ZREM", waiting, *part))
        commands += await self._compose(beats, lines)
        if commands:
            await self._valkey.call(*commands)


def _beat(beats: str, place: int) -> str:
    return beats[place * BEAT_WIDTH : (place + 1) * BEAT_WIDTH]
