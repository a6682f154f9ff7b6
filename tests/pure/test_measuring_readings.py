import os

import pytest

from scripts.measuring import processes
from scripts.measuring.start import split
from scripts.measuring.theatre import parse_metrics

# From the third field of /proc/PID/stat on: state, parent, …, then user and system time, its own and its gone children's.
STAT = "4711 (a (strange) name) S 42 1 1 0 -1 4194304 100 200 0 0 110 20 3000 400 20 0 1 0 5 6 7"

POSTGRES_LOG = """2026-11-23 21:12:24.100 UTC [9] LOG:  starting PostgreSQL 18.6 on x86_64
2026-11-23 21:12:24.150 UTC [9] LOG:  listening on Unix socket ".s.PGSQL.5432"
2026-11-23 21:12:24.250 UTC [9] LOG:  database system is ready to accept connections
"""
SERVER_LOG = """a line that is no JSON
{"event": "mirror_seeded", "at": "2026-11-23T21:12:24.400000Z"}
{"event": "restored", "sessions": 3, "at": "2026-11-23T21:12:24.500000Z"}
"""


def test_cpu_time_counts_children_that_are_gone_and_survives_a_strange_name() -> None:
    assert processes.own_cpu_seconds(STAT) == pytest.approx((110 + 20 + 3000 + 400) / processes.TICKS_PER_SECOND)


def test_a_family_costs_what_its_members_cost_and_strangers_cost_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def stat(pid: int, parent: int, ticks: int) -> str:
        return f"{pid} (p) S {parent} " + " ".join(["0"] * 9) + f" {ticks} 0 0 0 20"

    family = {10: stat(10, 1, 100), 11: stat(11, 10, 10), 12: stat(12, 11, 1), 20: stat(20, 1, 5_000)}
    monkeypatch.setattr(processes, "_all_stats", lambda: family)
    assert processes.family_cpu_seconds(10) == pytest.approx(111 / processes.TICKS_PER_SECOND)
    with pytest.raises(FileNotFoundError, match="99"):
        processes.family_cpu_seconds(99)


def test_this_very_process_has_used_cpu_and_memory() -> None:
    assert 0 < processes.cpu_seconds(os.getpid()) <= processes.machine_cpu_seconds()
    assert processes.resident_bytes(os.getpid()) > 1_000_000


def test_the_stages_of_a_start_are_read_from_both_logs() -> None:
    began, answered, restored = split(POSTGRES_LOG, SERVER_LOG)
    assert answered - began == pytest.approx(0.15)
    assert restored - answered == pytest.approx(0.25)


@pytest.mark.parametrize(("postgres", "server"), [("", SERVER_LOG), (POSTGRES_LOG, "")], ids=["postgres", "server"])
def test_a_log_that_does_not_tell_is_no_figure(postgres: str, server: str) -> None:
    with pytest.raises(ValueError, match="do not tell"):
        split(postgres, server)


def test_metrics_without_labels_are_read_and_others_left_alone() -> None:
    text = (
        '# HELP halo_connections Open.\nhalo_connections 100.0\nhalo_sessions{status="active"} 3.0\npython_info 1.0\n'
    )
    assert parse_metrics(text) == {"halo_connections": 100.0}
