"""The composition root: opens the stores, starts daemons and actors, opens the listeners, and closes it all in reverse.

Read from the outside in, it is the tree of tasks: stores, daemons, actors, listeners. Whoever stands further in may use what
stands further out and never the other way round, so shutdown is leaving the blocks. Who is given what: `halo/wiring.py`.
Read next: `halo/actors/registry.py`.
"""

import contextlib
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, Final, NoReturn

import structlog
import trio
from quart_trio import QuartTrio

from halo.actors.deactivations import Deactivations
from halo.actors.history import History
from halo.actors.pairing import PairingDesk
from halo.actors.registry import Registry
from halo.actors.supervisor import RestartBudget, keep
from halo.clock import Clock, SystemClock
from halo.collector import LOOK_SECONDS, Tidying, spare_the_old
from halo.errors import StoreUnavailable
from halo.net.admission import UNAUTHENTICATED_AT_MOST, Gate, connections_affordable
from halo.net.api import create_api
from halo.net.connection import CLOSE_DEACTIVATED, CLOSE_UNAUTHENTICATED
from halo.net.flusher import Flusher
from halo.net.guard import BindMalformed, BindRefused, Door, PublicBindRefused, open_listener, serve_guarded
from halo.net.http import serve_http
from halo.net.operators import create_admin
from halo.net.outgoing import open_outgoing
from halo.net.reader import Reader
from halo.net.service_account import CredentialsUnusable
from halo.net.status.first_operator import admit_first, link_of
from halo.net.status.passwords import Passwords
from halo.net.websocket import Doorkeeper
from halo.settings import Settings
from halo.store.account import PathClosed
from halo.store.auth_sessions import RevokedBecause
from halo.store.directory import DataDirectoryInUse, DataDirectoryUnusable
from halo.store.embedded import open_stores
from halo.store.housekeeping import keep_house
from halo.store.migrations import SchemaMismatch, migrate
from halo.store.mirror import Mirror
from halo.store.nodes import ClockSkewed, NodeLease
from halo.store.postgres import Postgres, open_postgres
from halo.store.recipe import ServerFailed
from halo.store.valkey import open_valkey
from halo.store.valkey_link import ValkeyUrlRefused
from halo.wiring import Parts, State

log = structlog.get_logger(__name__)

TAKE_UP_SECONDS: Final = 5.0
"""How often sessions of dead nodes are looked for: another node's are taken up within 20 s (S4)."""
REVOCATIONS_OVERLAP_MS: Final = 15_000
"""Each look goes back so far: a revocation is stamped up to 10 s before it is committed, by a clock that may be 2 s behind."""
REVOCATIONS_SECONDS: Final = 0.5
"""How often other nodes' revocations are looked for: their sockets close within a second (X2)."""
DAEMON_BUDGET: Final = RestartBudget(restarts=20, period_seconds=60)
RECONNECT_SPREAD_MS: Final = 2_000
"""Over how long clients come back after a drain: a thousand handshakes a second are no storm."""

STARTS_REFUSED = (
    BindMalformed,
    BindRefused,
    ClockSkewed,
    CredentialsUnusable,
    DataDirectoryInUse,
    DataDirectoryUnusable,
    PathClosed,
    PublicBindRefused,
    SchemaMismatch,
    ServerFailed,
    StoreUnavailable,
    ValkeyUrlRefused,
)
"""What may stop a start: each is one sentence for the operator."""


