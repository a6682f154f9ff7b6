"""`halo doctor`: whether this halo can run and does, as one line for each thing that it looked at: ok, warn or fail, and what to do.

It must never change anything: no store is started or stopped, no migration applied, no secret made up. What cannot be looked at
because something before it failed is left out, and that something says why. Read next: `halo/checks.py`, `halo/server_checks.py` and
`halo/store_checks.py`, what is looked at.
"""

import errno
import os
import tempfile
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Final
from urllib.parse import quote

import msgspec

from halo import __version__, checks, server_checks, store_checks
from halo.checks import Finding, Status
from halo.clock import SystemClock
from halo.errors import StoreUnavailable
from halo.secrets import open_home
from halo.setting import value_of
from halo.settings import SETTINGS, SettingInvalid, Settings
from halo.store.database_url import DatabaseUrlRefused, require_readable
from halo.store.postgres import Postgres, open_postgres
from halo.store.valkey_link import ValkeyUrlRefused, choose_link

Progress = Callable[[str], None]
_SAY_WHERE: Final = {"data_dir", "database_url", "valkey_url"}
"""The settings that are read first: they say where the secrets are."""


class Diagnosis(msgspec.Struct, frozen=True, kw_only=True):
    """Everything, as `--json` prints it. Fields and checks may be added; none changes its meaning."""

    halo: str
    status: Status
    full: bool
    findings: tuple[Finding, ...]


def diagnosed(findings: list[Finding], *, full: bool) -> Diagnosis:
    """The worst of the findings is the status of all."""
    found = {finding.status for finding in findings}
    worst: Status = "fail" if "fail" in found else "warn" if "warn" in found else "ok"
    return Diagnosis(halo=__version__, status=worst, full=full, findings=tuple(findings))


def told(diagnosis: Diagnosis) -> str:
    """For people: one line a finding, and below it what to do."""
    width = max(len(finding.check) for finding in diagnosis.findings)
    lines = []
    for finding in diagnosis.findings:
        lines.append(f"{finding.status:<4}  {finding.check:<{width}}  {finding.fact}")
        if finding.advice:
            lines.append(f"{'':<4}  {'':<{width}}  → {finding.advice}")
    counts = {status: sum(f.status == status for f in diagnosis.findings) for status in ("ok", "warn", "fail")}
    lines.append(", ".join(f"{count} {status}" for status, count in counts.items()))
    return "\n".join(lines)


async def examine(
    environment: Mapping[str, str], flags: Mapping[str, str | None], *, full: bool, progress: Progress
) -> tuple[Diagnosis, int]:
    """Look at everything; the diagnosis, and the exit status: 0, 1 for a fail, 2 when the settings cannot be read."""
    with tempfile.TemporaryDirectory(prefix="halo-doctor-") as spare:
        try:
            settings, is_first = read_settings(environment, flags, Path(spare))
        except (SettingInvalid, DatabaseUrlRefused, ValkeyUrlRefused) as invalid:
            bad = checks.fail("settings", str(invalid), "Mend it; `halo serve --help` lists every setting.")
            return diagnosed([bad], full=full), 2
    findings = [finding async for finding in _look(settings, is_first=is_first, full=full, progress=progress)]
    diagnosis = diagnosed(findings, full=full)
    return diagnosis, 1 if diagnosis.status == "fail" else 0


def read_settings(
    environment: Mapping[str, str], flags: Mapping[str, str | None], spare: Path
) -> tuple[Settings, bool]:
    """The settings as a start would read them, and whether it would be the first on its data directory.

    A start makes up the secrets that are missing: here they are made in `spare`, which borrows those that are kept.

    Raises:
        SettingInvalid, DatabaseUrlRefused, ValkeyUrlRefused
    """
    given = {row.field: value_of(row, environment, flags) for row in SETTINGS if row.field in _SAY_WHERE}
    home: Path = given["data_dir"]
    is_first = True
    if given["database_url"] is None or given["valkey_url"] is None:
        is_first = _borrow_secrets(home, spare, "--data-dir" if flags.get("data_dir") else "HALO_DATA_DIR")
    try:
        settings = Settings.read(environment, {**flags, "data_dir": str(spare)})
    except SettingInvalid as invalid:
        raise SettingInvalid(str(invalid).replace(str(spare), str(home))) from None
    if settings.database_url is not None:
        require_readable(settings.database_url)
    if settings.valkey_url is not None:
        choose_link(settings.valkey_url, settings.valkey_prefix)
    return replace(settings, data_dir=home), is_first


