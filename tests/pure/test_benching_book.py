import json
from typing import Any

import pytest

from scripts.benching.book import Book, Run, pick, read_book


def run(cell: str, target: str, number: int = 0, **result: Any) -> Run:
    return Run(round=number, cell=cell, target=target, result=result, attempts=1, at="2026-11-24T00:00:00Z")


def test_a_number_is_found_by_the_names_on_the_way_and_what_is_no_number_is_none() -> None:
    result = {"ack_ms": {"p99": 7, "n": None}, "check": {"clean": True}}
    assert pick(result, "ack_ms.p99") == 7.0
    assert [pick(result, path) for path in ("ack_ms.n", "ack_ms.p50", "gone.p99", "check.clean", "check")] == [None] * 5


def test_a_median_is_of_the_sums_of_each_round_and_leaves_failures_out() -> None:
    book = Book([run("c", "halo", n, server=s, postgres=p) for n, (s, p) in enumerate([(9, 1), (1, 1), (5, 9)])])
    book.add(run("c", "halo", 3, failed="the server did not start"))
    assert book.values("c", "halo", "server", "postgres") == [10, 2, 14]
    assert book.median("c", "halo", "server", "postgres") == 10
    assert book.median("c", "node", "server") is None
    assert book.median("c", "halo", "server", "valkey") is None


def test_a_ratio_is_that_of_two_medians_and_needs_both() -> None:
    book = Book([run("c", "halo", rate=30), run("c", "node", rate=20)])
    assert book.ratio("c", "halo", "node", "rate") == 1.5
    assert book.ratio("c", "halo", "asyncio", "rate") is None


def test_a_run_that_failed_is_made_again_and_replaced_but_one_with_figures_is_there() -> None:
    book = Book([run("c", "halo", failed="no"), run("c", "node", rate=1)])
    assert not book.has(0, "c", "halo")
    assert book.has(0, "c", "node")
    assert not book.has(1, "c", "node")
    book.add(run("c", "halo", rate=2))
    assert book.has(0, "c", "halo")
    assert len(book.runs) == 2


@pytest.mark.parametrize(
    ("result", "said"),
    [
        ({"check": {"clean": True, "unacked": 0, "refusals": {}, "connect_retries": 3}}, ""),
        ({"check": {"clean": False, "undelivered": 2}}, "undelivered 2"),
        ({"errors": {"503": 4}}, "errors {'503': 4}"),
        ({"refused": 1, "refusals": [{"code": "x"}]}, "refused 1, refusals [{'code': 'x'}]"),
        ({"check": {"clean": False, "acked": 5, "stored": {"rows": 4}}}, "stored rows {'rows': 4} for 5 acks"),
    ],
)
def test_what_a_run_lost_repeated_or_refused_is_its_faults(result: dict[str, Any], said: str) -> None:
    assert run("c", "halo", **result).faults == said


def test_a_book_is_read_back_as_it_was_written() -> None:
    book = Book([run("c", "halo", rate=1, ack_ms={"p99": 2.5}), run("c", "node", 1, failed="no")])
    assert read_book(json.loads(json.dumps(book.record()))) == book
