import base64
import stat
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from halo.parsing import Address
from halo.settings import SETTINGS, Setting, SettingInvalid, Settings

SECRETS = {
    "HALO_TOKEN_SECRET": "t" * 32,
    "HALO_SERVER_KEY": "s" * 16,
    "HALO_WEBHOOK_SECRET": "whsec_" + base64.b64encode(b"w" * 24).decode(),
}
URLS = {"HALO_DATABASE_URL": "postgresql://halo@db/halo", "HALO_VALKEY_URL": "redis://valkey:6379"}
PRODUCTION = SECRETS | URLS
"""Both stores given, so that nothing touches a disk."""


def read(environment: Mapping[str, str] | None = None, /, **flags: str | None) -> Settings:
    return Settings.read(PRODUCTION | dict(environment or {}), flags)


def refusal(environment: Mapping[str, str] | None = None, /, **flags: str | None) -> str:
    with pytest.raises(SettingInvalid) as refused:
        read(environment, **flags)
    sentence = str(refused.value)
    assert sentence.endswith(".")
    assert "\n" not in sentence
    return sentence


def row(name: str) -> Setting:
    return next(setting for setting in SETTINGS if setting.name == name)


DEFAULTS: dict[str, Any] = {
    "HALO_WS_BIND": Address("127.0.0.1", 8800),
    "HALO_API_BIND": Address("127.0.0.1", 8801),
    "HALO_ADMIN_BIND": Address("127.0.0.1", 8802),
    "HALO_VALKEY_PREFIX": "",
    "HALO_ALLOWED_ORIGINS": (),
    "HALO_SANDBOX": False,
    "HALO_MINUTE_SECONDS": 60,
    "HALO_ACCESS_TOKEN_SECONDS": 600,
    "HALO_DRAIN_SECONDS": 20,
    "HALO_MESSAGES_PER_10S": 20,
    "HALO_BYTES_PER_S": 16_384,
    "HALO_CONNECTIONS_PER_USER": 5,
    "HALO_CONNECTIONS_PER_ADDRESS": 200,
    "HALO_HANDSHAKES_PER_S": 20,
    "HALO_REQUESTS_PER_S": 20,
    "HALO_CREATES_PER_MINUTE": 30,
    "MITRA_HEARTBEAT_STALE_SECONDS": 90,
    "MITRA_AUTO_OFFLINE_SWEEP_SECONDS": 30,
    "HEARTBEAT_MIRROR_INTERVAL_SECONDS": 60,
    "VALKEY_ONLINE_MIRROR_SWEEP_SECONDS": 300,
    "HALO_LOG_LEVEL": "info",
    "HALO_LOG_FORMAT": "auto",
    "HALO_FCM_CREDENTIALS": None,
    "FCM_ENDPOINT": "https://fcm.googleapis.com",
    "HALO_REFUND_URL": None,
}


@pytest.mark.parametrize(("name", "default"), DEFAULTS.items())
def test_a_setting_has_the_default_that_the_contract_names(name: str, default: object) -> None:
    assert getattr(read(), row(name).field) == default


def test_the_data_directory_is_dot_halo_where_halo_was_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert read().data_dir == tmp_path / ".halo"


def test_every_field_is_a_row_and_every_row_is_told_to_the_operator() -> None:
    assert [setting.field for setting in SETTINGS] == [field.name for field in fields(Settings)]
    for setting in SETTINGS:
        assert setting.help.endswith("."), setting.name
        assert setting.unit, setting.name


def test_every_default_is_accepted_by_its_own_row() -> None:
    for setting in SETTINGS:
        if setting.default is not None:
            setting.parse(setting.default)


