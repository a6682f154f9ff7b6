"""How long it takes from a fresh clone to the end of the demo, everything installed on the way.

What is cloned is what was committed, not what lies in the working tree. Needs the package index: where it cannot be reached there is
no figure, and the reason is told. Read next: `scripts/run`.
"""

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import trio

from scripts.measuring.figures import Figure, Measurement

AT_MOST_SECONDS = 600.0
NO_INDEX = "the package index cannot be reached"


async def measure(say: Callable[[str], None], repository: Path) -> Measurement:
    """One round: the second would find pip's cache filled by the first."""
    directory = Path(tempfile.mkdtemp(prefix="halo-clone-"))
    clone = directory / "halo"
    steps = {
        "clone": ["git", "clone", "--quiet", "--no-hardlinks", str(repository), str(clone)],
        "installation": [str(clone / "scripts" / "setup"), "run"],
        "demo": [str(clone / "scripts" / "run"), "--once"],
    }
    seconds: dict[str, float] = {}
    try:
        with trio.fail_after(AT_MOST_SECONDS):
            for name, command in steps.items():
                say(f"demo: {name}")
                began = time.perf_counter()
                said = await _run(command, directory)
                seconds[name] = time.perf_counter() - began
                if NO_INDEX in said:
                    return Measurement(
                        title="From a clone to the end of the demo", figures=(), notes=(f"Not measured: {NO_INDEX}.",)
                    )
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    figures = [Figure(name="fresh clone to the end of the demo", unit="s", rounds=(sum(seconds.values()),))]
    figures += [Figure(name=f"of it: {name}", unit="s", rounds=(took,)) for name, took in seconds.items()]
    return Measurement(title="From a clone to the end of the demo", figures=tuple(figures))


class StepFailed(Exception):
    """A step between the clone and the end of the demo did not succeed."""


async def _run(command: list[str], directory: Path) -> str:
    """What the command said. Raises StepFailed, unless it failed because there is no package index.

    It runs in `directory`: in our own, `python -m halo` would find this working tree before the clone.
    """
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("HALO_", "PYTHON")) or name == "HALO_PYTHON"
    }
    done = await trio.run_process(
        command, check=False, capture_stdout=True, stderr=subprocess.STDOUT, env=environment, cwd=directory
    )
    said = done.stdout.decode(errors="replace")
    if done.returncode and NO_INDEX not in said:
        raise StepFailed(f"{Path(command[0]).name} ended with status {done.returncode}: {said[-500:]}")
    return said
