import logging
import os
import signal
import stat
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
import redis
import trio

from halo.store.account import Account, account_for
from halo.store.directory import DataDirectoryInUse, DataDirectoryUnusable, open_data_directory
from halo.store.embedded import StoreUrls, open_embedded_postgres, open_embedded_valkey, open_stores
from halo.store.orphans import list_orphans
from halo.store.recipe import ServerFailed
from halo.store.recipes import PostgresRecipe, ValkeyRecipe

AS_ROOT = os.geteuid() == 0
CHECKOUT = Path(__file__).parents[2]

SOON_SECONDS = 5
"""A quiet machine needs less than one; a start that waits for what it need not wait for takes seven."""


@pytest.fixture
def data_dir() -> Iterator[Path]:
    """Short enough for sockets, and not below pytest's own: every start of pytest takes away what others may do there."""
    with tempfile.TemporaryDirectory(prefix="halo-tests-") as home:
        yield Path(home, ".halo")
        for lock in Path(home).rglob("lock"):  # a test that failed halfway leaves no servers to the machine
            for pid in processes_of(lock.parent):
                os.kill(pid, signal.SIGKILL)


def ask(url: str, statement: str) -> Any:
    with psycopg.connect(url, autocommit=True) as connection:
        row = connection.execute(statement.encode()).fetchone()
        return row[0] if row else None


def run(url: str, *statements: str) -> None:
    with psycopg.connect(url) as connection:
        for statement in statements:
            connection.execute(statement.encode())


def processes_of(data_dir: Path) -> list[int]:
    """Every server process that belongs to this data directory."""
    with open_data_directory(data_dir) as directory:
        recipes = (PostgresRecipe(directory, Path("/"), durable=True), ValkeyRecipe(directory, Path("/")))
        return [orphan.pid for recipe in recipes for orphan in list_orphans(recipe)]


def postmaster(data_dir: Path) -> int:
    return int((data_dir / "postgres" / "postmaster.pid").read_text().splitlines()[0])


async def test_both_stores_answer_and_are_gone_after_leaving(data_dir: Path) -> None:
    async with open_stores(data_dir, None, None) as urls:
        assert ask(urls.database, "SELECT 1") == 1
        with redis.Redis.from_url(urls.valkey) as client:
            assert client.ping()
    assert processes_of(data_dir) == []
    assert not (data_dir / "postgres" / "postmaster.pid").exists()


async def test_postgres_keeps_what_it_acknowledges_as_in_production(data_dir: Path) -> None:
    with open_data_directory(data_dir) as directory:
        async with open_embedded_postgres(directory) as url:
            durability = {
                name: ask(url, f"SHOW {name}") for name in ("fsync", "synchronous_commit", "full_page_writes")
            }
    assert durability == {"fsync": "on", "synchronous_commit": "on", "full_page_writes": "on"}


async def test_neither_listens_on_tcp_and_nobody_else_may_enter_the_sockets(data_dir: Path) -> None:
    async with open_stores(data_dir, None, None) as urls:
        assert ask(urls.database, "SHOW listen_addresses") == ""
        with redis.Redis.from_url(urls.valkey) as client:
            assert client.config_get("port") == {"port": "0"}
        assert stat.S_IMODE((data_dir / "run").stat().st_mode) == 0o700
        assert stat.S_IMODE((data_dir / "postgres").stat().st_mode) == 0o700
        assert not data_dir.stat().st_mode & stat.S_IRWXO


async def test_what_was_committed_is_there_at_the_next_start(data_dir: Path) -> None:
    async with open_stores(data_dir, None, None) as urls:
        run(urls.database, "CREATE TABLE kept (n int)", "INSERT INTO kept VALUES (7)")
    async with open_stores(data_dir, None, None) as urls:
        assert ask(urls.database, "SELECT n FROM kept") == 7


async def test_a_store_given_by_url_is_not_embedded(data_dir: Path) -> None:
    given = StoreUrls("postgresql://elsewhere/halo", "redis://elsewhere")
    async with open_stores(data_dir, given.database, given.valkey) as urls:
        assert urls == given
    assert not data_dir.exists()


KILLED = """
    import os, signal, sys
    from pathlib import Path
    import psycopg, trio
    from halo.store.embedded import open_stores

    async def main():
        async with open_stores(Path(sys.argv[1]), None, None) as urls:
            with psycopg.connect(urls.database) as connection:
                connection.execute("CREATE TABLE kept (n int)")
                connection.execute("INSERT INTO kept VALUES (7)")
            busy = psycopg.connect(urls.database)
            busy.execute("LOCK TABLE kept")
            os.kill(os.getpid(), signal.SIGKILL)

    trio.run(main)
"""


