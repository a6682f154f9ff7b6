"""What the README shows works: its commands are read from the page itself and executed, in its order, in a copy of the tree.

Only the addresses are changed: the page names fixed ports, a test must take free ones. `scripts/setup` runs and finds that
its work is done: the packages of this very interpreter stand in for those that it would download, which `scripts/test` has just
installed by the same script.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from halo.docs import REPOSITORY

README = (REPOSITORY / "README.md").read_text("utf-8")
PAGES = [
    REPOSITORY / "README.md",
    REPOSITORY / "CONTRIBUTING.md",
    *sorted((REPOSITORY / "docs").rglob("*.md")),
]

_SHELL = re.compile(r"```sh\n(.*?)```", re.DOTALL)
_FINGERPRINT = re.compile(r"<<'PYTHON'\n(.*?)\nPYTHON\n", re.DOTALL)
_LINK = re.compile(r"\]\((?!https?:|#)([^)#]+)")
_NAMED = re.compile(r"`((?:halo|tests|scripts|docs)/[\w./-]*\w)`")

DOCUMENTED = {"ws": "ws://127.0.0.1:8800", "api": "http://127.0.0.1:8801", "admin": "http://127.0.0.1:8802"}


@pytest.mark.skipif(
    shutil.which("curl") is None, reason="the page calls the API with curl, which halo itself does not need"
)
def test_its_commands_play_the_demo_leave_a_server_and_lead_through_a_session() -> None:
    start, *calls = _SHELL.findall(README)
    with _copied_tree() as home, _started(start, home) as (told, ready):
        assert "invariants of money, time, sessions and messages hold" in told
        script = "set -euo pipefail\n" + "".join(calls)
        for name, address in DOCUMENTED.items():
            script = script.replace(address, ready[name])
        walk = subprocess.run(
            ["bash"],
            input=script,
            cwd=home,
            env=_environment(),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert walk.returncode == 0, walk.stdout + walk.stderr
        assert set(json.loads(walk.stdout.partition("\n")[0])) == {
            "user_id",
            "access_token",
            "refresh_token",
            "expires_in",
        }
        assert "customer got {'type': 'ack'" in walk.stdout
        assert "'sender': 'customer', 'body': 'Hello, is somebody there?'" in walk.stdout
        assert re.search(r"^session [0-9a-f-]{36}: ended \(ended_by_customer\)$", walk.stdout, re.MULTILINE)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPOSITORY)))
def test_every_file_that_a_page_names_is_there(page: Path) -> None:
    text = page.read_text("utf-8")
    named = [REPOSITORY / name for name in _NAMED.findall(text)]
    named += [page.parent / link for link in _LINK.findall(text)]
    assert [str(path) for path in named if not path.exists()] == []


@contextmanager
def _copied_tree() -> Iterator[Path]:
    """What a clone holds and halo runs on, with a `.venv` that is this interpreter."""
    home = Path(tempfile.mkdtemp(prefix="halo-readme-"))
    try:
        home.chmod(0o711)  # a root's embedded Postgres passes through, and sees nothing
        for name in ("halo", "scripts"):
            shutil.copytree(REPOSITORY / name, home / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
        for name in ("pyproject.toml", "requirements.lock", "requirements-dev.lock"):
            shutil.copy(REPOSITORY / name, home / name)
        _install(home)
        yield home
    finally:
        shutil.rmtree(home)


def _install(home: Path) -> None:
    programs = home / ".venv" / "bin"
    programs.mkdir(parents=True)
    for name, arguments in {"python": "", "halo": " -m halo"}.items():
        program = programs / name
        program.write_text(f'#!/bin/sh\nPYTHONPATH="{home}" exec "{sys.executable}"{arguments} "$@"\n')
        program.chmod(0o755)
    found = _FINGERPRINT.search((home / "scripts" / "setup").read_text("utf-8"))
    assert found is not None  # by which it knows that nothing has changed
    stamp = subprocess.run(
        [sys.executable, "-", str(home)], input=found[1], capture_output=True, text=True, check=True, timeout=30
    )
    (home / ".venv" / ".halo-dev").write_text(stamp.stdout)


@contextmanager
def _started(command: str, home: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """What the command told until a server was ready, and the server's ready line; the server is stopped on leaving."""
    with (home / "stderr").open("wb") as errors:
        process = subprocess.Popen(
            ["bash", "-c", f"exec {command}"],
            cwd=home,
            env=_environment(),
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        )
    assert process.stdout is not None  # a pipe was asked for
    try:
        told = ""
        for line in process.stdout:
            if line.startswith('{"event":"ready"'):
                yield told, json.loads(line)
                break
            told += line
        else:
            pytest.fail(f"no server became ready:\n{told}\n{(home / 'stderr').read_text()}")
        process.terminate()
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def _environment() -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("HALO_", "PYTHON"))}
    binds = {f"HALO_{name.upper()}_BIND": "127.0.0.1:0" for name in DOCUMENTED}
    programs = f"{Path(sys.executable).parent}{os.pathsep}{kept.get('PATH', os.defpath)}"
    return {**kept, **binds, "PATH": programs, "HALO_PYTHON": sys.executable}
