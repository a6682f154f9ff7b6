"""`scripts/bench`: halo beside what one would pick instead, in one run, against the goals of its issue.

Progress goes to standard error, the verdicts to standard output. Every run is written down as soon as it was made, so that Ctrl-C loses one run
and `--resume` goes on. The exit status is 1 when a goal was missed or a run failed, and 130 after Ctrl-C. Read next: `scripts/benching/rounds.py`.
"""

import json
import os
import resource
import shlex
import signal
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import click
import trio
import trio_asyncio  # noqa: F401 - before psycopg, as in halo/cli.py

from halo.log import configure_logging
from scripts.benching.book import Book, read_book
from scripts.benching.cells import CELLS
from scripts.benching.goals import judge
from scripts.benching.page import asked, page, parse_explanations, told
from scripts.benching.rig import Rig, RigAbsent, find_rig
from scripts.benching.rounds import ATTEMPTS, QUIET_CORES, Order, Rounds, cells_of, plan
from scripts.measuring.circumstances import circumstances

ROOT: Final = Path(__file__).resolve().parents[2]
EXPLANATIONS: Final = Path(__file__).with_name("where_the_time_goes.md")
PAGE: Final = ROOT / "docs" / "benchmarks.md"
HALO_COMMAND: Final = shlex.join(["env", f"PYTHONPATH={ROOT}", sys.executable, "-m", "halo", "serve"])
INTERRUPTED: Final = 130


def say(sentence: str) -> None:
    click.echo(f"{datetime.now(UTC):%H:%M:%S}  {sentence}", err=True)


class Record:
    """The JSON beside the page: circumstances, order and book, written whole after every run."""

    def __init__(self, path: Path, about: dict[str, str], order: Order, book: Book) -> None:
        self._path = path
        self._about = about
        self._order = order
        self._book = book

    def write(self) -> None:
        """Never half: a reader, or a second try, finds the earlier one or this."""
        content = {"circumstances": self._about, "seconds": self._order.seconds, "runs": self._book.record()}
        beside = self._path.with_name(self._path.name + ".part")
        beside.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        beside.replace(self._path)


async def measure(rounds: Rounds) -> bool:
    """Whether it came to its end; Ctrl-C and SIGTERM end it in order, with every process that it started."""
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async with trio.open_nursery() as nursery:
            ended = False

            async def watch() -> None:
                async for _ in signals:
                    say("ending the run under way; what was measured is kept")
                    nursery.cancel_scope.cancel()

            nursery.start_soon(watch)
            await rounds.run()
            ended = True
            nursery.cancel_scope.cancel()
        return ended


async def told_about(command: str, rig: Rig | None) -> dict[str, str]:
    """The circumstances, with the versions of the peers where there are some."""
    about = circumstances(command)
    if rig is not None:
        about["peers"] = ", ".join(f"{name} {version}" for name, version in (await rig.versions()).items())
    return about


def read_record(path: Path | None) -> dict[str, Any]:
    """What `--resume` names, or an empty book."""
    if path is None:
        return {"runs": [], "seconds": None}
    try:
        record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        read_book(record["runs"])
    except (OSError, ValueError, TypeError, KeyError) as broken:
        raise click.BadParameter("it is no record of scripts/bench.", param_hint="--resume") from broken
    return record


def command_line(order: Order, rig: Rig | None) -> str:
    """What gives the same again, without the places of this machine."""
    said = (
        "scripts/bench"
        + (" --peers DIR" if rig is not None else "")
        + f" --rounds {order.rounds} --seconds {order.seconds:g}"
    )
    return said + ("" if order.cells == tuple(CELLS) else f" --cells {','.join(order.cells)}")


def verdicts(book: Book) -> str:
    """The goals, a line each, for the terminal."""
    judged = judge(book)
    width = max(len(one.goal.what) for one in judged)
    return "\n".join(
        f"{one.verdict:<13} {one.goal.what:<{width}}  {told(one.figure, one.goal):>12}  {asked(one)}" for one in judged
    )


