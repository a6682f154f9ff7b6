"""A Postgres of a test's own, which may be killed, stopped and started again; the shared one may not.

Durable, unlike the shared one: with synchronous_commit off a kill loses what was committed last, as it should.
"""

import signal
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import trio

from halo.store.directory import DataDirectory, open_data_directory
from halo.store.embedded import _package, open_embedded_postgres
from halo.store.recipes import PostgresRecipe


class Postmaster:
    """The server process of one data directory."""

    def __init__(self, directory: DataDirectory, url: str, options: Mapping[str, str]) -> None:
        self.url = url
        self._options = [word for name, value in options.items() for word in ("-c", f"{name}={value}")]
        self._recipe = PostgresRecipe(directory, _package("embedded_postgres") / "pginstall" / "bin", durable=True)
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def is_running(self) -> bool:
        """Or has it been killed or stopped?"""
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Returns when it takes connections."""
        deadline = time.monotonic() + 20
        while not self._start_once(deadline):  # the children of the one that was killed still hold its shared memory
            assert time.monotonic() < deadline

    def _start_once(self, deadline: float) -> bool:
        self._recipe.clear()
        self._process = subprocess.Popen(
            [*self._recipe.command(), *self._options],
            cwd="/",
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            **self._recipe.account.identity,
        )
        while self._process.poll() is None:
            if self._recipe._says_ready():
                return True
            assert time.monotonic() < deadline
            time.sleep(0.01)
        return False

    def send(self, number: signal.Signals) -> None:
        """To the postmaster alone."""
        assert self._process is not None
        self._process.send_signal(number)
        if number is signal.SIGKILL:
            self._process.wait()

    def send_all(self, number: signal.Signals) -> None:
        """To the postmaster and each of its children, as a hung machine would do it."""
        assert self._process is not None
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text().split()
        self._process.send_signal(number)
        for child in children:
            subprocess.run(["kill", f"-{number.name.removeprefix('SIG')}", child], check=False)

    def stop(self) -> None:
        """Only what still runs."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGINT)
            self._process.wait(20)


@contextmanager
def run_postmaster(home: Path, **options: str) -> Iterator[Postmaster]:
    """Made, started, and stopped on leaving; `home` must be short, for it holds sockets. `options` go before halo's own."""
    with open_data_directory(home) as directory:

        async def make() -> str:
            async with open_embedded_postgres(directory, durable=False) as url:
                return url

        postmaster = Postmaster(directory, trio.run(make), options)
        postmaster.start()
        try:
            yield postmaster
        finally:
            postmaster.stop()
