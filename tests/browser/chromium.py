"""A headless Chromium of this machine's own, one process for many tests, spoken to over its DevTools socket on loopback.

It downloads nothing and keeps nothing: the profile is an empty directory that goes with the process. It must never be pointed at
anything but this machine. Read next: `tests/browser/devtools.py`.
"""

import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

ABSENT: Final = "no browser is installed: on Debian `apt-get install chromium fonts-dejavu-core`, or name a Chromium in HALO_CHROMIUM"
NAMES: Final = ("chromium", "google-chrome-stable", "google-chrome")
"""As Debian and Google call it. Not `chromium-browser`, which on Ubuntu is a program that tells people to install another one."""
START_SECONDS: Final = 60.0
"""A cold start takes two seconds here; only a browser that hangs needs it all."""
STOP_SECONDS: Final = 10.0

_FLAGS: Final = (
    "--headless",
    "--remote-debugging-port=0",
    "--disable-gpu",
    "--disable-dev-shm-usage",  # 64 MB in many containers, and a page crashes when it is full
    "--disable-quic",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-default-apps",
    "--disable-extensions",
    "--disable-sync",
    "--disable-search-engine-choice-screen",
    "--disable-background-timer-throttling",  # several tabs are open at once, and all of them count
    "--disable-backgrounding-occluded-windows",
    "--disable-renderer-backgrounding",
    "--force-device-scale-factor=1",
    "--hide-scrollbars",
    "--metrics-recording-only",
    "--mute-audio",
    "--no-default-browser-check",
    "--no-first-run",
    "--no-proxy-server",  # everything is on loopback, whatever the environment says
    "--password-store=basic",
)
_LISTENING: Final = re.compile(r"\A(\d+)\n(/devtools/browser/[0-9a-f-]{36})\s*\Z")


class BrowserDidNotStart(Exception):
    """It ended or stayed silent instead of listening."""


@dataclass(frozen=True, slots=True)
class Chromium:
    """A running browser."""

    devtools_url: str


def find_chromium() -> str | None:
    """The program, or None where none is installed."""
    named = os.environ.get("HALO_CHROMIUM")
    return shutil.which(named) if named else next(filter(None, map(shutil.which, NAMES)), None)


@contextmanager
def open_chromium(program: str) -> Iterator[Chromium]:
    """A browser for the time of the block, as a process group that is ended with it. Raises BrowserDidNotStart.

    Chromium's own sandbox refuses root, and needs user namespaces, which many containers withhold. It shows halo's own pages only,
    so where it does not start with the sandbox it is started without.
    """
    attempts = [["--no-sandbox"]] if os.geteuid() == 0 else [[], ["--no-sandbox"]]
    home = Path(tempfile.mkdtemp(prefix="halo-browser-"))
    process: subprocess.Popen[bytes] | None = None
    try:
        for number, extra in enumerate(attempts):
            profile = home / f"profile-{number}"
            process = _start(program, profile, extra)
            url = _wait_listening(process, profile)
            if url is not None:
                yield Chromium(url)
                return
            ended, process = process, None
            _end(ended)
        log = (home / f"profile-{len(attempts) - 1}" / "log").read_text("utf-8", errors="replace")
        raise BrowserDidNotStart(f"{program} did not start; its log ends with: {log[-1500:]}")
    finally:
        if process is not None:
            _end(process)
        shutil.rmtree(
            home, ignore_errors=True
        )  # a child of the killed group may still be writing; nothing depends on it


def _start(program: str, profile: Path, extra: list[str]) -> subprocess.Popen[bytes]:
    profile.mkdir()
    # A run that is killed cannot tidy up, so the browser asks to be ended with whoever started it; where setpriv (util-linux) is.
    tied = [setpriv, "--pdeathsig", "KILL", "--"] if (setpriv := shutil.which("setpriv")) else []
    kept = {name: os.environ[name] for name in ("PATH", "LANG", "FONTCONFIG_FILE") if name in os.environ}
    with (profile / "log").open("wb") as log:
        return subprocess.Popen(
            [*tied, program, *_FLAGS, *extra, f"--user-data-dir={profile}", "about:blank"],
            env={**kept, "HOME": str(profile), "TMPDIR": str(profile), "TZ": "UTC"},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,  # its helpers are ended with it
        )


def _wait_listening(process: subprocess.Popen[bytes], profile: Path) -> str | None:
    """The address of its DevTools, which it writes down once it listens; None when it ended or took too long."""
    told = profile / "DevToolsActivePort"
    until = time.monotonic() + START_SECONDS
    while process.poll() is None and time.monotonic() < until:
        found = _LISTENING.match(told.read_text("ascii")) if told.exists() else None
        if found is not None:
            return f"ws://127.0.0.1:{found[1]}{found[2]}"
        time.sleep(0.01)
    return None


def _end(process: subprocess.Popen[bytes]) -> None:
    """The whole group, by force: there is nothing to save. Called once for each, since the number is free afterwards."""
    with suppress(ProcessLookupError):  # all of it has ended by itself
        os.killpg(process.pid, signal.SIGKILL)
    process.wait(STOP_SECONDS)
