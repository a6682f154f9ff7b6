"""The seal on what a browser carries from an action to the page that tells of it: which action, for whom, made by this node and nobody else.

The key is made anew at each start and leaves the process never: what another node or an earlier start has sealed is simply not told. It
must never be more than a sentence's worth: nothing is allowed because of a seal. Read next: `halo/net/status/frame.py`.
"""

import hashlib
import hmac
import secrets
from typing import Final

KEY_BYTES: Final = 32


class Seals:
    """Seals with one key."""

    def __init__(self) -> None:
        self._key = secrets.token_bytes(KEY_BYTES)

    def sealed(self, operator: str, name: str) -> str:
        """`name`, as `operator` may carry it."""
        return f"{name}.{self._seal(operator, name)}"

    def opened(self, operator: str, carried: str | None) -> str | None:
        """The name; None when this was not sealed here for `operator`."""
        name, _, seal = (carried or "").rpartition(".")
        good = hmac.compare_digest(self._seal(operator, name).encode(), seal.encode(errors="surrogatepass"))
        return name if good else None

    def _seal(self, operator: str, name: str) -> str:
        text = f"{operator} {name}".encode(errors="surrogatepass")
        return hmac.new(self._key, text, hashlib.sha256).hexdigest()