@pytest.mark.parametrize(
    ("name", "flag"),
    [
        ("HALO_WS_BIND", "--ws-bind"),
        ("HALO_MESSAGES_PER_10S", "--messages-per-10s"),
        ("MITRA_HEARTBEAT_STALE_SECONDS", "--mitra-heartbeat-stale-seconds"),
        ("HALO_TOKEN_SECRET", "--token-secret-file"),
    ],
)
def test_a_flag_is_named_after_its_setting_and_a_secret_has_only_that_of_its_file(name: str, flag: str) -> None:
    assert row(name).flag == flag


def test_no_two_settings_share_a_flag() -> None:
    assert len({setting.flag for setting in SETTINGS}) == len(SETTINGS)


def test_a_flag_wins_over_the_environment() -> None:
    assert read({"HALO_DRAIN_SECONDS": "5"}, drain_seconds="7").drain_seconds == 7
    assert read({"HALO_DRAIN_SECONDS": "5"}, drain_seconds=None).drain_seconds == 5


def test_an_empty_value_is_a_value_not_given() -> None:
    assert read({"HALO_DRAIN_SECONDS": ""}).drain_seconds == 20


ACCEPTED: list[tuple[str, str, object]] = [
    ("HALO_WS_BIND", "0.0.0.0:0", Address("0.0.0.0", 0)),  # noqa: S104  # what an operator may write
    ("HALO_WS_BIND", "[::1]:65535", Address("::1", 65_535)),
    ("HALO_WS_BIND", "halo.internal:8800", Address("halo.internal", 8800)),
    ("HALO_ADMIN_BIND", "localhost:1", Address("localhost", 1)),
    ("HALO_ADMIN_BIND", "127.9.9.9:1", Address("127.9.9.9", 1)),
    ("HALO_ADMIN_BIND", "[::1]:1", Address("::1", 1)),
    ("HALO_DATABASE_URL", "postgres:///halo?host=/run", "postgres:///halo?host=/run"),
    ("HALO_VALKEY_URL", "rediss://:word@cache:6380/1", "rediss://:word@cache:6380/1"),
    ("HALO_VALKEY_URL", "unix:///run/valkey.sock", "unix:///run/valkey.sock"),
    ("HALO_VALKEY_URL", "redis+cluster://one:7000", "redis+cluster://one:7000"),
    ("HALO_VALKEY_URL", "rediss+cluster://:word@one:7000", "rediss+cluster://:word@one:7000"),
    ("HALO_VALKEY_PREFIX", "{halo}:", "{halo}:"),
    (
        "HALO_ALLOWED_ORIGINS",
        "https://a.example, http://localhost:3000,",
        ("https://a.example", "http://localhost:3000"),
    ),
    ("HALO_SANDBOX", "1", True),
    ("HALO_MINUTE_SECONDS", "0.25", 0.25),
    ("HALO_MINUTE_SECONDS", "0.001", 0.001),
    ("HALO_MINUTE_SECONDS", "86400", 86_400),
    ("HALO_ACCESS_TOKEN_SECONDS", "31536000", 31_536_000),
    ("HALO_DRAIN_SECONDS", "0", 0),
    ("HALO_BYTES_PER_S", "0", 0),
    ("HALO_LOG_LEVEL", "WARNING", "warning"),
    ("HALO_LOG_FORMAT", "console", "console"),
]


@pytest.mark.parametrize(("name", "given", "value"), ACCEPTED)
def test_a_good_value_is_read(name: str, given: str, value: object) -> None:
    assert getattr(read({name: given}), row(name).field) == value


