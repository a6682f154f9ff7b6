"""Panels of a Grafana dashboard: the questions, in the few forms that halo's have, and how they lie beside one another.

It knows Grafana and PromQL, and nothing of halo but the label by which a node is chosen. Read next: `halo/dashboard.py`, the table of them.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeAlias

Kind: TypeAlias = Literal["timeseries", "stat", "heatmap"]

COLUMNS: Final = 24
"""Of Grafana's grid."""
HEIGHT: Final = 8
DATA_SOURCE: Final = {"type": "prometheus", "uid": "${datasource}"}
CHOSEN: Final = 'instance=~"$instance"'
WINDOW: Final = "[$__rate_interval]"


@dataclass(frozen=True, slots=True)
class Query:
    """One expression, and how its series are called."""

    expression: str
    legend: str = "__auto"


@dataclass(frozen=True, slots=True)
class Panel:
    """One question."""

    title: str
    unit: str
    """Grafana's name for it: `s`, `ops`, `short`, `bytes`, `bool`."""
    queries: tuple[Query, ...]
    kind: Kind = "timeseries"
    width: int = 8
    alarm_from: float | None = None
    """Red from this value on."""


@dataclass(frozen=True, slots=True)
class Row:
    title: str
    panels: tuple[Panel, ...]


def now(metric: str, by: str = "", *, legend: str = "__auto", **labels: str) -> Query:
    return Query(f"sum{_by(by)} ({metric}{_chosen(labels)})", _named(by, legend))


def most(metric: str, by: str = "", *, legend: str = "__auto", **labels: str) -> Query:
    """For what every node tells of the whole cluster, or what must not be added up."""
    return Query(f"max{_by(by)} ({metric}{_chosen(labels)})", _named(by, legend))


def rate(metric: str, by: str = "", *, legend: str = "__auto", **labels: str) -> Query:
    return Query(f"sum{_by(by)} (rate({metric}{_chosen(labels)}{WINDOW}))", _named(by, legend))


def quantiles(metric: str, by: str = "", parts: tuple[float, ...] = (0.5, 0.99)) -> tuple[Query, ...]:
    groups = f"le, {by}" if by else "le"
    return tuple(
        Query(
            f"histogram_quantile({part}, sum by ({groups}) (rate({metric}_bucket{_chosen({})}{WINDOW})))",
            " ".join(filter(None, [_named(by, ""), f"p{part * 100:g}"])),
        )
        for part in parts
    )


def mean(metric: str, legend: str) -> Query:
    return Query(
        f"sum (rate({metric}_sum{_chosen({})}{WINDOW})) / sum (rate({metric}_count{_chosen({})}{WINDOW}))", legend
    )


def heatmap(title: str, metric: str, unit: str = "s", width: int = 8) -> Panel:
    query = Query(f"sum by (le) (increase({metric}_bucket{_chosen({})}[$__interval]))", "{{le}}")
    return Panel(title, unit, (query,), "heatmap", width)


def _chosen(labels: dict[str, str]) -> str:
    return "{" + ", ".join([CHOSEN, *(f'{name}="{value}"' for name, value in labels.items())]) + "}"


def _by(labels: str) -> str:
    return f" by ({labels})" if labels else ""


def _named(by: str, legend: str) -> str:
    return legend if legend != "__auto" or not by else " ".join("{{" + label + "}}" for label in by.split(", "))


def laid_out(rows: Sequence[Row]) -> Iterator[dict[str, Any]]:
    """The panels of all rows in Grafana's form, from left to right and from top to bottom."""
    y = 0
    for row in rows:
        yield {
            "type": "row",
            "title": row.title,
            "collapsed": False,
            "panels": [],
            "gridPos": {"x": 0, "y": y, "w": COLUMNS, "h": 1},
        }
        x, y, height = 0, y + 1, HEIGHT // 2 if all(panel.kind == "stat" for panel in row.panels) else HEIGHT
        for panel in row.panels:
            if x + panel.width > COLUMNS:
                x, y = 0, y + height
            yield _panel(panel) | {"gridPos": {"x": x, "y": y, "w": panel.width, "h": height}}
            x += panel.width
        y += height


def _panel(panel: Panel) -> dict[str, Any]:
    steps = [{"color": "green", "value": None}]
    if panel.alarm_from is not None:
        steps.append({"color": "red", "value": panel.alarm_from})  # type: ignore[dict-item]  # Grafana's first step has no value
    shown: dict[str, Any] = {
        "type": panel.kind,
        "title": panel.title,
        "datasource": DATA_SOURCE,
        "targets": [
            {
                "refId": chr(ord("A") + number),
                "datasource": DATA_SOURCE,
                "expr": query.expression,
                "legendFormat": query.legend,
                "format": "heatmap" if panel.kind == "heatmap" else "time_series",
            }
            for number, query in enumerate(panel.queries)
        ],
    }
    match panel.kind:
        case "heatmap":
            shown["options"] = {
                "calculate": False,
                "yAxis": {"unit": panel.unit},
                "color": {"mode": "scheme", "scheme": "Blues"},
            }
        case "stat":
            shown["fieldConfig"] = {
                "defaults": {"unit": panel.unit, "thresholds": {"mode": "absolute", "steps": steps}}
            }
            by_name = panel.queries[0].legend.startswith("{{")
            shown["options"] = {"colorMode": "value", "graphMode": "area", "textMode": "name" if by_name else "auto"}
        case "timeseries":
            thresholds = {"mode": "absolute", "steps": steps}
            custom = {
                "fillOpacity": 8,
                "showPoints": "never",
                "thresholdsStyle": {"mode": "dashed" if panel.alarm_from is not None else "off"},
            }
            shown["fieldConfig"] = {
                "defaults": {"unit": panel.unit, "min": 0, "thresholds": thresholds, "custom": custom}
            }
            shown["options"] = {"legend": {"displayMode": "list", "placement": "bottom"}, "tooltip": {"mode": "multi"}}
    return shown
