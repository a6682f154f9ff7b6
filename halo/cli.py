"""The command line: each command a few lines, each `--help` enough to go on.

A setting that halo does not accept stops the start with one sentence and status 2; so does a store that cannot be opened, with
status 1. Nothing is decided here. Read next: `halo/server.py`.
"""

import json
import os
import sys
from collections.abc import Callable
from typing import Any, TypeVar
from uuid import UUID

import click
import msgspec
import trio
import trio_asyncio  # noqa: F401 - before psycopg: it must patch asyncio before psycopg binds it (spec 6, traps)

from halo import __version__, errands, server
from halo.clock import rfc3339_or_none
from halo.demo.story import play
from halo.demo.told import Teller
from halo.doctor import examine, told
from halo.errors import Refusal
from halo.explain import explain_session
from halo.load.command import load
from halo.log import chosen_format, configure_logging
from halo.net.service_account import CredentialsUnusable, load_service_account
from halo.operator_account import Role, operator_name
from halo.settings import SETTINGS, SettingInvalid, Settings
from halo.store.database_url import DatabaseUrlRefused, require_readable
from halo.store.valkey_link import ValkeyUrlRefused, choose_link

F = TypeVar("F", bound=Callable[..., Any])

SENTENCES = (SettingInvalid, Refusal, *server.STARTS_REFUSED)
"""What may go wrong and is told in one sentence, without a traceback."""


def with_settings(command: F) -> F:
    """A flag for every setting of the table; secrets only as the path of a file."""
    for row in reversed(SETTINGS):
        shown = f"  [default: {row.default}]" if row.default is not None else ""
        command = click.option(
            row.flag, row.field, metavar=row.unit, default=None, help=f"{row.help}{shown}  (${row.source})"
        )(command)
    return command


def read_settings(flags: dict[str, str | None]) -> Settings:
    try:
        settings = Settings.read(os.environ, flags)
        if settings.database_url is not None:
            require_readable(settings.database_url)
        if settings.valkey_url is not None:
            choose_link(settings.valkey_url, settings.valkey_prefix)
    except (SettingInvalid, DatabaseUrlRefused, ValkeyUrlRefused) as invalid:
        click.echo(f"halo: {invalid}", err=True)
        sys.exit(2)
    configure_logging(settings.log_level, chosen_format(settings.log_format, sys.stderr))
    return settings


def require_credentials(settings: Settings) -> None:
    """A bad file is a bad setting, and is refused before a whole Postgres was made for nothing."""
    if settings.fcm_credentials is not None:
        try:
            load_service_account(settings.fcm_credentials)
        except CredentialsUnusable as unusable:
            click.echo(f"halo: {unusable}", err=True)
            sys.exit(2)


def run_told(run: Callable[[], Any]) -> Any:
    """Run; what the operator can mend is one sentence on standard error and status 1."""
    try:
        return run()
    except SENTENCES as refusal:
        click.echo(f"halo: {refusal}", err=True)
    except BaseExceptionGroup as group:
        expected, rest = group.split(SENTENCES)
        if rest is not None or expected is None:
            raise
        for leaf in _leaves(expected):
            click.echo(f"halo: {leaf}", err=True)
    sys.exit(1)


def _leaves(group: BaseException) -> list[BaseException]:
    if isinstance(group, BaseExceptionGroup):
        return [leaf for part in group.exceptions for leaf in _leaves(part)]
    return [group]


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120})
@click.version_option(__version__, prog_name="halo")
def main() -> None:
    """halo: the server behind paid, timed, one-to-one chat.

    Start with `halo demo`: it needs nothing, starts everything in a temporary directory and plays one whole paid session. Then
    `halo serve --sandbox 1` leaves a server running that you can talk to.
    """


@main.command()
@with_settings
def serve(**flags: str | None) -> None:
    """Serve until SIGTERM or Ctrl-C.

    Without --database-url and --valkey-url a real Postgres and a real Valkey are started in the data directory. When ready, one line
    of JSON on standard output names the addresses; logs go to standard error.
    """
    settings = read_settings(flags)
    require_credentials(settings)

    def announce(ready: dict[str, Any]) -> None:
        click.echo(json.dumps(ready, separators=(",", ":")))

    def invite(link: str) -> None:
        # Not by the log, which is kept and shipped: the link is as good as a password until it was used.
        click.echo(f"halo: set the password of the status page's first operator, within an hour: {link}", err=True)

    run_told(lambda: trio.run(server.serve, settings, announce, invite))


@main.command()
@click.option("--json", "as_json", is_flag=True, help="What was applied as one line of JSON.")
@with_settings
def migrate(as_json: bool, **flags: str | None) -> None:
    """Bring the database to this version's schema; safe to run on several nodes at once."""
    settings = read_settings(flags)
    applied = run_told(lambda: trio.run(errands.migrate_schema, settings))
    if as_json:
        click.echo(json.dumps({"applied": applied}))
        return
    for name in applied:
        click.echo(name)
    click.echo(f"{len(applied)} migrations applied; the schema is current.", err=True)


