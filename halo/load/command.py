"""`halo load`: what may be asked for, told to whoever asks for help, and checked before anything is started.

It must never take a key as an argument. Read next: `halo/load/plan.py`.
"""

import os
import signal
import sys
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import click
import trio

from halo.client import CallRefused
from halo.demo.stage import ServerDidNotStart
from halo.load.compare import compare, told_comparison
from halo.load.conductor import Conductor
from halo.load.crew import WorkerLost
from halo.load.embedded import open_embedded, raise_descriptors
from halo.load.handshake import HandshakeRefused
from halo.load.hosts import NotOnline
from halo.load.page import page_of
from halo.load.people import PeopleFailed
from halo.load.plan import SCENARIOS, Plan, PlanRefused, Recipe, plan_of
from halo.load.progress import Lines, Screen
from halo.load.record import Record, RecordStrange, decode, encode
from halo.load.target import Keys, Target, TargetRefused, read_keys, urls_of
from halo.load.telling import told
from halo.log import configure_logging
from halo.store.invariants import find_violations
from halo.store.postgres import open_postgres

REFUSALS = (PlanRefused, TargetRefused, RecordStrange)
FAILURES = (PeopleFailed, NotOnline, HandshakeRefused, WorkerLost, CallRefused, ServerDidNotStart, OSError)
SOCKETS_BESIDES = 500
"""Descriptors that a server and a harness need for everything else."""


class _Teaching(click.Command):
    """A command whose help ends with the scenarios."""

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002  # click's own
        with formatter.section("Scenarios"):
            formatter.write_dl([(name, f"{recipe.about}  [{_defaults(recipe)}]") for name, recipe in SCENARIOS.items()])


def _defaults(recipe: Recipe) -> str:
    taken = (*recipe.knobs, "seconds")
    return " ".join(f"--{knob} {value:g}" for knob, value in recipe.defaults.items() if knob in taken)


@click.command(cls=_Teaching)
@click.argument("url", required=False)
@click.option(
    "--embedded",
    is_flag=True,
    help="Start a throw-away halo on this machine, with its limits lifted; also without URL.",
)
@click.option("--scenario", default="steady", show_default=True, metavar="NAME", help="What is played; see below.")
@click.option("--seconds", type=float, help="How long is measured, after everybody is there.  [30]")
@click.option("--pairs", type=int, help="Sessions, each of two connected people.")
@click.option("--mitras", type=int, help="Mitras in the lobby.")
@click.option(
    "--rate",
    type=float,
    help="Messages a second over all: the open loop, in which latency counts from the intended moment.",
)
@click.option("--interval", type=float, help="Seconds between two heartbeats of a mitra.")
@click.option("--window", type=float, help="Seconds within which a storm or rush begins.")
@click.option("--slow", type=float, help="Part of the pairs, 0 to 1, with somebody who does not read.")
@click.option("--body", type=int, help="Characters of a message.  [120]")
@click.option("--processes", type=int, help="Processes that make the load.  [1]")
@click.option("--seed", type=int, help="Of the dice: the same seed intends the same moments.  [1]")
@click.option("--json", "json_path", metavar="FILE", help="Write the report as JSON; - is standard output.")
@click.option("--html", "html_path", metavar="FILE", help="Write the report as one HTML page with its plots.")
@click.option("--compare", "other_path", metavar="OTHER.json", help="Show ratios to the report of another run.")
@click.option("--ws", metavar="URL", help="Where WebSockets are opened, if not beside URL.")
@click.option(
    "--server-key-file", metavar="FILE", help="Admits made-up people.  ($HALO_SERVER_KEY or $HALO_SERVER_KEY_FILE)"
)
@click.option(
    "--webhook-secret-file",
    metavar="FILE",
    help="Confirms payments; a sandbox needs none.  ($HALO_WEBHOOK_SECRET or $HALO_WEBHOOK_SECRET_FILE)",
)
@click.option("--insecure", is_flag=True, help="Do not check the certificate of an https URL.")
@click.option("--beside-others", is_flag=True, help="Run although mitras are online who are not of this run.")
@click.option("--quiet", is_flag=True, help="No progress.")
def load(**asked: Any) -> None:
    """Put a halo under load, and tell whether everything held.

    \b
      halo load --embedded                              try it here: a throw-away halo, 50 pairs, closed loop
      halo load --embedded --rate 500 --html load.html  the open loop, with a page of plots
      HALO_SERVER_KEY_FILE=key halo load https://api.example.test --scenario connect-storm --pairs 500

    Through the public API people are made up, pay, are paired and talk; afterwards everything that was acknowledged is read again and
    compared. Keys come from the environment or from files, never as arguments. Where HALO_DATABASE_URL is given too, the invariants are
    asked of the database. Do not use it where people are: made-up customers would be given to real mitras.

    Exits 0 when every check held, 1 when one did not or the run could not be played, 2 for bad input, 3 when the figures are the
    harness' own rather than the server's, 130 after Ctrl-C, which still checks and reports what was played.
    """
    configure_logging("error", "console")
    try:
        plan = plan_of(
            asked["scenario"],
            {name: asked[name] for name in Plan.__struct_fields__ if name in asked and name != "scenario"},
        )
        other = _other(asked["other_path"])
        _require_writable(asked["json_path"], asked["html_path"])
        away = None if asked["embedded"] or asked["url"] is None else _away(asked)
        if asked["embedded"] and asked["url"] is not None:
            raise TargetRefused("Give a URL or --embedded, not both.")
        _require_descriptors(plan, is_own=away is None)
    except REFUSALS as refusal:
        click.echo(f"halo: {refusal}", err=True)
        sys.exit(2)
    record = _run(plan, away, beside_others=asked["beside_others"], quiet=asked["quiet"])
    comparison = compare(record, other) if other is not None else None
    if asked["json_path"] == "-":
        click.echo(encode(record).decode(), nl=False)
    elif asked["json_path"]:
        Path(asked["json_path"]).write_bytes(encode(record))
    if asked["html_path"]:
        Path(asked["html_path"]).write_text(page_of(record, other), encoding="utf-8")
    click.echo(told(record), err=asked["json_path"] == "-")
    if comparison is not None:
        click.echo(told_comparison(comparison), err=asked["json_path"] == "-")
    sys.exit(record.verdict.status)


