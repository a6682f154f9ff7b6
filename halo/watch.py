"""What the watchdog watches: each thing that must hold by its name, what its breach means for people, and what mends it.

One table, `WATCHES`. What names an invariant is asked of Postgres (`halo/store/invariants.sql`), the others are what only the node
itself, the mirror or the queues know. Money, ledger, time and numbering are never mended by a machine: what is wrong there needs a
person, and a repair would wipe the trace. Pure: moments and findings are handed in. Which invariants no watch can see, and what
proves those, says `docs/decisions/0027-watch-what-rows-can-show.md`. Read next: `halo/actors/watchdog.py`, which goes its rounds.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final, Literal

from halo.clock import Moment
from halo.histogram import Histogram

SUBJECTS_AT_MOST: Final = 20
"""Named in one alarm, and mended in one round: enough to look into, and no storm of repairs when something is wrong at large. The next
round goes on behind them (`next_batch`)."""
LAG_BOUNDS_SECONDS: Final = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
"""Around the two that matter: 20 ms is the goal for a pause under load, 1 s the alarm."""


class Repair(StrEnum):
    """What the watchdog may do; the value is the action in `operator_actions`, where the operator is `watchdog`."""

    TAKE_UP = "take_up"
    """The node takes up sessions without a living owner, with their downtime credited; the credit is on the timeline."""
    NUDGE = "nudge"
    """The session's actor looks at what is due; what it then does is on the timeline."""
    REVIVE = "revive"
    """A parked actor gets one more attempt from its row, with a fresh budget; the credited pause is on the timeline."""
    RESTORE_SEARCHES = "restore_searches"
    REOPEN_SEARCH = "reopen_search"
    CLOSE_SEARCH = "close_search"
    CANCEL_EXTENSION = "cancel_extension"
    """With its payment failed and a refund due; a session that lives has it on its timeline."""
    FAIL_PAYMENT = "fail_payment"
    """As the end of its session should have done, with a refund due if its money had come."""
    ADD_REFUND = "add_refund"
    REFRESH_CAPACITY = "refresh_capacity"
    RESEED_MIRROR = "reseed_mirror"
    """The mirror is built anew from Postgres, as every five minutes: a write of one mitra could overtake what she does meanwhile."""


@dataclass(frozen=True, slots=True)
class Watch:
    """One thing that must hold."""

    name: str
    sentence: str
    """For people: what is broken, and what to do."""
    repairs: tuple[Repair, ...] = ()
    """Tried in this order, each on the subjects that were found; none for what only a person may set right."""
    source: Literal["invariant", "queue", "mirror", "node"] = "invariant"
    """Who finds it: a query of `halo/store/invariants.sql`, one of `halo/store/sql/queries/watchdog.sql`, the mirror beside Postgres
    (`halo/store/watched_mirror.py`), or the node itself (`halo/actors/watchdog.py`)."""


_LOOK = "Stop taking money until it is understood; `halo explain` and the operators' page show the rows."

