"""The picture and the table are the rules, no more and no less."""

import re

from halo.config import LiveConfig
from halo.diagram import OPENINGS, arrows, mermaid, table
from halo.rules import EVENT_NAMES, RULES, open_session
from halo.session import SessionStatus
from tests.pure.story import NOON, a_session


def drawn() -> dict[tuple[str, str], str]:
    """The arrows of the picture, read back from its text."""
    found = re.findall(r"^    (\S+) --> (\S+?)(?:: (.+))?$", mermaid(), re.MULTILINE)
    assert len(found) == len(mermaid().splitlines()) - 1
    return {(start, end): label for start, end, label in found}


def test_every_change_of_status_in_the_table_is_one_arrow_with_all_its_labels() -> None:
    between = {ends: label for ends, label in drawn().items() if "[*]" not in ends}
    expected: dict[tuple[str, str], list[str]] = {}
    for status, row in RULES.items():
        for rule in row.values():
            for to in set(rule.leads_to) - {status}:
                expected.setdefault((status.value, to.value), []).append(rule.label)
    assert between == {ends: ", ".join(labels) for ends, labels in expected.items()}
    assert len(between) == len(arrows())


def test_no_two_rules_of_one_arrow_share_a_label() -> None:
    assert all(len(labels) == len(set(labels)) for labels in arrows().values())


def test_labels_hold_nothing_that_the_picture_would_take_for_syntax() -> None:
    labels = [*OPENINGS.values(), *(rule.label for row in RULES.values() for rule in row.values())]
    assert all(re.fullmatch(r"[a-z ,]+", label) for label in labels)


def test_the_picture_begins_where_sessions_begin_and_ends_where_they_end() -> None:
    begun = {open_session(a_session(), NOON, LiveConfig(), confirmed=paid).session.status for paid in (True, False)}
    assert set(OPENINGS) == begun
    assert {end for start, end in drawn() if start == "[*]"} == begun
    assert [start for start, end in drawn() if end == "[*]"] == [SessionStatus.ENDED]


def test_the_table_has_a_row_an_event_and_a_column_a_status_and_says_no_with_a_dash() -> None:
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table().splitlines()]
    assert rows[0] == ["event", *(f"`{status}`" for status in RULES)]
    assert rows[1] == ["---"] * (len(RULES) + 1)
    for (event, name), cells in zip(EVENT_NAMES.items(), rows[2:], strict=True):
        assert cells[0] == f"`{name}`"
        for row, cell in zip(RULES.values(), cells[1:], strict=True):
            assert cell == (" or ".join(row[event].leads_to) if event in row else "–")
