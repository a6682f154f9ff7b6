"""The play that `halo demo` shows is played to its end."""

import json
import subprocess
import sys


def test_the_demo_plays_a_whole_paid_session_and_everything_in_it_holds() -> None:
    played = subprocess.run(
        [sys.executable, "-m", "halo", "demo", "--json"], capture_output=True, text=True, timeout=110, check=False
    )
    assert played.returncode == 0, played.stdout[-2000:] + played.stderr[-2000:]
    told = [json.loads(line) for line in played.stdout.splitlines()]
    steps = [step["step"] for step in told]
    assert not any("failed" in step for step in told)
    assert any("kill -9" in step for step in steps)
    assert any("invariants" in step and step.endswith("hold") for step in steps)
    assert any("because grace_over" in step for step in steps), "the timeline is told to its end"
    assert "ended with status 0" in steps[-1]
