"""What processes have cost, as the kernel counts it: CPU time and resident memory from /proc.

Children that ended and were waited for are in their parent's account, so a family's cost never shrinks. Linux only; whoever has
no /proc gets `FileNotFoundError`. Read next: `scripts/measuring/messages.py`.
"""

import os
from pathlib import Path
from typing import Final

TICKS_PER_SECOND: Final = os.sysconf("SC_CLK_TCK")
PAGE_BYTES: Final = os.sysconf("SC_PAGE_SIZE")
_AFTER_NAME: Final = 3
"""The first field of `stat` behind the name in parentheses is the third one."""
_PARENT, _UTIME, _STIME, _CUTIME, _CSTIME = (field - _AFTER_NAME for field in (4, 14, 15, 16, 17))
_IDLE, _IOWAIT = 3, 4


def fields_of(stat: str) -> list[str]:
    """The fields of /proc/PID/stat from the third on; the name before them may hold spaces and parentheses."""
    return stat.rpartition(")")[2].split()


def own_cpu_seconds(stat: str) -> float:
    """User and system time of the process itself and of its children that are gone."""
    fields = fields_of(stat)
    return sum(int(fields[field]) for field in (_UTIME, _STIME, _CUTIME, _CSTIME)) / TICKS_PER_SECOND


def family_cpu_seconds(pid: int) -> float:
    """Of the process and everything below it, dead or alive.

    Raises:
        FileNotFoundError: there is no such process.
    """
    stats = _all_stats()
    if pid not in stats:
        raise FileNotFoundError(f"there is no process {pid}")
    children: dict[int, list[int]] = {}
    for child, stat in stats.items():
        children.setdefault(int(fields_of(stat)[_PARENT]), []).append(child)
    seconds, left = 0.0, [pid]
    while left:
        member = left.pop()
        seconds += own_cpu_seconds(stats[member])
        left += children.get(member, [])
    return seconds


def cpu_seconds(pid: int) -> float:
    """Of the process alone. halo's Postgres is a child of halo, and has an account of its own."""
    fields = fields_of(Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace"))
    return (int(fields[_UTIME]) + int(fields[_STIME])) / TICKS_PER_SECOND


def machine_cpu_seconds() -> float:
    """Of everything on this machine since it started."""
    times = [int(field) for field in Path("/proc/stat").read_text(encoding="ascii").splitlines()[0].split()[1:9]]
    return (sum(times) - times[_IDLE] - times[_IOWAIT]) / TICKS_PER_SECOND


def resident_bytes(pid: int) -> int:
    """What the process holds in memory."""
    return int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1]) * PAGE_BYTES


def _all_stats() -> dict[int, str]:
    stats: dict[int, str] = {}
    for directory in Path("/proc").iterdir():
        if directory.name.isdecimal():
            try:
                stats[int(directory.name)] = (directory / "stat").read_text(encoding="utf-8", errors="replace")
            except (FileNotFoundError, ProcessLookupError):
                continue  # it has ended meanwhile: its parent has its time
    return stats