REFUSED: list[tuple[str, str]] = [
    *[
        ("HALO_WS_BIND", given)
        for given in ("8800", "127.0.0.1", "127.0.0.1:", ":8800", "127.0.0.1:65536", "127.0.0.1:-1")
    ],
    *[("HALO_WS_BIND", given) for given in ("::1:8800", "[127.0.0.1]:1", "[::1:1", "1.2.3:1", "a b:1", "-x:1", "h:٣")],
    *[
        ("HALO_ADMIN_BIND", given)
        for given in ("0.0.0.0:8802", "[::]:8802", "10.0.0.1:1", "halo.internal:1", "localhost.evil:1")
    ],
    *[("HALO_DATABASE_URL", given) for given in ("mysql://db/halo", "db", "postgresql://db:port/halo")],
    *[
        ("HALO_VALKEY_URL", given)
        for given in (
            "valkey:6379",
            "http://valkey",
            "redis://",
            "unix://",
            "redis://v:port",
            "unix+cluster:///run/valkey",
            "rediss+cluster://",
        )
    ],
    *[("HALO_VALKEY_PREFIX", given) for given in ("a b", "x" * 65, "a\x00b")],
    ("HALO_DATA_DIR", "a\x00b"),
    *[
        ("HALO_ALLOWED_ORIGINS", given)
        for given in ("*", "null", "app.example.com", "https://a/", "https://a,*", "https://A", "https://u@a")
    ],
    *[("HALO_SANDBOX", given) for given in ("yes", "true", "2", "on")],
    *[
        ("HALO_MINUTE_SECONDS", given)
        for given in ("0", "-1", "nan", "inf", "a minute", "0.0009", "86401", "1e308", "1e-300")
    ],
    *[("HALO_DRAIN_SECONDS", given) for given in ("-0.1", "nan", "soon", "1e308")],
    *[("HALO_ACCESS_TOKEN_SECONDS", given) for given in ("0", "1.5", "-1", "10m", "31536001", "9" * 12)],
    *[("HALO_MESSAGES_PER_10S", given) for given in ("-1", "1.5", "many", "1e3", "٣", "9" * 13, "1000000001")],
    *[
        (name, given)
        for name in (
            "MITRA_HEARTBEAT_STALE_SECONDS",
            "MITRA_AUTO_OFFLINE_SWEEP_SECONDS",
            "HEARTBEAT_MIRROR_INTERVAL_SECONDS",
            "VALKEY_ONLINE_MIRROR_SWEEP_SECONDS",
        )
        for given in ("0", "1e-300", "1e308", "86401", "-1")
    ],
    ("HALO_LOG_LEVEL", "loud"),
    ("HALO_LOG_FORMAT", "xml"),
]


@pytest.mark.parametrize(("name", "given"), REFUSED)
def test_a_bad_value_is_refused_in_one_sentence_that_names_setting_value_and_what_is_accepted(
    name: str, given: str
) -> None:
    sentence = refusal({name: given})
    assert sentence.startswith(f"{name} is {given!r}, but must be ")


def test_a_bad_flag_is_called_by_the_name_that_was_typed() -> None:
    assert refusal(drain_seconds="soon") == "--drain-seconds is 'soon', but must be a number from 0 to 86400."


