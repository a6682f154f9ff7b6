"""What stops a start stops `halo doctor` too: one table of bad surroundings, which both commands are put into; and one of those that only look bad."""

import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit
from uuid import uuid4

import click.testing
import pytest

from halo import checks, cli, doctor
from halo.checks import Finding
from halo.net.guard import BindRefused, address_of, open_bound, open_listener
from halo.parsing import address
from halo.settings import Settings
from halo.store.postgres import open_postgres
from tests.net.provider import Provider
from tests.whole.house import LOOPBACK, environment_of, open_house

LONGEST_START_SECONDS = 120
"""Only a start that was not refused takes so long; it is ended, and the test fails."""


@dataclass
class Ground:
    """Where a case may make its surroundings bad."""

    folder: Path
    database_url: str
    valkey_url: str
    open_until_the_end: ExitStack

    def given(self, **changes: str) -> dict[str, str]:
        """Both stores by URL, and well."""
        return environment_of(self.database_url, self.valkey_url, **changes)

    def embedded(self, data_dir: Path, **changes: str) -> dict[str, str]:
        return {**LOOPBACK, "HALO_DATA_DIR": str(data_dir), **changes}

    def taken(self) -> str:
        """A bind at which another program listens."""
        other = self.open_until_the_end.enter_context(socket.create_server(("127.0.0.1", 0)))
        return f"127.0.0.1:{other.getsockname()[1]}"

    def file(self, text: str, mode: int) -> Path:
        path = self.folder / "file"
        path.write_text(text)
        path.chmod(mode)
        return path


@pytest.fixture
def ground(tmp_path: Path, database_url: str, valkey_url: str) -> Iterator[Ground]:
    with ExitStack() as stack:
        yield Ground(tmp_path, database_url, valkey_url, stack)


def readable_credentials(ground: Ground) -> Path:
    path = Provider(url="http://127.0.0.1:1").credentials(ground.folder)
    path.chmod(0o644)
    return path


def secrets_that_are_a_file(ground: Ground) -> Path:
    home = ground.folder / "data"
    home.mkdir()
    (home / "secrets").touch()
    return home


def secret_for_all_to_read(ground: Ground) -> Path:
    secrets = ground.folder / "data" / "secrets"
    secrets.mkdir(parents=True)
    (secrets / "server_key").write_text("the key of the backend")
    (secrets / "server_key").chmod(0o644)
    return secrets.parent


def database_of_another_major(ground: Ground) -> Path:
    database = ground.folder / "data" / "postgres"
    database.mkdir(parents=True)
    (database / "PG_VERSION").write_text("9\n")
    return database.parent


def database_of_nothing(ground: Ground) -> Path:
    home = ground.folder / "data"
    (home / "postgres").mkdir(parents=True)
    return home


Surroundings = Callable[[Ground], dict[str, str]]

REFUSED: dict[str, tuple[Surroundings, int, str]] = {
    "credentials that are not there": (
        lambda g: g.embedded(g.folder / "data", HALO_FCM_CREDENTIALS=str(g.folder / "none.json")), 2, "fcm_credentials",
    ),
    "credentials for all to read": (
        lambda g: g.embedded(g.folder / "data", HALO_FCM_CREDENTIALS=str(readable_credentials(g))), 2, "fcm_credentials",
    ),
    "credentials of nobody": (
        lambda g: g.embedded(g.folder / "data", HALO_FCM_CREDENTIALS=str(g.file("{}", 0o600))), 2, "fcm_credentials",
    ),
    "one port for two listeners": (
        lambda g: g.given(HALO_WS_BIND="127.0.0.1:8800", HALO_API_BIND="127.0.0.1:8800"), 2, "settings",
    ),
    "a port of every address beside the same of one": (
        lambda g: g.given(HALO_WS_BIND="0.0.0.0:8802", HALO_ADMIN_BIND="127.0.0.1:8802"), 2, "settings",
    ),
    "a port that another program has": (lambda g: g.given(HALO_API_BIND=g.taken()), 1, "binds"),
    "an operators' port that another program has": (lambda g: g.given(HALO_ADMIN_BIND=g.taken()), 1, "binds"),
    "an address of another machine": (lambda g: g.given(HALO_WS_BIND="192.0.2.1:0"), 1, "binds"),
    "an operators' page for everybody": (lambda g: g.given(HALO_ADMIN_BIND="0.0.0.0:0"), 2, "settings"),
    "a data directory that is a file": (lambda g: g.embedded(g.file("", 0o600)), 2, "settings"),
    "a data directory below a file": (lambda g: g.embedded(g.file("", 0o600) / "data"), 2, "settings"),
    "a data directory where none can be made": (lambda g: g.embedded(Path("/proc/nope")), 2, "settings"),
    "a data directory whose secrets are a file": (lambda g: g.embedded(secrets_that_are_a_file(g)), 2, "settings"),
    "a data directory in nobody's home": (
        lambda g: g.embedded(Path("~nobody-has-this-name/data")), 2, "settings",
    ),
    "a kept secret for all to read": (lambda g: g.embedded(secret_for_all_to_read(g)), 2, "settings"),
    "a database of another Postgres": (lambda g: g.embedded(database_of_another_major(g)), 1, "data_directory"),
    "a database that is an empty directory": (lambda g: g.embedded(database_of_nothing(g)), 1, "data_directory"),
    "a secret that is too short": (lambda g: g.given(HALO_TOKEN_SECRET="short"), 2, "settings"),
    "no secrets": (lambda g: g.given(HALO_SERVER_KEY=""), 2, "settings"),
    "refunds that nobody signs": (lambda g: g.given(HALO_REFUND_URL="https://pay.example"), 2, "settings"),
    "a database that is not there": (
        lambda g: g.given(HALO_DATABASE_URL=f"postgresql://halo@/halo?host={g.folder}"), 1, "postgres",
    ),
}  # fmt: skip
"""What is wrong: the surroundings, the status with which `halo serve` ends, and the finding under which the doctor says it."""