WATCHES: Final[Mapping[str, Watch]] = {
    watch.name: watch
    for watch in (
        Watch("m1_charged_at_most_once", f"A payment was charged twice, or spent without its ledger row. {_LOOK}"),
        Watch(
            "m2_accepted_means_charged", f"An extension was granted without its charge, or charged ungranted. {_LOOK}"
        ),
        Watch("m3_payment_bound_once", f"One payment stands behind two extensions. {_LOOK}"),
        Watch("m4_amounts_agree", f"Ledger, payment and what was bought differ. {_LOOK}"),
        Watch(
            "m5_ledger_append_only",
            "The trigger that keeps the ledger append-only is gone or off: switch it on again, and find out who switched it off.",
        ),
        Watch(
            "m6_refused_means_refunded",
            "A payment failed after its money had come, and the refund that is due is missing or wrong. A missing one is written; "
            "a wrong amount or cause needs a person.",
            (Repair.ADD_REFUND,),
        ),
        Watch(
            "refunds_within_charges",
            "More is given back on a payment than was charged on it, or less than a session's time left is worth. Compare with the "
            f"payment provider before it is paid out. {_LOOK}",
        ),
        Watch(
            "m7_nothing_left_undecided",
            "A request or a payment stayed undecided past its deadline or past its session. It is decided now; if it comes back, "
            "look for errors of that session in the log.",
            (Repair.FAIL_PAYMENT, Repair.NUDGE),
        ),
        Watch("t1_time_adds_up", f"The time of a session does not add up to what was paid. {_LOOK}"),
        Watch(
            "t2_never_before_its_deadline",
            "A deadline was acted upon before its time: compare the clocks of the nodes.",
        ),
        Watch(
            "s1_history_follows_the_rules", "A session's history is no path of the rules: keep its rows for the report."
        ),
        Watch(
            "s2_one_pending_extension",
            "A request for more time waits in a session that does not, or the other way round. A stray request is cancelled and "
            "refunded; a session that waits for nothing is to be ended by an operator.",
            (Repair.CANCEL_EXTENSION,),
        ),
        Watch(
            "s3_writes_are_ordered", "Two owners wrote one session, or a step is missing: keep its rows for the report."
        ),
        Watch(
            "s4_everybody_has_an_owner",
            "A session lives and no living node keeps it. This node takes it up; if that fails, a node hangs: restart it.",
            (Repair.TAKE_UP,),
        ),
        Watch(
            "s5_deadlines_fire",
            "A session is past its deadline and nothing happened. Its actor is nudged; if that does not help, restart its node.",
            (Repair.TAKE_UP, Repair.NUDGE),
        ),
        Watch(
            "c2_seq_is_dense", "The numbers of a chat have a gap: messages are missing. Compare with the last backup."
        ),
        Watch(
            "c3_ids_are_unique",
            "The unique index of messages is gone or broken, and one message may be stored twice: rebuild the index.",
        ),
        Watch(
            "c6_nothing_after_the_end",
            "A chat has messages after its end, or without a session: keep its rows for the report.",
        ),
        Watch(
            "a5_capacity_is_kept",
            "A mitra has more sessions than room. No new one comes until some have ended; transfer one.",
        ),
        Watch("pairing_matched_once", "A search is matched without its one accepted offer, or the other way round."),
        Watch(
            "reroute_has_one_search",
            "A session waits for another mitra and nobody seeks one, or a search outlived its session. It is opened or closed now.",
            (Repair.REOPEN_SEARCH, Repair.CLOSE_SEARCH, Repair.RESTORE_SEARCHES),
        ),
        Watch(
            "search_has_a_keeper",
            "A search for a mitra goes on in the rows and no living node keeps it. This node takes it up.",
            (Repair.RESTORE_SEARCHES,),
        ),
        Watch(
            "refunds_are_delivered",
            "Refunds were given up: the payment provider refused them for a day, or for good. Read why on the page of refunds, and "
            "replay them or pay them out by hand.",
            source="queue",
        ),
        Watch(
            "refunds_have_an_address",
            "Refunds are due and HALO_REFUND_URL is not set: nobody is told. Set it, or pay them out by hand.",
            source="queue",
        ),
        Watch(
            "refunds_are_sent",
            "Refunds wait for the payment provider for more than five minutes: look at HALO_REFUND_URL and for the sender's errors "
            "in the log. They are tried for a day.",
            source="queue",
        ),
        Watch(
            "outbox_is_sent",
            "Pushes wait for more than five minutes: look for the sender's errors in the log, and at the push provider.",
            source="queue",
        ),
        Watch(
            "mirror_online_agrees",
            "Valkey says otherwise than Postgres who is online or deactivated: somebody is offered who must not be, or is not who "
            "should. It is built anew.",
            (Repair.RESEED_MIRROR,),
            source="mirror",
        ),
        Watch(
            "mirror_capacities_agree",
            "Valkey says another number of living sessions of a mitra than Postgres. It is written anew.",
            (Repair.REFRESH_CAPACITY,),
            source="mirror",
        ),
        Watch(
            "mirror_is_believed",
            "Valkey was not believed for over a minute: Postgres answers. Look at Valkey.",
            source="node",
        ),
        Watch(
            "event_loop_runs",
            "The event loop stood still for over a second: everybody waited. Look for CPU taken by others, swap, and the log.",
            source="node",
        ),
        Watch(
            "clock_agrees", "This node's clock is over 2 s from Postgres': mend time synchronisation.", source="node"
        ),
        Watch(
            "configuration_is_readable",
            "Values of the live configuration cannot be read, and others that nobody chose stand in for them: enter them anew on the "
            "page Configuration, which also says what to do with a key that this version does not know.",
            source="node",
        ),
        Watch(
            "actors_run",
            "A session is parked: its actor crashed again and again. It gets one more attempt after some minutes; read "
            "`actor_parked` in the log.",
            (Repair.REVIVE,),
            source="node",
        ),
        Watch(
            "watchdog_works",
            "The watchdog could not ask after these things or mend them, because of a fault of its own: until that is mended nobody "
            "watches them. Read `actor_parked` of the watchdog in the log.",
            source="node",
        ),
        Watch(
            "mailboxes_drain", "A session's mailbox is nearly full: it is flooded, or its commits wait.", source="node"
        ),
        Watch(
            "timers_are_on_time",
            "A deadline of a session of this node passed over 5 s ago. Its actor is nudged.",
            (Repair.NUDGE,),
            source="node",
        ),
    )
}
"""Every watch by its name; `tests/store/test_watchdog.py` holds it against `halo/store/invariants.sql`."""


