"""The settings, read once at the start: each with its name, default, unit and reason, in one table.

The table is the class: `SETTINGS` is read off its fields, `halo/cli.py` makes the flags from it and the README its list. A bad
value stops the start with one sentence (`SettingInvalid`); nothing is guessed, nothing is read later. No secret may be shown
by `repr` or come from a flag. How a value is found: `halo/setting.py`; what it may look like: `halo/parsing.py`; where secrets
come from: `halo/secrets.py`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from itertools import combinations
from pathlib import Path
from typing import Any, Final, Self

from halo import parsing, secrets
from halo.parsing import Address
from halo.setting import Setting, SettingInvalid, secret_of, value_of

__all__ = ["SETTINGS", "Setting", "SettingInvalid", "Settings"]

_DAY_SECONDS: Final = 86_400
"""No wait of halo's is for longer than a day; and a sweep more often than each 10 ms would do nothing else."""
_YEAR_SECONDS: Final = 365 * 86_400
"""Longer than anybody means, and its end is still a date that clocks and tokens can hold."""


def _row(
    name: str, default: str | None, unit: str, sentence: str, parse: Callable[[str], object], **secret: Any
) -> Any:
    """A field of `Settings` that carries its row."""
    column = name.removeprefix("HALO_").lower()
    shown = not secret and not name.endswith("_URL")  # a URL may hold a password
    return field(repr=shown, metadata={"setting": Setting(name, column, default, unit, sentence, parse, **secret)})


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Everything that an operator can decide before the start; what can change while running is in `halo/config.py`."""

    ws_bind: Address = _row(
        "HALO_WS_BIND",
        "127.0.0.1:8800",
        "host:port",
        "Where apps open WebSockets; port 0 picks a free one.",
        parsing.address,
    )
    api_bind: Address = _row(
        "HALO_API_BIND", "127.0.0.1:8801", "host:port", "Where apps call the HTTP API.", parsing.address
    )
    admin_bind: Address = _row(
        "HALO_ADMIN_BIND",
        "127.0.0.1:8802",
        "host:port",
        "Status page, health and metrics; loopback only.",
        parsing.loopback_address,
    )

    database_url: str | None = _row(
        "HALO_DATABASE_URL",
        None,
        "URL",
        "Postgres; without it one is started in the data directory.",
        parsing.database_url,
    )
    valkey_url: str | None = _row(
        "HALO_VALKEY_URL",
        None,
        "URL",
        "Valkey: redis, rediss (TLS), unix, redis+cluster or rediss+cluster; without it one is started in the data directory.",
        parsing.valkey_url,
    )
    valkey_prefix: str = _row(
        "HALO_VALKEY_PREFIX",
        "",
        "text",
        "Put before every key; a hash tag such as {halo}: keeps a cluster's keys in one slot.",
        parsing.prefix,
    )
    data_dir: Path = _row(
        "HALO_DATA_DIR", "./.halo", "path", "Where embedded stores and generated secrets live.", parsing.path
    )

    token_secret: str = _row(
        "HALO_TOKEN_SECRET",
        None,
        "≥ 32 characters",
        "Signs access tokens.",
        parsing.text_of(32),
        make=secrets.token,
        demanded=True,
    )
    server_key: str = _row(
        "HALO_SERVER_KEY",
        None,
        "≥ 16 characters",
        "The app's backend shows it as X-Halo-Key.",
        parsing.text_of(16),
        make=secrets.token,
        demanded=True,
    )
    webhook_secret: str = _row(
        "HALO_WEBHOOK_SECRET",
        None,
        "whsec_ and base64",
        "The payment provider signs with it.",
        parsing.webhook_secret,
        make=secrets.webhook_secret,
        demanded=True,
    )
    admin_key: str | None = _row(
        "HALO_ADMIN_KEY",
        None,
        "≥ 16 characters",
        "Opens the operators' API; without it that API stays closed.",
        parsing.text_of(16),
        make=secrets.token,
    )
    admin_password: str | None = _row(
        "HALO_ADMIN_PASSWORD",
        None,
        "≥ 8 characters",
        "Of the first operator, admin; without it a start prints a one-time link until somebody has signed in.",
        parsing.text_of(8),
        make=secrets.password,
    )

    status_secure_cookies: bool = _row(
        "HALO_STATUS_SECURE_COOKIES",
        "0",
        "0 or 1",
        "1 where browsers reach the status page through TLS only, by a tunnel or a proxy: then every cookie is Secure, the first one too.",
        parsing.switch,
    )

    fcm_credentials: Path | None = _row(
        "HALO_FCM_CREDENTIALS",
        None,
        "path",
        "Google's JSON of the service account that sends pushes, mode 0600; without it pushes are logged instead.",
        parsing.path,
    )
    fcm_endpoint: str = _row(
        "FCM_ENDPOINT",
        "https://fcm.googleapis.com",
        "URL",
        "Where pushes are sent; another one in tests.",
        parsing.outgoing_url,
    )
    refund_url: str | None = _row(
        "HALO_REFUND_URL",
        None,
        "URL",
        "The payment provider's, where refunds due are posted; without it they wait.",
        parsing.outgoing_url,
    )
    refund_secret: str | None = _row(
        "HALO_REFUND_SECRET",
        None,
        "whsec_ and base64",
        "Signs the refunds; demanded with their URL.",
        parsing.webhook_secret,
        make=secrets.webhook_secret,
    )

    allowed_origins: tuple[str, ...] = _row(
        "HALO_ALLOWED_ORIGINS",
        "",
        "origins",
        "Exact origins of web apps, separated by commas; none means non-browser clients only.",
        parsing.origins,
    )
    sandbox: bool = _row(
        "HALO_SANDBOX", "0", "0 or 1", "Lets customers confirm their own payments, for trials.", parsing.switch
    )
    minute_seconds: float = _row(
        "HALO_MINUTE_SECONDS",
        "60",
        "s",
        "Length of a paid minute; short ones make demos and tests short.",
        parsing.number(0.001, _DAY_SECONDS),
    )
    access_token_seconds: int = _row(
        "HALO_ACCESS_TOKEN_SECONDS", "600", "s", "Life of an access token.", parsing.whole(1, _YEAR_SECONDS)
    )
    drain_seconds: float = _row(
        "HALO_DRAIN_SECONDS",
        "20",
        "s",
        "How long a stop waits for sessions to be handed over.",
        parsing.number(0, _DAY_SECONDS),
    )

    messages_per_10s: int = _row(
        "HALO_MESSAGES_PER_10S",
        "20",
        "frames in 10 s",
        "Frames that one connection may send; 0 lifts it.",
        parsing.limit,
    )
    bytes_per_s: int = _row(
        "HALO_BYTES_PER_S",
        "16384",
        "bytes/s",
        "Sustained bytes that one connection may send; 0 lifts it.",
        parsing.limit,
    )
    connections_per_user: int = _row(
        "HALO_CONNECTIONS_PER_USER", "5", "sockets", "The oldest goes when one more comes; 0 lifts it.", parsing.limit
    )
    connections_per_address: int = _row(
        "HALO_CONNECTIONS_PER_ADDRESS", "200", "sockets", "From one address; 0 lifts it.", parsing.limit
    )
    handshakes_per_s: int = _row(
        "HALO_HANDSHAKES_PER_S",
        "20",
        "handshakes/s",
        "From one address, in bursts of twice that; 0 lifts it.",
        parsing.limit,
    )
    requests_per_s: int = _row(
        "HALO_REQUESTS_PER_S",
        "20",
        "requests/s",
        "HTTP calls of one user, in bursts of five times that; 0 lifts it.",
        parsing.limit,
    )
    creates_per_minute: int = _row(
        "HALO_CREATES_PER_MINUTE", "30", "POSTs a minute", "Creating calls of one user; 0 lifts it.", parsing.limit
    )

    mitra_heartbeat_stale_seconds: float = _row(
        "MITRA_HEARTBEAT_STALE_SECONDS",
        "90",
        "s",
        "A mitra silent for longer is unreachable: three missed pings of 30 s.",
        parsing.number(0.01, _DAY_SECONDS),
    )
    mitra_auto_offline_sweep_seconds: float = _row(
        "MITRA_AUTO_OFFLINE_SWEEP_SECONDS",
        "30",
        "s",
        "How often stale mitras are set offline.",
        parsing.number(0.01, _DAY_SECONDS),
    )
    heartbeat_mirror_interval_seconds: float = _row(
        "HEARTBEAT_MIRROR_INTERVAL_SECONDS",
        "60",
        "s",
        "How often heartbeats go from Valkey to Postgres.",
        parsing.number(0.01, _DAY_SECONDS),
    )
    valkey_online_mirror_sweep_seconds: float = _row(
        "VALKEY_ONLINE_MIRROR_SWEEP_SECONDS",
        "300",
        "s",
        "How often the mirror is rebuilt from Postgres.",
        parsing.number(0.01, _DAY_SECONDS),
    )

    watchdog_seconds: float = _row(
        "HALO_WATCHDOG_SECONDS",
        "60",
        "s",
        "How often the watchdog asks whether what must hold does hold.",
        parsing.number(0.01, _DAY_SECONDS),
    )

    log_level: str = _row(
        "HALO_LOG_LEVEL",
        "info",
        "level",
        "debug, info, warning or error.",
        parsing.one_of("debug", "info", "warning", "error"),
    )
    log_format: str = _row(
        "HALO_LOG_FORMAT",
        "auto",
        "form",
        "json for machines, console for people; auto is console on a terminal and json elsewhere.",
        parsing.one_of("auto", "json", "console"),
    )

    @classmethod
    def read(cls, environment: Mapping[str, str], flags: Mapping[str, str | None]) -> Self:
        """The settings of this start. `flags` are keyed by `Setting.field` and win over the environment; None is "not given".

        With an embedded store, secrets that were not given are read from the data directory, or made up and kept there.

        Raises `SettingInvalid`.
        """
        values = {row.field: value_of(row, environment, flags) for row in SETTINGS if not row.secret}
        embedded = values["database_url"] is None or values["valkey_url"] is None
        home = values["data_dir"] / "secrets" if embedded else None
        if home is not None:
            _make_home(home, "--data-dir" if flags.get("data_dir") else "HALO_DATA_DIR")
        values |= {row.field: secret_of(row, environment, flags, home) for row in SETTINGS if row.secret}
        _require_distinct(values)
        if values["refund_url"] is not None and values["refund_secret"] is None:
            raise SettingInvalid("HALO_REFUND_SECRET (or HALO_REFUND_SECRET_FILE) must be given with HALO_REFUND_URL.")
        return cls(**values)

    @property
    def admin_password_is_made_up(self) -> bool:
        """Whether nobody chose it: it was made up for the data directory, where an operator would have to look for it."""
        home = self.data_dir / "secrets"
        return self.admin_password is not None and secrets.is_kept(home, "admin_password", self.admin_password)


def _require_distinct(values: Mapping[str, Any]) -> None:
    """Three listeners, three places: found here, and not by the last of them when everything else runs already."""
    binds = [(row.name, values[row.field]) for row in SETTINGS if row.field in {"ws_bind", "api_bind", "admin_bind"}]
    for (name, bind), (other, another) in combinations(binds, 2):
        if bind.clashes(another):
            raise SettingInvalid(
                f"{name} is {bind} and {other} is {another}, but each listener needs a port of its own."
            )


def _make_home(home: Path, origin: str) -> None:
    """First of all, so that a data directory that cannot be made is not told as the trouble of some secret."""
    try:
        secrets.open_home(home)
    except OSError as fault:
        raise SettingInvalid(
            f"{origin} is {str(home.parent)!r}, where halo cannot make its files: {fault.strerror}."
        ) from fault


SETTINGS: Final[tuple[Setting, ...]] = tuple(row.metadata["setting"] for row in fields(Settings))
"""The table, in the order in which the README shows it."""
