"""`halo doctor` beside a real server, and on set-ups that are broken on purpose: the right line fails, says what to do, and nothing changes."""

import json
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import click.testing
import pytest
import trio

from halo import checks, cli, doctor, server_checks, store_checks
from halo.checks import Finding
from halo.demo.stage import open_stage
from halo.store.migrations import list_migrations, migrate
from halo.store.postgres import open_postgres
from halo.watch import WATCHES
from tests.whole.house import SECRETS, environment_of, open_house

HEALTHY = {
    "settings", "secrets", "webhook_secret", "admin_key", "sandbox", "fcm_credentials", "refund_url", "binds", "file_descriptors",
    "versions", "server", "postgres", "durability", "connections", "clock_postgres", "migrations", "nodes", "invariants", "valkey",
    "eviction", "clock_valkey",
}  # fmt: skip
"""What is looked at when both stores are given by URL. Programs read these names: none may go or change its meaning."""


async def examined(environment: Mapping[str, str], *, full: bool = False) -> tuple[dict[str, Finding], int]:
    diagnosis, status = await doctor.examine(environment, {}, full=full, progress=lambda _: None)
    assert diagnosis.status == ("fail" if status else diagnosis.status)
    findings = {finding.check: finding for finding in diagnosis.findings}
    for finding in findings.values():
        assert finding.status in {"ok", "warn", "fail"}
        assert bool(finding.advice) == (finding.status != "ok"), finding
    return findings, status


def failed(findings: Mapping[str, Finding]) -> set[str]:
    return {check for check, finding in findings.items() if finding.status == "fail"}


@pytest.fixture(autouse=True)
def _patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy machine of tests is not a sick one."""
    monkeypatch.setattr(server_checks, "HEALTH_SECONDS", 30.0)
    monkeypatch.setattr("halo.store.vitals.VALKEY_SECONDS", 30.0)


# ---- a halo that is well


@pytest.mark.parametrize("full", [False, True])
async def test_beside_a_running_server_nothing_fails(database_url: str, valkey_url: str, full: bool) -> None:
    async with open_house(database_url, valkey_url) as house:
        await house.open_pair()
        environment = environment_of(database_url, valkey_url) | {
            "HALO_ADMIN_BIND": house.ready["admin"].removeprefix("http://")
        }
        findings, status = await examined(environment, full=full)
        assert (set(findings), failed(findings), status) == (
            HEALTHY,
            {"durability"},
            1,
        )  # the tests' Postgres has no fsync
        assert ": ok" in findings["server"].fact
        assert findings["nodes"].fact == "1 beating, 1 living sessions on them"
        assert ("everything" in findings["invariants"].fact) is full
        assert findings["sandbox"].status == "warn"


async def test_without_a_server_the_stores_are_looked_at_all_the_same(database_url: str, valkey_url: str) -> None:
    findings, _ = await examined(environment_of(database_url, valkey_url))
    assert findings["server"].status == "warn"
    assert findings["server"].fact.startswith("no halo runs")
    assert {findings[check].status for check in ("migrations", "eviction", "connections")} == {"ok"}
    assert {"postgres", "valkey", "invariants"} <= set(findings)
    assert failed(findings) == {"durability"}


@pytest.fixture
def home() -> Iterator[Path]:
    """Outside pytest's own directories, which every new run shuts again for the user whom Postgres runs as."""
    with tempfile.TemporaryDirectory(prefix="halo-doctor-") as directory:
        yield Path(directory)


async def test_beside_embedded_stores_it_finds_them_and_leaves_them_running(home: Path) -> None:
    async with open_stage(home / "data", {}) as stage:
        await stage.start()
        environment = {
            "HALO_DATA_DIR": str(home / "data"),
            "HALO_ADMIN_BIND": stage.ready["admin"].removeprefix("http://"),
        }
        command = [sys.executable, "-m", "halo", "doctor", "--json"]
        told = await trio.run_process(
            command, env=os.environ | environment, capture_stdout=True, capture_stderr=True, check=False
        )
        diagnosis = json.loads(told.stdout)
        assert (told.returncode, told.stderr) == (0, b"")
        findings = {each["check"]: each for each in diagnosis["findings"]}
        assert [check for check, each in findings.items() if each["status"] == "fail"] == []
        assert findings["server"]["fact"].startswith(
            ("answers at", "process")
        )  # the second from one too busy to answer
        assert {findings[check]["status"] for check in ("durability", "migrations", "eviction")} == {"ok"}
        assert findings["data_directory"]["fact"].startswith(str(home / "data"))
        environment["HALO_ADMIN_BIND"] = "127.0.0.1:0"
        findings_now, _ = await examined(environment)
        assert f"holds {home / 'data'}" in findings_now["server"].fact