def play(script: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", textwrap.dedent(script), *map(str, arguments)]
    return subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, timeout=60, check=False)


async def test_a_start_after_kill_9_ends_the_orphans_and_finds_every_commit(data_dir: Path) -> None:
    killed = play(KILLED, data_dir)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    orphans = set(processes_of(data_dir))
    assert postmaster(data_dir) in orphans
    with trio.fail_after(SOON_SECONDS):
        async with open_stores(data_dir, None, None) as urls:
            assert orphans.isdisjoint(processes_alive(orphans))
            assert ask(urls.database, "SELECT n FROM kept") == 7  # and the dead halo's lock is gone with its connection
    assert processes_of(data_dir) == []


def processes_alive(pids: set[int]) -> set[int]:
    return {pid for pid in pids if Path(f"/proc/{pid}/cmdline").exists() and Path(f"/proc/{pid}/cmdline").read_bytes()}


async def test_orphans_without_their_leader_do_not_delay_the_start(data_dir: Path) -> None:
    assert play(KILLED, data_dir).returncode == -signal.SIGKILL
    backends = set(processes_of(data_dir)) - {postmaster(data_dir)}
    for pid in backends:
        os.kill(pid, signal.SIGSTOP)  # so that they cannot notice that their postmaster is gone
    os.kill(postmaster(data_dir), signal.SIGKILL)
    with trio.fail_after(SOON_SECONDS):
        async with open_stores(data_dir, None, None) as urls:
            assert ask(urls.database, "SELECT n FROM kept") == 7


async def test_stale_pid_files_that_name_a_living_stranger_are_no_obstacle(data_dir: Path) -> None:
    async with open_stores(data_dir, None, None):
        lines = (data_dir / "postgres" / "postmaster.pid").read_text().splitlines()
    stranger = subprocess.Popen(["sleep", "60"])
    try:
        (data_dir / "postgres" / "postmaster.pid").write_text("\n".join([str(stranger.pid), *lines[1:]]))
        (data_dir / "run" / ".s.PGSQL.5432.lock").write_text("\n".join([str(stranger.pid), *lines[1:]]))
        async with open_stores(data_dir, None, None) as urls:
            assert ask(urls.database, "SELECT 1") == 1
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()


async def test_a_program_that_only_mentions_our_mark_is_left_alone(data_dir: Path) -> None:
    with open_data_directory(data_dir) as directory:
        stranger = subprocess.Popen(
            [sys.executable, "-c", "import time; time.sleep(60)", f"cluster_name={directory.mark}"]
        )
        try:
            async with open_embedded_postgres(directory, durable=False):
                assert stranger.poll() is None
        finally:
            stranger.kill()
            stranger.wait()


async def test_half_a_database_of_a_killed_initdb_is_made_anew(data_dir: Path) -> None:
    half = data_dir / "postgres.new-half"
    half.mkdir(parents=True)
    (half / "PG_VERSION").write_text("18\n")
    async with open_stores(data_dir, None, None) as urls:
        assert ask(urls.database, "SELECT 1") == 1
    assert not half.exists()


def test_a_second_halo_on_the_same_directory_is_refused_in_one_sentence(data_dir: Path) -> None:
    with open_data_directory(data_dir):
        with pytest.raises(DataDirectoryInUse) as refused, open_data_directory(data_dir):
            pass
    assert str(refused.value) == f"Another halo (process {os.getpid()}) is using the data directory {data_dir}."
    with open_data_directory(data_dir):
        pass  # free again


def test_a_data_directory_that_cannot_be_made_is_refused_in_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(
        DataDirectoryUnusable, match=r"^The data directory .*/file/data cannot be used: Not a directory\.$"
    ):
        with open_data_directory(tmp_path / "file" / "data"):
            pass