def next_batch(subjects: Sequence[str], after: str) -> tuple[str, ...]:
    """Whose turn it is when the last one was `after`: each once, at most `SUBJECTS_AT_MOST`, those behind it first, then from the top.

    So what cannot be mended never stands before what can.
    """
    return tuple(sorted(set(subjects), key=lambda subject: (subject <= after, subject))[:SUBJECTS_AT_MOST])


@dataclass(frozen=True, slots=True, kw_only=True)
class Alarm:
    """A watch that found something, until a later round finds nothing."""

    name: str
    sentence: str
    since: Moment
    """The round that found it first."""
    violations: int
    """At the last round that could ask; counted up to a bound, so `at least`."""
    subjects: tuple[str, ...]
    """Ids only, at most `SUBJECTS_AT_MOST`."""


class LagHistogram(Histogram):
    """How late a task is woken that asked for nothing but the next moment, in seconds."""

    __slots__ = ("_lately", "_longest")

    def __init__(self) -> None:
        super().__init__(LAG_BOUNDS_SECONDS)
        self._longest = self._lately = 0.0

    def observe(self, value: float) -> None:
        super().observe(value)
        self._longest = max(self._longest, value)
        self._lately = max(self._lately, value)

    def take_longest(self) -> float:
        """Since the last call."""
        longest, self._longest = self._longest, 0.0
        return longest

    def take_longest_lately(self) -> float:
        """Since the last call of this one: the last hour's figures ask more often than the watchdog goes its rounds."""
        longest, self._lately = self._lately, 0.0
        return longest


@dataclass(slots=True)
class WatchReport:
    """What operators and metrics see of the watchdog of this node."""

    interval_seconds: float
    rounds: int = 0
    last_round_at: Moment | None = None
    duration_ms: int = 0
    errors: dict[str, int] = field(default_factory=dict)
    """By watch: how often it could not be asked, or its repair failed."""
    repaired: dict[Repair, int] = field(default_factory=dict)
    alarms: dict[str, Alarm] = field(default_factory=dict)
    lag: LagHistogram = field(default_factory=LagHistogram)

    def note(self, name: str, subjects: Sequence[str], at: Moment) -> Literal["raised", "cleared"] | None:
        """Take what a watch found; says whether its alarm is new or over."""
        if not subjects:
            return "cleared" if self.alarms.pop(name, None) is not None else None
        before = self.alarms.get(name)
        self.alarms[name] = Alarm(
            name=name,
            sentence=WATCHES[name].sentence,
            since=at if before is None else before.since,
            violations=len(subjects),
            subjects=tuple(dict.fromkeys(subjects))[:SUBJECTS_AT_MOST],
        )
        return "raised" if before is None else None

    def failed(self, name: str) -> None:
        self.errors[name] = self.errors.get(name, 0) + 1

    def mended(self, repair: Repair, times: int) -> None:
        if times:
            self.repaired[repair] = self.repaired.get(repair, 0) + times
