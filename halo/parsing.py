"""What the value of a setting may look like: one small function a kind, from text to a value.

Each raises ValueError whose message completes "must be …", so that `halo/settings.py` can say one sentence. Nothing here
touches the disk or the network.
"""

import base64
import binascii
import ipaddress
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import SplitResult, parse_qs, urlsplit

_HOST_NAME: Final = re.compile(r"(?!-)[A-Za-z0-9-]{1,63}(\.(?!-)[A-Za-z0-9-]{1,63})*\.?")
_ORIGIN: Final = re.compile(r"[a-z][a-z0-9+.-]*://[^/?#@\s,*]+")
_WHOLE: Final = re.compile(r"[0-9]{1,12}")

_HIGHEST_LIMIT: Final = 1_000_000_000
"""More than one process can ever meet, of whatever is counted; who wants no limit says 0."""

_SHORTEST_WEBHOOK_KEY_BYTES: Final = 16
"""128 bits: below that a signature can be guessed. Standard Webhooks itself recommends 24 to 64."""


@dataclass(frozen=True, slots=True)
class Address:
    """Where a listener binds."""

    host: str
    port: int

    @property
    def is_loopback(self) -> bool:
        """Can it be reached from this machine only?"""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    def clashes(self, other: "Address") -> bool:
        """Can only one of the two be listened on? Names are not looked up: `localhost` may be any loopback address."""
        if self.port != other.port or self.port == 0:
            return False
        if self.host.lower() == other.host.lower() or "::" in {self.host, other.host}:
            return True
        if "0.0.0.0" in {self.host, other.host}:  # noqa: S104  # compared with, not bound to
            return not (_is_version_6(self.host) or _is_version_6(other.host))
        return "localhost" in {self.host, other.host} and self.is_loopback and other.is_loopback

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def _is_version_6(host: str) -> bool:
    return ":" in host


def address(given: str) -> Address:
    """`127.0.0.1:8800`, `[::1]:8800` or `name:8800`."""
    host, colon, port = given.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    bare = host[1:-1] if bracketed else host
    if colon and _is_host(bare, bracketed=bracketed) and _WHOLE.fullmatch(port) and int(port) <= 65_535:
        return Address(bare, int(port))
    raise ValueError("host:port with a port from 0 to 65535, such as 127.0.0.1:8800 or [::1]:8800")


def _is_host(host: str, *, bracketed: bool) -> bool:
    try:
        version = ipaddress.ip_address(host).version
    except ValueError:
        # Only digits and dots is an address with a slip, which resolvers read in surprising ways.
        return not bracketed and bool(_HOST_NAME.fullmatch(host)) and not re.fullmatch(r"[0-9.]+", host)
    return bracketed == (version == 6)


def loopback_address(given: str) -> Address:
    """An address that other machines cannot reach: the operators' page has no TLS of its own."""
    parsed = address(given)
    if not parsed.is_loopback:
        raise ValueError("a loopback address such as 127.0.0.1:8802, because operators' pages must not be exposed")
    return parsed


def database_url(given: str) -> str:
    """A URL that libpq reads."""
    accepted = "a URL that begins with postgresql:// or postgres://"
    if _split(given, accepted).scheme not in {"postgresql", "postgres"}:
        raise ValueError(accepted)
    return given


def valkey_url(given: str) -> str:
    """One server, one socket, or a cluster; a server and a cluster also by TLS. `halo/store/valkey_link.py` reads the same."""
    accepted = "a URL that begins with redis://, rediss://, unix://, redis+cluster:// or rediss+cluster:// and names a host or a socket"
    url = _split(given, accepted)
    if url.scheme == "unix" and url.path:
        return given
    if url.scheme in {"redis", "rediss", "redis+cluster", "rediss+cluster"} and url.hostname:
        return given
    raise ValueError(accepted)


def outgoing_url(given: str) -> str:
    """Where halo sends things: by TLS, or to this machine."""
    accepted = "a URL that begins with https:// and names a host, without a password; http:// on loopback only"
    url = _split(given, accepted)
    if not url.hostname or url.password or url.fragment:
        raise ValueError(accepted)
    if url.scheme == "https" or (url.scheme == "http" and Address(url.hostname, 0).is_loopback):
        return given
    raise ValueError(accepted)


