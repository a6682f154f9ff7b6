"""The scripts tell what they do before they do anything."""

import os
import subprocess

import pytest

from halo.docs import REPOSITORY


def run(name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Ten seconds and no network's settings: a script that began to set things up would say so, or not be done."""
    return subprocess.run(
        ["/bin/bash", str(REPOSITORY / "scripts" / name), *arguments],
        env={"PATH": os.defpath, "HOME": os.devnull},
        capture_output=True,
        text=True,
        timeout=10,
        check=False,
    )


@pytest.mark.parametrize("name", ["run", "test", "check", "measure", "bench"])
@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help_teaches_and_sets_nothing_up(name: str, flag: str) -> None:
    told = run(name, flag)
    assert (told.returncode, told.stderr) == (0, "")
    assert told.stdout.startswith(f"Usage: scripts/{name}")
    assert len(told.stdout.splitlines()) > 5


@pytest.mark.parametrize("name", ["run", "check"])
def test_what_a_script_does_not_take_is_refused_in_one_sentence(name: str) -> None:
    told = run(name, "--twice")
    assert (told.returncode, told.stdout) == (2, "")
    assert told.stderr.startswith(f"halo: scripts/{name} takes ")


def test_the_check_of_generated_documentation_cannot_pass_without_its_program() -> None:
    script = (REPOSITORY / "scripts" / "check").read_text("utf-8")
    assert 'docs_are_current() { "$bin/python" -m halo.docs --check; }' in script
