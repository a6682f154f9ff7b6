"""The halo that is put under load: where it is, which keys open it, and whether it may be.

Keys come from the environment or from files, as those of `halo serve` do; an argument can be read by every user of the machine. Nothing is
guessed and no key has a default. It must never run where people are: made-up customers would be given to real mitras. Read next:
`halo/load/embedded.py`, a throw-away halo of our own.
"""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Final
from urllib.parse import urlsplit

from halo.setting import SettingInvalid, secret_of
from halo.settings import SETTINGS

API_PORT: Final = 8801
WS_PORT: Final = 8800
"""halo's own defaults: whoever names the one means the other beside it."""
KEYS: Final = ("server_key", "webhook_secret", "admin_key")


class TargetRefused(Exception):
    """This halo cannot be put under load; the message is one sentence."""


@dataclass(frozen=True, slots=True)
class Keys:
    """What opens a halo."""

    server_key: str = field(repr=False)
    """Admits people."""
    webhook_secret: str | None = field(default=None, repr=False)
    """Confirms payments as the provider does; without it the halo must be a sandbox."""
    admin_key: str | None = field(default=None, repr=False)
    database_url: str | None = field(default=None, repr=False)
    """Where the invariants are asked for, after the run; without it they are not."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A halo that answers, and what can be done to it."""

    ws: str
    api: str
    keys: Keys
    is_own: bool
    """Whether the harness started it and may kill it."""
    verify_tls: bool = True
    server_pid: int | None = None
    find_violations: Callable[[], Awaitable[tuple[int, list[str]]]] | None = None
    """How many invariants were asked for, and a sentence for each place where one is broken."""
    kill: Callable[[], Awaitable[None]] | None = None
    restart: Callable[[], Awaitable["Target"]] | None = None


def read_keys(environment: Mapping[str, str], flags: Mapping[str, str | None]) -> Keys:
    """The keys for a halo somewhere else.

    Raises:
        TargetRefused: one is missing or cannot be read.
    """
    found: dict[str, str | None] = {}
    for row in SETTINGS:
        if row.field in KEYS:
            try:
                found[row.field] = secret_of(replace(row, demanded=False), environment, flags, None)
            except SettingInvalid as invalid:
                raise TargetRefused(str(invalid)) from invalid
    server_key = found["server_key"]
    if server_key is None:
        raise TargetRefused(
            "HALO_SERVER_KEY (or HALO_SERVER_KEY_FILE, or --server-key-file) must be given: made-up people are admitted with it, "
            "as the app's backend admits its users."
        )
    return Keys(server_key, found["webhook_secret"], found["admin_key"], environment.get("HALO_DATABASE_URL") or None)


def urls_of(api: str, ws: str | None) -> tuple[str, str]:
    """`(API, WebSockets)`, the latter where it belongs when it was not given.

    Raises:
        TargetRefused: no such URL.
    """
    _require_url("URL", api, {"http", "https"})
    if ws is not None:
        _require_url("--ws", ws, {"ws", "wss"})
        return api.rstrip("/"), ws.rstrip("/")
    parts = urlsplit(api)
    host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname
    port = WS_PORT if parts.port == API_PORT else parts.port
    place = f"{host}:{port}" if port else f"{host}"
    return api.rstrip("/"), f"{'wss' if parts.scheme == 'https' else 'ws'}://{place}{parts.path.rstrip('/')}"


def _require_url(name: str, url: str, schemes: set[str]) -> None:
    try:
        parts = urlsplit(url)
        fits = parts.scheme in schemes and bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        fits = False
        parts = urlsplit("")
    if not fits or parts.username or parts.query or parts.fragment:
        wanted = " or ".join(sorted(f"{scheme}://host[:port]" for scheme in schemes))
        raise TargetRefused(f"{name} is no address of a halo; it must be like {wanted}, without a user or a query.")