class TestSecrets:
    @pytest.mark.parametrize("name", SECRETS)
    def test_are_demanded_when_both_stores_are_given(self, name: str) -> None:
        assert refusal({name: ""}).startswith(
            f"{name} (or {name}_FILE) must be given when both stores are given by URL"
        )

    def test_of_operators_may_be_absent_and_stay_so(self) -> None:
        settings = read()
        assert (settings.admin_key, settings.admin_password) == (None, None)

    def test_a_password_that_was_made_up_is_told_from_one_that_somebody_chose(self, tmp_path: Path) -> None:
        environment = {"HALO_DATA_DIR": str(tmp_path / "data")}
        assert Settings.read(environment, {}).admin_password_is_made_up
        chosen = environment | {"HALO_ADMIN_PASSWORD": "open sesame"}
        assert not Settings.read(chosen, {}).admin_password_is_made_up
        assert not read().admin_password_is_made_up
        assert not read({"HALO_ADMIN_PASSWORD": "open sesame"}).admin_password_is_made_up

    @pytest.mark.parametrize("absent", URLS)
    def test_are_made_up_once_when_a_store_is_embedded(self, tmp_path: Path, absent: str) -> None:
        environment = {"HALO_DATA_DIR": str(tmp_path / "data")} | {
            name: url for name, url in URLS.items() if name != absent
        }
        first = Settings.read(environment, {})
        assert first == Settings.read(environment, {})
        assert first.admin_key is not None
        assert first.admin_password is not None
        made = {first.token_secret, first.server_key, first.webhook_secret, first.admin_key, first.admin_password}
        assert len(made) == 5
        assert first.webhook_secret.startswith("whsec_")

    def test_made_up_elsewhere_differ(self, tmp_path: Path) -> None:
        one, other = (Settings.read({"HALO_DATA_DIR": str(tmp_path / name)}, {}) for name in "ab")
        assert one.token_secret != other.token_secret

    def test_are_kept_where_nobody_else_can_read_them(self, tmp_path: Path) -> None:
        Settings.read({"HALO_DATA_DIR": str(tmp_path / "data")}, {})
        home = tmp_path / "data" / "secrets"
        assert stat.S_IMODE(home.stat().st_mode) == 0o700
        assert stat.S_IMODE((tmp_path / "data").stat().st_mode) == 0o700
        assert {file.name: stat.S_IMODE(file.stat().st_mode) for file in home.iterdir()} == {
            setting.field: 0o600 for setting in SETTINGS if setting.secret
        }

    def test_that_others_can_read_are_refused(self, tmp_path: Path) -> None:
        environment = {"HALO_DATA_DIR": str(tmp_path)}
        Settings.read(environment, {})
        (tmp_path / "secrets" / "server_key").chmod(0o644)
        with pytest.raises(SettingInvalid, match=r"^HALO_SERVER_KEY: .* can be read by other users"):
            Settings.read(environment, {})

    def test_that_are_given_are_not_written_down(self, tmp_path: Path) -> None:
        settings = Settings.read(SECRETS | {"HALO_DATA_DIR": str(tmp_path)}, {})
        assert settings.token_secret == SECRETS["HALO_TOKEN_SECRET"]
        assert sorted(file.name for file in (tmp_path / "secrets").iterdir()) == [
            "admin_key",
            "admin_password",
            "refund_secret",
        ]

    def test_that_cannot_be_kept_stop_the_start(self, tmp_path: Path) -> None:
        (tmp_path / "secrets" / "token_secret").mkdir(parents=True, mode=0o700)
        with pytest.raises(SettingInvalid, match=r"^HALO_TOKEN_SECRET cannot be kept in .*: Is a directory\.$"):
            Settings.read({"HALO_DATA_DIR": str(tmp_path)}, {})

    @pytest.mark.parametrize("flagged", [False, True])
    def test_a_data_directory_that_cannot_be_made_is_told_as_such(self, tmp_path: Path, flagged: bool) -> None:
        (tmp_path / "file").write_text("")
        given = str(tmp_path / "file")
        name = "--data-dir" if flagged else "HALO_DATA_DIR"
        with pytest.raises(SettingInvalid, match=rf"^{name} is '{given}', where halo cannot make its files: .*\.$"):
            Settings.read({} if flagged else {"HALO_DATA_DIR": given}, {"data_dir": given} if flagged else {})

    def test_come_from_files_too(self, tmp_path: Path) -> None:
        (tmp_path / "key").write_text("k" * 20 + "\n")
        settings = read({"HALO_SERVER_KEY": "", "HALO_SERVER_KEY_FILE": str(tmp_path / "key")})
        assert settings.server_key == "k" * 20

    def test_flags_name_their_files_and_win(self, tmp_path: Path) -> None:
        (tmp_path / "key").write_text("k" * 20)
        assert read(server_key=str(tmp_path / "key")).server_key == "k" * 20

    def test_in_a_file_that_is_not_there_stop_the_start(self, tmp_path: Path) -> None:
        sentence = refusal({"HALO_SERVER_KEY": "", "HALO_SERVER_KEY_FILE": str(tmp_path / "none")})
        assert (
            sentence
            == f"HALO_SERVER_KEY_FILE names {tmp_path / 'none'}, which cannot be read: No such file or directory."
        )

    @pytest.mark.parametrize(
        ("name", "given"),
        [
            ("HALO_TOKEN_SECRET", "t" * 31),
            ("HALO_SERVER_KEY", "s" * 15),
            ("HALO_WEBHOOK_SECRET", "d2Vha3dlYWt3ZWFrd2Vhaw=="),
            ("HALO_WEBHOOK_SECRET", "whsec_c2hvcnQ="),
            ("HALO_WEBHOOK_SECRET", "whsec_not!base64"),
            ("HALO_ADMIN_KEY", "short"),
            ("HALO_ADMIN_PASSWORD", "short"),
        ],
    )
    def test_that_are_weak_are_refused_without_being_shown(self, name: str, given: str) -> None:
        sentence = refusal({name: given})
        assert sentence.startswith(f"{name} is of {len(given)} characters, but must be ")
        assert given not in sentence

    def test_never_show_in_repr(self) -> None:
        urls = {"HALO_DATABASE_URL": "postgresql://halo:hidden@db/halo", "HALO_VALKEY_URL": "redis://:hidden@valkey"}
        shown = repr(read(urls | {"HALO_ADMIN_KEY": "hidden-key-of-sixteen", "HALO_ADMIN_PASSWORD": "hidden-word"}))
        assert "hidden" not in shown
        assert not any(secret in shown for secret in SECRETS.values())
        assert "8800" in shown

    @pytest.mark.parametrize(
        "flags",
        [
            {"database_url": "postgresql://halo:word@db/halo"},
            {"database_url": "postgresql://db/?password=word"},
            {"valkey_url": "redis://:word@valkey"},
        ],
    )
    def test_in_a_url_are_refused_in_the_arguments(self, flags: dict[str, str]) -> None:
        sentence = refusal(**flags)
        assert "must not hold a password" in sentence
        assert "word@" not in sentence

    def test_in_a_bad_url_are_not_shown(self) -> None:
        assert "word" not in refusal({"HALO_DATABASE_URL": "mysql://halo:word@db/halo"})