def _borrow_secrets(home: Path, spare: Path, origin: str) -> bool:
    """Link what `home` keeps into `spare`; whether it keeps nothing yet, and then, whether it can be made.

    Raises:
        SettingInvalid
    """
    kept = home / "secrets"
    try:
        if kept.is_dir():
            open_home(spare / "secrets")
            for secret in kept.iterdir():
                (spare / "secrets" / secret.name).symlink_to(secret)
            return False
        there = next(place for place in (kept, *kept.parents) if os.path.lexists(place))
        if there == kept or not there.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        with tempfile.TemporaryDirectory(prefix=".halo-doctor-", dir=there):
            return True  # only an attempt tells: of /proc, of a mount that is read-only, of a quota
    except OSError as fault:
        raise SettingInvalid(
            f"{origin} is {str(home)!r}, where halo cannot make its files: {fault.strerror}."
        ) from fault


async def _look(settings: Settings, *, is_first: bool, full: bool, progress: Progress) -> AsyncIterator[Finding]:
    embedded = settings.database_url is None or settings.valkey_url is None
    yield checks.ok("settings", f"all {len(SETTINGS)} can be read")
    for finding in checks.secrets(settings, is_first=embedded and is_first):
        yield finding
    progress("looking for a running server")
    running = await server_checks.find_running(settings, embedded=embedded)
    yield await server_checks.binds(settings, running)
    for finding in checks.machine(settings, embedded=embedded):
        yield finding
    yield server_checks.server(settings, running)
    progress("asking Postgres")
    async for finding in _database(settings, full=full, progress=progress):
        yield finding
    progress("asking Valkey")
    socket = _socket(settings.data_dir, "valkey.sock")
    valkey = settings.valkey_url or (f"unix://{quote(str(socket))}" if socket else None)
    if valkey is None:
        yield store_checks.stopped("valkey")
        return
    async for finding in store_checks.valkey(valkey, settings.valkey_prefix, SystemClock()):
        yield finding


async def _database(settings: Settings, *, full: bool, progress: Progress) -> AsyncIterator[Finding]:
    socket = _socket(settings.data_dir, ".s.PGSQL.5432")
    url = settings.database_url
    if url is None and socket is not None:
        url = f"postgresql://halo@/postgres?host={quote(str(socket.parent), safe='')}&port=5432"
    if url is None:
        yield store_checks.stopped("postgres")
        return
    async with open_postgres(url, size=1) as db:
        try:
            found = [finding async for finding in store_checks.postgres(db, url, SystemClock())]
            for finding in found:
                yield finding
            if len(found) == 1:  # it does not answer
                return
            schema = await store_checks.schema(db)
            yield schema
            if schema.status != "ok":
                return  # the tables are not those that are asked of
            async for finding in _tables(settings, db, url, full=full, progress=progress):
                yield finding
        except StoreUnavailable:
            yield checks.fail("postgres", "went away while it was looked at", "Try again when it is back.")


async def _tables(
    settings: Settings, db: Postgres, url: str, *, full: bool, progress: Progress
) -> AsyncIterator[Finding]:
    yield await store_checks.nodes(db)
    if full:
        async for finding in store_checks.all_invariants(url, progress):
            yield finding
        return
    has_refund_url = settings.refund_url is not None
    async for finding in store_checks.recent_invariants(db, SystemClock().now(), has_refund_url, progress):
        yield finding


def _socket(data_dir: Path, name: str) -> Path | None:
    """Where an embedded server listens, if it does; behind a link when the data directory's own path is too long."""
    path = (data_dir / "run").resolve() / name
    return path if path.exists() else None
