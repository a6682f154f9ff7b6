"""What a run was and gave, as one value: the JSON report, from which the page and a comparison are made. PURE.

Fields may be added; none changes its meaning, for last year's report is compared with tomorrow's. It must hold no key, token or id of a
person. Read next: `halo/load/page.py` and `halo/load/compare.py`.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Final

import msgspec

from halo.load.hdr import Hdr
from halo.load.ledger import Findings
from halo.load.orders import Second, Told
from halo.load.plan import Plan
from halo.load.verdict import Verdict

FORMAT: Final = 1
PERCENTILES: Final = (50.0, 75.0, 90.0, 99.0, 99.9, 99.99, 100.0)


class Figure(msgspec.Struct, frozen=True, kw_only=True):
    """How long something took, in ms."""

    count: int
    mean_ms: float
    percentiles_ms: dict[str, float]
    hdr: str
    """The whole histogram in µs, in HdrHistogram's V2 form."""


class Slice(msgspec.Struct, frozen=True, kw_only=True):
    """One second of all processes together."""

    at: int
    counts: dict[str, int]
    p50_ms: dict[str, float]
    p99_ms: dict[str, float]
    max_ms: dict[str, float]


class Cost(msgspec.Struct, frozen=True, kw_only=True):
    """What the run itself cost, lest it be measured by mistake."""

    harness_cpu_seconds: float
    harness_cores: float
    busiest_process: float
    """Share of a core of the busiest load process."""
    harness_us_each: float
    """CPU of the harness for each of what is counted: a message, a heartbeat, a pairing."""
    lateness_p99_ms: float
    """Of the harness' own loop."""
    send_p99_ms: float
    """How late messages left, in the open loop."""
    server_cpu_seconds: float | None = None
    server_us_each: float | None = None
    """CPU of the server's own process, Postgres and Valkey not included; None for one that is not ours."""


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """The report."""

    format: int
    halo: str
    began_at: str
    machine: str
    target: str
    plan: Plan
    figure: str
    """Which of the figures is what this scenario is about."""
    counted: str
    """Which of the counts is a unit of its work."""
    counts: dict[str, int]
    per_second: float
    figures: dict[str, Figure]
    slices: tuple[Slice, ...]
    events: tuple[tuple[float, str], ...]
    """What was done to the server, seconds from the start."""
    cost: Cost
    verdict: Verdict


class RecordStrange(ValueError):
    """The file is no report of `halo load`; the message is one sentence."""


class Tally:
    """Everything that the workers have told, added up."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.findings = Findings()
        self._slices: dict[int, tuple[Counter[str], dict[str, Hdr]]] = {}
        self.latest: dict[str, Hdr] = {}
        """Since the start, for the progress view."""

    def add_second(self, second: Second) -> None:
        """A second belongs to the whole second in which it began."""
        counts, histograms = self._slices.setdefault(max(0, round(second.at) - 1), (Counter(), {}))
        counts.update(second.counts)
        self.counts.update(second.counts)
        for figure, text in second.histograms.items():
            histogram = Hdr.decoded(text)
            histograms.setdefault(figure, Hdr()).add(histogram)
            self.latest.setdefault(figure, Hdr()).add(histogram)

    def add_told(self, told: Told) -> None:
        self.findings.add(told.findings, told.examples)

    def figures(self) -> dict[str, Figure]:
        return {name: figure_of(histogram) for name, histogram in sorted(self.latest.items()) if histogram.total}

    def slices(self) -> tuple[Slice, ...]:
        return tuple(self.slice_at(at) for at in sorted(self._slices))

    def slice_at(self, at: int) -> Slice:
        counts, histograms = self._slices[at]
        shown = {name: histogram for name, histogram in histograms.items() if histogram.total}
        return Slice(
            at=at,
            counts=dict(counts),
            p50_ms={name: histogram.percentile(50) / 1000 for name, histogram in shown.items()},
            p99_ms={name: histogram.percentile(99) / 1000 for name, histogram in shown.items()},
            max_ms={name: histogram.highest / 1000 for name, histogram in shown.items()},
        )


def figure_of(histogram: Hdr) -> Figure:
    return Figure(
        count=histogram.total,
        mean_ms=round(histogram.mean / 1000, 3),
        percentiles_ms={f"{part:g}": histogram.percentile(part) / 1000 for part in PERCENTILES},
        hdr=histogram.encoded(),
    )


def cost_of(tolds: Sequence[Told], latest: Mapping[str, Hdr], units: int, server_cpu_seconds: float | None) -> Cost:
    cpu = sum(told.cpu_seconds for told in tolds)
    wall = max((told.wall_seconds for told in tolds), default=0.0)
    return Cost(
        harness_cpu_seconds=round(cpu, 3),
        harness_cores=round(cpu / wall, 3) if wall else 0.0,
        busiest_process=round(
            max((told.cpu_seconds / told.wall_seconds for told in tolds if told.wall_seconds), default=0.0), 3
        ),
        harness_us_each=round(cpu / units * 1e6, 1) if units else 0.0,
        lateness_p99_ms=_p99_ms(latest, "lateness"),
        send_p99_ms=_p99_ms(latest, "send"),
        server_cpu_seconds=server_cpu_seconds,
        server_us_each=round(server_cpu_seconds / units * 1e6, 1) if server_cpu_seconds is not None and units else None,
    )


def _p99_ms(latest: Mapping[str, Hdr], figure: str) -> float:
    return latest[figure].percentile(99) / 1000 if figure in latest else 0.0


def encode(record: Record) -> bytes:
    return msgspec.json.format(msgspec.json.encode(record), indent=1) + b"\n"


def decode(text: bytes) -> Record:
    """Raises RecordStrange."""
    try:
        record = msgspec.json.decode(text, type=Record)
    except msgspec.DecodeError as fault:
        raise RecordStrange(f"this is no report of halo load: {fault}") from fault
    if record.format != FORMAT:
        raise RecordStrange(f"this report has format {record.format}; this halo reads format {FORMAT}")
    return record
