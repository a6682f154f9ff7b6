"""What a run is to do: the scenarios, their knobs and defaults, and which values make no sense. PURE.

A plan is complete: everything that decides what is sent, and when, stands in it, the seed of the dice too. It must never hold a secret,
because it is printed into every report. Read next: `halo/load/conductor.py`, which plays it.
"""

from collections.abc import Mapping
from typing import Any, Final

import msgspec

BODY_CHARACTERS_LEAST: Final = 40
"""An id stands in each body, so that a mixed-up body is seen."""
BODY_CHARACTERS_MOST: Final = 4_000
MITRAS_MOST: Final = 100_000
"""As many lobby sockets as one machine opens with the ports and descriptors of four loopback addresses."""
PAIRS_MOST: Final = 50_000
MINUTES_MOST: Final = 240
"""The longest session that a halo sells by default."""
SPARE_SECONDS: Final = 300
"""Bought beyond the run, for what comes before and after it."""


class PlanRefused(ValueError):
    """This run makes no sense; the message is one sentence."""


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """One run."""

    scenario: str
    seconds: float
    """Of measuring, after everybody is there."""
    pairs: int
    """Sessions, each of a customer and a mitra who are both connected."""
    mitras: int
    """Who wait in the lobby, where a scenario needs more than the pairs' own."""
    rate: float
    """Messages a second over all, in the open loop; 0 is the closed loop, in which each speaks again when the last was acknowledged."""
    interval: float
    """Seconds between two heartbeats of one mitra."""
    window: float
    """Seconds within which a rush begins; 0 is the same instant."""
    slow: float
    """Which part of the pairs (0 to 1) has a participant who does not read."""
    body: int
    """Characters of a message."""
    processes: int
    seed: int

    @property
    def minutes(self) -> int:
        """To be bought for each session."""
        return min(MINUTES_MOST, 1 + int(self.seconds + SPARE_SECONDS) // 60)


class Recipe(msgspec.Struct, frozen=True, kw_only=True):
    """A scenario: what it shows, which figure tells it, and what it takes unless told otherwise."""

    about: str
    figure: str
    """The figure that is drawn over time and stands first."""
    company: str
    """Who is made up before it: `pairs` in living sessions, or `mitras` in the lobby, or `crowd`: both, unpaired."""
    defaults: Mapping[str, Any]
    knobs: tuple[str, ...]


_CHAT: Final = ("pairs", "rate", "body")

SCENARIOS: Final[Mapping[str, Recipe]] = {
    "steady": Recipe(
        about="Pairs talk. With --rate messages come at that rate whatever the server does (open loop); without it each participant"
        " keeps one message outstanding (closed loop), which finds out how much the server can do.",
        figure="ack",
        company="pairs",
        defaults={"pairs": 50},
        knobs=_CHAT,
    ),
    "day": Recipe(
        about="A whole day from midnight to midnight within --seconds: --rate is the evening's peak, the night has a sixteenth of it.",
        figure="ack",
        company="pairs",
        defaults={"pairs": 50, "rate": 200.0, "seconds": 120.0},
        knobs=_CHAT,
    ),
    "connect-storm": Recipe(
        about="Everybody connects within --window seconds (0: in the same instant), then talks at --rate.",
        figure="connect",
        company="pairs",
        defaults={"pairs": 200, "rate": 50.0, "seconds": 15.0, "window": 0.0},
        knobs=(*_CHAT, "window"),
    ),
    "reconnect-storm": Recipe(
        about="Pairs talk at --rate; in the middle the server is killed with SIGKILL and started again (--embedded), or every socket"
        " of this harness is cut at once (by URL); all come back by after_seq, and nothing may be missing.",
        figure="resume",
        company="pairs",
        defaults={"pairs": 200, "rate": 100.0, "seconds": 30.0},
        knobs=_CHAT,
    ),
    "pairing-rush": Recipe(
        about="So many customers as --pairs ask for a mitra within --window seconds; waiting mitras take what is offered.",
        figure="match",
        company="crowd",
        defaults={"pairs": 100, "seconds": 30.0, "window": 1.0},
        knobs=("pairs", "mitras", "window"),
    ),
    "extension-rush": Recipe(
        about="Every customer buys more time within --window seconds (0: in the same instant); every mitra accepts.",
        figure="extension",
        company="pairs",
        defaults={"pairs": 100, "seconds": 30.0, "window": 0.0},
        knobs=("pairs", "window"),
    ),
    "slow-readers": Recipe(
        about="A part --slow of the pairs has a mitra who stops reading while the customers write on; the others' latency must not change.",
        figure="ack",
        company="pairs",
        defaults={"pairs": 50, "rate": 200.0, "seconds": 30.0, "slow": 0.1, "body": 1_000},
        knobs=(*_CHAT, "slow"),
    ),
    "heartbeats": Recipe(
        about="--mitras wait in the lobby and beat every --interval seconds, up to 100,000 of them.",
        figure="heartbeat",
        company="mitras",
        defaults={"mitras": 1_000, "pairs": 0, "interval": 15.0},
        knobs=("mitras", "interval"),
    ),
}

_GENERAL: Final[Mapping[str, Any]] = {
    "seconds": 30.0,
    "pairs": 50,
    "mitras": 0,
    "rate": 0.0,
    "interval": 15.0,
    "window": 0.0,
    "slow": 0.0,
    "body": 120,
    "processes": 1,
    "seed": 1,
}
_EVERYWHERE: Final = frozenset({"seconds", "processes", "seed"})


def plan_of(scenario: str, wishes: Mapping[str, Any]) -> Plan:
    """The plan of a scenario with what was wished for; None is no wish.

    Raises:
        PlanRefused
    """
    recipe = SCENARIOS.get(scenario)
    if recipe is None:
        raise PlanRefused(f"There is no scenario {scenario!r}; there are {', '.join(SCENARIOS)}.")
    given = {name: value for name, value in wishes.items() if value is not None}
    for name in given:
        if name not in _EVERYWHERE and name not in recipe.knobs:
            raise PlanRefused(f"--{name} means nothing to {scenario}, which takes {_flags(recipe.knobs)}.")
    plan = Plan(scenario=scenario, **{**_GENERAL, **recipe.defaults, **given})
    _require(plan, recipe)
    return plan


def _require(plan: Plan, recipe: Recipe) -> None:
    bounds: tuple[tuple[str, float, float], ...] = (
        ("seconds", 1, (MINUTES_MOST - 1) * 60 - SPARE_SECONDS),
        ("processes", 1, 64),
        ("body", BODY_CHARACTERS_LEAST, BODY_CHARACTERS_MOST),
        ("interval", 0.1, 3_600),
        ("window", 0, plan.seconds),
        ("slow", 0, 1),
        ("rate", 0, 1_000_000),
        ("mitras", 1 if recipe.company == "mitras" else 0, MITRAS_MOST),
        ("pairs", 0 if recipe.company == "mitras" else 1, PAIRS_MOST),
    )
    for name, least, most in bounds:
        value = getattr(plan, name)
        if not least <= value <= most:
            raise PlanRefused(f"--{name} is {value:g}, but must be between {least:g} and {most:g}.")
    people = plan.mitras if recipe.company == "mitras" else plan.pairs
    if plan.processes > people:
        raise PlanRefused(f"--processes is {plan.processes}, but there are only {people} to share among them.")
    if plan.scenario == "day" and not plan.rate:
        raise PlanRefused("A day needs a --rate above 0: its curve is one of the open loop.")


def _flags(knobs: tuple[str, ...]) -> str:
    return ", ".join(f"--{knob}" for knob in (*knobs, *sorted(_EVERYWHERE)))
