"""What the conductor and a worker say to one another: one JSON object a line, over the worker's standard input and output. PURE.

Tokens travel here and nowhere else: not in arguments, not in the environment, which other users can read. It must never carry the keys of
the deployment, which only the conductor needs. Read next: `halo/load/worker.py` and `halo/load/crew.py`.
"""

from typing import TypeAlias

import msgspec

from halo.load.plan import Plan


class Person(msgspec.Struct, frozen=True):
    """Somebody made up, with a token."""

    user_id: str
    token: str


class Seat(msgspec.Struct, frozen=True):
    """A living session of two made-up people."""

    session_id: str
    customer: Person
    mitra: Person
    last_seq: int = 0
    payment_id: str = ""
    """A confirmed payment for more time, where a scenario wants one."""
    price: int = 0
    minutes: int = 0


class Orders(msgspec.Struct, frozen=True, tag="orders", tag_field="type"):
    """The first line to a worker: everything it needs."""

    plan: Plan
    number: int
    """Which of the workers this is, from 0."""
    ws: str
    api: str
    tag: str
    """Begins every id of this run."""
    seats: tuple[Seat, ...] = ()
    mitras: tuple[Person, ...] = ()
    customers: tuple[Seat, ...] = ()
    """Who have paid and have no session yet."""
    verify_tls: bool = True
    is_throw_away: bool = False
    """Whether that halo ends with the run, so that nobody needs to be sent home."""


class Go(msgspec.Struct, frozen=True, tag="go", tag_field="type"):
    """Begin at this moment of the machine's monotonic clock."""

    at: float


class Cut(msgspec.Struct, frozen=True, tag="cut", tag_field="type"):
    """Close every socket now, without a goodbye."""


class Away(msgspec.Struct, frozen=True, tag="away", tag_field="type"):
    """The server is about to be killed: until `Moved` comes, nobody need try to come back."""


class Moved(msgspec.Struct, frozen=True, tag="moved", tag_field="type"):
    """The server is back, here."""

    ws: str
    api: str


class Stop(msgspec.Struct, frozen=True, tag="stop", tag_field="type"):
    """Say no more: settle, check and tell what there is."""


Order: TypeAlias = Orders | Go | Cut | Away | Moved | Stop


class Second(msgspec.Struct, frozen=True, tag="second", tag_field="type"):
    """About a second of one worker."""

    at: float
    counts: dict[str, int] = {}
    histograms: dict[str, str] = {}


class Doing(msgspec.Struct, frozen=True, tag="doing", tag_field="type"):
    """A step towards the result."""

    what: str
    done: int = 0
    of: int = 0


class Ready(msgspec.Struct, frozen=True, tag="ready", tag_field="type"):
    """Everybody of this worker is there."""


class Settled(msgspec.Struct, frozen=True, tag="settled", tag_field="type"):
    """Everything that was played is answered, or given up; what follows is checking."""


class Told(msgspec.Struct, frozen=True, kw_only=True, tag="told", tag_field="type"):
    """The last line of a worker."""

    counts: dict[str, int]
    histograms: dict[str, str]
    findings: dict[str, int]
    examples: dict[str, list[str]]
    cpu_seconds: float
    """Of this process, from go to the last answer."""
    wall_seconds: float
    is_whole: bool
    """False when it was stopped before its plan was played."""


Report: TypeAlias = Second | Doing | Ready | Settled | Told
