from typing import Any

import pytest

from scripts.benching.book import Book, Run
from scripts.benching.cells import CELLS
from scripts.benching.goals import GOALS, Judgement, judge


def book_of(*runs: tuple[str, str, dict[str, Any]]) -> Book:
    return Book(
        [
            Run(round=0, cell=cell, target=target, result=result, attempts=1, at="2026-11-24T00:00:00Z")
            for cell, target, result in runs
        ]
    )


def judged(book: Book, name: str) -> Judgement:
    return next(one for one in judge(book) if one.goal.name == name)


def cpu(server: float, postgres: float, valkey: float = 0.0, **more: Any) -> dict[str, Any]:
    return {"server_cpu_us": server, "postgres_cpu_us": postgres, "valkey_cpu_us": valkey, **more}


def test_goals_have_names_of_their_own_and_cells_that_exist() -> None:
    assert len({goal.name for goal in GOALS}) == len(GOALS)
    assert all(cell in CELLS for goal in GOALS for cell in goal.cells)


def test_of_an_empty_book_no_goal_is_met_and_none_is_missed() -> None:
    assert {one.verdict for one in judge(Book())} == {"not measured"}


@pytest.mark.parametrize(("halo", "verdict"), [(1300.0, "met"), (1299.0, "missed")])
def test_a_rate_is_to_be_at_least_so_many_times_that_of_the_peer(halo: float, verdict: str) -> None:
    book = book_of(("closed50", "halo", {"acks_per_second": halo}), ("closed50", "node", {"acks_per_second": 1000.0}))
    assert judged(book, "closed50-rate-node").verdict == verdict
    assert judged(book, "closed50-rate-asyncio").verdict == "not measured"


@pytest.mark.parametrize(("postgres", "verdict"), [(35.0, "met"), (36.0, "missed")])
def test_the_cpu_of_a_message_is_that_of_server_and_postgres(postgres: float, verdict: str) -> None:
    book = book_of(("closed50", "halo", cpu(30.0, postgres)), ("closed50", "node", cpu(40.0, 60.0)))
    assert judged(book, "closed50-cpu-node").verdict == verdict


def test_a_halo_that_lost_something_has_missed_however_fast_it_was() -> None:
    book = book_of(
        ("closed50", "halo", {"acks_per_second": 9000.0, "check": {"clean": False, "undelivered": 1}}),
        ("closed50", "node", {"acks_per_second": 1.0}),
    )
    one = judged(book, "closed50-rate-node")
    assert (one.verdict, one.faults) == ("missed", "closed50, round 1: undelivered 1")


def test_a_peer_that_lost_something_does_not_harm_halo() -> None:
    book = book_of(
        ("closed50", "halo", {"acks_per_second": 9000.0}),
        ("closed50", "node", {"acks_per_second": 1.0, "check": {"clean": False, "undelivered": 1}}),
    )
    assert judged(book, "closed50-rate-node").verdict == "met"


def test_latency_is_judged_by_the_better_peer_and_not_by_one_alone() -> None:
    halo = ("open500", "halo", {"ack_ms": {"p99": 5.0}})
    node = ("open500", "node", {"ack_ms": {"p99": 6.0}})
    asyncio = ("open500", "asyncio", {"ack_ms": {"p99": 4.0}})
    assert judged(book_of(halo, node), "open500-p99").verdict == "not measured"
    one = judged(book_of(halo, node, asyncio), "open500-p99")
    assert (one.limit, one.verdict) == (4.0, "missed")


@pytest.mark.parametrize(
    ("halo", "share", "verdict"), [(100.0, 60.0, "met"), (101.0, 59.4, "missed"), (50.0, 120.0, "met")]
)
def test_the_share_of_the_ceiling_is_messages_a_second_of_server_cpu(halo: float, share: float, verdict: str) -> None:
    book = book_of(
        ("ceiling", "halo", cpu(halo, 900.0)), ("ceiling", "echo", cpu(60.0, 0.0)), ("ceiling", "relay", cpu(9.0, 0.0))
    )
    one = judged(book, "ceiling")
    assert one.figure == pytest.approx(share, abs=0.1)
    assert one.verdict == verdict


def test_a_ping_of_the_lobby_is_held_against_the_request_of_node_with_all_three_processes() -> None:
    book = book_of(("hb_ws", "halo", cpu(10.0, 20.0, 20.0)), ("hb_http", "node", cpu(50.0, 10.0, 40.0)))
    one = judged(book, "ping")
    assert (one.figure, one.verdict) == (0.5, "met")


def test_one_early_deadline_in_any_round_misses_the_goal() -> None:
    book = book_of(("timers", "halo", {"early": 0.0, "late_p99_ms": 3.0}))
    book.add(Run(round=1, cell="timers", target="halo", result={"early": 1.0, "late_p99_ms": 3.0}, attempts=1, at=""))
    book.add(Run(round=2, cell="timers", target="halo", result={"early": 0.0, "late_p99_ms": 3.0}, attempts=1, at=""))
    assert judged(book, "timers-early").verdict == "missed"
    assert judged(book, "timers").verdict == "met"