async def test_before_the_first_start_it_says_so_and_leaves_nothing_behind(tmp_path: Path) -> None:
    home = tmp_path / "data"
    findings, status = await examined({"HALO_DATA_DIR": str(home), "HALO_ADMIN_BIND": "127.0.0.1:0"})
    assert status == 0
    assert not home.exists()
    assert {findings[check].status for check in ("server", "postgres", "valkey", "data_directory")} == {"warn"}
    assert findings["secrets"].fact.startswith("would be made up")


# ---- set-ups that are broken


async def test_a_database_that_does_not_answer_fails_without_its_password(valkey_url: str, tmp_path: Path) -> None:
    environment = environment_of(f"postgresql://halo:hidden@/halo?host={tmp_path}", valkey_url)
    findings, status = await examined(environment)
    assert (failed(findings), status) == ({"postgres"}, 1)
    assert "does not answer" in findings["postgres"].fact
    assert "hidden" not in str(findings)
    assert "migrations" not in findings
    assert findings["eviction"].status == "ok"


async def test_a_user_who_is_not_let_in_is_a_database_that_does_not_answer(database_url: str, valkey_url: str) -> None:
    stranger = database_url.replace("halo@", "nobody:hidden@", 1)
    findings, status = await examined(environment_of(stranger, valkey_url))
    assert (failed(findings), status) == ({"postgres"}, 1)
    assert "nobody" in findings["postgres"].fact
    assert "hidden" not in str(findings)


@pytest.mark.parametrize("url", ["unix:///nowhere/valkey.sock", "redis://:hidden@127.0.0.1:1"])
async def test_a_valkey_that_does_not_answer_fails_alone(database_url: str, url: str) -> None:
    findings, status = await examined(environment_of(database_url, url))
    assert (failed(findings) - {"durability"}, status) == ({"valkey"}, 1)
    assert "hidden" not in str(findings)
    assert "eviction" not in findings


async def test_a_database_without_its_migrations_is_a_warning_and_stays_as_it_is(
    empty_database_url: str, valkey_url: str
) -> None:
    findings, status = await examined(environment_of(empty_database_url, valkey_url))
    assert failed(findings) == {"durability"}
    assert (findings["migrations"].status, status) == ("warn", 1)  # the tests' Postgres has no fsync
    assert "halo migrate" in findings["migrations"].advice
    assert "invariants" not in findings
    async with open_postgres(empty_database_url) as db:
        assert await db.fetch_all("SELECT FROM pg_tables WHERE schemaname = 'public'") == []


async def test_a_pending_migration_and_a_changed_one_are_told_apart(empty_database_url: str, valkey_url: str) -> None:
    await migrate(empty_database_url)
    last = list_migrations(Path(checks.__file__).parent / "store" / "sql")[-1].name
    async with open_postgres(empty_database_url) as db:
        await db.execute("DELETE FROM schema_migrations WHERE name = %(name)s", {"name": last})
        findings, _ = await examined(environment_of(empty_database_url, valkey_url))
        assert findings["migrations"].fact.endswith(f" applied, 1 to be applied: {last}")
        await db.execute("INSERT INTO schema_migrations VALUES (%(name)s, 'another')", {"name": last})
        findings, _ = await examined(environment_of(empty_database_url, valkey_url))
        assert findings["migrations"].fact == f"not of this version: {last}"


@pytest.mark.parametrize("full", [False, True])
async def test_what_does_not_hold_fails_under_its_own_name_with_its_sentence(
    database_url: str, valkey_url: str, full: bool
) -> None:
    name = "m5_ledger_append_only"
    async with open_postgres(database_url) as db:
        await db.execute("ALTER TABLE customer_transactions DISABLE TRIGGER customer_transactions_append_only")
    findings, status = await examined(environment_of(database_url, valkey_url), full=full)
    assert (failed(findings) - {"durability"}, status) == ({name}, 1)
    assert findings[name].advice == WATCHES[name].sentence
    assert "invariants" not in findings


async def test_sessions_that_nobody_keeps_are_told(database_url: str, valkey_url: str) -> None:
    async with open_house(database_url, valkey_url) as house:
        await house.open_pair()
    async with open_postgres(database_url) as db:
        await db.execute("UPDATE nodes SET alive_at = now() - interval '1 minute'")
    findings, _ = await examined(environment_of(database_url, valkey_url))
    assert findings["nodes"].status == "warn"
    assert "1 sessions of dead nodes wait" in findings["nodes"].fact


