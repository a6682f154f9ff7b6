"""The composition root: opens the stores, starts daemons and actors, opens the listeners, and closes it all in reverse.

Read from the outside in, it is the tree of tasks: stores, daemons, actors, listeners. Whoever stands further in may use what
stands further out and never the other way round, so shutdown is leaving the blocks. It decides nothing; it only says who is given what.
Read next: `halo/actors/registry.py`.
"""

import contextlib
import os
import signal
import socket
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, Final

import structlog
import trio
from quart_trio import QuartTrio

from halo import protocol
from halo.actors.heartbeats import mirror_heartbeats
from halo.actors.pairing import DeskPorts, PairingDesk
from halo.actors.ports import Ports
from halo.actors.registry import Registry
from halo.actors.search import SearchPorts
from halo.actors.supervisor import RestartBudget, keep
from halo.clock import Clock, SystemClock
from halo.config import LiveConfig
from halo.errors import StoreUnavailable
from halo.events import Reachability
from halo.metrics import Figure, Figures, new_registry
from halo.net.admission import UNAUTHENTICATED_AT_MOST, Gate, connections_affordable
from halo.net.api import create_api
from halo.net.chat import ChatRoom
from halo.net.connection import Limits
from halo.net.connections import Connections
from halo.net.desk import Desk
from halo.net.flusher import Flusher
from halo.net.guard import BindMalformed, Door, PublicBindRefused, open_listener, serve_guarded
from halo.net.http import serve_http
from halo.net.lobby import Lobby
from halo.net.operators import create_admin
from halo.net.presence import Presence
from halo.net.tokens import Tokens
from halo.net.websocket import Doorkeeper
from halo.payment import Payment
from halo.settings import Settings
from halo.store.account import PathClosed
from halo.store.auth_sessions import AuthSessions
from halo.store.capacities import Capacities
from halo.store.configuration import Configuration
from halo.store.directory import DataDirectoryInUse, DataDirectoryUnusable
from halo.store.embedded import open_stores
from halo.store.housekeeping import keep_house
from halo.store.idempotency import Idempotency
from halo.store.journal import Journal
from halo.store.live_config import LiveConfigStore
from halo.store.migrations import SchemaMismatch, migrate
from halo.store.mirror import Mirror
from halo.store.mitras import Mitras
from halo.store.nodes import ClockSkewed, NodeLease
from halo.store.offers import Offers
from halo.store.operators import Operators
from halo.store.pairings import AvailableMitras, Pairings
from halo.store.payments import Payments
from halo.store.postgres import Postgres, open_postgres
from halo.store.sessions import Sessions
from halo.store.recipe import ServerFailed
from halo.store.valkey import open_valkey
from halo.store.valkey_link import ValkeyUrlRefused

log = structlog.get_logger(__name__)

TAKE_UP_SECONDS: Final = 5.0
"""How often sessions of dead nodes are looked for: another node's are taken up within 20 s (S4)."""
DAEMON_BUDGET: Final = RestartBudget(restarts=20, period_seconds=60)
COUNTED_AT_MOST: Final = 10_000
RECONNECT_SPREAD_MS: Final = 2_000
"""Over how long clients come back after a drain: a thousand handshakes a second are no storm."""


STARTS_REFUSED = (
    BindMalformed,
    ClockSkewed,
    DataDirectoryInUse,
    DataDirectoryUnusable,
    PathClosed,
    PublicBindRefused,
    SchemaMismatch,
    ServerFailed,
    StoreUnavailable,
    ValkeyUrlRefused,
    OSError,
)
"""What may stop a start: each is one sentence for the operator."""


class _Facts:
    """What actors may ask about the world."""

    def __init__(self, configuration: Configuration, payments: Payments, mirror: Mirror, connections: Connections) -> None:
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


class _Outside:
    """Who hears of a step beside its own sockets."""

    def __init__(self, capacities: Capacities, connections: Connections) -> None:
        self._capacities = capacities
        self._connections = connections

    def capacity_changed(self, mitra_id: str) -> None:
        self._capacities.mark(mitra_id)

    def tell(self, user_id: str, frame: protocol.Frame) -> None:
        self._connections.tell(user_id, frame)


