"""The benchmark runs what it says, keeps what it has measured, and goes on where it was stopped; in small, with a rig made up for it."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from halo.docs import REPOSITORY
from scripts.benching.ceiling import figures_of, load_echo
from scripts.benching.rig import Rig, RigAbsent, RigFailed, find_rig

AT_MOST_SECONDS = 120.0

STACK = """
import json, os, sys, time
target, options = sys.argv[1], sys.argv[2:]
place = os.path.dirname(__file__)
open(os.path.join(place, "calls"), "a").write(f"{target.split('@')[0]} {' '.join(options)}\\n")
if target == "asyncio" and os.path.exists(os.path.join(place, "stuck")):
    try:
        time.sleep(600)
    finally:
        open(os.path.join(place, "unwound"), "w").close()
if target == "node" and os.path.exists(os.path.join(place, "broken")):
    sys.exit(f"the server in {place} did not start")
rate = {"node": 1000, "asyncio": 900}.get(target, 2000)
print(json.dumps({"acks_per_second": rate, "server_cpu_us": 10, "postgres_cpu_us": 10, "others_cores": 0, "check": {"clean": True}}))
"""


@pytest.fixture
def peers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A rig whose runs cost nothing; its environment lies beside it."""
    rig, python = tmp_path / "rig", tmp_path / "env" / "py" / "bin" / "python"
    rig.mkdir()
    (rig / "stack.py").write_text(STACK)
    python.parent.mkdir(parents=True)
    python.write_text(
        f'#!/bin/sh\n[ "$1" = -c ] && {{ echo \'{{"fastapi": "0.1"}}\'; exit; }}\nexec {sys.executable} "$@"\n'
    )
    python.chmod(0o755)
    for name in ("ws", "fastify", "postgres", "ioredis"):
        package = tmp_path / "env" / "node" / "node_modules" / name / "package.json"
        package.parent.mkdir(parents=True)
        package.write_text('{"version": "1.2.3"}')
    node = tmp_path / "bin" / "node"
    node.parent.mkdir()
    node.write_text("#!/bin/sh\necho v20.0.0\n")
    node.chmod(0o755)
    monkeypatch.setenv("PATH", f"{node.parent}{os.pathsep}{os.environ['PATH']}")
    return rig


def command(peers: Path, *more: str) -> list[str]:
    place = peers.parent
    arguments = [
        "--peers",
        str(peers),
        "--peers-env",
        str(place / "env"),
        "--page",
        str(place / "page.md"),
        "--quiet",
        "99",
    ]
    return [sys.executable, "-m", "scripts.benching", *arguments, "--cells", "closed50", "--seconds", "2", *more]


def bench(peers: Path, *more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(peers, *more), cwd=REPOSITORY, capture_output=True, text=True, timeout=AT_MOST_SECONDS, check=False
    )


def calls(peers: Path) -> list[str]:
    return [line.split()[0] for line in (peers / "calls").read_text().splitlines()]


def test_two_rounds_alternate_and_the_page_and_the_record_have_every_run(peers: Path) -> None:
    record = peers.parent / "record.json"
    done = bench(peers, "--rounds", "2", "--json", str(record))
    assert calls(peers) == ["node", "asyncio", "halo", "asyncio", "halo", "node"]
    assert "--mode closed --pairs 50 --warmup 3 --seconds 2" in (peers / "calls").read_text()
    assert done.returncode == 1  # 20 µs a message are not 0.65 of 20
    assert "met           `closed50`: acknowledged messages a second, to node" in done.stdout
    assert "6 of 6 runs" in done.stderr
    assert len(json.loads(record.read_text())["runs"]) == 6
    page = (peers.parent / "page.md").read_text()
    assert "| peers | node 20.0.0, ws 1.2.3, fastify 1.2.3, postgres 1.2.3, ioredis 1.2.3, fastapi 0.1 |" in page
    assert (
        "| acknowledged, 1/s | 1,000 (1,000–1,000) | 900 (900–900) **0.90×** | 2,000 (2,000–2,000) **2.00×** |" in page
    )
    assert str(peers.parent) not in page


