"""The CPU that a process has used, from the system's own account. Read next: `halo/load/record.py`."""

import os
from pathlib import Path
from typing import Final

_UTIME: Final = 11
_STIME: Final = 12
"""Fields of /proc/PID/stat after the name, which may itself hold spaces and parentheses."""


def cpu_seconds(pid: int) -> float:
    """User and system time of this process alone; halo's Postgres is a child of halo and not in it.

    Raises:
        FileNotFoundError: it is gone.
    """
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    return (int(fields[_UTIME]) + int(fields[_STIME])) / os.sysconf("SC_CLK_TCK")
