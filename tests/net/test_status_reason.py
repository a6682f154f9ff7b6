"""What is a reason, and what only looks like one."""

import pytest

from halo.errors import ValidationFailed
from halo.net.status.reason import reason_of


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("  A complaint,\r\n\r\nnumber 17 ", "A complaint, number 17"),
        ("Keluhan: señor José, nº 17", "Keluhan: señor José, nº 17"),
        ("客人投诉被侮辱，编号十七。", "客人投诉被侮辱，编号十七。"),
        ("An insult 😡", "An insult 😡"),
    ],
)
def test_a_sentence_in_any_script_is_a_reason(text: str, reason: str) -> None:
    assert reason_of(text) == reason


@pytest.mark.parametrize(
    "text",
    [
        "", "too short", "x" * 501, " " * 40, "\u200b" * 12, "\u2060" * 12, "\u00ad" * 12, "\u202egnorw si siht", "\u2066turned around\u2069",
        "\u3164" * 12, "\u115f" * 12, "\uffa0" * 12, "\u2800" * 12, "a" + "\u0301" * 12, "a\ufe0f" * 6, "with a bell\x07", "half \ud83d a pair of",
        "private \ue000 use of it", "\u3164".join("abcd"), "\U000e0041" * 12,
    ],
)  # fmt: skip
def test_what_cannot_be_seen_or_turns_the_writing_around_is_none(text: str) -> None:
    with pytest.raises(ValidationFailed):
        reason_of(text)
