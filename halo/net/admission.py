"""Who may come in: the caps and buckets of spec 7 that count sockets before anybody knows whose they are.

One `Gate` per listener. It decides and counts, and never touches a socket, so the rules are tested as rules; `halo/net/guard.py`
asks it at every accept and turns away whom it does not admit. Addresses are what the peer's kernel says: behind a proxy all are
the proxy's, and then the limits per address must be lifted. Read next: `halo/net/guard.py`.
"""

import ipaddress
import os
import resource
from collections import Counter
from typing import Final

from halo.clock import Clock
from halo.net.limits import Buckets, Rate

UNAUTHENTICATED_AT_MOST: Final = 256
"""Spec 7. Each may hold a task and 16 KiB of head for at most the connect timeout: 4 MiB in all."""

FILES_KEPT_BACK: Final = 128
"""Descriptors for everything that is not an app's socket: pools, logs, listeners, refusals on their way out, the stores' own."""

CONNECTION_BYTES: Final = 64 * 1024
"""What an idle connection may cost (X4)."""

CONNECTIONS_AT_LEAST: Final = 64


class NotAdmitted(Exception):
    """The connection is one too many. `status` is 429 for its address's own doing, 503 for the node's."""

    def __init__(self, status: int, cause: str, retry_after_ms: int) -> None:
        super().__init__(cause)
        self.status = status
        self.cause = cause
        """`node_full`, `handshakes_full`, `address_full` or `address_rate`: a label for metrics."""
        self.retry_after_ms = retry_after_ms


def address_key(address: str) -> str:
    """What counts as one address: an IPv4 address, or an IPv6 /64, since one household is given that many."""
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address  # a Unix socket, or a test
    if isinstance(parsed, ipaddress.IPv6Address):
        if parsed.ipv4_mapped is not None:
            return str(parsed.ipv4_mapped)
        return str(ipaddress.ip_network((parsed, 64), strict=False))
    return str(parsed)


def connections_affordable(memory_bytes: int | None = None) -> int:
    """The total cap that the file limit and the memory allow: half of the memory at 64 KiB each."""
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    by_files = files - FILES_KEPT_BACK if files != resource.RLIM_INFINITY else 1_000_000
    memory = _memory_bytes() if memory_bytes is None else memory_bytes
    return max(CONNECTIONS_AT_LEAST, min(by_files, memory // 2 // CONNECTION_BYTES))


def _memory_bytes() -> int:
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


class Admission:
    """One connection's place. `authenticated` once it is known whose it is, `leave` when the socket is closed; both any number of times."""

    __slots__ = ("_gate", "_unauthenticated", "address", "key")

    def __init__(self, gate: "Gate", address: str, key: str) -> None:
        self._gate: Gate | None = gate
        self._unauthenticated = True
        self.address = address
        self.key = key
        """The address as limits count it; also the key for counting failed authentications."""

    def authenticated(self) -> None:
        if self._unauthenticated and self._gate is not None:
            self._unauthenticated = False
            self._gate.unauthenticated -= 1

    def leave(self) -> None:
        gate = self._gate
        if gate is not None:
            self.authenticated()
            self._gate = None
            gate.forget(self.key)


class Gate:
    """Counts the connections of one listener. 0 lifts a limit, also `unauthenticated_at_most` (an HTTP listener's are all so)."""

    def __init__(
        self,
        clock: Clock,
        *,
        total_at_most: int,
        per_address_at_most: int,
        handshakes_per_s: int,
        unauthenticated_at_most: int = UNAUTHENTICATED_AT_MOST,
    ) -> None:
        self._total_at_most = total_at_most
        self._unauthenticated_at_most = unauthenticated_at_most
        self._per_address_at_most = per_address_at_most
        self._handshakes = Buckets(Rate(handshakes_per_s, 1000, 2 * handshakes_per_s), clock)
        self._by_address: Counter[str] = Counter()
        self.total = 0
        self.unauthenticated = 0
        self.refused: Counter[str] = Counter()
        """How many were not admitted, by cause."""

    def admit(self, address: str) -> Admission:
        """A place for a connection from `address`, or `NotAdmitted`. The address's own limits come first: they accuse nobody else."""
        key = address_key(address)
        wait_ms = self._handshakes.take(key)
        if wait_ms:
            raise self._not_admitted(429, "address_rate", wait_ms)
        if self._per_address_at_most and self._by_address[key] >= self._per_address_at_most:
            raise self._not_admitted(429, "address_full", 1000)
        if self._unauthenticated_at_most and self.unauthenticated >= self._unauthenticated_at_most:
            raise self._not_admitted(503, "handshakes_full", 1000)
        if self._total_at_most and self.total >= self._total_at_most:
            raise self._not_admitted(503, "node_full", 5000)
        self.total += 1
        self.unauthenticated += 1
        self._by_address[key] += 1
        return Admission(self, address, key)

    def forget(self, key: str) -> None:
        """The admission's part: one connection of `key` has gone."""
        self.total -= 1
        self._by_address[key] -= 1
        if not self._by_address[key]:
            del self._by_address[key]

    def _not_admitted(self, status: int, cause: str, retry_after_ms: int) -> NotAdmitted:
        self.refused[cause] += 1
        return NotAdmitted(status, cause, retry_after_ms)