def test_ctrl_c_ends_the_run_under_way_keeps_the_others_and_the_rest_is_made_when_resumed(peers: Path) -> None:
    record = peers.parent / "record.json"
    (peers / "stuck").touch()
    with subprocess.Popen(
        command(peers, "--rounds", "1", "--json", str(record)),
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        until = time.monotonic() + AT_MOST_SECONDS
        try:
            while not (peers / "calls").exists() or "asyncio" not in calls(peers):
                assert time.monotonic() < until, "the second target was not started"
                time.sleep(0.05)
        finally:
            process.send_signal(signal.SIGINT)
        process.communicate(timeout=AT_MOST_SECONDS)
    assert process.returncode == 130
    assert (peers / "unwound").exists(), "the rig was not let end in order"
    assert [run["target"] for run in json.loads(record.read_text())["runs"]] == ["node"]
    assert "Rounds: node 1." in (peers.parent / "page.md").read_text()
    (peers / "stuck").unlink()
    bench(peers, "--rounds", "1", "--resume", str(record))
    assert calls(peers) == ["node", "asyncio", "asyncio", "halo"]
    assert "Rounds: node 1, asyncio 1, halo 1." in (peers.parent / "page.md").read_text()


def test_a_target_that_does_not_start_is_told_and_the_others_run_on(peers: Path) -> None:
    (peers / "broken").touch()
    done = bench(peers, "--rounds", "1", "--attempts", "1", "--json", str(peers.parent / "record.json"))
    assert calls(peers) == ["node", "asyncio", "halo"]
    assert done.returncode == 1
    assert (
        "Failed: `closed50` of node, round 1: RigFailed: the server in PEERS did not start."
        in (peers.parent / "page.md").read_text()
    )


def test_a_record_of_another_window_is_not_gone_on_with(peers: Path) -> None:
    record = peers.parent / "record.json"
    record.write_text('{"runs": [], "seconds": 9.0}')
    done = bench(peers, "--resume", str(record))
    assert done.returncode == 2
    assert "the record was begun with 9" in done.stderr


def test_what_is_no_record_is_refused(peers: Path) -> None:
    record = peers.parent / "record.json"
    record.write_text('{"runs": [{"strange": 1}]}')
    done = bench(peers, "--resume", str(record))
    assert (done.returncode, "no record of scripts/bench" in done.stderr) == (2, True)


def test_without_a_rig_there_is_a_word_about_what_to_do(peers: Path, tmp_path: Path) -> None:
    with pytest.raises(RigAbsent, match="PEERS_DIR"):
        find_rig(None, tmp_path / "env", "halo serve")
    with pytest.raises(RigAbsent, match=r"stack\.py"):
        find_rig(tmp_path, tmp_path / "env", "halo serve")
    with pytest.raises(RigAbsent, match=r"setup\.sh"):
        find_rig(peers, tmp_path, "halo serve")
    assert find_rig(peers, tmp_path / "env", "halo serve").halo_command == "halo serve"


async def test_the_rig_fails_with_the_last_words_and_without_the_places_of_this_machine(peers: Path) -> None:
    (peers / "broken").touch()
    rig = Rig(peers=peers, env=peers.parent / "env", halo_command="halo serve")
    with pytest.raises(RigFailed, match=r"^the server in PEERS did not start$"):
        await rig.load("node", [])


async def test_the_bare_echo_sends_each_frame_back_once_and_the_relay_twice() -> None:
    echo = await load_echo("echo", seconds=2.0, warm_up_seconds=0.2)
    assert echo["per_second"] > 0
    assert echo["frames_out_each"] == 1
    relay = await load_echo("relay", seconds=2.0, warm_up_seconds=0.2)
    assert relay["frames_out_each"] > 1  # two, but for what is under way at the edges of the window


def test_figures_of_the_ceiling_are_by_the_second_and_by_the_message() -> None:
    counted = {"seconds": 2.0, "acks": 1000, "deliveries": 1000, "p50_ms": 1.0, "p99_ms": 2.0}
    counted |= {"server_cpu_seconds": 0.05, "client_cpu_seconds": 0.02, "others_cpu_seconds": 0.5}
    figures = figures_of(counted)
    assert (figures["per_second"], figures["frames_out_each"]) == (500, 2)
    assert figures["server_cpu_us"] == pytest.approx(50)
    assert (figures["client_cores"], figures["others_cores"]) == (0.01, 0.25)