async def examined(environment: dict[str, str]) -> tuple[dict[str, Finding], int]:
    diagnosis, status = await doctor.examine(environment, {}, full=False, progress=lambda _: None)
    return {finding.check: finding for finding in diagnosis.findings}, status


def serve_refused_at_once(environment: dict[str, str]) -> tuple[int, str]:
    """The same for a bad setting, in this process: one that is not refused would fail here, for Trio runs already."""
    done = click.testing.CliRunner().invoke(cli.main, ["serve"], env=dict(environment))
    assert isinstance(done.exception, SystemExit), done.exception
    assert done.stdout == ""
    return done.exit_code, done.stderr


def serve_refused(environment: dict[str, str], folder: Path) -> tuple[int, str]:
    """The exit status of `halo serve`, and the one sentence that it said."""
    done = subprocess.run(  # our own program
        [sys.executable, "-m", "halo", "serve"],
        env=os.environ | environment | {"HALO_LOG_LEVEL": "error"},
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=LONGEST_START_SECONDS,
        check=False,
    )
    assert done.stdout == ""
    return done.returncode, done.stderr


@pytest.mark.parametrize("name", REFUSED)
async def test_what_stops_a_start_stops_the_doctor_too(ground: Ground, name: str) -> None:
    surround, serve_status, check = REFUSED[name]
    environment = surround(ground)
    before = sorted(ground.folder.rglob("*"))
    findings, status = await examined(environment)
    assert sorted(ground.folder.rglob("*")) == before, "the doctor left something behind"
    assert findings[check].status == "fail", findings
    assert findings[check].advice
    assert status == (2 if check == "settings" else 1)
    is_setting = serve_status == 2
    found, said = serve_refused_at_once(environment) if is_setting else serve_refused(environment, ground.folder)
    assert (found, said.count("\n"), said[:6]) == (serve_status, 1, "halo: "), said
    assert found == 1 or not (ground.folder / "data" / "postgres").exists(), "a setting is refused before the stores"


async def test_a_database_of_a_later_version_stops_both(ground: Ground) -> None:
    async with open_postgres(ground.database_url) as db:
        await db.execute("INSERT INTO schema_migrations VALUES ('9999_of_tomorrow', 'unknown')")
    findings, status = await examined(ground.given())
    assert (findings["migrations"].status, status) == ("fail", 1)
    found, said = serve_refused(ground.given(), ground.folder)
    assert found == 1
    assert "9999_of_tomorrow" in said


@pytest.mark.parametrize("pending", [True, False])
async def test_a_user_who_may_make_no_tables_stops_both(
    ground: Ground, empty_database_url: str, database_url: str, pending: bool
) -> None:
    url = empty_database_url if pending else database_url
    poor = f"poor_{uuid4().hex}"
    async with open_postgres(url) as db:
        await db.execute(f"CREATE ROLE {poor} LOGIN")
        await db.execute(f"GRANT SELECT ON ALL TABLES IN SCHEMA public TO {poor}")
        try:
            environment = ground.given(HALO_DATABASE_URL=url.replace("halo@", f"{poor}@", 1))
            findings, status = await examined(environment)
            assert (findings["migrations"].status, status) == ("fail", 1), findings
            found, said = serve_refused(environment, ground.folder)
            assert (found, said.count("\n")) == (1, 1), said
            assert "permission denied for schema public" in said
        finally:
            await db.execute(f"DROP OWNED BY {poor}")
            await db.execute(f"DROP ROLE {poor}")


