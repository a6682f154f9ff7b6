"""`halo serve` in a session of its own: Ctrl-C in the terminal then reaches the harness alone, which still has to ask that server what it kept.

It must do nothing else. Read next: `halo/load/embedded.py`.
"""

import os
import sys


def main() -> None:
    os.setsid()
    os.execv(sys.executable, [sys.executable, "-m", "halo", "serve"])  # noqa: S606  # this program, and no shell


if __name__ == "__main__":
    main()
