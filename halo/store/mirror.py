"""Who is there, mirrored in Valkey: written after Postgres has committed, asked first, thrown away at the first doubt.

Postgres is the truth. The mirror is believed only while it is *trusted*: seeded in Valkey's present generation, with
no write of this node lost since. Otherwise the twin answers from Postgres: slower, never wrong. A write is carried to its
end whoever waits for it goes away: it is short, and one person's socket must not cost a node its mirror. It must never
send Postgres a statement while the mirror is trusted, and never let an error of Valkey reach a caller. Read next:
`halo/store/mirror_keys.py` and `halo/store/mirror_changes.py` (what lies in Valkey), `halo/store/mirror_twin.py`
(Postgres), `halo/store/mirror_seed.py` (the building), `halo/availability.py` (the judging).
"""

from halo.store.valkey import Valkey, ValkeyUnavailable  # isort: skip  (trio_asyncio first)

from collections.abc import Callable, Mapping, Sequence
from typing import NoReturn, TypeVar

import structlog
import trio

from halo.availability import Beaten, Presence, Verdict, check_heartbeat, judge, newest
from halo.clock import Clock, Moment, rfc3339
from halo.errors import Refusal, StoreUnavailable
from halo.store.mirror_changes import (
    LEAVE_UNLESS_HEARD,
    compose_activated,
    compose_capacity,
    compose_deactivated,
    compose_offline,
    compose_online,
)
from halo.store.mirror_keys import HEARTBEATS, NOT_ACTIVE, NOT_ONLINE, PRESENCES, TAKEN, Keys
from halo.store.mirror_pages import OnlinePages, read_moment
from halo.store.mirror_seed import Seed
from halo.store.mirror_twin import MirrorTwin, MitraRow, Rows
from halo.store.valkey_batch import Unanswered, Variadic
from halo.store.valkey_wire import Command, Reply
from halo.sweep import MirrorUnavailable

SEED_PAUSE_SECONDS = 0.5
"""Between two seeds at least, so that a Valkey that fails every other write does not keep Postgres reading all
mitras."""

REFRESH_SECONDS = 1.0
"""What reading a capacity may hold up somebody who went online, or is gone already. Then the daemon of capacities does
it: until it has, she is online and not yet in the line."""

log = structlog.get_logger()

Item = TypeVar("Item")
Answer = TypeVar("Answer")