class Server:
    """One halo: built when its stores are open, running until it is told to stop.

    Resource handling: `run` owns every task; whoever calls it owns the stores.
    Error handling: `run` raises `DaemonEnded` when a daemon cannot be kept running, and nothing that a client causes.
    """

    def __init__(self, settings: Settings, db: Postgres, mirror: Mirror, lease: NodeLease, clock: Clock) -> None:
        self.stop = trio.Event()
        self.parts = Parts(settings, db, mirror, lease, clock)
        self._revocations_since = clock.now() - (settings.access_token_seconds + 60) * 1000
        """What was revoked before has no living access token any more."""
        self._taking_up = trio.Lock()
        self._regained = trio.Event()
        """The lease was lost for a moment: whose sessions are whose is asked at once."""
        self._ready = False
        self._draining = False
        self._state = State(is_ready=lambda: self._ready, is_draining=lambda: self._draining)
        self._flusher, self._reader = Flusher(), Reader()
        room, per_address = connections_affordable(), settings.connections_per_address
        self._doors = {
            "ws": self._door(room, per_address, settings.handshakes_per_s),
            "api": self._door(room, per_address, 0, unauthenticated_at_most=0),
            "admin": self._door(room, 0, 0, unauthenticated_at_most=0),
        }

    def _door(
        self,
        total: int,
        per_address: int,
        handshakes_per_s: int,
        unauthenticated_at_most: int = UNAUTHENTICATED_AT_MOST,
    ) -> Door:
        gate = Gate(
            self.parts.clock,
            total_at_most=total,
            per_address_at_most=per_address,
            handshakes_per_s=handshakes_per_s,
            unauthenticated_at_most=unauthenticated_at_most,
        )
        return Door(gate, self._flusher)

    async def run(
        self, announce: Callable[[dict[str, str]], None], invite: Callable[[str], None] | None = None
    ) -> None:
        """Serve until `stop` is set, then drain.

        `announce` is called once, with the listeners' addresses; `invite` before that, with the link by which the first operator
        comes in, while nobody has signed in to the status page.
        """
        parts = self.parts
        async with trio.open_nursery() as daemons, trio.open_nursery() as actors, trio.open_nursery() as watched:
            registry = Registry(actors, parts.actor_ports(), parts.sessions)
            pairings = PairingDesk(actors, parts.pairing_ports(registry))
            parts.outside.start_search = pairings.search_opened
            history = parts.history(registry)
            desk = parts.desk(registry, pairings, self._doors, self._state, parts.insight(registry, history))
            await self._start_daemons(daemons, registry)
            watched_stop = (
                trio.Event()
            )  # the admin listener opens first and closes last: it says "starting" and "draining"
            addresses = {"admin": await self._serve_http(watched, "admin", create_admin(desk), watched_stop)}
            announce = await self._admit_first_operator(addresses["admin"], announce, invite)
            await self._restore(registry, pairings)
            self._start_background(daemons, registry, pairings, history)
            async with trio.open_nursery() as conversations:
                api = create_api(desk)
                doorkeeper = parts.doorkeeper(registry, pairings, self._state, self._reader)
                await self._listen(conversations, api, doorkeeper, registry, addresses, announce)
                conversations.cancel_scope.cancel()
            watched_stop.set()
            actors.cancel_scope.cancel()
            daemons.cancel_scope.cancel()

    async def _admit_first_operator(
        self, admin_url: str, announce: Callable[[dict[str, str]], None], invite: Callable[[str], None] | None
    ) -> Callable[[dict[str, str]], None]:
        """`announce`, with the invitation before it where there is one: a start that fails invites nobody."""
        links = invite is not None
        link_token = await admit_first(self.parts.operator_accounts, Passwords(), self.parts.settings, links=links)
        if link_token is None or invite is None:
            return announce
        link = link_of(admin_url, link_token)

        def invite_and_announce(addresses: dict[str, str]) -> None:
            invite(link)
            announce(addresses)

        return invite_and_announce

    # ---- daemons

    async def _start_daemons(self, nursery: trio.Nursery, registry: Registry) -> None:
        """What must run before the first session is restored."""
        await nursery.start(self._flusher.serve, name="daemon flusher")
        await nursery.start(self._reader.serve, name="daemon reader")
        await nursery.start(
            self.parts.lease.serve,
            registry.credit_downtime,
            registry.owes_downtime,
            self._look_at_once,
            name="daemon lease",
        )
        await nursery.start(self.parts.connections.serve, name="daemon keepalive")
        journal = partial(keep, self.parts.journal.serve, "journal", DAEMON_BUDGET, self.parts.upkeeps)
        nursery.start_soon(journal, name="daemon journal")

    def _start_background(
        self, nursery: trio.Nursery, registry: Registry, pairings: PairingDesk, history: History
    ) -> None:
        """What heals, mirrors and cleans beside the sessions; the mirror is seeded once they are restored (S35)."""
        parts = self.parts
        chores = {
            "auth_sessions": parts.auth_sessions.delete_ended,
            "idempotency_keys": parts.idempotency.delete_old,
            "operator_sessions": parts.operator_sessions.delete_ended,
            "sign_in_tries": parts.sign_in_tries.delete_old,
        }
        deactivations = Deactivations(
            registry, pairings, parts.sessions, parts.mitras, close_sockets=self._look_for_revocations
        )
        background: dict[str, Callable[[], Awaitable[object]]] = {
            "beacon": parts.beacon.serve,
            "mirror": parts.mirror.serve,
            "capacities": parts.capacities.serve,
            "configuration": parts.configuration.serve,
            "deactivations": deactivations.serve,
            "readings": partial(
                parts.readings.serve, lambda search: pairings.payment_settled(search.payment_request_id)
            ),
            "reroutes": parts.reroutes(registry).serve,
            "outbox": self._send_outbox,
            "history": history.serve,
            "housekeeping": partial(keep_house, parts.db, parts.clock, chores),
            "revocations": self._heed_revocations,
            "take-up": partial(self._take_up_orphans, registry, pairings),
            "watchdog": parts.watchdog(registry, partial(self._take_up, registry, pairings)).serve,
        }
        background.update({f"sweep {sweep.report.name}": sweep.serve for sweep in parts.sweeps})
        for name, daemon in background.items():
            nursery.start_soon(partial(keep, daemon, name, DAEMON_BUDGET, parts.upkeeps), name=f"daemon {name}")

    async def _restore(self, registry: Registry, pairings: PairingDesk) -> None:
        """Configuration, revocations, sessions with their timers, searches (S33–S34)."""
        await self.parts.configuration.load()
        await self._look_for_revocations()
        await self.parts.lease.list_newly_dead()  # the seed that follows knows all that they have committed
        restored = await registry.restore()
        log.info("restored", sessions=restored, searches=await pairings.restore())

    async def _take_up_orphans(self, registry: Registry, pairings: PairingDesk) -> NoReturn:
        """Sessions and searches of dead nodes, and of this one, when its lease was away; what the dead left wrong in the mirror (A1)."""
        reseed_due = False
        while True:
            with contextlib.suppress(StoreUnavailable):  # tried again in five seconds
                await self._take_up(registry, pairings)
                if dead := await self.parts.lease.list_newly_dead():
                    log.info("nodes_found_dead", nodes=dead)
                    reseed_due = True
            if reseed_due:
                reseed_due = (await self.parts.reseed.run()).error is not None
            with trio.move_on_after(TAKE_UP_SECONDS):
                await self._regained.wait()
            self._regained = trio.Event()

    def _look_at_once(self) -> None:
        self._regained.set()

    async def _take_up(self, registry: Registry, pairings: PairingDesk) -> tuple[int, int]:
        """How many sessions and searches were taken; one at a time, or the second would take the first one's catch for strays."""
        async with self._taking_up:
            return (0, 0) if self._draining else (await registry.restore(), await pairings.restore())

    async def _send_outbox(self) -> NoReturn:
        """Pushes to phones, refunds to the payment provider."""
        tls = self.parts.outgoing_tls
        async with open_outgoing(tls) as to_google, open_outgoing(tls) as to_provider:
            await self.parts.outbox_sender(to_google, to_provider).serve()

    async def _heed_revocations(self) -> NoReturn:
        """Whatever node revoked a token family: its tokens are refused here, and its sockets close."""
        while True:
            await trio.sleep(REVOCATIONS_SECONDS)
            with contextlib.suppress(StoreUnavailable):  # what was revoked meanwhile is found by the next look
                await self._look_for_revocations()

    async def _look_for_revocations(self) -> None:
        parts = self.parts
        asked_at = parts.clock.now()
        for revoked in await parts.auth_sessions.list_recently_revoked(self._revocations_since):
            parts.tokens.revocations.add(revoked.auth_session_id, revoked.because.refusal, revoked.revoked_at)
            code = CLOSE_DEACTIVATED if revoked.because is RevokedBecause.DEACTIVATED else CLOSE_UNAUTHENTICATED
            parts.connections.close_auth_session(revoked.auth_session_id, code)
        self._revocations_since = asked_at - REVOCATIONS_OVERLAP_MS

    # ---- listeners

    async def _listen(
        self,
        conversations: trio.Nursery,
        api: QuartTrio,
        doorkeeper: Doorkeeper,
        registry: Registry,
        addresses: dict[str, str],
        announce: Callable[[dict[str, str]], None],
    ) -> None:
        settings = self.parts.settings
        listener = await open_listener(str(settings.ws_bind), loopback_only=False, setting="HALO_WS_BIND")
        accept = partial(
            serve_guarded, [listener], doorkeeper.converse, door=self._doors["ws"], connections=conversations
        )
        api_stop = trio.Event()
        async with trio.open_nursery() as listeners, trio.open_nursery() as accepting:
            [address] = await accepting.start(accept, name="listener ws")
            addresses["ws"] = f"ws://{address}"
            addresses["api"] = await self._serve_http(listeners, "api", api, api_stop)
            self._ready = True
            announce(addresses)
            await self.stop.wait()
            with trio.move_on_after(settings.drain_seconds):
                await self._drain(registry)
            api_stop.set()
            accepting.cancel_scope.cancel()

    async def _serve_http(self, nursery: trio.Nursery, name: str, app: QuartTrio, stop: trio.Event) -> str:
        """Start serving `app` until `stop`; returns its address."""
        settings = self.parts.settings
        public = name == "api"
        bind = settings.api_bind if public else settings.admin_bind
        listener = await open_listener(
            str(bind), loopback_only=not public, setting="HALO_API_BIND" if public else "HALO_ADMIN_BIND"
        )
        serve_app = partial(serve_http, app, [listener], stop=stop, door=self._doors[name])
        [address] = await nursery.start(serve_app, name=f"listener {name}")
        return f"http://{address}"

    async def _drain(self, registry: Registry) -> None:
        """Let every actor finish what it has in hand, then send everybody away with a time to return; meanwhile all else is refused."""
        connections = self.parts.connections
        log.info("draining", sessions=len(registry), sockets=len(connections))
        self._draining = True
        with trio.move_on_after(
            self.parts.settings.drain_seconds / 2
        ):  # everybody is told when to return, also when one actor hangs
            await registry.drain()
        await connections.send_all_away(0, RECONNECT_SPREAD_MS, "draining")
        await connections.wait_empty()


@asynccontextmanager
async def open_server(
    settings: Settings, clock: Clock | None = None
) -> AsyncIterator[tuple[Server, Mapping[str, str]]]:
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


async def collect_often() -> NoReturn:
    """A little garbage collection at a time, so that there is never much."""
    tidying = Tidying()
    while True:
        await trio.sleep(LOOK_SECONDS)
        tidying.look()


async def serve(settings: Settings, announce: Callable[[dict[str, Any]], None], invite: Callable[[str], None]) -> None:
    """`halo serve`: until SIGTERM or SIGINT. What `announce` and `invite` are for, `Server.run` says."""
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async with open_server(settings) as (server, origins), trio.open_nursery() as nursery:

            async def stop_on_signal() -> None:
                async for number in signals:
                    log.info("stopping", signal=signal.Signals(number).name)
                    server.stop.set()

            def ready(addresses: Mapping[str, str]) -> None:
                spare_the_old()
                announce({"event": "ready", **addresses, "pid": os.getpid(), **origins})

            nursery.start_soon(stop_on_signal, name="signals")
            nursery.start_soon(collect_often, name="garbage collection")
            await server.run(ready, invite)
            nursery.cancel_scope.cancel()
