"""A small run as the workers tell it, for the tests of what is made of it."""

from typing import Any

import msgspec

from halo.load.meter import Meter
from halo.load.orders import Told
from halo.load.plan import plan_of
from halo.load.record import FORMAT, Record, Tally, cost_of
from halo.load.verdict import Verdict, message_checks


def told(meter: Meter, **changes: Any) -> Told:
    facts: dict[str, Any] = {
        "counts": dict(meter.counts),
        "histograms": meter.whole(),
        "findings": {},
        "examples": {},
        "cpu_seconds": 0.5,
        "wall_seconds": 4.0,
        "is_whole": True,
    }
    return Told(**facts | changes)


def record_of(slowness: float = 1.0, **changes: Any) -> Record:
    """Three seconds of steady chat; every latency is `slowness` times 1 to 10 ms."""
    meter, tally = Meter(), Tally()
    for at in range(3):
        for number in range(1, 11):
            for figure in ("ack", "delivery", "lateness"):
                meter.observe(figure, slowness * number / 1000)
            meter.counts["acks"] += 1
            meter.counts["said"] += 1
        tally.add_second(meter.close_second(at + 1.0))
    report = told(meter)
    tally.add_told(report)
    facts: dict[str, Any] = {
        "format": FORMAT,
        "halo": "0.1.0",
        "began_at": "2026-11-24T03:00:00.000Z",
        "machine": "Linux x86_64",
        "target": "http://127.0.0.1:8801",
        "plan": plan_of("steady", {"pairs": 2, "seconds": 3.0, "rate": 10.0}),
        "figure": "ack",
        "counted": "acks",
        "counts": dict(tally.counts),
        "per_second": 10.0,
        "figures": tally.figures(),
        "slices": tally.slices(),
        "events": ((1.5, "kill -9"),),
        "cost": cost_of([report], tally.latest, 30, 0.3),
        "verdict": Verdict(checks=tuple(message_checks(tally.counts, {}, {})), is_whole=True),
    }
    return Record(**facts | changes)


def changed(record: Record, **changes: Any) -> Record:
    return msgspec.structs.replace(record, **changes)