def _other(path: str | None) -> Record | None:
    if path is None:
        return None
    try:
        return decode(Path(path).read_bytes())
    except OSError as fault:
        raise RecordStrange(f"--compare names {path}, which cannot be read: {fault.strerror}.") from fault
    except RecordStrange as strange:
        raise RecordStrange(f"--compare names {path}, but {strange}.") from strange


def _require_writable(*paths: str | None) -> None:
    """Before an hour of load, not after it."""
    for path in paths:
        if path and path != "-":
            parent = Path(path).absolute().parent
            if not parent.is_dir() or not os.access(parent, os.W_OK) or Path(path).is_dir():
                raise TargetRefused(f"{path} cannot be written.")


def _require_descriptors(plan: Plan, *, is_own: bool) -> None:
    sockets = (
        plan.mitras if plan.scenario == "heartbeats" else 2 * plan.pairs + max(plan.mitras, plan.pairs)
    ) + SOCKETS_BESIDES
    here = sockets if is_own else -(-sockets // plan.processes) + SOCKETS_BESIDES
    may = raise_descriptors(here)
    if may < here:
        raise TargetRefused(
            f"This run needs {here} open sockets in one process, and the system allows {may}; raise `ulimit -n`, or ask for fewer people"
            + ("." if is_own else " or more --processes.")
        )


def _away(asked: dict[str, Any]) -> Target:
    api, ws = urls_of(asked["url"], asked["ws"])
    keys = read_keys(
        os.environ, {"server_key": asked["server_key_file"], "webhook_secret": asked["webhook_secret_file"]}
    )
    return Target(
        ws=ws,
        api=api,
        keys=keys,
        is_own=False,
        verify_tls=not asked["insecure"],
        find_violations=None if keys.database_url is None else _asking(keys),
    )


def _asking(keys: Keys) -> Any:
    async def ask() -> tuple[int, list[str]]:
        assert keys.database_url is not None  # or nobody is asked
        async with open_postgres(keys.database_url, size=1) as db:
            return await find_violations(db)

    return ask


def _run(plan: Plan, away: Target | None, *, beside_others: bool, quiet: bool) -> Record:
    """The record; what the operator can mend is one sentence and status 1."""
    try:
        return trio.run(_play, plan, away, beside_others, quiet)
    except REFUSALS + FAILURES as failure:
        click.echo(f"halo: {failure}", err=True)
    except KeyboardInterrupt:
        click.echo("halo: ended before anything was measured.", err=True)
        sys.exit(130)
    except BaseExceptionGroup as group:
        if group.split(KeyboardInterrupt)[0] is not None:
            click.echo("halo: ended before anything was measured.", err=True)
            sys.exit(130)
        expected, rest = group.split(REFUSALS + FAILURES)
        if rest is not None or expected is None:
            raise
        for sentence in dict.fromkeys(str(leaf) for leaf in _leaves(expected)):
            click.echo(f"halo: {sentence}", err=True)
    sys.exit(1)


def _leaves(group: BaseException) -> list[BaseException]:
    if isinstance(group, BaseExceptionGroup):
        return [leaf for part in group.exceptions for leaf in _leaves(part)]
    return [group]


async def _play(plan: Plan, away: Target | None, beside_others: bool, quiet: bool) -> Record:
    async with AsyncExitStack() as stack:
        is_plain = quiet or not sys.stderr.isatty()
        watching: Lines | Screen = Lines(sys.stderr, is_quiet=quiet) if is_plain else Screen()
        stack.enter_context(watching)
        watching.doing("starting a throw-away halo" if away is None else "looking at that halo")
        target = away if away is not None else await stack.enter_async_context(open_embedded())
        conductor = Conductor(plan, target, watching, beside_others=beside_others)
        nursery = await stack.enter_async_context(trio.open_nursery())
        nursery.start_soon(_watch_interrupt, conductor)
        record = await conductor.run()
        nursery.cancel_scope.cancel()
    return record


async def _watch_interrupt(conductor: Conductor) -> None:
    """The first Ctrl-C ends the run early, the second ends the program."""
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM, signal.SIGHUP) as signals:
        async for _ in signals:
            if conductor.stop.is_set() or not conductor.is_playing:
                raise KeyboardInterrupt
            conductor.stop.set()
