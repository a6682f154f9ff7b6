"""A mitra's comings and goings: Postgres first, then the mirror, best effort (S09–S11).

The lobby comes through here; HTTP has its own door, `halo/net/api_mitra.py`. A socket that closes in the middle must not leave
the two apart: a commit under way is waited for, and from there to the end of the mirror's write, which nobody can cancel, no line waits
for anything. Read next: `halo/store/mirror.py`.
"""

from typing import Protocol

from halo.clock import Clock, Moment


class PresenceRow(Protocol):
    @property
    def is_online(self) -> bool: ...


class PresenceRows(Protocol):
    async def go_online(self, mitra_id: str, at: Moment) -> PresenceRow: ...

    async def go_offline(self, mitra_id: str, at: Moment) -> PresenceRow: ...

    async def load_status(self, mitra_id: str) -> PresenceRow: ...


class PresenceMirror(Protocol):
    async def went_online(self, mitra_id: str, at: Moment) -> None: ...

    async def went_offline(self, mitra_id: str) -> None: ...


class Presence:
    """See the module. Raises `Refusal`s of the store."""

    def __init__(self, rows: PresenceRows, mirror: PresenceMirror, clock: Clock) -> None:
        self._rows = rows
        self._mirror = mirror
        self._clock = clock

    async def go_online(self, mitra_id: str) -> None:
        at = self._clock.now()
        await self._rows.go_online(mitra_id, at)
        await self._mirror.went_online(mitra_id, at)

    async def go_offline(self, mitra_id: str) -> None:
        await self._rows.go_offline(mitra_id, self._clock.now())
        await self._mirror.went_offline(mitra_id)

    async def is_online(self, mitra_id: str) -> bool:
        return (await self._rows.load_status(mitra_id)).is_online
