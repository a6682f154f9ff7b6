"""The wiring: who is given what. Everything that a server consists of, made once, and the narrow ports cut out of it.

It starts nothing and decides nothing; it only knows which real thing stands behind each Protocol of the rooms. Read next:
`halo/server.py`, which brings it to life.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from halo import protocol
from halo.actors.pairing import DeskPorts, PairingDesk
from halo.actors.ports import Ports
from halo.actors.registry import Registry
from halo.actors.search import SearchPorts
from halo.actors.sweeps import AutoOffline, HeartbeatMirror, Reseed, Sweep
from halo.clock import Clock
from halo.config import LiveConfig
from halo.events import Reachability
from halo.metrics import Figure, Figures, new_registry
from halo.net.beacon import Beacon
from halo.net.chat import ChatRoom
from halo.net.connection import Limits
from halo.net.connections import Connections
from halo.net.desk import Desk
from halo.net.guard import Door
from halo.net.lobby import Lobby
from halo.net.presence import Presence
from halo.net.tokens import Tokens
from halo.net.websocket import Doorkeeper
from halo.payment import Payment
from halo.settings import Settings
from halo.store.auth_sessions import AuthSessions
from halo.store.available import AvailableMitras
from halo.store.available_twin import AvailableTwin
from halo.store.capacities import Capacities
from halo.store.configuration import Configuration
from halo.store.idempotency import Idempotency
from halo.store.journal import Journal
from halo.store.live_config import LiveConfigStore
from halo.store.mirror import Mirror
from halo.store.mitras import Mitras
from halo.store.nodes import NodeLease
from halo.store.offers import Offers
from halo.store.operators import Operators
from halo.store.pairings import Pairings
from halo.store.payments import Payments
from halo.store.postgres import Postgres
from halo.store.sessions import Sessions
from halo.store.sweeps import SweepRows

MISSED_CYCLES: Final = 2
"""Postgres hears of a heartbeat once a mirror cycle, and one cycle may fail: while it stands in for Valkey, nobody who is fresh may be
passed over."""


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """What calls may ask about the server itself."""

    is_ready: Callable[[], bool]
    is_draining: Callable[[], bool]


class Facts:
    """What actors may ask about the world."""

    def __init__(
        self, configuration: Configuration, payments: Payments, mirror: Mirror, connections: Connections
    ) -> None:
        self._configuration = configuration
        self._payments = payments
        self._mirror = mirror
        self._connections = connections

    def config(self) -> LiveConfig:
        return self._configuration.current()

    async def find_payment(self, payment_request_id: str) -> Payment | None:
        return await self._payments.find(payment_request_id)

    async def reachability(self, mitra_id: str) -> Reachability:
        seen = await self._mirror.reachability(mitra_id)
        return Reachability(
            online=seen.online,
            heartbeat_age_ms=seen.heartbeat_age_ms,
            heartbeat_fresh=seen.heartbeat_fresh,
            connected=self._connections.is_connected(mitra_id),
            socket_answered_age_ms=self._connections.answered_age_ms(mitra_id),
            source=seen.source,
        )


class Outside:
    """Who hears of a step beside its own sockets."""

    def __init__(self, capacities: Capacities, connections: Connections) -> None:
        self._capacities = capacities
        self._connections = connections

    def capacity_changed(self, mitra_id: str) -> None:
        self._capacities.mark(mitra_id)

    def tell(self, user_id: str, frame: protocol.Frame) -> None:
        self._connections.tell(user_id, frame)


class Parts:
    """Every room of one server, each made once."""

    def __init__(self, settings: Settings, db: Postgres, mirror: Mirror, lease: NodeLease, clock: Clock) -> None:
        self.settings = settings
        self.clock = clock
        self.db = db
        self.mirror = mirror
        self.lease = lease
        self.tokens = Tokens(settings.token_secret, settings.access_token_seconds, clock)
        self.connections = Connections(clock, settings.connections_per_user)
        self.sessions = Sessions(db, lease.node_id)
        self.journal = Journal(db)
        self.payments = Payments(db, clock)
        self.mitras = Mitras(db, clock)
        self.auth_sessions = AuthSessions(db, clock)
        self.idempotency = Idempotency(db)
        self.configuration = Configuration(LiveConfigStore(db))
        self.capacities = Capacities(mirror)
        self.outside = Outside(self.capacities, self.connections)
        self.presence = Presence(self.mitras, mirror, clock)
        self.available = self._make_available()
        self.beacon = Beacon(self.available)

        self.sweeps = self._make_sweeps(SweepRows(db))

    def _make_sweeps(self, rows: SweepRows) -> tuple[Sweep, ...]:
        settings, mirror, clock = self.settings, self.mirror, self.clock
        auto_offline = AutoOffline(mirror, rows, clock, round(settings.mitra_heartbeat_stale_seconds * 1000))
        return (
            Sweep("auto_offline", auto_offline, settings.mitra_auto_offline_sweep_seconds, clock),
            Sweep("heartbeat_mirror", HeartbeatMirror(mirror, rows), settings.heartbeat_mirror_interval_seconds, clock),
            Sweep("reseed", Reseed(mirror), settings.valkey_online_mirror_sweep_seconds, clock),
        )

    def _make_available(self) -> AvailableMitras:
        stale_after_ms = round(self.settings.mitra_heartbeat_stale_seconds * 1000)
        lag_ms = round(MISSED_CYCLES * self.settings.heartbeat_mirror_interval_seconds * 1000)
        twin = AvailableTwin(self.db, self.clock, stale_after_ms, lag_ms)
        return AvailableMitras(self.mirror, twin, self.clock, stale_after_ms)

    def actor_ports(self) -> Ports:
        return Ports(
            clock=self.clock,
            rows=self.sessions,
            messages=self.sessions,
            log=self.journal,
            facts=Facts(self.configuration, self.payments, self.mirror, self.connections),
            lease=self.lease,
            outside=self.outside,
        )

    def pairing_ports(self, registry: Registry) -> DeskPorts:
        rows = Pairings(self.db, self.lease.node_id)
        offers = Offers(self.db, self.lease.node_id)
        search = SearchPorts(
            clock=self.clock,
            rows=rows,
            available=self.available,
            lobby=self.connections,
            sessions=registry,
            config=self.configuration.current,
        )
        minute_ms = round(self.settings.minute_seconds * 1000)
        return DeskPorts(search=search, pairings=rows, orphans=rows, answers=offers, offers=offers, minute_ms=minute_ms)

    def doorkeeper(self, registry: Registry, pairings: PairingDesk, state: State) -> Doorkeeper:
        limits = Limits(messages_per_10s=self.settings.messages_per_10s, bytes_per_s=self.settings.bytes_per_s)
        chat = ChatRoom(
            clock=self.clock, tokens=self.tokens, limits=limits, history=self.sessions, connections=self.connections
        )
        lobby = Lobby(
            clock=self.clock,
            tokens=self.tokens,
            limits=limits,
            connections=self.connections,
            presence=self.presence,
            heartbeats=self.mirror,
            pairings=pairings,
            offers=pairings,
            sessions=registry,
            beacon=self.beacon,
        )
        return Doorkeeper(
            tokens=self.tokens,
            allowed_origins=frozenset(self.settings.allowed_origins),
            actors=registry,
            chat=chat,
            lobby=lobby,
            is_draining=state.is_draining,
        )

    def desk(self, registry: Registry, pairings: PairingDesk, doors: dict[str, Door], state: State) -> Desk:
        return Desk(
            settings=self.settings,
            clock=self.clock,
            tokens=self.tokens,
            auth_sessions=self.auth_sessions,
            payments=self.payments,
            idempotency=self.idempotency,
            mitras=self.mitras,
            mirror=self.mirror,
            live_config=self.configuration.store,
            current_config=self.configuration.current,
            config_changed=self.configuration.adopt,
            pairings=pairings,
            sessions=registry,
            messages=self.sessions,
            connections=self.connections,
            availability=self.available,
            room_changed=self.capacities.mark,
            operators=Operators(self.db),
            metrics=new_registry(self._figures(registry, pairings, doors)),
            sweeps=lambda: [sweep.report for sweep in self.sweeps],
            store_answers=self.db.healthy,
            starting=lambda: not state.is_ready(),
            draining=state.is_draining,
        )

    def _figures(self, registry: Registry, pairings: PairingDesk, doors: dict[str, Door]) -> Figures:
        db, journal, connections, mirror = self.db, self.journal, self.connections, self.mirror
        return Figures(
            [
                Figure("connections", "Open app sockets.", lambda: len(connections)),
                Figure("searches", "Searching pairings of this node.", lambda: len(pairings)),
                Figure(
                    "actors_parked",
                    "Sessions whose actor spent its restart budget.",
                    lambda: sum(a.is_parked for a in registry),
                ),
                Figure(
                    "mailbox_depth_max",
                    "Items in the fullest mailbox.",
                    lambda: max((len(a.mailbox) for a in registry), default=0),
                ),
                Figure("messages_stored", "Messages made durable.", lambda: journal.rows, is_counter=True),
                Figure("journal_commits", "Commits that made them so.", lambda: journal.commits, is_counter=True),
                Figure("postgres_connections_open", "Connections to Postgres.", lambda: db.pool.connections_open),
                Figure("postgres_waiting", "Callers who wait for one.", lambda: db.pool.waiting),
                Figure("postgres_statements", "Statements sent.", lambda: db.pool.statements, is_counter=True),
                Figure(
                    "postgres_retries", "Statements and transactions tried again.", lambda: db.retries, is_counter=True
                ),
                Figure(
                    "postgres_unknown_commits",
                    "Commits whose answer was lost.",
                    lambda: db.unknown_commits,
                    is_counter=True,
                ),
                Figure("mirror_trusted", "1 while Valkey's answers may be believed.", lambda: mirror.trusted),
                Figure(
                    "mirror_fallbacks",
                    "Questions that Postgres answered for Valkey.",
                    lambda: mirror.fallbacks,
                    is_counter=True,
                ),
                Figure(
                    "availability_counts",
                    "Counts of all available mitras, for the whole cluster.",
                    lambda: self.available.counts,
                    is_counter=True,
                ),
                Figure(
                    "clock_skew_seconds", "This node's clock ahead of Postgres'.", lambda: self.lease.skew_ms / 1000
                ),
                Figure(
                    "sockets_cut_as_dead",
                    "Sockets that did not answer a ping.",
                    lambda: connections.cut_as_dead,
                    is_counter=True,
                ),
            ],
            lambda: (actor.session.status for actor in registry),
            {name: door.faults for name, door in doors.items()},
            lambda: [sweep.report for sweep in self.sweeps],
        )
