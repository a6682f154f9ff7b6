"""Whole days of bad luck in milliseconds: the actors under Trio's deterministic scheduler, with dice for everything that can go wrong.

`simulate(seed)` plays several sessions with two people each who write, retry, reconnect, ask for time, answer, cancel and end, on a
database that fails before and after its effects, is away for seconds or a minute, and on nodes that crash in the middle of anything and
are replaced. People check what they hear as they hear it; at the end the books are compared with what was promised (spec 5). The same
seed plays the same story: `scripts/simulate --seed 17`.
"""

import argparse
import json
import logging
import random
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

import trio
from trio._core import _run as trio_run
from trio.testing import MockClock

from halo.actors.commands import MitraSilent, Said, SearchOver
from halo.actors.supervisor import RestartBudget
from halo.clock import Moment
from halo.config import LiveConfig, RefusalOutcome, TimeoutAction
from halo.effects import LedgerType
from halo.errors import Refusal, StoreUnavailable
from halo.events import EndedBy
from halo.log import configure_logging
from halo.pairing import PairingStatus
from halo.payment import Payment, PaymentStatus
from halo.rules import RULES
from halo.session import EndReason, ExtensionStatus, FailureCause, Party, Session, SessionStatus, sender_of
from tests.actors.fakes import (
    AWAY,
    NO_FAULT,
    THERE,
    UNKNOWN,
    Broken,
    Chat,
    FakeDatabase,
    FakeEar,
    Fault,
    House,
    TrioClock,
)

SILENT = replace(THERE, heartbeat_fresh=False, connected=False)
CHATS = 3
HORIZON_SECONDS = 360.0
"""Until then people act and things break; after it everybody lets the sessions come to their end."""
PATIENCE_SECONDS = 7200.0
"""By then every session must have ended by itself: else a deadline was lost."""
LEASE_SECONDS = 3.0
LATE_MS = 60_000
"""How late a deadline may be acted upon, outages aside, at a store of which every fourth call fails and some crash their caller: who
crashes a dozen times in a row waits five seconds each time."""
NEVER_PARKED = RestartBudget(restarts=1_000_000)
"""A parked session waits for an operator; here nobody would come."""


class Violated(AssertionError):
    """The oracle found something that must never be."""


def require(holds: bool, what: str) -> None:  # reads as an assertion
    if not holds:
        raise Violated(what)


@dataclass
class Figures:
    """What a story consisted of, so that nobody takes an empty one for a proof."""

    counts: Counter[str] = field(default_factory=Counter)

    def __getitem__(self, name: str) -> int:
        return self.counts[name]


class Socket(FakeEar):
    """An ear that checks what it hears at the moment when it hears it (C1, C2, C4, C5, X1)."""

    def __init__(self, person: "Person", house: House) -> None:
        super().__init__(person.party, person.user_id)
        self.person = person
        self.house = house
        self.live: set[int] = set()

    def send(self, frame: bytes) -> None:
        heard = json.loads(frame)
        person = self.person
        # Until the answer to its commit has come, the present mitra is still there, and may hear who comes and goes.
        self._require(heard["type"] == "presence" or self._takes_part(), f"a stranger heard {heard['type']} (X1)")
        person.world.figures.counts[f"frame {heard['type']}"] += 1
        match heard["type"]:
            case "message":
                self._hear(heard["seq"], heard["sender"], heard["id"], heard["body"])
            case "extension_request":
                person.asked_for = heard["extension_id"]
            case "session_ended":
                self._require(not person.ended, "the end was told twice to one socket")
                person.ended = True
                status = person.world.database.session(person.chat.session_id).status
                self._require(status is SessionStatus.ENDED, "an end was told before its commit")
            case _:
                pass

    def _require(self, holds: bool, what: str) -> None:
        """In the task of an actor, whose supervisor takes what is raised for a crash: the oracle must hear of it all the same."""
        if not holds:
            self.person.world.violations.append(what)
        require(holds, what)

    def _takes_part(self) -> bool:
        session = self.person.world.database.session(self.person.chat.session_id)
        return self.user_id in {session.customer_id, session.mitra_id}

    def stored(self, client_id: str, seq: int, at: Moment) -> None:
        person = self.person
        self._require(self._takes_part(), f"{client_id} was stored in the name of another mitra (X1)")
        if person.socket is not self:
            return  # gone meanwhile: nobody is there to read it
        row, said = person.row(seq), (self.user_id, client_id)
        expected = (person.senders()[self.user_id], client_id, person.said[said])
        self._require(
            row is not None and (row.sender, row.id, row.body) == expected, f"ack {seq} is not what is stored"
        )
        self._require(person.acked.setdefault(said, seq) == seq, "one id was acknowledged with two seqs")
        self._require(seq <= person.seen_to + 1, f"ack {seq} came before something that lies before it (C4)")
        person.seen_to = max(person.seen_to, seq)

    def not_stored(self, client_id: str, refusal: Refusal) -> None:
        self.person.world.figures.counts[f"refused {refusal.code}"] += 1

    def _hear(self, seq: int, sender: str, id_: str, body: str) -> None:
        person = self.person
        row = person.row(seq)
        self._require(
            row is not None and (sender_of(row.sender), row.id, row.body) == (sender, id_, body),
            "heard what is not durable (C5)",
        )
        self._require(seq not in self.live, f"seq {seq} was heard twice on one socket (C4)")
        self._require(seq <= person.seen_to + 1, f"seq {seq} was heard before something that lies before it (C4)")
        self.live.add(seq)
        person.seen_to = max(person.seen_to, seq)