def test_a_secret_that_nobody_made_up_by_dice_is_a_warning(tmp_path: Path) -> None:
    weak = SECRETS | {"HALO_TOKEN_SECRET": "ab" * 20, "HALO_WEBHOOK_SECRET": "whsec_" + "c2l4dGVlbiBieXRlcyBvaw=="}
    settings, _ = doctor.read_settings(environment_of("postgresql:///halo", "unix:///nowhere") | weak, {}, tmp_path)
    findings = {finding.check: finding for finding in checks.secrets(settings, is_first=False)}
    assert findings["secrets"].status == "warn"
    assert "HALO_TOKEN_SECRET" in findings["secrets"].fact
    assert "abab" not in findings["secrets"].fact
    assert findings["webhook_secret"].status == "warn"


async def test_a_bind_that_is_open_to_others_is_a_warning(tmp_path: Path) -> None:
    environment = environment_of("postgresql:///halo", "unix:///nowhere", HALO_WS_BIND="0.0.0.0:0")
    settings, _ = doctor.read_settings(environment, {}, tmp_path)
    finding = await server_checks.binds(settings, server_checks.Running(embedded=False, holder=None, state=None))
    assert finding.status == "warn"
    assert "HALO_WS_BIND 0.0.0.0:0" in finding.fact


@pytest.mark.parametrize(
    ("off_ms", "status", "fact"),
    [
        (20.0, "ok", "20 ms ahead of"),
        (-700.0, "warn", "700 ms behind"),
        (2001.0, "fail", "2001 ms ahead of"),
        (float("nan"), "warn", "cannot be read"),
    ],
)
def test_a_clock_that_is_off_fails_where_a_node_would_refuse_to_start(off_ms: float, status: str, fact: str) -> None:
    finding = store_checks.skew("clock_postgres", off_ms, "Postgres'")
    assert finding.status == status
    assert fact in finding.fact


class TestTheDataDirectory:
    def test_is_well_when_it_is_ours_alone(self, tmp_path: Path) -> None:
        tmp_path.chmod(0o700)
        assert checks.data_directory(tmp_path).status in {"ok", "warn"}  # a machine of tests may be short of room
        assert "mode 700" in checks.data_directory(tmp_path).fact or "free" in checks.data_directory(tmp_path).fact

    def test_that_others_can_write_is_a_warning(self, tmp_path: Path) -> None:
        tmp_path.chmod(0o777)
        finding = checks.data_directory(tmp_path)
        assert finding.status in {"warn", "fail"}
        assert str(tmp_path) in finding.fact


def test_a_library_outside_its_bounds_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    assert checks.versions().status == "ok"
    monkeypatch.setattr(checks, "requirements", lambda: {"trio": ">=99", "click": ">=8", "no-such-library": ">=1"})
    finding = checks.versions()
    assert finding.status == "warn"
    assert "no-such-library missing (wanted >=1)" in finding.fact
    assert "trio " in finding.fact
    assert "click" not in finding.fact


# ---- the command


def run(arguments: list[str], environment: Mapping[str, str]) -> tuple[int, str, str]:
    done = click.testing.CliRunner().invoke(cli.main, arguments, env=dict(environment))
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done.exit_code, done.stdout, done.stderr


@pytest.mark.parametrize(
    ("name", "given"), [("HALO_TOKEN_SECRET", "short"), ("HALO_ADMIN_BIND", "0.0.0.0:8802"), ("HALO_DATABASE_URL", "postgresql://x?y=1")]
)  # fmt: skip
def test_a_bad_setting_exits_with_2_and_is_a_finding_for_programs_too(name: str, given: str) -> None:
    environment = environment_of("postgresql:///halo", "unix:///nowhere") | {name: given}
    status, out, _ = run(["doctor", "--json"], environment)
    diagnosis = json.loads(out)
    assert (status, diagnosis["status"]) == (2, "fail")
    [finding] = diagnosis["findings"]
    assert finding["check"] == "settings"
    assert finding["fact"].startswith(name)


def test_what_it_tells_people_and_programs_is_the_same(database_url: str, valkey_url: str) -> None:
    environment = environment_of(database_url, valkey_url)
    status, out, _ = run(["doctor", "--json"], environment)
    diagnosis = json.loads(out)
    assert list(diagnosis) == ["halo", "status", "full", "findings"]
    assert {tuple(finding) for finding in diagnosis["findings"]} == {("check", "status", "fact", "advice")}
    assert {finding["check"] for finding in diagnosis["findings"]} == HEALTHY
    again, told, _ = run(["doctor"], environment)
    assert again == status
    for finding in diagnosis["findings"]:
        assert any(line.split()[:2] == [finding["status"], finding["check"]] for line in told.splitlines()), finding
    assert told.splitlines()[-1].endswith(" fail")


def test_its_help_teaches() -> None:
    status, out, _ = run(["doctor", "--help"], {})
    assert status == 0
    for word in ("--json", "--full", "Changes nothing", "Exits 0", "embedded stores"):
        assert word in " ".join(out.split())