class Server:
    """One halo: built when its stores are open, running until it is told to stop.

    Resource handling: `run` owns every task; whoever calls it owns the stores.
    Error handling: `run` raises `DaemonEnded` when a daemon cannot be kept running, and nothing that a client causes.
    """

    def __init__(self, settings: Settings, db: Postgres, mirror: Mirror, lease: NodeLease, clock: Clock) -> None:
        self.settings = settings
        self.stop = trio.Event()
        self.ready = False
        self.draining = False
        self._clock = clock
        self._db = db
        self._mirror = mirror
        self._lease = lease
        self._flusher = Flusher()
        room = connections_affordable()
        per_address = settings.connections_per_address
        self._doors = {
            "ws": self._door(room, per_address, settings.handshakes_per_s),
            "api": self._door(room, per_address, 0, unauthenticated_at_most=0),
            "admin": self._door(room, 0, 0, unauthenticated_at_most=0),
        }
        self._tokens = Tokens(settings.token_secret, settings.access_token_seconds, clock)
        self._connections = Connections(clock, settings.connections_per_user)
        self._sessions = Sessions(db, lease.node_id)
        self._journal = Journal(db)
        self._payments = Payments(db, clock)
        self._mitras = Mitras(db, clock)
        self._auth_sessions = AuthSessions(db, clock)
        self._idempotency = Idempotency(db)
        self._configuration = Configuration(LiveConfigStore(db))
        self._capacities = Capacities(self._sessions, mirror)
        self._outside = _Outside(self._capacities, self._connections)

    async def run(self, announce: Callable[[dict[str, str]], None]) -> None:
        """Serve until `stop` is set, then drain; `announce` is called once, with the listeners' addresses."""
        async with trio.open_nursery() as daemons:
            await self._start_daemons(daemons)
            async with trio.open_nursery() as actors:
                registry = Registry(actors, self._actor_ports(), self._sessions)
                pairings = PairingDesk(actors, self._pairing_ports(registry))
                await self._restore(registry, pairings)
                daemons.start_soon(partial(self._take_up_orphans, registry, pairings), name="daemon take-up")
                async with trio.open_nursery() as conversations:
                    await self._listen(conversations, registry, pairings, announce)
                    conversations.cancel_scope.cancel()
                actors.cancel_scope.cancel()
            daemons.cancel_scope.cancel()

    # ---- daemons

    async def _start_daemons(self, nursery: trio.Nursery) -> None:
        await nursery.start(self._flusher.serve, name="daemon flusher")
        await nursery.start(self._lease.serve, self._credit_gap, name="daemon lease")
        await nursery.start(self._connections.serve, name="daemon keepalive")
        chores = {"auth_sessions": self._auth_sessions.delete_ended, "idempotency_keys": self._idempotency.delete_old}
        background: dict[str, Callable[[], Awaitable[object]]] = {
            "journal": self._journal.serve,
            "mirror": self._mirror.serve,
            "capacities": self._capacities.serve,
            "configuration": self._configuration.serve,
            "heartbeats": partial(mirror_heartbeats, self._mirror, self._mitras, self.settings.heartbeat_mirror_interval_seconds),
            "housekeeping": partial(keep_house, self._db, self._clock, chores),
        }
        for name, daemon in background.items():
            nursery.start_soon(partial(keep, daemon, name, DAEMON_BUDGET), name=f"daemon {name}")

    def _credit_gap(self, gap_ms: int) -> None:
        if self._registry is not None:
            self._registry.credit_downtime(gap_ms)

    _registry: Registry | None = None

    async def _restore(self, registry: Registry, pairings: PairingDesk) -> None:
        """Configuration, revocations, sessions, searches; the mirror seeds itself beside it (S33–S35)."""
        self._registry = registry
        await self._configuration.load()
        lifetime_ms = (self.settings.access_token_seconds + 60) * 1000
        for revoked in await self._auth_sessions.list_recently_revoked(self._clock.now() - lifetime_ms):
            self._tokens.revocations.add(revoked.auth_session_id, revoked.because.refusal, revoked.revoked_at)
        restored = await registry.restore()
        log.info("restored", sessions=restored, searches=await pairings.restore())

    async def _take_up_orphans(self, registry: Registry, pairings: PairingDesk) -> None:
        while True:
            await trio.sleep(TAKE_UP_SECONDS)
            if not self.draining:
                with contextlib.suppress(StoreUnavailable):  # tried again in five seconds
                    await registry.restore()
                    await pairings.restore()

    # ---- actors

    def _actor_ports(self) -> Ports:
        return Ports(
            clock=self._clock,
            rows=self._sessions,
            messages=self._sessions,
            log=self._journal,
            facts=_Facts(self._configuration, self._payments, self._mirror, self._connections),
            lease=self._lease,
            outside=self._outside,
        )

    def _pairing_ports(self, registry: Registry) -> DeskPorts:
        rows = Pairings(self._db, self._lease.node_id)
        offers = Offers(self._db, self._lease.node_id)
        search = SearchPorts(
            clock=self._clock,
            rows=rows,
            available=AvailableMitras(self._db, self._clock, self._stale_after_ms),
            lobby=self._connections,
            sessions=registry,
            config=self._configuration.current,
        )
        minute_ms = round(self.settings.minute_seconds * 1000)
        return DeskPorts(search=search, pairings=rows, orphans=rows, answers=offers, offers=offers, minute_ms=minute_ms)

    @property
    def _stale_after_ms(self) -> int:
        return round(self.settings.mitra_heartbeat_stale_seconds * 1000)

    # ---- listeners

    async def _listen(
        self, conversations: trio.Nursery, registry: Registry, pairings: PairingDesk, announce: Callable[[dict[str, str]], None]
    ) -> None:
        settings = self.settings
        sockets = await self._open_sockets()
        desk = self._desk(registry, pairings)
        async with trio.open_nursery() as listeners:
            http_stop = trio.Event()
            api = await listeners.start(partial(self._serve_http, create_api(desk), "api", sockets["api"], http_stop), name="listener api")
            admin = await listeners.start(
                partial(self._serve_http, create_admin(desk), "admin", sockets["admin"], http_stop), name="listener admin"
            )
            ws = await listeners.start(
                partial(
                    serve_guarded,
                    [sockets["ws"]],
                    self._doorkeeper(registry, pairings).converse,
                    door=self._doors["ws"],
                    connections=conversations,
                ),
                name="listener ws",
            )
            self.ready = True
            announce({"ws": f"ws://{ws[0]}", "api": f"http://{api[0]}", "admin": f"http://{admin[0]}"})
            await self.stop.wait()
            with trio.move_on_after(settings.drain_seconds):
                await self._drain(registry, http_stop)
            listeners.cancel_scope.cancel()

    async def _drain(self, registry: Registry, http_stop: trio.Event) -> None:
        """Stop accepting, let every actor finish what it has in hand, then send everybody away with a time to return."""
        log.info("draining", sessions=len(registry), sockets=len(self._connections))
        self.draining = True
        http_stop.set()
        await registry.drain()
        self._connections.send_all_away(0, RECONNECT_SPREAD_MS, "draining")
        while len(self._connections):
            await trio.sleep(0.02)  # each says goodbye within its own two seconds

    async def _open_sockets(self) -> dict[str, socket.socket]:
        settings = self.settings
        return {
            "ws": await open_listener(str(settings.ws_bind), loopback_only=False),
            "api": await open_listener(str(settings.api_bind), loopback_only=False),
            "admin": await open_listener(str(settings.admin_bind)),
        }

    async def _serve_http(
        self, app: QuartTrio, name: str, listener: socket.socket, stop: trio.Event, *, task_status: trio.TaskStatus[list[str]]
    ) -> None:
        await serve_http(
            app,
            [listener],
            stop=stop,
            door=self._doors[name],
            task_status=task_status,
        )

    def _door(self, total: int, per_address: int, handshakes_per_s: int, unauthenticated_at_most: int = UNAUTHENTICATED_AT_MOST) -> Door:
        gate = Gate(
            self._clock,
            total_at_most=total,
            per_address_at_most=per_address,
            handshakes_per_s=handshakes_per_s,
            unauthenticated_at_most=unauthenticated_at_most,
        )
        return Door(gate, self._flusher)

    def _doorkeeper(self, registry: Registry, pairings: PairingDesk) -> Doorkeeper:
        limits = Limits(messages_per_10s=self.settings.messages_per_10s, bytes_per_s=self.settings.bytes_per_s)
        chat = ChatRoom(clock=self._clock, tokens=self._tokens, limits=limits, history=self._sessions, connections=self._connections)
        lobby = Lobby(
            clock=self._clock,
            tokens=self._tokens,
            limits=limits,
            connections=self._connections,
            presence=Presence(self._mitras, self._mirror, self._clock),
            heartbeats=self._mirror,
            pairings=pairings,
            offers=pairings,
            sessions=registry,
        )
        return Doorkeeper(
            tokens=self._tokens,
            allowed_origins=frozenset(self.settings.allowed_origins),
            actors=registry,
            chat=chat,
            lobby=lobby,
            is_draining=lambda: self.draining,
        )

    def _desk(self, registry: Registry, pairings: PairingDesk) -> Desk:
        available = AvailableMitras(self._db, self._clock, self._stale_after_ms)

        async def count_available() -> int:
            return len(await available.find_available(COUNTED_AT_MOST, ()))

        return Desk(
            settings=self.settings,
            clock=self._clock,
            tokens=self._tokens,
            auth_sessions=self._auth_sessions,
            payments=self._payments,
            idempotency=self._idempotency,
            mitras=self._mitras,
            mirror=self._mirror,
            live_config=self._configuration,
            current_config=self._configuration.current,
            config_changed=lambda changed: None,  # `Configuration.change` has put it in force already
            pairings=pairings,
            sessions=registry,
            messages=self._sessions,
            connections=self._connections,
            count_available=count_available,
            operators=Operators(self._db),
            metrics=new_registry(self._figures(registry, pairings)),
            store_answers=self._db.healthy,
            starting=lambda: not self.ready,
            draining=lambda: self.draining,
        )

    def _figures(self, registry: Registry, pairings: PairingDesk) -> Figures:
        db, journal, connections = self._db, self._journal, self._connections
        return Figures(
            [
                Figure("connections", "Open app sockets.", lambda: len(connections)),
                Figure("searches", "Searching pairings of this node.", lambda: len(pairings)),
                Figure("actors_parked", "Sessions whose actor spent its restart budget.", lambda: sum(a.is_parked for a in registry)),
                Figure("mailbox_depth_max", "Items in the fullest mailbox.", lambda: max((len(a.mailbox) for a in registry), default=0)),
                Figure("messages_stored", "Messages made durable.", lambda: journal.rows, is_counter=True),
                Figure("journal_commits", "Commits that made them so.", lambda: journal.commits, is_counter=True),
                Figure("postgres_connections_open", "Connections to Postgres.", lambda: db.pool.connections_open),
                Figure("postgres_waiting", "Callers who wait for one.", lambda: db.pool.waiting),
                Figure("postgres_statements", "Statements sent.", lambda: db.pool.statements, is_counter=True),
                Figure("postgres_retries", "Statements and transactions tried again.", lambda: db.retries, is_counter=True),
                Figure("postgres_unknown_commits", "Commits whose answer was lost.", lambda: db.unknown_commits, is_counter=True),
                Figure("mirror_trusted", "1 while Valkey's answers may be believed.", lambda: self._mirror.trusted),
                Figure("mirror_fallbacks", "Questions that Postgres answered for Valkey.", lambda: self._mirror.fallbacks, is_counter=True),
                Figure("clock_skew_seconds", "This node's clock ahead of Postgres'.", lambda: self._lease.skew_ms / 1000),
                Figure("sockets_cut_as_dead", "Sockets that did not answer a ping.", lambda: connections.cut_as_dead, is_counter=True),
            ],
            lambda: (actor.session.status for actor in registry),
            {name: door.faults for name, door in self._doors.items()},
        )


