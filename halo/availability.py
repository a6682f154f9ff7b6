"""Who is there: fresh or stale, reachable or not, may this ping be taken.

Pure: the facts and the moment are handed in, so the path through Valkey and its twin through Postgres judge by the
same lines and cannot drift apart. It must never ask a store or a clock. Read next: `halo/store/mirror.py`, which
gathers the facts.
"""

from dataclasses import dataclass
from typing import Literal, TypeAlias

from halo.clock import Moment
from halo.errors import MitraDeactivated, MitraOffline, Refusal

Source: TypeAlias = Literal["mirror", "postgres"]
"""Where the facts came from."""

Beaten: TypeAlias = Refusal | Literal["undecided"] | None
"""What has become of a ping: taken (None), refused, or undecided, because the mirror did not know it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Presence:
    """What a store knows of one mitra. An unknown mitra is `Presence(active=True, online=False, heartbeat_at=None)`."""

    active: bool
    """False once an operator has deactivated the mitra."""
    online: bool
    """What the mitra last said itself, by going online or offline."""
    heartbeat_at: Moment | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Available:
    """How many mitras could be asked for a session: online, not deactivated, fresh, and with room (S20)."""

    count: int
    as_of: Moment
    """When they were counted; for the whole cluster once in a few seconds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """A store's verdict on one mitra, with its evidence. What the sockets know beside it makes `halo.events.Reachability` of it."""

    online: bool
    """Online and not deactivated."""
    heartbeat_age_ms: int | None
    """Milliseconds since the last ping, never negative; None when there was none."""
    heartbeat_fresh: bool
    source: Source

    @property
    def reachable(self) -> bool:
        """S19: online, and heard of lately."""
        return self.online and self.heartbeat_fresh


def is_fresh(heartbeat_at: Moment | None, now: Moment, stale_after_ms: int) -> bool:
    """Was the last ping at most `stale_after_ms` ago? A ping from the future (another node's clock) counts as now."""
    return heartbeat_at is not None and now - heartbeat_at <= stale_after_ms


def judge(presence: Presence, now: Moment, stale_after_ms: int, source: Source) -> Verdict:
    """The verdict on one mitra, with what it rests on."""
    heartbeat_at = presence.heartbeat_at
    return Verdict(
        online=presence.online and presence.active,
        heartbeat_age_ms=None if heartbeat_at is None else max(0, now - heartbeat_at),
        heartbeat_fresh=is_fresh(heartbeat_at, now, stale_after_ms),
        source=source,
    )


def check_heartbeat(*, active: bool, online: bool) -> Refusal | None:
    """Why a ping is not taken, or None. Deactivation is told first: going online again would not help."""
    if not active:
        return MitraDeactivated()
    if not online:
        return MitraOffline()
    return None


def newest(*moments: Moment | None) -> Moment | None:
    """The latest of those that are known: a heartbeat never moves back (A4)."""
    return max((moment for moment in moments if moment is not None), default=None)
