"""The wiring: who is given what. Everything that a server consists of, made once, and the narrow ports cut out of it.

It starts nothing and decides nothing; it only knows which real thing stands behind each Protocol of the rooms. Read next:
`halo/server.py`, which brings it to life.
"""

from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

from halo import protocol
from halo.actors.history import History, HistoryPorts
from halo.actors.outbox import PACE_SECONDS, Courier, Lane, LanePorts, OutboxSender
from halo.actors.pairing import DeskPorts, PairingDesk
from halo.actors.ports import Meters, Ports
from halo.actors.readings import Readings
from halo.actors.registry import Registry
from halo.actors.repairs import WatchPorts
from halo.actors.reroutes import ReroutePorts, Reroutes
from halo.actors.search import SearchMeters, SearchPorts
from halo.actors.sweeps import AutoOffline, HeartbeatMirror, Reseed, Sweep
from halo.actors.upkeep import Upkeeps
from halo.actors.watchdog import Watchdog
from halo.clock import Clock
from halo.config import LiveConfig
from halo.events import Reachability
from halo.figures import Measured, new_figures
from halo.metrics import new_registry
from halo.net.beacon import Beacon
from halo.net.chat import ChatRoom
from halo.net.connection import Limits
from halo.net.connections import Connections
from halo.net.desk import Desk
from halo.net.fcm import Fcm
from halo.net.guard import Door
from halo.net.http_meter import HttpMeter
from halo.net.lobby import Lobby
from halo.net.outgoing import Outgoing, trust, trust_nobody
from halo.net.presence import Presence
from halo.net.push import PushCourier, PushLog
from halo.net.reader import Reader
from halo.net.refunds_out import RefundCourier
from halo.net.service_account import AccessTokens, load_service_account
from halo.net.status.insight import Insight, Parked
from halo.net.status.ports import Gatehouse
from halo.net.tokens import Tokens
from halo.net.websocket import Doorkeeper
from halo.outbox import OutboxKind, OutboxReport
from halo.payment import Payment
from halo.push import load_texts
from halo.settings import Settings
from halo.store.auth_sessions import AuthSessions
from halo.store.available import AvailableMitras
from halo.store.available_twin import AvailableTwin
from halo.store.capacities import Capacities
from halo.store.configuration import Configuration
from halo.store.idempotency import Idempotency
from halo.store.journal import Journal
from halo.store.live_config import LiveConfigStore
from halo.store.lookout import Lookout
from halo.store.mirror import Mirror
from halo.store.mitras import Mitras
from halo.store.nodes import NodeLease
from halo.store.offers import Offers
from halo.store.operator_accounts import OperatorAccounts
from halo.store.operator_sessions import OperatorSessions
from halo.store.operators import Operators
from halo.store.outbox import Outbox
from halo.store.pairings import Pairings
from halo.store.payments import Payments
from halo.store.postgres import Postgres
from halo.store.searches import SearchStates
from halo.store.sessions import Sessions
from halo.store.sign_in_tries import SignInTries
from halo.store.sweeps import SweepRows
from halo.store.watchdog import WatchedRows
from halo.watch import WatchReport

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
        self.reroutes: Counter[str] = Counter()
        """Searches for another mitra, by why they were opened and how they came to their end; for the metrics."""
        self.start_search: Callable[[str], None] | None = None
        """The pairing desk's, once there is one; a search that was opened before is found by its restore."""
        self._capacities = capacities
        self._connections = connections

    def capacity_changed(self, mitra_id: str) -> None:
        self._capacities.mark(mitra_id)

    def tell(self, user_id: str, frame: protocol.Frame) -> None:
        self._connections.tell(user_id, frame)

    def ask_receipt(self, user_id: str, receipt: str, session_id: str) -> None:
        self._connections.ask_receipt(user_id, receipt, session_id)

    def search_opened(self, pairing_id: str, cause: str) -> None:
        self.reroutes[cause] += 1
        if self.start_search is not None:
            self.start_search(pairing_id)

    def search_over(self, outcome: str) -> None:
        self.reroutes[outcome] += 1


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
        self.operator_accounts = OperatorAccounts(db, clock)
        self.operator_sessions = OperatorSessions(db, clock)
        self.sign_in_tries = SignInTries(db, clock)
        self.idempotency = Idempotency(db)
        self.configuration = Configuration(LiveConfigStore(db))
        self.capacities = Capacities(mirror)
        self.outside = Outside(self.capacities, self.connections)
        self.presence = Presence(self.mitras, mirror, clock)
        self.available = self._make_available()
        self.beacon = Beacon(self.available)
        self.pairings = Pairings(db, lease.node_id)
        self.searches = SearchStates(db)
        self.readings = Readings(self.pairings, self.searches)

        self.reseed = Sweep("reseed", Reseed(mirror), settings.valkey_online_mirror_sweep_seconds, clock)
        self.sweeps = self._make_sweeps(SweepRows(db))
        self.watch = WatchReport(settings.watchdog_seconds)
        self.outbox = Outbox(db, lease.node_id, clock)
        self.outbox_report = OutboxReport()
        self.upkeeps = Upkeeps(clock)
        self.meters = Meters()
        self.search_meters = SearchMeters()
        self.http_meter = HttpMeter()
        self.handshakes_refused: Counter[str] = Counter()
        """Of the daemons."""
        credentials = settings.fcm_credentials
        self._service_account = None if credentials is None else load_service_account(credentials)
        has_whom_to_call = credentials is not None or settings.refund_url is not None
        self.outgoing_tls = trust() if has_whom_to_call else trust_nobody()

    def _make_sweeps(self, rows: SweepRows) -> tuple[Sweep, ...]:
        settings, mirror, clock = self.settings, self.mirror, self.clock
        auto_offline = AutoOffline(mirror, rows, clock, round(settings.mitra_heartbeat_stale_seconds * 1000))
        return (
            Sweep("auto_offline", auto_offline, settings.mitra_auto_offline_sweep_seconds, clock),
            Sweep("heartbeat_mirror", HeartbeatMirror(mirror, rows), settings.heartbeat_mirror_interval_seconds, clock),
            self.reseed,
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
            meters=self.meters,
        )

    def reroutes(self, registry: Registry) -> Reroutes:
        ports = ReroutePorts(
            clock=self.clock,
            mirror=self.mirror,
            is_connected=self.connections.is_connected,
            searches=self.searches,
            config=self.configuration.current,
        )
        return Reroutes(registry, ports)

    def watchdog(self, registry: Registry, take_up: Callable[[], Awaitable[tuple[int, int]]]) -> Watchdog:
        has_refund_url = self.settings.refund_url is not None
        ports = WatchPorts(
            clock=self.clock,
            rows=WatchedRows(self.db, self.mirror, self.clock, has_refund_url=has_refund_url),
            sessions=registry,
            take_up=take_up,
            skew_ms=lambda: self.lease.skew_ms,
            keeps_clocks=self.lease.keeps_clocks,
            mirror_trusted=lambda: self.mirror.trusted,
            unreadable_config=self.configuration.unreadable,
        )
        return Watchdog(self.watch, ports)

    def outbox_sender(self, to_google: Outgoing, to_provider: Outgoing) -> OutboxSender:
        """Its two clients are apart: a payment provider that hangs takes no connection from pushes."""
        couriers: dict[OutboxKind, Courier] = {OutboxKind.PUSH: self._push_courier(to_google)}
        settings = self.settings
        if settings.refund_url is not None and settings.refund_secret is not None:
            couriers[OutboxKind.REFUND] = RefundCourier(
                settings.refund_url, settings.refund_secret, to_provider, self.clock
            )
        ports = LanePorts(
            rows=self.outbox, clock=self.clock, report=self.outbox_report, acknowledged=self.connections.acknowledged
        )
        lanes = [Lane(kind, courier, ports, PACE_SECONDS) for kind, courier in couriers.items()]
        return OutboxSender(lanes, self.outbox, self.clock, self.outbox_report)

    def _push_courier(self, outgoing: Outgoing) -> Courier:
        account = self._service_account
        if account is None:
            return PushLog()
        tokens = AccessTokens(account, outgoing, self.clock)
        fcm = Fcm(self.settings.fcm_endpoint, account.project_id, tokens, outgoing, self.clock)
        return PushCourier(fcm, load_texts(), self.clock)

    def pairing_ports(self, registry: Registry) -> DeskPorts:
        rows = self.pairings
        offers = Offers(self.db, self.lease.node_id)
        search = SearchPorts(
            clock=self.clock,
            rows=self.readings,
            available=self.available,
            lobby=self.connections,
            sessions=registry,
            config=self.configuration.current,
            meters=self.search_meters,
        )
        minute_ms = round(self.settings.minute_seconds * 1000)
        return DeskPorts(search=search, pairings=rows, orphans=rows, answers=offers, offers=offers, minute_ms=minute_ms)

    def doorkeeper(self, registry: Registry, pairings: PairingDesk, state: State, reader: Reader) -> Doorkeeper:
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
            reader=reader,
            is_draining=state.is_draining,
            refused=self.handshakes_refused,
        )

    def history(self, registry: Registry) -> History:
        async def count_available() -> int:
            return (await self.available.count_available()).count

        ports = HistoryPorts(
            clock=self.clock,
            sessions=lambda: len(registry),
            messages=lambda: self.journal.rows,
            commits=lambda: (self.journal.commit_seconds.count, self.journal.commit_seconds.sum),
            take_longest_lag=self.watch.lag.take_longest_lately,
            ask_postgres=self.db.healthy,
            count_available=count_available,
        )
        return History(ports)

    def insight(self, registry: Registry, history: History) -> Insight:
        silent_after_ms = round(
            1000
            * (
                self.settings.mitra_heartbeat_stale_seconds
                + MISSED_CYCLES * self.settings.heartbeat_mirror_interval_seconds
            )
        )

        def parked(session_id: str) -> Parked:
            upkeep = registry.upkeeps.find(session_id)
            last_error = None if upkeep is None else upkeep.last_error
            return Parked(session_id=session_id, since=registry.parked_at(session_id), last_error=last_error)

        return Insight(
            lookout=Lookout(self.db),
            letters=self.outbox,
            samples=history.list,
            daemons=self.upkeeps.list,
            crashed=registry.upkeeps.list,
            parked=lambda: [parked(actor.session.session_id) for actor in registry if actor.is_parked],
            revive=registry.revive,
            watch=self.watch,
            heard_since=lambda: self.clock.now() - silent_after_ms,
        )

    def desk(
        self, registry: Registry, pairings: PairingDesk, doors: dict[str, Door], state: State, insight: Insight
    ) -> Desk:
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
            insight=insight,
            gatehouse=Gatehouse(
                accounts=self.operator_accounts, sessions=self.operator_sessions, tries=self.sign_in_tries
            ),
            metrics=new_registry(new_figures(self._measured(registry, pairings, doors))),
            http_meter=self.http_meter,
            sweeps=lambda: [sweep.report for sweep in self.sweeps],
            alarms=lambda: tuple(self.watch.alarms.values()),
            store_answers=self.db.healthy,
            starting=lambda: not state.is_ready(),
            draining=state.is_draining,
        )

    def _measured(self, registry: Registry, pairings: PairingDesk, doors: dict[str, Door]) -> Measured:
        return Measured(
            registry=registry,
            pairings=pairings,
            connections=self.connections,
            doors=doors,
            http=self.http_meter,
            handshakes_refused=self.handshakes_refused,
            meters=self.meters,
            searches=self.search_meters,
            reroutes=self.outside.reroutes,
            daemons=self.upkeeps,
            db=self.db,
            journal=self.journal,
            mirror=self.mirror,
            available=self.available,
            lease=self.lease,
            sweeps=lambda: [sweep.report for sweep in self.sweeps],
            watch=self.watch,
            outbox=self.outbox_report,
        )