@click.command(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120})
@click.option("--peers", type=click.Path(path_type=Path), envvar="PEERS_DIR", help="The rig of peers; or PEERS_DIR.")
@click.option(
    "--peers-env",
    type=click.Path(path_type=Path),
    envvar="PEERS_ENV",
    default=Path(tempfile.gettempdir()) / "peers-env",
    help="What the rig's setup.sh has made; or PEERS_ENV.",
)
@click.option("--halo", "halo_command", envvar="HALO_CMD", default=HALO_COMMAND, help="What the rig starts as halo.")
@click.option("--cells", default=",".join(CELLS), help="Names with commas between them.")
@click.option("--rounds", type=click.IntRange(1, 99), default=5, help="Of each cell and target.")
@click.option("--seconds", type=click.FloatRange(1, 600), default=None, help="The timed window of a run: 10.")
@click.option("--quiet", "quiet_cores", type=float, default=QUIET_CORES, help="Cores that others may use during a run.")
@click.option(
    "--attempts", type=click.IntRange(1, 20), default=ATTEMPTS, help="At a quiet run, before the best is kept."
)
@click.option("--resume", type=click.Path(dir_okay=False, path_type=Path), help="The JSON of an earlier run: go on.")
@click.option("--json", "json_file", type=click.Path(dir_okay=False, path_type=Path), help="Where the runs are kept.")
@click.option("--page", "page_file", type=click.Path(dir_okay=False, path_type=Path), default=PAGE, help="The page.")
@click.option("--only-page", is_flag=True, help="Measure nothing; write the page of --resume FILE anew.")
def main(  # noqa: PLR0913, PLR0917  # one for each option, by its name
    peers: Path | None,
    peers_env: Path,
    halo_command: str,
    cells: str,
    rounds: int,
    seconds: float | None,
    quiet_cores: float,
    attempts: int,
    resume: Path | None,
    json_file: Path | None,
    page_file: Path,
    only_page: bool,
) -> None:
    """Measure halo beside its peers and against its goals, and write docs/benchmarks.md."""
    configure_logging("error", "console")
    if only_page and resume is None:
        raise click.UsageError("--only-page needs the record that --resume names.")
    earlier = read_record(resume)
    if earlier["seconds"] is not None and seconds not in {None, earlier["seconds"]}:
        raise click.BadParameter(f"the record was begun with {earlier['seconds']:g}.", param_hint="--seconds")
    try:
        wanted = cells_of(cells)
    except KeyError as unknown:
        raise click.BadParameter(f"{unknown.args[0]} is none of {', '.join(CELLS)}.", param_hint="--cells") from unknown
    order = Order(
        cells=wanted,
        rounds=rounds,
        seconds=seconds or earlier["seconds"] or 10.0,
        quiet_cores=quiet_cores,
        attempts=attempts,
    )
    book = read_book(earlier["runs"])
    about, ended = earlier.get("circumstances", {}), True
    if not only_page:
        rig = rig_or_word(peers, peers_env, halo_command)
        lift_file_limit()
        os.chdir(ROOT)  # parts of it are started as modules
        about = trio.run(told_about, command_line(order, rig), rig)
        path = (
            json_file or resume or Path(tempfile.gettempdir()) / f"halo-bench-{datetime.now(UTC):%Y%m%d-%H%M%S}.json"
        ).resolve()
        record = Record(path, about, order, book)
        say(
            f"{len(plan(order, with_rig=rig is not None))} runs, {len(book.runs)} of them made before; they are kept in {path}"
        )
        ended = trio.run(measure, Rounds(order, rig, book, say, record.write))
        record.write()
    explanations = parse_explanations(EXPLANATIONS.read_text(encoding="utf-8"))
    page_file.write_text(page(book, about, quiet_cores, attempts, explanations), encoding="utf-8")
    click.echo(verdicts(book))
    if not ended:
        sys.exit(INTERRUPTED)
    sys.exit(1 if any(one.verdict == "missed" for one in judge(book)) or any(run.failure for run in book.runs) else 0)


def rig_or_word(peers: Path | None, peers_env: Path, halo_command: str) -> Rig | None:
    """The rig, or None and a word why not."""
    try:
        return find_rig(peers, peers_env, halo_command)
    except RigAbsent as absent:
        say(str(absent))
        return None


def lift_file_limit() -> None:
    """Thousands of sockets, on both sides; the rig's processes inherit it."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


if __name__ == "__main__":
    main(prog_name="scripts/bench")
