"""Who is online and was last heard of when, read out of the mirror page by page for the sweeps.

A page is small, so neither Valkey nor this node's event loop stands still for it, and the heartbeats of one page travel with the
ids of the next. It must never pass off a part as the whole: a mirror that was emptied meanwhile raises. Read next:
`halo/actors/sweeps.py`.
"""

from halo.store.valkey import Valkey, ValkeyUnavailable  # isort: skip  (trio_asyncio first)

import re
from collections.abc import Mapping
from datetime import datetime
from typing import Final

import structlog

from halo.clock import Moment
from halo.store.mirror_keys import Keys
from halo.store.valkey_wire import Command, Reply
from halo.sweep import MirrorUnavailable

PAGE: Final = 2_000
"""Ids asked for at once: some 6 ms of work for this node, 2 ms for Valkey."""

ID: Final = re.compile(rb"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
"""What else lies in the set is nobody's, and one such member would fail every statement that it is part of."""

log = structlog.get_logger()


class OnlinePages:
    """`async for page in pages`: each maps ids to the moment of the last heartbeat, None where there is none.

    An id may come twice. Error handling: the iteration raises `MirrorUnavailable`.
    """

    def __init__(self, valkey: Valkey, keys: Keys) -> None:
        self.built_at: Moment | None = None
        """Since when this mirror has stood without having been emptied; known after the first page."""
        self._valkey = valkey
        self._keys = keys
        self._cursor: bytes | None = b"0"
        """Where the next page of ids begins; None behind the last."""
        self._ids: list[str] = []
        """Of the page whose heartbeats are still to be read."""
        self._begun = False

    def __aiter__(self) -> "OnlinePages":
        return self

    async def __anext__(self) -> Mapping[str, Moment | None]:
        if not self._begun:
            self._begun = True
            await self._turn()
        if self._cursor is None and not self._ids:
            raise StopAsyncIteration
        return await self._turn()

    async def _turn(self) -> Mapping[str, Moment | None]:
        """The heartbeats of this page, and the ids of the next."""
        ids, keys = self._ids, self._keys
        commands: list[Command] = [("GET", keys.standing_since)]
        if self._cursor is not None:
            commands.append(("SSCAN", keys.online, self._cursor, "COUNT", PAGE))
        if ids:
            commands.append(("MGET", *map(keys.heartbeat, ids)))
        try:
            replies = list(await self._valkey.call(*commands))
        except ValkeyUnavailable as fault:
            raise MirrorUnavailable(str(fault)) from fault
        self._check_standing(replies[0])
        if self._cursor is not None:
            cursor, members = replies[1]
            self._cursor = None if cursor == b"0" else cursor
            self._ids = [member.decode("ascii") for member in members if ID.fullmatch(member)]
        else:
            self._ids = []
        beats = replies[-1] if ids else ()
        return {mitra_id: self._moment(mitra_id, beat) for mitra_id, beat in zip(ids, beats, strict=True)}

    def _check_standing(self, reply: Reply) -> None:
        built_at = None if reply is None else read_moment(reply)
        if built_at is None or (self.built_at is not None and built_at != self.built_at):
            raise MirrorUnavailable("The mirror was not built, or was emptied while it was read.")
        self.built_at = built_at

    def _moment(self, mitra_id: str, beat: bytes | None) -> Moment | None:
        if beat is None:
            return None
        moment = read_moment(beat)
        if moment is None:
            log.warning("mirror_heartbeat_unreadable", mitra_id=mitra_id)
        return moment


def read_moment(text: bytes) -> Moment | None:
    """The inverse of `rfc3339`; None for what we did not write."""
    try:
        return round(datetime.fromisoformat(text.decode("ascii")).timestamp() * 1000)
    except ValueError:
        return None
