"""Where halo's secrets come from: the environment, a file, or a first run that makes them up.

It must never take a secret from the arguments (every user of the machine can read those), write one readable by others, or
overwrite one that exists: a token secret that changes signs everybody out. Which secrets there are, and what they must look
like, stands in `halo/settings.py`.
"""

import base64
import hmac
import os
import secrets as random
from collections.abc import Callable
from pathlib import Path
from typing import Final

_TOKEN_BYTES: Final = 32
"""As many as HMAC-SHA-256 makes use of."""

_PASSWORD_BYTES: Final = 12
"""96 bits: 16 characters that an operator can still type."""

_OTHERS_MAY_READ: Final = 0o077


class SecretUnsafe(Exception):
    """The file of a secret cannot be trusted; the message is one sentence."""


def token() -> str:
    """A key that only programs handle."""
    return random.token_urlsafe(_TOKEN_BYTES)


def password() -> str:
    """A key that a person types."""
    return random.token_urlsafe(_PASSWORD_BYTES)


def webhook_secret() -> str:
    """The form that Standard Webhooks asks for: `whsec_` and base64."""
    return "whsec_" + base64.b64encode(random.token_bytes(_TOKEN_BYTES)).decode()


def read(path: Path) -> str:
    """The secret in a file that the operator named; the newline that editors add is not part of it."""
    return path.read_text(encoding="utf-8").strip()


def open_home(directory: Path) -> None:
    """Make the directory of secrets, and the data directory around it, where they are missing. Raises `OSError`."""
    directory.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    directory.mkdir(mode=0o700, exist_ok=True)


def keep(directory: Path, name: str, make: Callable[[], str]) -> str:
    """The secret `name` of this data directory, made up at the first call and read back ever after.

    Two halos that start in the same instant agree: the file appears whole, by a hard link that the second one cannot repeat.

    Raises `SecretUnsafe` when the file is readable by others, and `OSError` when it cannot be read or written.
    """
    path = directory / name
    if not path.exists():
        open_home(directory)
        _write_once(path, make())
    if path.stat().st_mode & _OTHERS_MAY_READ:
        raise SecretUnsafe(
            f"{path} can be read by other users of this machine; give it mode 0600, or delete it to get a new one."
        )
    return read(path)


def is_kept(directory: Path, name: str, secret: str) -> bool:
    """Whether `secret` is the one that this data directory keeps under `name`."""
    path = directory / name
    return path.is_file() and hmac.compare_digest(read(path).encode(), secret.encode())


def _write_once(path: Path, secret: str) -> None:
    """Written and synced under a name of its own first: a crash leaves no half a secret under the name that counts."""
    draft = path.with_name(f".{path.name}.{os.getpid()}.{random.token_hex(4)}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(secret + "\n")
            file.flush()
            os.fsync(file.fileno())
        path.hardlink_to(draft)
    except FileExistsError:
        return  # another halo was first: its secret is the one that counts, and `keep` reads it back
    finally:
        draft.unlink()
