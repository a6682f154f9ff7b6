"""Two runs side by side: each figure of this one, of the other, and their ratio. PURE.

Ratios mean something only between runs of the same plan on the same machine; where plans differ it says so. Read next:
`halo/load/record.py`.
"""

import msgspec

from halo.load.record import Record


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One figure of both."""

    name: str
    unit: str
    here: float
    other: float
    is_better_low: bool = True

    @property
    def ratio(self) -> float | None:
        """This run's by the other's; None when the other's is nothing."""
        return self.here / self.other if self.other else None

    @property
    def verdict(self) -> str:
        """`better`, `worse` or `alike` (within a twentieth)."""
        if self.ratio is None or abs(self.ratio - 1) <= 0.05:
            return "alike"
        return "better" if (self.ratio < 1) == self.is_better_low else "worse"


class Comparison(msgspec.Struct, frozen=True, kw_only=True):
    """All figures that both have."""

    other: str
    differences: tuple[str, ...]
    """Where the plans differ."""
    rows: tuple[Row, ...]


def compare(here: Record, other: Record) -> Comparison:
    """This run beside another one."""
    rows = [Row(name=here.counted, unit="1/s", here=here.per_second, other=other.per_second, is_better_low=False)]
    for name, figure in here.figures.items():
        beside = other.figures.get(name)
        if beside is None or name in {"lateness", "send"}:
            continue
        rows += [
            Row(name=f"{name} p{part}", unit="ms", here=figure.percentiles_ms[part], other=beside.percentiles_ms[part])
            for part in ("50", "99", "99.9")
        ]
    rows.append(
        Row(name="harness CPU", unit="µs each", here=here.cost.harness_us_each, other=other.cost.harness_us_each)
    )
    if here.cost.server_us_each is not None and other.cost.server_us_each is not None:
        rows.append(
            Row(name="server CPU", unit="µs each", here=here.cost.server_us_each, other=other.cost.server_us_each)
        )
    return Comparison(
        other=f"{other.plan.scenario} of {other.began_at}, halo {other.halo}",
        differences=_differences(here, other),
        rows=tuple(rows),
    )


def _differences(here: Record, other: Record) -> tuple[str, ...]:
    found = [
        f"{name}: {getattr(here.plan, name)} here, {getattr(other.plan, name)} there"
        for name in here.plan.__struct_fields__
        if getattr(here.plan, name) != getattr(other.plan, name)
    ]
    if here.machine != other.machine:
        found.append(f"machine: {here.machine} here, {other.machine} there")
    if not other.verdict.held:
        found.append("the other run failed its checks")
    return tuple(found)


def told_comparison(comparison: Comparison) -> str:
    """For a terminal."""
    lines = ["", f"compared with {comparison.other}", f"{'':<18}{'here':>12}{'there':>12}{'ratio':>8}"]
    for row in comparison.rows:
        ratio = "–" if row.ratio is None else f"{row.ratio:.2f}"
        lines.append(f"{row.name:<18}{row.here:>12,.2f}{row.other:>12,.2f}{ratio:>8}  {row.unit:<8}{row.verdict}")
    lines += [f"not the same: {difference}" for difference in comparison.differences]
    return "\n".join(lines)