# ---- and what does not


async def test_what_a_start_would_mend_by_itself_is_no_failure(ground: Ground, empty_database_url: str) -> None:
    """An empty database is migrated, a data directory made, missing secrets made up."""
    findings, _ = await examined(ground.given(HALO_DATABASE_URL=empty_database_url))
    assert findings["migrations"].status == "warn"
    home = ground.folder / "deep" / "data"
    findings, status = await examined(ground.embedded(home))
    assert (findings["data_directory"].status, status) == ("warn", 0)
    assert not home.parent.exists()
    (home / "secrets").mkdir(parents=True)
    (home / "secrets" / "server_key").touch(mode=0o600)
    (home / "secrets" / "server_key").write_text("the key of the backend")
    findings, status = await examined(ground.embedded(home))
    assert status == 0
    assert [path.name for path in (home / "secrets").iterdir()] == ["server_key"], "the doctor made secrets up"


async def test_the_ports_of_the_halo_that_runs_are_no_failure(ground: Ground) -> None:
    async with open_house(ground.database_url, ground.valkey_url) as house:
        binds = {f"HALO_{name.upper()}_BIND": house.ready[name].partition("://")[2] for name in ("ws", "api", "admin")}
        findings, _ = await examined(ground.given(**binds))
        assert (findings["binds"].status, findings["server"].status) == ("ok", "ok"), findings
        assert findings["binds"].fact.endswith("held by the halo that runs")
        findings, status = await examined(ground.embedded(ground.folder / "another", **binds))
        assert (findings["binds"].status, findings["server"].status, status) == ("fail", "warn", 1), findings


async def test_asking_whether_a_port_is_free_is_in_no_starts_way(ground: Ground) -> None:
    """The doctor binds and never listens: a start that comes meanwhile gets the port."""
    with await open_bound("127.0.0.1:0") as asked:
        address = address_of(asked)
        with await open_listener(address):
            with pytest.raises(BindRefused, match="another program listens there"):
                await open_bound(address)


def test_too_few_file_descriptors_for_postgres_fail_where_it_is_embedded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("resource.getrlimit", lambda _: (checks.FILES_OF_POSTGRES - 1, 4096))
    settings = Settings.read(environment_of("postgresql:///halo", "unix:///nowhere"), {})
    for embedded, status in ((True, "fail"), (False, "warn")):
        [finding] = [each for each in checks.machine(settings, embedded=embedded) if each.check == "file_descriptors"]
        assert finding.status == status


@pytest.mark.parametrize(
    ("one", "other", "clash"),
    [
        ("127.0.0.1:88", "127.0.0.1:88", True),
        ("127.0.0.1:88", "127.0.0.1:89", False),
        ("127.0.0.1:0", "127.0.0.1:0", False),
        ("127.0.0.1:88", "[::1]:88", False),
        ("0.0.0.0:88", "127.0.0.1:88", True),
        ("0.0.0.0:88", "[::1]:88", False),
        ("[::]:88", "127.0.0.1:88", True),
        ("localhost:88", "[::1]:88", True),
        ("localhost:88", "192.0.2.1:88", False),
        ("App.example:88", "app.EXAMPLE:88", True),
    ],
)
def test_two_listeners_clash_when_only_one_of_them_could_be_opened(one: str, other: str, clash: bool) -> None:
    assert address(one).clashes(address(other)) is clash
    assert address(other).clashes(address(one)) is clash


def test_good_credentials_are_well_and_their_key_stays_hidden(tmp_path: Path) -> None:
    finding = checks.credentials(Provider(url="http://127.0.0.1:1").credentials(tmp_path))
    assert (finding.status, finding.fact) == ("ok", "pushes go out for the project halo-test")


async def test_a_database_that_cannot_hold_every_script_fails(ground: Ground) -> None:
    """It starts, and the first word in another script is lost."""
    name = f"latin_{uuid4().hex}"
    async with open_postgres(ground.database_url) as db:
        await db.execute(f"CREATE DATABASE {name} ENCODING 'LATIN1' LOCALE_PROVIDER libc LOCALE 'C' TEMPLATE template0")
        try:
            url = urlsplit(ground.database_url)._replace(path=f"/{name}").geturl()
            findings, _ = await examined(ground.given(HALO_DATABASE_URL=url))
            assert findings["postgres"].status == "fail"
            assert findings["postgres"].fact.endswith("encoding LATIN1")
        finally:
            await db.execute(f"DROP DATABASE {name} WITH (FORCE)")
