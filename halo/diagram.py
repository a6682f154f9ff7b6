"""The rules table as a picture and as a table, drawn from `RULES` itself, so that neither can lie.

Pure text in, pure text out; nothing is decided and nothing is written here. Read next: `halo/rules.py`, which it draws, and
`halo/docs.py`, which puts it into the README.
"""

from halo.rules import EVENT_NAMES, RULES
from halo.session import SessionStatus

OPENINGS = {
    SessionStatus.PENDING_PAYMENT: "mitra accepts, payment pending",
    SessionStatus.ACTIVE: "mitra accepts, payment confirmed",
}
"""How a session begins: the two outcomes of `halo.rules.open_session`, which is no event and so not in the table."""


def arrows() -> dict[tuple[SessionStatus, SessionStatus], list[str]]:
    """Every change of status that the table allows, with the labels of all rules that make it; those that stay are left out."""
    found: dict[tuple[SessionStatus, SessionStatus], list[str]] = {}
    for status, row in RULES.items():
        for rule in row.values():
            for target in rule.leads_to:
                if target is not status:
                    found.setdefault((status, target), []).append(rule.label)
    return found


def mermaid() -> str:
    """The state diagram, in the language that code forges draw in a README."""
    lines = ["stateDiagram-v2"]
    lines += [f"    [*] --> {status}: {label}" for status, label in OPENINGS.items()]
    lines += [f"    {start} --> {end}: {', '.join(labels)}" for (start, end), labels in arrows().items()]
    lines += [f"    {status} --> [*]" for status, row in RULES.items() if not row]
    return "\n".join(lines)


def table() -> str:
    """Event by status, in Markdown: where each pair may lead, `–` where it is refused by name and changes nothing."""
    head = ["event", *(f"`{status}`" for status in RULES)]
    lines = [_row(head), _row(["---"] * len(head))]
    for event, name in EVENT_NAMES.items():
        cells = [f"`{name}`"]
        for row in RULES.values():
            rule = row.get(event)
            cells.append("–" if rule is None else " or ".join(rule.leads_to))
        lines.append(_row(cells))
    return "\n".join(lines)


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"
