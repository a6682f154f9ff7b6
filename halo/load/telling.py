"""The end of a run in words for a terminal: figures, cost, checks, and what they mean. PURE. Read next: `halo/load/page.py`."""

from typing import Final

from halo.load.record import Record
from halo.load.verdict import Outcome

SHOWN: Final = ("50", "90", "99", "99.9", "100")
HEADS: Final = ("p50", "p90", "p99", "p99.9", "max")
OWN: Final = frozenset({"lateness", "send"})
"""Figures of the harness itself, told apart from the server's."""
SAID: Final = ("refused", "mitra_refused", "handshakes", "closed", "lobby_closed", "failed")
"""How the names of counts begin that tell of a no."""
ABOUT: Final = {
    "ack": "from the intended moment of a message to its ack",
    "delivery": "from the intended moment of a message to the other side",
    "connect": "from the intended moment of a connection to its welcome",
    "resume": "from when a lost connection could come back to its welcome",
    "asked": "from a search to its acknowledgement",
    "match": "from a search to its mitra",
    "extension": "from asking for more time to having it",
    "heartbeat": "from the intended moment of a heartbeat to its answer",
    "send": "how late messages left the harness",
    "lateness": "how late the harness' own loop was",
}


def told(record: Record) -> str:
    """Everything that a person wants to know, line by line."""
    plan = record.plan
    loop = (
        ""
        if not plan.pairs or record.counted != "acks"
        else f", open loop at {plan.rate:g}/s"
        if plan.rate
        else ", closed loop"
    )
    lines = [
        f"{plan.scenario}: {record.counts.get(record.counted, 0):,} {record.counted} in {plan.seconds:g} s, {record.per_second:,.1f}/s{loop}",
        "",
        f"{'ms':<10}{'count':>10}" + "".join(f"{head:>10}" for head in HEADS),
    ]
    names = sorted(record.figures, key=lambda name: (name != record.figure, name in OWN, name))
    for name in names:
        figure = record.figures[name]
        cells = "".join(f"{figure.percentiles_ms[part]:>10.2f}" for part in SHOWN)
        lines.append(f"{name:<10}{figure.count:>10,}{cells}  {ABOUT.get(name, '')}")
    lines += ["", _cost(record)]
    refused = [f"{count:,} {name}" for name, count in record.counts.items() if name.startswith(SAID)]
    if refused:
        lines.append("said by the server: " + ", ".join(refused))
    lines += [f"{at:.1f} s: {what}" for at, what in record.events]
    lines.append("")
    for check in record.verdict.checks:
        mark = {Outcome.HELD: "ok", Outcome.FAILED: "FAILED", Outcome.NOT_ASKED: "–"}[check.outcome]
        lines.append(f"{mark:<7} {check.name}: {check.fact}")
        lines += [f"{'':<7}   {example}" for example in check.examples]
    lines += ["", summary(record)]
    return "\n".join(lines)


def summary(record: Record) -> str:
    """One sentence."""
    verdict = record.verdict
    if not verdict.held:
        return "A check FAILED: this halo lost, repeated, mixed up or broke something."
    if not verdict.is_whole:
        return "Ended early: what was played held, and the figures are of a part."
    if verdict.harness_bound:
        return "Everything held, but the figures are the harness' own: " + "; ".join(verdict.harness_bound) + "."
    return "Everything held."


def _cost(record: Record) -> str:
    cost = record.cost
    text = (
        f"the harness itself: {cost.harness_us_each:,.0f} µs of CPU each, {cost.harness_cores:.2f} cores,"
        f" its loop late by {cost.lateness_p99_ms:.2f} ms (p99)"
    )
    if cost.server_us_each is not None:
        text += f"; the server's process: {cost.server_us_each:,.0f} µs each"
    return text