def test_a_directory_that_was_there_keeps_its_mode(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    with open_data_directory(tmp_path):
        assert tmp_path.stat().st_mode & stat.S_IRWXO == stat.S_IROTH | stat.S_IXOTH


@pytest.mark.parametrize("victim", ["postgres", "valkey"])
async def test_a_server_that_is_killed_is_soon_back(
    data_dir: Path, victim: str, claims_errors: list[logging.LogRecord]
) -> None:
    with open_data_directory(data_dir) as directory:
        async with open_embedded_postgres(directory) as database, open_embedded_valkey(directory) as valkey:
            run(database, "CREATE TABLE kept (n int)", "INSERT INTO kept VALUES (7)")
            recipe = (
                PostgresRecipe(directory, Path("/"), True)
                if victim == "postgres"
                else ValkeyRecipe(directory, Path("/"))
            )
            (leader,) = (orphan.pid for orphan in list_orphans(recipe) if orphan.leading)
            os.kill(leader, signal.SIGKILL)
            with trio.fail_after(SOON_SECONDS):
                while not answers(database, valkey) or leader in {orphan.pid for orphan in list_orphans(recipe)}:
                    await trio.sleep(0.02)
            assert ask(database, "SELECT n FROM kept") == 7
    assert [record.name for record in claims_errors] == ["halo.store.child"]  # its death, once


def answers(database: str, valkey: str) -> bool:
    try:
        with redis.Redis.from_url(valkey) as client:
            return ask(database, "SELECT 1") == 1 and bool(client.ping())
    except (psycopg.OperationalError, redis.ConnectionError):
        return False


async def test_ctrl_c_in_the_terminal_does_not_reach_the_servers(data_dir: Path) -> None:
    with open_data_directory(data_dir) as directory:
        async with open_embedded_postgres(directory, durable=False), open_embedded_valkey(directory):
            for recipe in (PostgresRecipe(directory, Path("/"), False), ValkeyRecipe(directory, Path("/"))):
                for server in list_orphans(recipe):
                    assert os.getsid(server.pid) != os.getsid(0)


async def test_a_cancelled_halo_still_stops_its_servers(data_dir: Path) -> None:
    with trio.CancelScope() as scope:
        async with open_stores(data_dir, None, None):
            scope.cancel()
            await trio.sleep_forever()
    assert scope.cancelled_caught
    assert processes_of(data_dir) == []


async def test_what_the_body_raises_comes_out_as_it_is_and_stops_the_servers(data_dir: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        async with open_stores(data_dir, None, None):
            raise ZeroDivisionError
    assert processes_of(data_dir) == []


async def test_a_start_that_fails_says_why_in_one_sentence(data_dir: Path) -> None:
    async with open_stores(data_dir, None, None):
        pass
    (data_dir / "postgres" / "PG_VERSION").write_text("9\n")
    with pytest.raises(ServerFailed) as failed:
        async with open_stores(data_dir, None, None):
            pass
    assert "database files are incompatible with server" in str(failed.value)
    assert "\n" not in str(failed.value)


@pytest.mark.parametrize(
    "name", ["with a space", "wîth-ünicode", "with,comma", "with\"quotes'", "x" * 100, "with%20percent"]
)
async def test_any_path_will_do(data_dir: Path, name: str) -> None:
    home = data_dir / name
    async with open_stores(home, None, None) as urls:
        assert ask(urls.database, "SELECT 1") == 1
        with redis.Redis.from_url(urls.valkey) as client:
            assert client.ping()
        sockets = (home / "run").resolve()
        assert stat.S_IMODE(sockets.stat().st_mode) == 0o700
    assert sockets.is_relative_to(home) or not sockets.exists()


async def test_the_short_directory_of_a_killed_halo_is_removed_by_the_next(data_dir: Path) -> None:
    home = data_dir / ("x" * 100)
    assert play(KILLED, home).returncode == -signal.SIGKILL
    left = (home / "run").readlink()
    assert left.exists()
    async with open_stores(home, None, None) as urls:
        assert ask(urls.database, "SELECT n FROM kept") == 7
    assert not left.exists()


async def test_the_servers_inherit_no_secret_and_no_setting(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HALO_TOKEN_SECRET", "t" * 40)
    monkeypatch.setenv("PGPORT", "6543")
    async with open_stores(data_dir, None, None) as urls:
        assert ask(urls.database, "SHOW port") == "5432"
        assert b"HALO_TOKEN_SECRET" not in Path(f"/proc/{postmaster(data_dir)}/environ").read_bytes()


async def test_no_text_of_a_failed_statement_reaches_the_log(data_dir: Path) -> None:
    async with open_stores(data_dir, None, None) as urls:
        run(urls.database, "CREATE TABLE said (body text PRIMARY KEY)", "INSERT INTO said VALUES ('a secret word')")
        with pytest.raises(psycopg.errors.UniqueViolation), psycopg.connect(urls.database) as connection:
            connection.execute("INSERT INTO said VALUES (%s)", ["a secret word"])
    log = (data_dir / "postgres.log").read_text()
    assert "duplicate key value" in log
    assert "a secret word" not in log


@pytest.mark.skipif(AS_ROOT, reason="root runs its servers as somebody else")
def test_an_ordinary_user_runs_the_servers_as_himself(tmp_path: Path) -> None:
    account = account_for(tmp_path / "postgres")
    assert (account.uid, account.gid, account.switched) == (os.geteuid(), os.getegid(), False)


@pytest.mark.skipif(not AS_ROOT, reason="needs root, who alone can run servers as another user")
class TestAsRoot:
    async def test_postgres_runs_as_a_user_that_has_no_account(self, data_dir: Path) -> None:
        async with open_stores(data_dir, None, None):
            owner = Path(f"/proc/{postmaster(data_dir)}").stat()
            groups = Path(f"/proc/{postmaster(data_dir)}/status").read_text().split("Groups:")[1].splitlines()[0]
        assert owner.st_uid in range(60_880, 61_184)
        assert owner.st_gid == owner.st_uid
        assert groups.split() == []

    def test_the_owner_of_a_database_keeps_it(self, tmp_path: Path) -> None:
        (tmp_path / "postgres").mkdir()
        os.chown(tmp_path / "postgres", 12_345, 12_346)
        assert account_for(tmp_path / "postgres") == Account(12_345, 12_346)

    def test_a_closed_directory_lets_the_group_through_and_nobody_else(self, tmp_path: Path) -> None:
        closed = tmp_path / "closed"
        (closed / "inner").mkdir(parents=True)
        closed.chmod(0o700)
        account = Account(60_900, 60_900)
        account.let_through(closed / "inner" / "file")
        assert self.may_pass(closed / "inner", 60_900, 60_900)
        assert not self.may_list(closed, 60_900, 60_900)
        assert not self.may_pass(closed / "inner", 60_901, 60_901)
        assert not self.may_pass(closed / "inner", 60_901, 0)  # the owning group gained nothing

    def test_a_directory_that_can_be_passed_is_left_as_it_is(self, tmp_path: Path) -> None:
        tmp_path.chmod(0o711)
        before = os.listxattr(tmp_path)
        Account(60_900, 60_900).let_through(tmp_path / "file")
        assert os.listxattr(tmp_path) == before

    def test_letting_through_twice_adds_one_entry(self, tmp_path: Path) -> None:
        tmp_path.chmod(0o700)
        Account(60_900, 60_900).let_through(tmp_path / "file")
        once = os.getxattr(tmp_path, "system.posix_acl_access")
        Account(60_900, 60_900).let_through(tmp_path / "file")
        assert os.getxattr(tmp_path, "system.posix_acl_access") == once

    @staticmethod
    def may_pass(directory: Path, uid: int, gid: int) -> bool:
        return TestAsRoot.trial(["test", "-d", f"{directory}/."], uid, gid)

    @staticmethod
    def may_list(directory: Path, uid: int, gid: int) -> bool:
        return TestAsRoot.trial(["ls", str(directory)], uid, gid)

    @staticmethod
    def trial(command: list[str], uid: int, gid: int) -> bool:
        done = subprocess.run(command, user=uid, group=gid, extra_groups=[], cwd="/", capture_output=True, check=False)
        return done.returncode == 0

    @pytest.mark.parametrize("uid", [65_534, 12_345], ids=["nobody", "without-an-account"])
    def test_an_ordinary_user_can_do_all_of_it(self, uid: int) -> None:
        identity: dict[str, Any] = {"user": uid, "group": uid, "extra_groups": []}
        environment = {"PATH": os.defpath, "PYTHONPATH": os.pathsep.join([str(CHECKOUT), *filter(None, sys.path)])}

        def play_as(interpreter: str, script: str, *arguments: object) -> subprocess.CompletedProcess[str]:
            command = [interpreter, "-B", "-c", textwrap.dedent(script), *map(str, arguments)]
            return subprocess.run(
                command, cwd="/", env=environment, capture_output=True, text=True, timeout=60, check=False, **identity
            )

        def reaches(interpreter: str) -> bool:
            try:
                return play_as(interpreter, "import halo.store.embedded, psycopg").returncode == 0
            except OSError:
                return False

        candidates = [sys.executable, f"/usr/bin/python{sys.version_info.major}.{sys.version_info.minor}"]
        interpreter = next(filter(reaches, candidates), None)
        if interpreter is None:
            pytest.skip("another user can reach neither this interpreter nor the system's with this checkout")
        with tempfile.TemporaryDirectory(prefix="halo-tests-") as home:
            os.chown(home, uid, uid)
            killed = play_as(interpreter, KILLED, f"{home}/data")
            assert killed.returncode == -signal.SIGKILL, killed.stderr
            assert Path(home, "data", "postgres").stat().st_uid == uid
            found = play_as(interpreter, FOUND, f"{home}/data")
            assert (found.returncode, found.stdout.splitlines()[-1]) == (0, "(7,)"), found.stderr


FOUND = """
    import sys
    from pathlib import Path
    import psycopg, trio
    from halo.store.embedded import open_stores

    async def main():
        async with open_stores(Path(sys.argv[1]), None, None) as urls:
            with psycopg.connect(urls.database) as connection:
                print(connection.execute("SELECT n FROM kept").fetchone())

    trio.run(main)
"""
