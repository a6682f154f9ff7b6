"""Decisions and ages in words."""

from typing import Any

import pytest

from halo.net.status.telling import REPAIRS, age, at_utc, cause, evidence, found, ids, iso, repair
from halo.watch import WATCHES, Repair
from tests.net.desk_fakes import NOON, PAIRING


@pytest.mark.parametrize(
    ("passed_ms", "told"),
    [
        (0, "just now"), (999, "just now"), (1_000, "1 s ago"), (119_999, "119 s ago"), (120_000, "2 min ago"), (7_199_999, "119 min ago"),
        (7_200_000, "2 h ago"), (172_800_000, "2 d ago"), (-40_000, "in 40 s"), (-999, "just now"),
    ],
)  # fmt: skip
def test_an_age_is_told_in_the_unit_that_people_would_use(passed_ms: int, told: str) -> None:
    assert age(NOON, NOON + passed_ms) == told
    assert age(iso(NOON), NOON + passed_ms) == told


def test_what_has_not_happened_has_no_age() -> None:
    assert (age(None, NOON), iso(None), at_utc(None)) == ("–", "", "–")
    assert at_utc(NOON) == "2026-11-24 12:00:00 UTC"


def test_evidence_is_told_in_the_order_of_the_argument_whatever_the_row_says() -> None:
    facts = {"source": "mirror", "heartbeat_fresh": False, "heartbeat_age_ms": None, "mitra_online": False}
    assert (
        evidence(facts)
        == "the mitra was not online; no heartbeat was known; which did not count as fresh; as Valkey knew it"
    )
    assert evidence({"socket_answered_age_ms": 700, "mitra_connected": True}) == (
        "she was connected; her socket had answered 700 ms before"
    )


@pytest.mark.parametrize(
    ("facts", "told"),
    [
        ({}, ""), (None, ""), ("", ""), ("text", "text"), ([1], "[1]"), ({"unheard_of": [1]}, "unheard of: [1]"),
        ({"heartbeat_age_ms": "old"}, "heartbeat age ms: old"), ({"downtime_ms": 1_500}, "1.5 s without a clock"),
        ({"waves": 1, "timed_out": 3}, "one wave of offers; 3 timed out"),
    ],
)  # fmt: skip
def test_what_is_not_known_is_told_in_its_own_words(facts: Any, told: str) -> None:
    assert evidence(facts) == told


def test_ids_are_told_apart_from_facts() -> None:
    facts = {"pairing_id": PAIRING, "waves": 3}
    assert evidence(facts) == "3 waves of offers"
    assert ids(facts) == [("pairing", PAIRING)]
    assert ids(None) == []


def test_each_repair_of_the_watchdog_is_told_in_words_and_a_new_one_as_it_is() -> None:
    assert set(REPAIRS) == set(Repair)
    assert repair("add_refund") == "a refund that was missing was written"
    assert repair("something_new") == "something new"


def test_what_the_watchdog_had_found_is_told_with_what_it_means_for_people() -> None:
    name = "actors_run"
    assert found({"because": name}) == f"actors run: {WATCHES[name].sentence}"
    assert found({"because": "something_new"}) == "something new"
    nothings: tuple[Any, ...] = ({}, None, "text")
    for nothing in nothings:
        assert found(nothing) == "what it found was not written down"


def test_a_cause_is_half_a_sentence_and_a_new_one_is_told_as_it_is() -> None:
    assert cause("grace_over") == "the time for goodbyes was over"
    assert cause("something_new") == "something new"
