from typing import Any

from scripts.benching.book import Book, Run
from scripts.benching.page import page, parse_explanations


def run(cell: str, target: str, number: int = 0, attempts: int = 1, **result: Any) -> Run:
    return Run(round=number, cell=cell, target=target, result=result, attempts=attempts, at="2026-11-24T00:00:00Z")


def shown(book: Book, explanations: dict[str, str] | None = None) -> str:
    return page(book, {"machine": "2 cores"}, 0.15, 3, explanations or {})


def test_each_figure_stands_with_its_spread_and_its_ratio_to_the_reference() -> None:
    book = Book([run("closed50", "node", n, acks_per_second=rate) for n, rate in enumerate([100.0, 200.0, 300.0])])
    book.add(run("closed50", "halo", acks_per_second=500.0))
    assert "| acknowledged, 1/s | 200 (100–300) | 500 **2.50×** |" in shown(book)
    assert "Rounds: node 3, halo 1. In bold the ratio to node." in shown(book)


def test_a_goal_has_its_figure_its_limit_and_its_verdict() -> None:
    book = Book([run("closed50", "node", acks_per_second=100.0), run("closed50", "halo", acks_per_second=500.0)])
    assert "| `closed50`: acknowledged messages a second, to node | 5.00 × | ≥ 1.30 × | met |" in shown(book)
    assert "fewer rounds than the 5 that the goals ask for: 1." in shown(book)
    assert "## Missed" not in shown(book)


def test_a_missed_goal_has_its_explanation_and_one_without_has_a_place_for_it() -> None:
    book = Book([run("reconnect", "halo", resumed_s=11.0), run("timers", "halo", late_p99_ms=70.0)])
    text = shown(book, {"reconnect": "Handshakes take it.", "memory": "Never shown."})
    assert "11.0 s, ≤ 10.0 s asked for. Handshakes take it." in text
    assert "`## timers` in `scripts/benching/where_the_time_goes.md`" in text
    assert "Never shown." not in text


def test_runs_that_were_not_quiet_that_failed_or_were_made_again_are_told() -> None:
    book = Book(
        [
            run("timers", "halo", attempts=3, late_p99_ms=1.0, others_cores=0.9),
            run("memory", "halo", failed="no\n room."),
        ]
    )
    text = shown(book)
    assert "Not quiet: `timers` of halo, round 1, others used 0.90 cores." in text
    assert "Failed: `memory` of halo, round 1: no room." in text
    assert "Runs made again: 2; of 2 runs 1 stayed above." in text
    assert "| lost, repeated, refused | failed |" in text


def test_explanations_are_sections_by_name_and_empty_ones_are_none() -> None:
    assert parse_explanations("# Title\n\nwords\n\n## a\n\nof a\nmore\n\n## b\n\n## c\nof c") == {
        "a": "of a\nmore",
        "c": "of c",
    }