class TestOutgoing:
    @pytest.mark.parametrize("name", ["FCM_ENDPOINT", "HALO_REFUND_URL"])
    @pytest.mark.parametrize(
        "given",
        [
            "http://provider.example.com",
            "ftp://127.0.0.1",
            "https://",
            "provider",
            "https://a:b@c.example.com",
            "https://a/#b",
        ],
    )
    def test_nothing_leaves_in_the_clear_but_to_this_machine(self, name: str, given: str) -> None:
        assert "https://" in refusal({name: given, "HALO_REFUND_SECRET": SECRETS["HALO_WEBHOOK_SECRET"]})

    @pytest.mark.parametrize(
        "given",
        ["https://provider.example.com/refunds?of=halo", "http://127.0.0.1:9", "http://[::1]:9/", "http://localhost"],
    )
    def test_tls_and_loopback_are_taken_as_they_stand(self, given: str) -> None:
        secret = SECRETS["HALO_WEBHOOK_SECRET"]
        assert read({"HALO_REFUND_URL": given, "HALO_REFUND_SECRET": secret}).refund_url == given

    def test_refunds_are_not_sent_unsigned(self) -> None:
        assert "HALO_REFUND_SECRET" in refusal({"HALO_REFUND_URL": "https://provider.example.com"})

    def test_neither_the_address_nor_the_secret_is_shown(self) -> None:
        secret = SECRETS["HALO_WEBHOOK_SECRET"]
        shown = repr(read({"HALO_REFUND_URL": "https://p.example.com/?key=of-ours", "HALO_REFUND_SECRET": secret}))
        assert "of-ours" not in shown
        assert secret not in shown
