"""Builds the mirror anew from Postgres, so that no reader ever sees half of it.

The sets are built under scratch names and renamed into place in one script; heartbeats only move forward, and a
capacity never gives way to an older one. What changed in Postgres while the seed ran is looked up again afterwards.
It must never leave a mark that says "seeded" on a mirror that is not. Read next: `halo/store/mirror.py`, which
decides when.
"""

import uuid
from collections.abc import Callable, Sequence

from halo.availability import newest
from halo.clock import Clock, Moment, rfc3339
from halo.store.mirror_keys import PUBLISH_SEED, SEED_MITRAS, Keys
from halo.store.mirror_twin import NO_MITRA, MirrorTwin, MitraRow
from halo.store.valkey import Valkey
from halo.store.valkey_link import Command

SCRATCH_SECONDS = 60
"""How long the scratch sets of a seed that died lie about. A seed of 100,000 mitras takes a few seconds."""
CHUNK = 250
"""Mitras per script: about half a millisecond during which Valkey serves nobody else."""


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

    async def run(self) -> int:
        """Build all of it; the number of mitras. Afterwards the mirror equals what Postgres says.

        Raises:
            ValkeyUnavailable, StoreUnavailable: the mirror is as it was, but for heartbeats and capacities, which are
            right.
        """
        seen: dict[str, tuple[bool, bool]] = {}
        online_count = deactivated_count = 0
        after = NO_MITRA
        while rows := await self._twin.list_mitras_after(after):
            after = rows[-1].mitra_id
            online = [row.mitra_id for row in rows if row.online and row.active]
            deactivated = [row.mitra_id for row in rows if not row.active]
            online_count += len(online)
            deactivated_count += len(deactivated)
            seen.update((row.mitra_id, (row.active, row.online)) for row in rows)
            await self._write(rows)
            await self._add(self._online, online)
            await self._add(self._deactivated, deactivated)
        keys = self._keys
        names = (keys.seeded, self._online, keys.online, self._deactivated, keys.deactivated)
        now = rfc3339(self._clock.now())
        await self._valkey.call(("EVAL", PUBLISH_SEED, len(names), *names, now, online_count, deactivated_count))
        await self._catch_up(seen)
        return len(seen)

    async def _catch_up(self, seen: dict[str, tuple[bool, bool]]) -> None:
        """Who went online or offline while the sets were built was written to sets that are gone now."""
        after = NO_MITRA
        while rows := await self._twin.list_mitras_after(after):
            after = rows[-1].mitra_id
            changed = [row for row in rows if seen.get(row.mitra_id) != (row.active, row.online)]
            await self._write(changed)
            commands: list[Command] = []
            for row in changed:
                commands.append(("SREM" if row.active else "SADD", self._keys.deactivated, row.mitra_id))
                commands.append(("SADD" if row.online and row.active else "SREM", self._keys.online, row.mitra_id))
            if commands:
                await self._valkey.call(*commands)

    async def _write(self, rows: Sequence[MitraRow]) -> None:
        """Heartbeats and capacities, straight into place: each is guarded by itself."""
        keys = self._keys
        for start in range(0, len(rows), CHUNK):
            names: list[str] = []
            values: list[str | int] = []
            for row in rows[start : start + CHUNK]:
                mitra_id = row.mitra_id
                names += (keys.heartbeat(mitra_id), keys.capacity(mitra_id), keys.capacity_version(mitra_id))
                values += (self._beat(row), row.capacity, row.capacity_version)
            await self._valkey.call(("EVAL", SEED_MITRAS, len(names), *names, *values))

    def _beat(self, row: MitraRow) -> str:
        if not (row.online and row.active):
            return "-"
        at = newest(row.heartbeat_at, self._heard(row.mitra_id))
        return "" if at is None else rfc3339(at)

    async def _add(self, scratch: str, mitra_ids: Sequence[str]) -> None:
        if mitra_ids:
            await self._valkey.call(("SADD", scratch, *mitra_ids), ("EXPIRE", scratch, SCRATCH_SECONDS))
