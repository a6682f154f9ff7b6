"""The command line: what goes wrong is one sentence on standard error with the right status, never a traceback."""

import json
from collections.abc import Mapping
from pathlib import Path
from socket import socket

import click.testing
import pytest

from halo import cli
from tests.pure.test_settings import SECRETS

NOBODY = "6f1d3b52-7d3c-4c4e-9a55-0d6a1f1f1b11"


def run(arguments: list[str], environment: Mapping[str, str]) -> tuple[int, str, str]:
    """`(status, standard output, standard error)` of one command."""
    done = click.testing.CliRunner().invoke(cli.main, arguments, env=SECRETS | dict(environment))
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done.exit_code, done.stdout, done.stderr


@pytest.fixture
def environment(database_url: str, tmp_path: Path) -> dict[str, str]:
    return {"HALO_DATABASE_URL": database_url, "HALO_VALKEY_URL": "unix:///nowhere", "HALO_DATA_DIR": str(tmp_path)}


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("postgresql://halo:hidden@db/halo?bogus=1", "has the parameter bogus, which libpq does not know"),
        ("postgresql://halo:hid%zzden@db/halo", "cannot be taken apart"),
    ],
)
def test_a_database_url_that_libpq_cannot_read_is_a_bad_setting(url: str, says: str) -> None:
    status, _, told = run(["serve"], {"HALO_DATABASE_URL": url, "HALO_VALKEY_URL": "unix:///nowhere"})
    assert (status, told.count("\n")) == (2, 1)
    assert told.startswith(f"halo: HALO_DATABASE_URL {says}")
    assert "hid" not in told


@pytest.mark.parametrize(
    ("url", "says"),
    [
        (
            "redis://:hidden@valkey?bogus=1",
            "HALO_VALKEY_URL has the parameter bogus in a way that redis-py does not take.",
        ),
        ("redis://valkey?db=zz", "HALO_VALKEY_URL has the parameter db in a way that redis-py does not take."),
        ("redis+cluster://valkey", "A cluster needs HALO_VALKEY_PREFIX with a hash tag"),
    ],
)
def test_a_valkey_url_that_cannot_be_used_is_a_bad_setting(url: str, says: str) -> None:
    status, _, told = run(["serve"], {"HALO_DATABASE_URL": "postgresql://db/halo", "HALO_VALKEY_URL": url})
    assert (status, told.count("\n")) == (2, 1)
    assert told.startswith(f"halo: {says}")
    assert "hidden" not in told


@pytest.mark.parametrize("command", [["serve"], ["migrate"], ["token", "--user-type", "mitra"], ["explain", NOBODY]])
def test_a_database_that_does_not_answer_is_named_without_its_password(command: list[str]) -> None:
    with socket() as taken:  # bound, and nobody listens
        taken.bind(("127.0.0.1", 0))
        place = "{}:{}".format(*taken.getsockname())
        url = f"postgresql://app:hidden@{place}/books"
        status, _, told = run(command, {"HALO_DATABASE_URL": url, "HALO_VALKEY_URL": "unix:///nowhere"})
    assert (status, told.count("\n")) == (1, 1), told
    assert told.startswith(f"halo: The database books at {place} as user app does not answer")
    assert "HALO_DATABASE_URL" in told
    assert "hidden" not in told


@pytest.mark.parametrize("setting", ["HALO_WS_BIND", "HALO_API_BIND", "HALO_ADMIN_BIND"])
def test_a_port_that_is_taken_is_told_with_its_setting(environment: dict[str, str], setting: str) -> None:
    free = {"HALO_WS_BIND": "127.0.0.1:0", "HALO_API_BIND": "127.0.0.1:0", "HALO_ADMIN_BIND": "127.0.0.1:0"}
    with socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        place = "{}:{}".format(*taken.getsockname())
        status, _, told = run(["serve", "--log-level", "error"], environment | free | {setting: place})
    assert status == 1
    assert f"halo: {setting} is {place}, where halo cannot listen: Address already in use; another program" in told


def test_a_data_directory_that_cannot_be_made_is_a_bad_setting(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    status, _, told = run(["serve"], {"HALO_DATA_DIR": str(tmp_path / "file" / "data")})
    assert (status, told.count("\n")) == (2, 1)
    assert told.startswith("halo: HALO_DATA_DIR is ")


@pytest.mark.parametrize("command", [["token", "--user-type", "mitra", "--user-id", "zz"], ["explain", "zz"]])
def test_what_is_no_id_is_told_before_any_store_is_opened(command: list[str]) -> None:
    status, _, told = run(command, {})
    assert (status, "'zz' is not a valid UUID" in told) == (2, True)


def test_a_user_of_the_other_type_is_told_in_one_sentence(environment: dict[str, str]) -> None:
    assert run(["migrate"], environment)[0] == 0
    assert run(["token", "--user-type", "mitra", "--user-id", NOBODY], environment)[0] == 0
    status, _, told = run(["token", "--user-type", "customer", "--user-id", NOBODY], environment)
    assert (status, told) == (1, "halo: This user_id belongs to a mitra.\n")


def test_migrate_tells_programs_what_it_applied(environment: dict[str, str]) -> None:
    status, said, _ = run(["migrate", "--json"], environment)
    assert (status, json.loads(said)) == (0, {"applied": []})  # the tests' databases come from a template


def test_an_unknown_session_is_told(environment: dict[str, str]) -> None:
    status, _, told = run(["explain", NOBODY], environment)
    assert (status, told) == (1, f"halo: there is no session {NOBODY}\n")