class Person:
    """One participant: what it said, what it was promised, what it has seen."""

    def __init__(self, world: "World", chat: Chat, party: Party) -> None:
        self.world = world
        self.chat = chat
        self.party = party
        self.said: dict[tuple[str, str], str] = {}
        """By who said it, for one mitra after the other plays this part, and the id, of which each counts her own from 0."""
        self.acked: dict[tuple[str, str], int] = {}
        self.seen_to = 0
        """Everything up to this `seq` was heard, acknowledged or read back."""
        self.socket: Socket | None = None
        self.asked_for: str | None = None
        self.ended = False
        self.payments: list[Payment] = []

    def row(self, seq: int) -> Any:
        rows = self.world.database.messages[self.chat.session_id]
        return rows[seq - 1] if 0 < seq <= len(rows) and rows[seq - 1].seq == seq else None

    @property
    def user_id(self) -> str:
        """Whoever plays this part now: when a session is handed on, the same person goes on as its new mitra."""
        session = self.world.database.session(self.chat.session_id)
        return session.customer_id if self.party is Party.CUSTOMER else session.mitra_id

    def senders(self) -> dict[str, str]:
        """Whom each who played this part is stored under."""
        session = self.world.database.session(self.chat.session_id)
        if self.party is Party.CUSTOMER:
            return {session.customer_id: "customer"}
        mitra_ids = (*session.former_mitra_ids, session.mitra_id)
        return {id_: "mitra" if number == 1 else f"mitra:{number}" for number, id_ in enumerate(mitra_ids, 1)}

    def _own_ids(self) -> list[str]:
        """The ids of whoever is at the socket."""
        return [id_ for user_id, id_ in self.said if self.socket is not None and user_id == self.socket.user_id]

    async def live(self) -> None:
        rng = self.world.rng
        while trio.current_time() < HORIZON_SECONDS:
            await trio.sleep(rng.expovariate(0.4))
            house = self.world.house
            if house is None:
                continue
            if not self._on_the_chat(house):
                self.connect(house)
                continue
            with trio.move_on_after(20):
                try:
                    await self._act(house)
                except Refusal as refusal:
                    self.world.figures.counts[f"refused {refusal.code}"] += 1

    def _on_the_chat(self, house: House) -> bool:
        return self.socket is not None and not self.socket.closed and self.socket.house is house

    def connect(self, house: House) -> None:
        """History first, then live, in one moment, as the real socket does it (C4)."""
        actor = house.registry.find(self.chat.session_id)
        if actor is None or actor.session.status is SessionStatus.ENDED:
            return
        if self.user_id not in {actor.session.customer_id, actor.session.mitra_id}:
            return  # handed on, and nobody here knows it yet
        self.leave()
        self.socket = Socket(self, house)
        view = actor.join(self.socket)
        self.ended = False
        self.seen_to = max(self.seen_to, view.last_seq)
        require(
            view.last_seq <= len(self.world.database.messages[self.chat.session_id]), "a view counts what is not stored"
        )
        if view.session.extension is not None:
            self.asked_for = view.session.extension.extension_id

    def leave(self) -> None:
        socket, self.socket = self.socket, None
        if socket is not None and socket.house is self.world.house:
            actor = socket.house.registry.find(self.chat.session_id)
            if actor is not None and socket in actor.audience._ears:
                actor.audience.leave(socket)

    async def _act(self, house: House) -> None:
        rng, registry, session_id = self.world.rng, house.registry, self.chat.session_id
        actor = registry.find(session_id)
        assert self.socket is not None
        if actor is None:
            return
        action = rng.choices(
            ("say", "retry", "reconnect", "ask", "answer", "cancel", "end", "lose"),
            weights=(50, 15, 6, 12, 12, 3, 0.6, 1.2),
        )[0]
        self.world.figures.counts[f"action {action}"] += 1
        match action:
            case "say":
                for _ in range(rng.randint(1, 3)):
                    user_id, number = self.socket.user_id, len(self._own_ids())
                    body = f"body {number}" if number % 2 else f"body {number} of {user_id}"
                    self.said[user_id, str(number)] = body
                    actor.hand_in(Said(self.socket, str(number), body))
            case "retry" if own_ids := self._own_ids():
                id_ = rng.choice(own_ids)
                actor.hand_in(Said(self.socket, id_, self.said[self.socket.user_id, id_]))
            case "reconnect":
                self.leave()
            case "ask" if self.party is Party.CUSTOMER:
                payment = self._pay(rng)
                await registry.request_extension(
                    session_id,
                    customer_id=self.user_id,
                    duration_minutes=payment.duration_minutes,
                    price=payment.amount,
                    payment_request_id=payment.payment_request_id,
                )
            case "answer" if self.party is Party.MITRA and self.asked_for:
                accepted = rng.random() < 0.6
                await registry.respond_extension(session_id, self.asked_for, mitra_id=self.user_id, accepted=accepted)
            case "cancel" if self.party is Party.CUSTOMER:
                pending = actor.session.extension
                if pending is not None:
                    await registry.cancel_extension(session_id, pending.extension_id, customer_id=self.user_id)
            case "end":
                by = rng.choice([EndedBy(self.party.value), EndedBy.ADMIN, EndedBy.DEACTIVATION])
                await registry.end(session_id, by, user_id=self.user_id if by.value == self.party.value else None)
            case "lose":
                await self._lose_mitra(house)
            case _:
                pass  # not this person's to do, or nothing to do it with

    async def _lose_mitra(self, house: House) -> None:
        if self.world.rng.random() < 0.5:
            await house.registry.transfer(self.chat.session_id)
            return
        seen, house.facts.seen = house.facts.seen, SILENT
        house.registry.saw(self.chat.session_id, MitraSilent(since=self.world.clock.now() - 120_000))
        await trio.sleep(1)
        house.facts.seen = seen

    def _pay(self, rng: random.Random) -> Payment:
        """A new payment, an old one again, or one that does not fit."""
        if self.payments and rng.random() < 0.3:
            return rng.choice(self.payments)
        minutes = rng.randint(1, 2)
        of_session = self.chat.session_id if rng.random() < 0.5 else None
        status = PaymentStatus.CONFIRMED if rng.random() < 0.9 else PaymentStatus.PENDING
        payment = self.world.database.add_payment(
            self.user_id, status, amount=minutes * 1000, duration_minutes=minutes, session_id=of_session
        )
        if of_session is not None and self.world.database.session(self.chat.session_id).status is SessionStatus.ENDED:
            del self.world.database.tables.payments[
                payment.payment_request_id
            ]  # the real store refuses to sell it (M7)
        elif rng.random() < 0.1:
            return replace(payment, amount=payment.amount - 1)
        else:
            self.payments.append(payment)
        return payment


