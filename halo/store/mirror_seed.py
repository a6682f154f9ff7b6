"""Builds the mirror anew from Postgres, so that no reader ever sees half of it.

The sets are built under scratch names and renamed into place in one script; heartbeats only move forward, and a
capacity never gives way to an older one. What changed in Postgres while the seed ran is looked up again afterwards.
It must never leave a mark that says "seeded" on a mirror that is not. Read next: `halo/store/mirror.py`, which
decides when.
"""

import uuid
from collections.abc import Callable, Sequence
from typing import Final, TypeAlias

from halo.availability import newest
from halo.clock import Clock, Moment, rfc3339
from halo.store.mirror_keys import COMPARE_SEED, PUBLISH_SEED, SEED_MITRAS, SET_CAPACITY, Keys
from halo.store.mirror_twin import NO_MITRA, MirrorTwin, MitraRow
from halo.store.valkey import Valkey
from halo.store.valkey_link import Command

SCRATCH_SECONDS = 60
"""How long the scratch sets of a seed that died lie about. A seed of 100,000 mitras takes a few seconds."""
CHUNK = 250
"""Mitras per script: about half a millisecond during which Valkey serves nobody else."""

DRIFTS = ("online", "deactivated", "waiting", "heartbeats", "capacities")
"""The fields of the mirror that can be wrong; first the sets, in the order in which a seed publishes them."""

_Seen: TypeAlias = int
"""What of a mitra lies in the sets that a seed builds anew, as a number: 100,000 tuples would call the collector."""

CATCH_UPS: Final = 5
"""Passes over what changed meanwhile. Each is short, and what changes for ever the next reseed has."""


class Seed:
    """One run. `run` twice is allowed but pointless."""

    def __init__(self, valkey: Valkey, twin: MirrorTwin, clock: Clock, heard: Callable[[str], Moment | None]) -> None:
        self._valkey = valkey
        self._twin = twin
        self._clock = clock
        self._heard = heard
        """The last ping that this node took itself; Postgres learns of it only later."""
        self._keys = Keys(valkey.prefix)
        token = uuid.uuid4().hex
        self._online = self._keys.scratch("online", token)
        self._deactivated = self._keys.scratch("deactivated", token)
        self._waiting = self._keys.scratch("waiting", token)
        self.drift = dict.fromkeys(DRIFTS, 0)
        """What was found otherwise than Postgres says, by kind; never more than there was, since who changes while the
        seed runs is taken off."""

    async def run(self) -> int:
        """Build all of it; the number of mitras. Afterwards the mirror equals what Postgres says.

        Raises:
            ValkeyUnavailable, StoreUnavailable: the mirror is as it was, but for heartbeats and capacities, which are
            right.
        """
        seen: dict[str, _Seen] = {}
        online_count = deactivated_count = waiting_count = 0
        after = NO_MITRA
        while rows := await self._twin.list_mitras_after(after):
            after = rows[-1].mitra_id
            online = [row.mitra_id for row in rows if row.online and row.active]
            deactivated = [row.mitra_id for row in rows if not row.active]
            online_count += len(online)
            deactivated_count += len(deactivated)
            waiting = [row for row in rows if row.online and row.active and row.has_room]
            waiting_count += len(waiting)
            seen.update((row.mitra_id, _see(row)) for row in rows)
            written = self._compose(rows)
            adds = (*_add(self._online, online), *_add(self._deactivated, deactivated), *self._add_waiting(waiting))
            replies = await self._valkey.call(*written, *adds)  # one journey for a page
            for beats, capacities in replies[: len(written)]:
                self.drift["heartbeats"] += beats
                self.drift["capacities"] += capacities
        keys = self._keys
        pairs = (self._online, keys.online, self._deactivated, keys.deactivated, self._waiting, keys.waiting)
        now = rfc3339(self._clock.now())
        counts = (online_count, deactivated_count, waiting_count)
        (wrong,) = await self._valkey.call(("EVAL", COMPARE_SEED, len(pairs), *pairs))
        self.drift.update(zip(DRIFTS, wrong, strict=False))
        await self._valkey.call(
            ("EVAL", PUBLISH_SEED, 1 + len(pairs), keys.seeded, *pairs, now, *counts),
            ("SET", keys.standing_since, now, "NX"),
        )
        changed = 0
        for _ in range(CATCH_UPS):  # a catch-up may itself be late: somebody came online between its look and its write
            found = await self._catch_up(seen)
            changed += found
            if not found:
                break
        self.drift = {kind: max(0, found - changed) for kind, found in self.drift.items()}
        return len(seen)

    async def _catch_up(self, seen: dict[str, _Seen]) -> int:
        """Who went online or offline, or took a session, while the sets were built was written to sets that are gone:
        how many."""
        after, count = NO_MITRA, 0
        while rows := await self._twin.list_mitras_after(after):
            after = rows[-1].mitra_id
            changed = [row for row in rows if seen.get(row.mitra_id) != _see(row)]
            count += len(changed)
            commands = self._compose(changed)
            for row in changed:
                commands.append(("SREM" if row.active else "SADD", self._keys.deactivated, row.mitra_id))
                commands.append(("SADD" if row.online and row.active else "SREM", self._keys.online, row.mitra_id))
                commands.append(compose_capacity(self._keys, row))
            if commands:
                await self._valkey.call(*commands)
            seen.update({row.mitra_id: _see(row) for row in changed})
        return count

    def _compose(self, rows: Sequence[MitraRow]) -> list[Command]:
        """Heartbeats and capacities, straight into place: each is guarded by itself."""
        keys = self._keys
        commands: list[Command] = []
        for start in range(0, len(rows), CHUNK):
            names: list[str] = []
            values: list[str | int] = []
            for row in rows[start : start + CHUNK]:
                mitra_id = row.mitra_id
                names += (keys.heartbeat(mitra_id), keys.capacity(mitra_id), keys.capacity_version(mitra_id))
                values += (self._beat(row), row.capacity, row.capacity_version)
            commands.append(("EVAL", SEED_MITRAS, len(names), *names, *values))
        return commands

    def _beat(self, row: MitraRow) -> str:
        if not (row.online and row.active):
            return "-"
        at = newest(row.heartbeat_at, self._heard(row.mitra_id))
        return "" if at is None else rfc3339(at)

    def _add_waiting(self, rows: Sequence[MitraRow]) -> tuple[Command, ...]:
        if not rows:
            return ()
        scored = [part for row in rows for part in (row.idle_since, row.mitra_id)]
        return ("ZADD", self._waiting, *scored), ("EXPIRE", self._waiting, SCRATCH_SECONDS)


def _add(scratch: str, mitra_ids: Sequence[str]) -> tuple[Command, ...]:
    return (("SADD", scratch, *mitra_ids), ("EXPIRE", scratch, SCRATCH_SECONDS)) if mitra_ids else ()


def compose_capacity(keys: Keys, row: MitraRow) -> Command:
    """What puts down the number of living sessions, and the mitra among those who wait for one, or takes her out."""
    names = (keys.capacity(row.mitra_id), keys.capacity_version(row.mitra_id), keys.online, keys.waiting)
    idle_since = row.idle_since if row.has_room else ""
    return ("EVAL", SET_CAPACITY, len(names), *names, row.capacity, row.capacity_version, row.mitra_id, idle_since)


def _see(row: MitraRow) -> _Seen:
    return hash((row.active, row.online, row.has_room, row.capacity_version, row.idle_since))
