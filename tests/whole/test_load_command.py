"""`halo load` as people type it: bad input in one sentence, a throw-away halo, both reports, a comparison, Ctrl-C."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import click.testing
import pytest
import trio

from halo import cli
from halo.load.plan import SCENARIOS
from halo.load.record import decode, encode
from tests.pure.load_records import record_of

KEY = {"HALO_SERVER_KEY": "the key of the backend"}
HELD = {0, 3}
"""Everything held; a busy machine may have made the harness late, and then it says so."""


def refused(*arguments: str, **environment: str) -> str:
    """The one sentence with which this input is refused."""
    clean = {name: None for name in os.environ if name.startswith("HALO_")}
    done = click.testing.CliRunner().invoke(cli.main, ["load", *arguments], env={**clean, **environment})
    assert (done.exit_code, done.stdout) == (2, ""), done.output
    assert done.stderr.startswith("halo: ")
    assert done.stderr.count("\n") == 1
    return done.stderr


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--scenario", "rush-hour"], "There is no scenario 'rush-hour'; there are steady,"),
        (["--embedded", "--pairs", "0"], "--pairs is 0, but must be between 1 and"),
        (["http://127.0.0.1:8801"], "HALO_SERVER_KEY (or HALO_SERVER_KEY_FILE, or --server-key-file) must be given"),
        (["http://127.0.0.1:8801", "--embedded"], "Give a URL or --embedded, not both"),
        (["127.0.0.1:8801"], "URL is no address of a halo"),
        (["--compare", "/nowhere.json"], "--compare names /nowhere.json, which cannot be read: No such file"),
        (["--html", "/nowhere/at/all.html"], "/nowhere/at/all.html cannot be written"),
        (["http://127.0.0.1:8801", "--server-key-file", "/nowhere"], "--server-key-file names /nowhere, which cannot"),
    ],
)
def test_bad_input_is_refused_in_one_sentence_before_anything_starts(arguments: list[str], says: str) -> None:
    if arguments[-1] == "--embedded":
        assert says in refused(*arguments, **KEY)
    else:
        assert says in refused(*arguments)


def test_a_file_that_is_no_report_is_not_compared_with(tmp_path: Path) -> None:
    (tmp_path / "other.json").write_text("{}")
    assert "but this is no report of halo load" in refused("--embedded", "--compare", str(tmp_path / "other.json"))


def test_keys_are_no_arguments() -> None:
    done = click.testing.CliRunner().invoke(cli.main, ["load", "--server-key", "the key of the backend"])
    assert done.exit_code == 2
    assert "No such option" in done.stderr


def test_help_names_every_scenario() -> None:
    done = click.testing.CliRunner().invoke(cli.main, ["load", "--help"])
    assert done.exit_code == 0
    assert all(name in done.stdout for name in SCENARIOS)


def test_a_throw_away_halo_is_killed_and_everything_is_reported(tmp_path: Path) -> None:
    (tmp_path / "other.json").write_bytes(encode(record_of()))
    arguments = ["--embedded", "--scenario", "reconnect-storm", "--pairs", "2", "--rate", "20", "--seconds", "3"]
    reports = ["--json", str(tmp_path / "run.json"), "--html", str(tmp_path / "run.html")]
    done = run(*arguments, *reports, "--compare", str(tmp_path / "other.json"))
    assert done.returncode in HELD, done.stdout + done.stderr
    record = decode((tmp_path / "run.json").read_bytes())
    assert [what for _, what in record.events] == ["kill -9", "ready again"]
    assert record.figures["resume"].count >= 4
    assert record.counts["said"] == record.counts["acks"] == record.counts["stored"]
    assert record.verdict.held
    assert "21 invariants" in done.stdout or "invariants" in done.stdout
    assert "compared with steady" in done.stdout
    assert "resume by percentile" in (tmp_path / "run.html").read_text()
    assert "reconnect-storm begins, for 3 s" in done.stderr


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HALO_")}
    return subprocess.run(
        [sys.executable, "-m", "halo", "load", *arguments],
        capture_output=True,
        text=True,
        env=environment,
        timeout=200,
        check=False,
    )


async def test_an_interrupt_ends_the_run_with_a_report_of_what_was_played() -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HALO_")}
    process = await trio.lowlevel.open_process(
        [
            sys.executable,
            "-m",
            "halo",
            "load",
            "--embedded",
            "--pairs",
            "1",
            "--rate",
            "20",
            "--seconds",
            "200",
            "--json",
            "-",
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment,
        start_new_session=True,
    )
    try:
        assert process.stdout is not None
        assert process.stderr is not None
        said, told = b"", b""
        with trio.fail_after(150):
            while b" acks" not in told:
                told += await process.stderr.receive_some()
            os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to everything that it has started
            async with trio.open_nursery() as nursery:
                nursery.start_soon(drain, process.stderr)
                async for more in process.stdout:
                    said += more
                status = await process.wait()
    finally:
        if process.poll() is None:
            process.kill()
            await process.wait()
    report = json.loads(said)
    assert (status, report["verdict"]["is_whole"]) == (130, False)
    assert report["counts"]["stored"] == report["counts"]["acks"] > 0


async def drain(stream: trio.abc.ReceiveStream) -> None:
    async for _ in stream:
        pass