@main.command()
@click.option("--user-type", type=click.Choice(["customer", "mitra"]), required=True, help="Whose token.")
@click.option("--user-id", type=click.UUID, default=None, help="An existing user's UUID; a new user without it.")
@click.option("--display-name", default=None, help="The name of a new user.")
@click.option("--json", "as_json", is_flag=True, help="The whole answer as one line of JSON.")
@with_settings
def token(user_type: str, user_id: UUID | None, display_name: str | None, as_json: bool, **flags: str | None) -> None:
    """Open an auth session for a user and print its access token, for trying things out.

    Uses the stores that the settings name, also beside a server that is running on them or on the same data directory.
    """
    settings = read_settings(flags)
    opened = run_told(
        lambda: trio.run(errands.open_token, settings, user_type, str(user_id) if user_id else None, display_name)
    )
    click.echo(json.dumps(opened) if as_json else opened["access_token"])


@main.command()
@click.argument("session_id", metavar="SESSION", type=click.UUID)
@click.option("--json", "as_json", is_flag=True, help="The timeline as JSON.")
@with_settings
def explain(session_id: UUID, as_json: bool, **flags: str | None) -> None:
    """Tell what happened in a session, step by step, with the cause and the evidence of each."""
    settings = read_settings(flags)
    told = run_told(
        lambda: trio.run(
            errands.with_database, settings, lambda db: explain_session(db, str(session_id), as_json=as_json)
        )
    )
    if told is None:
        click.echo(f"halo: there is no session {session_id}", err=True)
        sys.exit(1)
    click.echo(told)


@main.group()
def operator() -> None:
    """Who may sign in on the status page: add, list, remove, reset.

    Uses the database that the settings name, also beside a running server. A link works once, for an hour.
    """


@operator.command("add")
@click.argument("name")
@click.option(
    "--role", type=click.Choice([role.value for role in Role]), default=Role.OPERATOR.value, show_default=True
)
@with_settings
def add_operator(name: str, role: str, **flags: str | None) -> None:
    """Add an operator and print the link with which NAME sets a password; a viewer changes nothing."""
    settings = read_settings(flags)
    click.echo(run_told(lambda: trio.run(errands.add_operator, settings, operator_name(name), Role(role))))


@operator.command("list")
@click.option("--json", "as_json", is_flag=True, help="One JSON object per operator.")
@with_settings
def list_operators(as_json: bool, **flags: str | None) -> None:
    """Name, role, whether a password is set, and the last sign-in of everybody."""
    settings = read_settings(flags)
    for account in run_told(lambda: trio.run(errands.list_operators, settings)):
        seen = rfc3339_or_none(account.signed_in_at)
        row = {"name": account.name, "role": account.role, "has_password": account.has_password, "signed_in_at": seen}
        password = "password set" if account.has_password else "no password yet"
        click.echo(json.dumps(row) if as_json else f"{account.name}  {account.role}  {password}  {seen or 'never'}")


@operator.command("remove")
@click.argument("name")
@with_settings
def remove_operator(name: str, **flags: str | None) -> None:
    """Remove an operator, whose sessions end at once."""
    settings = read_settings(flags)
    run_told(lambda: trio.run(errands.remove_operator, settings, operator_name(name)))


@operator.command("reset")
@click.argument("name")
@with_settings
def reset_operator(name: str, **flags: str | None) -> None:
    """Take NAME's password away, end the sessions, and print a link with which a new password is set."""
    settings = read_settings(flags)
    click.echo(run_told(lambda: trio.run(errands.reset_operator, settings, operator_name(name))))


@main.command()
@click.option("--json", "as_json", is_flag=True, help="The whole diagnosis as one JSON object.")
@click.option(
    "--full", is_flag=True, help="Ask what must always hold of everything that is kept, however long it takes."
)
@with_settings
def doctor(as_json: bool, full: bool, **flags: str | None) -> None:
    """Tell whether this halo can run and does, and what to do where not. Changes nothing.

    Give it the settings that `halo serve` gets. It looks at settings and secrets, the binds, the machine, versions, the running server, Postgres
    (reachable, durable, migrated, quick, its clock), Valkey, the nodes, and at what must always hold: of what lives and what has
    changed within two days, with --full of everything. It works beside a running server, also one with embedded stores; without one it
    says so. Each line is ok, warn or fail, a fact, and below it what to do.

    Exits 0 when nothing failed, 1 when something did, 2 when the settings cannot be read.
    """
    configure_logging("error", "console")

    def progress(doing: str) -> None:
        if sys.stderr.isatty():
            click.echo(f"\r\x1b[K{doing} …", nl=False, err=True)

    diagnosis, status = trio.run(lambda: examine(os.environ, flags, full=full, progress=progress))
    if sys.stderr.isatty():
        click.echo("\r\x1b[K", nl=False, err=True)
    click.echo(msgspec.json.encode(diagnosis).decode() if as_json else told(diagnosis))
    sys.exit(status)


@main.command()
@click.option("--json", "as_json", is_flag=True, help="One JSON object per step.")
@click.option("--keep", is_flag=True, help="Keep the temporary data directory and say where it is.")
def demo(as_json: bool, keep: bool) -> None:
    """Play one whole paid session, with two real clients and a server that is killed in the middle.

    Starts everything in a temporary data directory with a short minute. Exits 0 only if every step and every invariant held.
    """
    configure_logging("warning", "console")
    sys.exit(trio.run(play, Teller(as_json=as_json), keep))


main.add_command(load)


if __name__ == "__main__":
    main()