class Mirror:
    """See the module. `serve` must run beside it, or every question goes to Postgres for ever."""

    def __init__(self, valkey: Valkey, postgres: Rows, clock: Clock, stale_after_ms: int) -> None:
        self.twin = MirrorTwin(postgres)
        self.writes_lost = self.fallbacks = self.seeds = self.seeds_failed = 0
        self.drift: Mapping[str, int] = {}
        """What the last seed found otherwise than Postgres says, by kind."""
        self.on_unrefreshed: list[Callable[[str], None]] = []
        """Called with each mitra who went online and whose capacity Postgres did not tell in time: her capacity must be read when it is back."""
        self._valkey = valkey
        self._clock = clock
        self._stale_after_ms = stale_after_ms
        self._keys = Keys(valkey.prefix)
        self._pings: dict[str, Moment] = {}
        """The last ping of each mitra that this node took since the last mirror cycle; Postgres does not know it yet."""
        self._heartbeats = Variadic[tuple[str, str], int | None](self._compose_heartbeats, _split_verdicts)
        self._presences = Variadic[str, tuple[int, int, bytes | None] | None](self._compose_presences, _split_presences)
        self._seeded: int | None = None
        """The generation of Valkey that was seeded."""
        self._stands_since: Moment = 0
        self._doubt = trio.Event()
        self._seeding = trio.Lock()
        self._doubts = 0
        self._doubt.set()
        valkey.on_ready.append(self._distrust)

    @property
    def keys(self) -> Keys:
        """Under which the mirror lies in Valkey."""
        return self._keys

    @property
    def valkey(self) -> Valkey:
        """What answers, for those who count its answers."""
        return self._valkey

    @property
    def trusted(self) -> bool:
        """May Valkey's answers be believed?"""
        return self._trusted_generation() is not None

    async def went_online(self, mitra_id: str, at: Moment) -> None:
        """After Postgres has committed it. An error is logged, counted and forgotten: the next seed heals it."""
        await self.went_online_all({mitra_id: at})

    async def went_online_all(self, heard: Mapping[str, Moment]) -> None:
        """The same for some hundred mitras at most, each with the moment when she was heard of."""
        for mitra_id, at in heard.items():
            self._heard(mitra_id, at)
        commands = [compose_online(self._keys, mitra_id, rfc3339(at)) for mitra_id, at in heard.items()]
        with trio.CancelScope(shield=True):  # both parts are bounded; half way she would be online and never offered
            if await self._write("went_online", *commands):
                # Only now: a capacity that was written before she stood among those online has not put her among the waiting.
                with trio.move_on_after(REFRESH_SECONDS) as patience:
                    try:
                        await self.refresh_capacities(list(heard))
                    except StoreUnavailable:
                        patience.cancel()
                if patience.cancel_called:
                    for tell in self.on_unrefreshed:
                        for mitra_id in heard:
                            tell(mitra_id)

    async def went_offline(self, mitra_id: str) -> None:
        """After Postgres has committed it. Errors as in `went_online`."""
        self._pings.pop(mitra_id, None)
        await self._write("went_offline", compose_offline(self._keys, mitra_id))

    async def deactivated(self, mitra_id: str) -> None:
        """After Postgres has committed it. Errors as in `went_online`."""
        self._pings.pop(mitra_id, None)
        await self._write("deactivated", compose_deactivated(self._keys, mitra_id))

    async def activated(self, mitra_id: str) -> None:
        """After Postgres has committed it; the mitra still has to go online. Errors as in `went_online`."""
        await self._write("activated", compose_activated(self._keys, mitra_id))

    async def refresh_capacities(self, mitra_ids: Sequence[str]) -> None:
        """Their living sessions, and whether they have room, from one snapshot of Postgres, to Valkey as in `went_online`.

        Raises:
            StoreUnavailable: the mirror is as true as it was; somebody must try again.
        """
        rows = await self.twin.list_mitras_named(mitra_ids)
        if rows:
            await self.set_capacities(rows)

    async def set_capacities(self, rows: Sequence[MitraRow]) -> None:
        """The numbers of living sessions, of some hundred mitras at most; an older version changes nothing."""
        await self._write("set_capacities", *map(self._compose_capacity, rows))

    async def heartbeat(self, mitra_id: str, at: Moment) -> None:
        """Take a ping. Those that arrive within a few milliseconds share one round trip.

        Raises:
            MitraDeactivated, MitraOffline: the ping was not taken
            StoreUnavailable: neither Valkey nor Postgres answers
        """
        verdict = await self._ask(self._heartbeats, (mitra_id, rfc3339(at)))
        if verdict is None:
            presence = await self._fall_back(mitra_id)
            verdict = NOT_ACTIVE if not presence.active else TAKEN if presence.online else NOT_ONLINE
        refusal = self._decided(mitra_id, at, verdict)
        if refusal is not None:
            raise refusal

    def hand_in(self, mitra_id: str, at: Moment, settled: Callable[[Beaten], None]) -> bool:
        """Take a ping without anybody waiting: `settled` is called once, soon, with what has become of it.

        False when the mirror is not trusted now: nothing was taken, and `heartbeat` must be asked.
        """
        generation = self._trusted_generation()
        if generation is None:
            return False

        def decide(answer: int | Unanswered | None) -> None:
            # Silence is no sign of a flush, so it costs no trust; `_ask` sees it the same way.
            verdict = None if isinstance(answer, Unanswered) else self._believed(answer, generation)
            settled("undecided" if verdict is None else self._decided(mitra_id, at, verdict))

        return self._valkey.hand_in(self._heartbeats, (mitra_id, rfc3339(at)), decide)

    def _decided(self, mitra_id: str, at: Moment, verdict: int) -> Refusal | None:
        refusal = check_heartbeat(active=verdict != NOT_ACTIVE, online=verdict != NOT_ONLINE)
        if refusal is None:
            self._heard(mitra_id, at)
        else:
            self._pings.pop(mitra_id, None)
        return refusal

    async def reachability(self, mitra_id: str) -> Verdict:
        """Is this mitra online and heard of lately?

        Raises:
            StoreUnavailable: neither Valkey nor Postgres answers
        """
        found = await self._ask(self._presences, mitra_id)
        if found is not None:
            deactivated, online, beat = found
            heartbeat_at = None if beat is None else read_moment(beat)
            if beat is None or heartbeat_at is not None:
                presence = Presence(active=not deactivated, online=bool(online), heartbeat_at=heartbeat_at)
                return judge(presence, self._clock.now(), self._stale_after_ms, "mirror")
            log.warning("mirror_heartbeat_unreadable", mitra_id=mitra_id)
        return judge(await self._fall_back(mitra_id), self._clock.now(), self._stale_after_ms, "postgres")

    @property
    def standing(self) -> tuple[int, int] | None:
        """What trust rests on; None without trust. Two equal answers: it was not lost in between, however briefly."""
        generation = self._trusted_generation()
        return None if generation is None else (generation, self._doubts)

    @property
    def standing_since(self) -> Moment | None:
        """When trust was last gained; None without trust. What waits for a mirror that stands counts from here."""
        return self._stands_since if self.trusted else None

    def heard_at(self, mitra_id: str) -> Moment | None:
        """The last ping that this node took itself since the last mirror cycle."""
        return self._pings.get(mitra_id)

    def take_unmirrored(self) -> dict[str, Moment]:
        """Hand over the pings that Postgres does not know yet, at most one for each mitra; they are the caller's to
        write."""
        pings, self._pings = self._pings, {}
        return pings

    def give_back(self, pings: Mapping[str, Moment]) -> None:
        """They could not be written; whatever was heard meanwhile stays the newer."""
        self._pings = {**pings, **self._pings}

    def pages_online(self) -> OnlinePages:
        """Everybody who is online, whether the mirror is trusted or not."""
        return OnlinePages(self._valkey, self._keys)

    async def swept_offline(self, seen: Mapping[str, Moment]) -> Mapping[str, Moment]:
        """After Postgres has committed it, of at most some thousand mitras with the last heartbeat that each was judged
        by. Who was heard of since stays online here, and is returned with the moment.

        Raises:
            MirrorUnavailable: some may still stand online here; counted as a lost write, and healed by the next seed.
        """
        keys, ids = self._keys, list(seen)
        names = (keys.seeding, keys.online, keys.waiting, *map(keys.heartbeat, ids))
        try:
            with trio.CancelScope(shield=True):
                (stay,) = await self._valkey.call(
                    ("EVAL", LEAVE_UNLESS_HEARD, len(names), *names, *ids, *map(rfc3339, seen.values()))
                )
        except ValkeyUnavailable as fault:
            self._lost("swept_offline", str(fault))
            raise MirrorUnavailable(str(fault)) from fault
        beats = {ids[place - 1]: read_moment(beat) for place, beat in stay}
        return {mitra_id: seen[mitra_id] if beat is None else beat for mitra_id, beat in beats.items()}

    async def seed(self) -> int:
        """Build the mirror anew from Postgres; the number of mitras. Trusted afterwards, unless doubt arose meanwhile.

        Raises:
            ValkeyUnavailable, StoreUnavailable
        """
        async with self._seeding:
            generation, doubts = self._valkey.generation, self._doubts
            seed = Seed(self._valkey, self.twin, self._clock, self.heard_at)
            count = await seed.run()
            self.drift = seed.drift
            self.seeds += 1
            if doubts == self._doubts:
                if self._seeded != generation:
                    self._stands_since = self._clock.now()
                self._seeded = generation
            return count

    async def reseed(self) -> tuple[int, Mapping[str, int]]:
        """Build the mirror anew though nobody doubts it: the number of mitras, and the drift by kind.

        Raises:
            MirrorUnavailable, StoreUnavailable
        """
        try:
            return await self.seed(), self.drift
        except ValkeyUnavailable as fault:
            raise MirrorUnavailable(str(fault)) from fault

    async def serve(self) -> NoReturn:
        """Seed whenever Valkey was met anew or a write was lost."""
        while True:
            await self._doubt.wait()
            await self._valkey.wait_up()
            self._doubt = trio.Event()
            try:
                count = await self.seed()
            except (ValkeyUnavailable, StoreUnavailable) as fault:
                self.seeds_failed += 1
                self._doubt.set()
                log.warning("mirror_seed_failed", fault=str(fault))
            else:
                log.info("mirror_seeded", mitras=count, generation=self._valkey.generation)
            await trio.sleep(SEED_PAUSE_SECONDS)

    def _distrust(self) -> None:
        self._seeded = None
        self._doubts += 1
        self._doubt.set()

    def _heard(self, mitra_id: str, at: Moment) -> None:
        self._pings[mitra_id] = newest(at, self._pings.get(mitra_id)) or at

    def _compose_capacity(self, row: MitraRow) -> Command:
        idle_since = row.idle_since if row.has_room else None
        return compose_capacity(self._keys, row.mitra_id, row.capacity, row.capacity_version, idle_since)

    async def _write(self, what: str, *commands: Command) -> bool:
        """Did it land?"""
        try:
            # Postgres has committed, and nobody else knows that the mirror was not told. `Valkey.call` is bounded.
            with trio.CancelScope(shield=True):
                await self._valkey.call(*commands)
            return True
        except ValkeyUnavailable as fault:
            self._lost(what, str(fault))
            return False

    def _lost(self, what: str, fault: str) -> None:
        self.writes_lost += 1
        self._distrust()
        log.warning("mirror_write_lost", write=what, fault=fault)

    async def _ask(self, question: Variadic[Item, Answer | None], item: Item) -> Answer | None:
        """The mirror's answer, or None when the twin must be asked."""
        generation = self._trusted_generation()
        if generation is None:
            return None
        try:
            answer = await self._valkey.ask(question, item)
        except ValkeyUnavailable:
            return None
        return self._believed(answer, generation)

    async def read(self, command: Command) -> Reply | None:
        """What the mirror replies, or None when the twin must be asked; the command's own nil means "not seeded"."""
        generation = self._trusted_generation()
        if generation is None:
            return None
        try:
            (reply,) = await self._valkey.call(command)
        except ValkeyUnavailable:
            return None
        return self._believed(reply, generation)

    def _believed(self, answer: Answer | None, generation: int) -> Answer | None:
        if answer is None:  # flushed under our hands
            self._distrust()
        # Doubt may have come while we waited: then this may be the answer of a server that has just come back empty.
        return answer if self._trusted_generation() == generation else None

    def _trusted_generation(self) -> int | None:
        return self._seeded if self._valkey.up and self._seeded == self._valkey.generation else None

    async def _fall_back(self, mitra_id: str) -> Presence:
        self.fallbacks += 1
        presence = await self.twin.load_presence(mitra_id)
        heard = newest(presence.heartbeat_at, self._pings.get(mitra_id))
        return Presence(active=presence.active, online=presence.online, heartbeat_at=heard)

    def _compose_heartbeats(self, pings: Sequence[tuple[str, str]]) -> Command:
        ids = [mitra_id for mitra_id, _ in pings]
        return ("EVAL", HEARTBEATS, *self._asked(ids), *ids, *(at for _, at in pings))

    def _compose_presences(self, mitra_ids: Sequence[str]) -> Command:
        return ("EVAL", PRESENCES, *self._asked(mitra_ids), *mitra_ids)

    def _asked(self, mitra_ids: Sequence[str]) -> tuple[str | int, ...]:
        keys = self._keys
        return (3 + len(mitra_ids), keys.seeded, keys.deactivated, keys.online, *map(keys.heartbeat, mitra_ids))


def _split_verdicts(reply: Reply, pings: Sequence[tuple[str, str]]) -> Sequence[int | None]:
    return [None] * len(pings) if reply is None else list(reply)


def _split_presences(reply: Reply, mitra_ids: Sequence[str]) -> Sequence[tuple[int, int, bytes | None] | None]:
    return [None] * len(mitra_ids) if reply is None else list(zip(*reply, strict=True))