@asynccontextmanager
async def open_server(settings: Settings, clock: Clock | None = None) -> AsyncIterator[tuple[Server, Mapping[str, str]]]:
    """A server whose stores are open and migrated, and where they came from (`embedded` or `url`).

    Raises:
        ClockSkewed, SchemaMismatch, StoreUnavailable, and what `open_stores` raises: each one sentence for the operator.
    """
    clock = clock or SystemClock()
    os.umask(0o077)
    origins = {
        "database": "embedded" if settings.database_url is None else "url",
        "valkey": "embedded" if settings.valkey_url is None else "url",
    }
    async with open_stores(settings.data_dir, settings.database_url, settings.valkey_url) as urls:
        await migrate(urls.database)
        async with open_postgres(urls.database) as db, open_valkey(urls.valkey, settings.valkey_prefix) as valkey:
            mirror = Mirror(valkey, db, clock, round(settings.mitra_heartbeat_stale_seconds * 1000))
            lease = NodeLease(db, clock)
            await lease.open()
            yield Server(settings, db, mirror, lease, clock), origins


async def serve(settings: Settings, announce: Callable[[dict[str, Any]], None]) -> None:
    """`halo serve`: until SIGTERM or SIGINT."""
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async with open_server(settings) as (server, origins), trio.open_nursery() as nursery:

            async def stop_on_signal() -> None:
                async for number in signals:
                    log.info("stopping", signal=signal.Signals(number).name)
                    server.stop.set()

            nursery.start_soon(stop_on_signal, name="signals")
            await server.run(lambda addresses: announce({"event": "ready", **addresses, "pid": os.getpid(), **origins}))
            nursery.cancel_scope.cancel()