def _split(given: str, accepted: str) -> SplitResult:
    try:
        url = urlsplit(given)
        _ = url.port  # a property that raises for what is no port
    except ValueError:
        raise ValueError(accepted) from None
    return url


def holds_password(given: str) -> bool:
    """Is there a password in this URL? What cannot be taken apart counts as if there were."""
    if "://" not in given:
        return False
    try:
        url = urlsplit(given)
    except ValueError:
        return True
    return bool(url.password) or "password" in parse_qs(url.query) or "sslpassword" in parse_qs(url.query)


def prefix(given: str) -> str:
    """Part of every key, so short and printable."""
    if len(given) > 64 or any(not character.isprintable() or character.isspace() for character in given):
        raise ValueError("at most 64 printable characters without spaces")
    return given


def path(given: str) -> Path:
    """Absolute from here on: halo must not depend on a later change of the working directory."""
    if "\0" in given:
        raise ValueError("the path of a directory")
    try:
        return Path(given).expanduser().absolute()
    except RuntimeError:
        raise ValueError("a path whose home directory exists") from None


def origins(given: str) -> tuple[str, ...]:
    """Exact origins. No wildcard and no `null`: either would let every page in."""
    listed = tuple(part.strip() for part in given.split(",") if part.strip())
    for origin in listed:
        if not _ORIGIN.fullmatch(origin) or origin != origin.lower():
            raise ValueError(
                "exact origins in lower case, separated by commas, such as https://app.example.com, without path or wildcard"
            )
    return listed


def switch(given: str) -> bool:
    """On or off, and nothing in between: a typo must not switch the sandbox on."""
    if given not in {"0", "1"}:
        raise ValueError("0 or 1")
    return given == "1"


def number(lowest: float, highest: float) -> Callable[[str], float]:
    """A number between these, both included: what is beyond overflows a clock or spins a loop, long after the start."""

    def parse(given: str) -> float:
        accepted = f"a number from {lowest:g} to {highest:g}"
        try:
            found = float(given)
        except ValueError:
            raise ValueError(accepted) from None
        if not lowest <= found <= highest:  # which nan is not, either
            raise ValueError(accepted)
        return found

    return parse


def whole(lowest: int, highest: int) -> Callable[[str], int]:
    """A whole number between these, both included."""

    def parse(given: str) -> int:
        if not _WHOLE.fullmatch(given) or not lowest <= int(given) <= highest:
            raise ValueError(f"a whole number from {lowest} to {highest}")
        return int(given)

    return parse


def limit(given: str) -> int:
    """A limit; 0 lifts it."""
    if not _WHOLE.fullmatch(given) or int(given) > _HIGHEST_LIMIT:
        raise ValueError(f"a whole number from 0 to {_HIGHEST_LIMIT}, where 0 lifts the limit")
    return int(given)


def one_of(*choices: str) -> Callable[[str], str]:
    """One of these words, in whatever case."""

    def parse(given: str) -> str:
        if given.lower() not in choices:
            raise ValueError(f"one of {', '.join(choices)}")
        return given.lower()

    return parse


def text_of(shortest: int) -> Callable[[str], str]:
    """A secret of at least so many characters."""

    def parse(given: str) -> str:
        if len(given) < shortest or not given.isprintable():
            raise ValueError(f"at least {shortest} printable characters")
        return given

    return parse


def webhook_secret(given: str) -> str:
    """`whsec_` and the base64 of the key, as Standard Webhooks writes it."""
    accepted = f"whsec_ followed by the base64 of at least {_SHORTEST_WEBHOOK_KEY_BYTES} bytes"
    head, mark, encoded = given.partition("whsec_")
    try:
        key = base64.b64decode(encoded, validate=True)
    except binascii.Error:
        raise ValueError(accepted) from None
    if head or not mark or len(key) < _SHORTEST_WEBHOOK_KEY_BYTES:
        raise ValueError(accepted)
    return given