class World:
    """One story."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.database = FakeDatabase()
        self.clock = TrioClock()
        self.figures = Figures()
        self.house: House | None = None
        self.people: list[Person] = []
        self.trace: list[tuple[int, str]] = []
        """When each call of a node was made: what the same seed must play again."""
        self.fault_rate = self.rng.choice([0.0, 0.02, 0.1, 0.25])
        self.crashes = self.rng.choice([True, True, False])
        self.away_since: Moment | None = None
        self.violations: list[str] = []
        """What somebody heard, or was told, and should not have been."""
        self.outages: list[tuple[Moment, Moment]] = []
        """When nobody kept the clocks."""
        self._down_since: Moment = 0
        self.config = LiveConfig(
            extension_timeout_seconds=self.rng.choice([5, 20]),
            extension_default_action_on_timeout=self.rng.choice(list(TimeoutAction)),
            extension_refusal=self.rng.choice([RefusalOutcome.RESUME, RefusalOutcome.RESUME, RefusalOutcome.CLOSE]),
            closure_grace_seconds=self.rng.choice([5, 30]),
            payment_hold_seconds=30,
            reconnect_grace_seconds=self.rng.choice([0, 10]),
        )

    async def run(self) -> Figures:
        async with trio.open_nursery() as nursery:
            await nursery.start(self._run_house)
            for _ in range(CHATS):
                await self._open_chat(nursery)
            nursery.start_soon(self._break_things, nursery)
            nursery.start_soon(self._search)
            await trio.sleep(HORIZON_SECONDS)
            await self._heal(nursery)
            await self._await_the_end()
            nursery.cancel_scope.cancel()
        Oracle(self).check()
        self.figures.counts["calls"] = len(self.trace)
        return self.figures

    # ---- nodes

    async def _run_house(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        async with trio.open_nursery() as nursery:
            house = House(nursery, self.database, self.config, NEVER_PARKED)
            house.node.dice = self._throw
            with_faults = True
            while True:
                try:
                    await house.registry.restore()
                except StoreUnavailable:
                    await trio.sleep(0.5)
                    continue
                if with_faults:
                    self.house, with_faults = house, False
                    task_status.started()
                await trio.sleep(5)

    def _throw(self, method: str) -> Fault:
        """What befalls one call of the node's."""
        rng = self.rng
        self.trace.append((self.clock.now(), method))
        if self.away_since is not None:
            return Fault(before=StoreUnavailable, delay_seconds=rng.choice([0.0, 0.1, 1.0]))
        if rng.random() >= self.fault_rate:
            return Fault(delay_seconds=rng.choice([0.0, 0.0, 0.003, 0.05])) if rng.random() < 0.5 else NO_FAULT
        self.figures.counts["faults"] += 1
        rare = (
            [Fault(before=Broken), Fault(after=Broken)]
            if method in {"commit", "append", "reachability", "find_message"}
            else []
        )
        return rng.choice(
            [AWAY, UNKNOWN, UNKNOWN, Fault(delay_seconds=2.0), Fault(after=StoreUnavailable, delay_seconds=0.5), *rare]
        )

    def _crash(self) -> None:
        house = self.house
        assert house is not None
        self.house = None
        self.figures.counts["crashes"] += 1
        house.crash()
        if self.away_since is not None:
            house.node.alive_at = self.away_since  # its last beat
        self._down_since = house.node.alive_at

    async def _start_again(self, nursery: trio.Nursery) -> None:
        self.outages.append(
            (self._down_since, self.clock.now())
        )  # at the latest: from here on some are kept, one after another
        await nursery.start(self._run_house)

    # ---- what goes wrong

    async def _break_things(self, nursery: trio.Nursery) -> None:
        rng = self.rng
        while trio.current_time() < HORIZON_SECONDS - 100:
            await trio.sleep(rng.uniform(15, 120))
            match rng.choice(["crash", "crash", "away", "drain", "seen"]):
                case "crash" if self.crashes:
                    self._crash()
                    await trio.sleep(rng.choice([0.01, 1.0, 20.0, 60.0]))
                    await self._start_again(nursery)
                case "away":
                    await self._store_away(rng.choice([1.0, 5.0, 40.0]))
                case "drain" if self.crashes:
                    house = self.house
                    assert house is not None
                    self.figures.counts["drains"] += 1
                    with trio.move_on_after(20):
                        await house.registry.drain()
                    self._crash()
                    await trio.sleep(rng.choice([0.5, 3.0]))
                    await self._start_again(nursery)
                case "seen":
                    assert self.house is not None
                    self.house.facts.seen = rng.choice([THERE, replace(THERE, connected=False)])
                case _:
                    pass

    async def _store_away(self, seconds: float) -> None:
        house = self.house
        assert house is not None
        self.figures.counts["outages"] += 1
        since = self.away_since = self.clock.now()
        with_lease = min(seconds, LEASE_SECONDS)
        await trio.sleep(with_lease)
        house.lease.kept = seconds <= LEASE_SECONDS
        await trio.sleep(seconds - with_lease)
        self.away_since = None
        if not house.lease.kept:
            self.outages.append((since, self.clock.now()))
            house.registry.credit_downtime(since, self.clock.now())
            house.lease.kept = True
        await trio.sleep(10)  # a node that dies before it could credit its own gap is a fault on a fault

    # ---- searches for another mitra

    async def _search(self) -> None:
        """Ask some, hear from some of them, give up some."""
        rng = self.rng
        while True:
            await trio.sleep(rng.uniform(1, 15))
            searching = [s for s in self.database.tables.searches.values() if s.status is PairingStatus.SEARCHING]
            if self.house is None or not searching:
                continue
            search = rng.choice(searching)
            if rng.random() < 0.2:
                self.database.fail_search(search.pairing_id, FailureCause.ALL_DECLINED)
            offers = [self.database.add_offer(search.rerouted_session_id) for _ in range(rng.randint(1, 3))]
            async with trio.open_nursery() as nursery:
                for offer in offers:
                    nursery.start_soon(self._accept, self.house, search.rerouted_session_id, *offer)
            for failed in self.database.tables.searches.values():
                if failed.cause is not None and self.house is not None:
                    over = SearchOver(pairing_id=failed.pairing_id, cause=FailureCause(failed.cause))
                    self.house.registry.saw(failed.rerouted_session_id, over)

    async def _accept(self, house: House, session_id: str, mitra_id: str, pairing_id: str, offer_id: str) -> None:
        self.figures.counts["accepts"] += 1
        with trio.move_on_after(20):
            try:
                await house.registry.assign(session_id, mitra_id=mitra_id, pairing_id=pairing_id, offer_id=offer_id)
            except Refusal as refusal:
                self.figures.counts[f"refused {refusal.code}"] += 1

    # ---- people

    async def _open_chat(self, nursery: trio.Nursery) -> None:
        confirmed = self.rng.random() < 0.7
        while self.house is None:
            await trio.sleep(1)
        chat = await self.house.opens(minutes=self.rng.randint(1, 4), confirmed=confirmed)
        actor = chat.actor
        actor.audience.leave(chat.customer)
        actor.audience.leave(chat.mitra)
        for party in Party:
            person = Person(self, chat, party)
            self.people.append(person)
            nursery.start_soon(person.live)
        if not confirmed:
            nursery.start_soon(self._settle, chat)

    async def _settle(self, chat: Chat) -> None:
        await trio.sleep(self.rng.uniform(0, 50))
        self.database.settle(
            chat.payment.payment_request_id, self.rng.choice([PaymentStatus.CONFIRMED, PaymentStatus.FAILED])
        )
        if self.house is not None and self.rng.random() < 0.8:
            await self.house.registry.payment_settled(chat.session_id)

    # ---- the end

    async def _heal(self, nursery: trio.Nursery) -> None:
        while self.house is None or self.away_since is not None or not self.house.lease.kept:
            await trio.sleep(1)
        self.fault_rate = 0.0
        for person in self.people:
            person.connect(self.house)

    async def _await_the_end(self) -> None:
        with trio.move_on_after(PATIENCE_SECONDS):
            while any(row.session.status is not SessionStatus.ENDED for row in self.database.tables.sessions.values()):
                await trio.sleep(10)
            await trio.sleep(10)
            return
        living = [row.session.status for row in self.database.tables.sessions.values()]
        raise Violated(f"a deadline was lost: {living}")


class Oracle:
    """What was promised against what is there (M1 to M7, T1 to T3, S1, S3, C1 to C6)."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._database = world.database

    def check(self) -> None:
        require(not self._world.violations, str(self._world.violations[:1]))
        for person in self._world.people:
            self._check_promises(person)
        for row in self._database.tables.sessions.values():
            self._check_messages(row.session)
            self._check_history(row.session)
            self._check_time(row.session)
            self._check_money(row.session)
            self._check_searches(row.session)

    def _check_promises(self, person: Person) -> None:
        rows = self._database.messages[person.chat.session_id]
        stored = Counter((row.sender, row.id) for row in rows)
        require(max(stored.values(), default=1) == 1, "a message was stored twice (C3)")
        senders = person.senders()
        for (user_id, client_id), seq in person.acked.items():
            require(stored[senders[user_id], client_id] == 1, f"acknowledged, but not stored: {client_id} (C1)")
            row = person.row(seq)
            require(row is not None and row.id == client_id, "acknowledged with another seq than stored")
        for user_id, sender in senders.items():
            for row in rows:
                if row.sender == sender:
                    require(person.said[user_id, row.id] == row.body, "stored what was not said")

    def _check_messages(self, session: Session) -> None:
        rows = self._database.messages[session.session_id]
        require([row.seq for row in rows] == list(range(1, len(rows) + 1)), "seq is not dense (C2)")
        ended_at = max(e.at for (id_, _), e in self._database.tables.timeline.items() if id_ == session.session_id)
        require(all(row.at <= ended_at for row in rows), "a message was accepted after the end (C6)")

    def _entries(self, session: Session) -> list[Any]:
        found = [
            (version, e) for (id_, version), e in self._database.tables.timeline.items() if id_ == session.session_id
        ]
        return [entry for _, entry in sorted(found, key=lambda pair: pair[0])]

    def _check_history(self, session: Session) -> None:
        entries = self._entries(session)
        require([e.version for e in entries] == list(range(1, len(entries) + 1)), "versions are not dense (S3)")
        require(all(a.epoch <= b.epoch for a, b in pairwise(entries)), "epochs go back (S3)")
        for before, after in pairwise(entries):
            require(before.to_status == after.from_status, "the history has a gap (S1)")
            leads_to = {status for rule in RULES[SessionStatus(before.to_status)].values() for status in rule.leads_to}
            require(
                SessionStatus(after.to_status) in leads_to, f"{before.to_status} to {after.to_status} is no rule (S1)"
            )

    def _check_time(self, session: Session) -> None:
        accounts = session.served_ms + session.refunded_ms + session.forfeited_ms + session.remaining_ms
        require(session.paid_ms == accounts, "the accounts do not add up (T1)")
        require(session.remaining_ms == 0, "an ended session has time left")
        kept_ms = 0
        entries = self._entries(session)
        for before, after in pairwise(entries):
            if before.to_status == SessionStatus.ACTIVE.value:
                kept_ms += after.at - before.at - self._away_ms(before.at, after.at)
        for entry in entries:
            late_ms = entry.late_ms - self._away_ms(entry.at - entry.late_ms, entry.at)
            require(late_ms < LATE_MS, f"a deadline was acted upon {late_ms} ms late (M7, S5)")
        require(session.served_ms <= kept_ms + 5, f"served {session.served_ms} ms in {kept_ms} ms of kept time (T3)")
        if session.end_reason is EndReason.COMPLETED and self._world.config.extension_refusal is RefusalOutcome.RESUME:
            require(session.served_ms == session.paid_ms, "completed before all was served (T2)")

    def _away_ms(self, start: Moment, end: Moment) -> int:
        """How much of the interval lies in outages; they may overlap."""
        away_ms, covered = 0, start
        for since, until in sorted(self._world.outages):
            since, until = max(since, covered), min(until, end)  # noqa: PLW2901
            if until > since:
                away_ms += until - since
                covered = until
        return away_ms

    def _check_searches(self, session: Session) -> None:
        searches = [s for s in self._database.tables.searches.values() if s.rerouted_session_id == session.session_id]
        entries = self._entries(session)
        lost = [entry for entry in entries if entry.event == "mitra_lost"]
        assigned = [entry for entry in entries if entry.event == "mitra_assigned"]
        require(len(searches) == len(lost), "not one search for each mitra that was lost (M7)")
        require(all(s.status is not PairingStatus.SEARCHING for s in searches), "a search outlived its session (M7)")
        matched = [s for s in searches if s.status is PairingStatus.MATCHED]
        require(len(matched) == len(assigned), "a search was won without its session, or the other way round")
        self._world.figures.counts["reroutes"] += len(lost)
        self._world.figures.counts["takeovers"] += len(assigned)
        if session.end_reason is EndReason.NO_MITRA:
            self._world.figures.counts["nobody found"] += 1
            time_left = (row for (_, kind), row in self._database.tables.refunds.items() if kind == "time_left")
            refunded_ms = sum(row.refunded_ms for row in time_left if row.session_id == session.session_id)
            require(refunded_ms == session.refunded_ms, "time left, and no refund of it (T1)")

    def _check_money(self, session: Session) -> None:
        tables = self._database.tables
        ledger = {id_: row for id_, row in tables.ledger.items() if row.session_id == session.session_id}
        require(
            sum(row.amount for row in ledger.values()) == session.paid_amount, "paid_amount is not the ledger's (M4)"
        )
        require(
            sum(row.duration_minutes for row in ledger.values()) * session.minute_ms == session.paid_ms, "minutes (M4)"
        )
        for id_, row in ledger.items():
            payment = tables.payments[id_]
            require(payment.status is PaymentStatus.CONSUMED, "charged, but not consumed (M1)")
            require((payment.amount, payment.duration_minutes) == (row.amount, row.duration_minutes), "the sum (M4)")
            given_back = sum(back.amount for (of, _), back in tables.refunds.items() if of == id_)
            require(given_back <= row.amount, "more was given back than was charged")
        accepted = 0
        for extension, decided_by in tables.extensions.values():
            if extension.session_id != session.session_id:
                continue
            payment = tables.payments[extension.payment_request_id]
            require(decided_by is not None, "an extension was left undecided (M7)")
            match extension.status:
                case ExtensionStatus.ACCEPTED:
                    accepted += 1
                    require(
                        ledger[extension.payment_request_id].type is LedgerType.EXTENSION, "accepted, not charged (M2)"
                    )
                    require(payment.amount == extension.price, "the price (M4)")
                case ExtensionStatus.REJECTED | ExtensionStatus.TIMEOUT:
                    require(extension.payment_request_id not in ledger, "refused and charged (M6)")
                    require((payment.payment_request_id, "payment_failed") in tables.refunds, "refused, no refund (M6)")
                case _:
                    pass
        of_extensions = [row for row in ledger.values() if row.type is LedgerType.EXTENSION]
        require(len(of_extensions) == accepted == session.extensions_accepted, "charges and acceptances differ (M2)")
        loose = [
            p
            for p in tables.payments.values()
            if p.session_id == session.session_id and p.status is PaymentStatus.CONFIRMED
        ]
        require(not loose, "confirmed money without an outcome (M7)")


# ---- running


@contextmanager
def deterministic(seed: int) -> Iterator[None]:
    """Trio's scheduler with dice of its own, and no log: a thousand imagined crashes are nobody's night."""
    before = trio_run._ALLOW_DETERMINISTIC_SCHEDULING
    setattr(trio_run, "_ALLOW_DETERMINISTIC_SCHEDULING", True)  # noqa: B010  # declared Final, and meant for this
    trio_run._r.seed(seed)
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        setattr(trio_run, "_ALLOW_DETERMINISTIC_SCHEDULING", before)  # noqa: B010
        logging.disable(logging.NOTSET)


def simulate(seed: int) -> Figures:
    """One story; what goes wrong in it is raised with the command that plays it again."""
    with deterministic(seed):
        try:
            figures: Figures = trio.run(World(seed).run, clock=MockClock(autojump_threshold=0))
        except BaseException as fault:
            fault.add_note(f"seed {seed}; again: scripts/simulate --seed {seed}")
            raise
    return figures


def run(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="scripts/simulate", description="Play stories of bad luck against the actors."
    )
    parser.add_argument("--seeds", type=int, default=1_000, metavar="N", help="how many stories (1000)")
    parser.add_argument("--first", type=int, default=0, metavar="S", help="the first seed (0)")
    parser.add_argument("--seed", type=int, default=None, metavar="S", help="only this one")
    options = parser.parse_args(arguments)
    seeds = range(options.first, options.first + options.seeds) if options.seed is None else [options.seed]
    total: Counter[str] = Counter()
    began = told = time.monotonic()
    for played, seed in enumerate(seeds, start=1):
        total += simulate(seed).counts
        if time.monotonic() - told > 5:
            told = time.monotonic()
            sys.stderr.write(f"{played} of {len(seeds)} stories, {told - began:.0f} s\n")
    sys.stdout.write(f"{len(seeds)} stories in {time.monotonic() - began:.1f} s, everything held; in them:\n")
    for name, count in sorted(total.items()):
        sys.stdout.write(f"  {name:<32} {count}\n")
    return 0


if __name__ == "__main__":
    configure_logging("critical", "console")
    sys.exit(run())
