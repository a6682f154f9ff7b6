"""What the doctor looks at of the server: whether a halo runs, whether it is this one, and whether a start could listen where it is told to.

It must never take the data directory's lock, nor listen: either would keep a start out that comes in the same moment. Read next:
`halo/checks.py`, the machine around it.
"""

import os
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import httpx

from halo.checks import Finding, fail, ok, warn
from halo.net.guard import BindMalformed, BindRefused, PublicBindRefused, open_bound
from halo.settings import Settings

HEALTH_SECONDS: Final = 2.0
LOCKS: Final = Path("/proc/locks")
"""The kernel's list; only Linux has it."""


@dataclass(frozen=True, slots=True)
class Running:
    """What there is of a server."""

    embedded: bool
    holder: int | None
    """The process that holds the data directory; None where no store is embedded, too."""
    state: dict[str, object] | None
    """What `/readyz` answers at the admin listener, whosever it is."""

    @property
    def is_ours(self) -> bool:
        """Does the halo of these settings run? With embedded stores their lock says so, else there is only the listener to go by."""
        return self.holder is not None if self.embedded and LOCKS.exists() else self.state is not None


async def find_running(settings: Settings, *, embedded: bool) -> Running:
    return Running(embedded, holder_of(settings.data_dir) if embedded else None, await _readiness(settings))


def holder_of(data_dir: Path) -> int | None:
    """The process that holds the data directory, read off the kernel's list: taking the lock to see would keep a start out."""
    try:
        lock = (data_dir / "lock").stat()
        held = LOCKS.read_text("ascii").splitlines()
    except OSError:
        return None
    place = f"{os.major(lock.st_dev):02x}:{os.minor(lock.st_dev):02x}:{lock.st_ino}"
    return next((int(line.split()[4]) for line in held if "FLOCK" in line and place in line.split()), None)


def server(settings: Settings, running: Running) -> Finding:
    """Whether a halo runs, by its data directory and its admin listener."""
    state = running.state
    if state is not None and not running.is_ours:
        return warn(
            "server",
            f"no halo runs on {settings.data_dir}; the one that answers at {settings.admin_bind} is another's",
            "Give this one other ports, or stop the other.",
        )
    if state is not None:
        fact = f"answers at {settings.admin_bind}: {state['status']}" + (", degraded" if state.get("degraded") else "")
        if state["status"] != "ok":
            return fail("server", fact, "Look at its log; it serves nobody like this.")
        if state.get("degraded"):
            return warn("server", fact, "Valkey is not believed; Postgres answers for it.")
        return ok("server", fact)
    if running.holder is not None:
        holder = f"process {running.holder} holds {settings.data_dir}"
        return ok("server", f"{holder}; its admin listener is not at {settings.admin_bind}")
    where = f" on {settings.data_dir}" if running.embedded else f" at {settings.admin_bind}"
    return warn("server", f"no halo runs{where}", "Start it with `halo serve`; what needs it was not looked at.")


async def binds(settings: Settings, running: Running) -> Finding:
    """That the admin listener is the machine's own stands already: another bind is a bad setting."""
    if not running.is_ours:
        try:
            await _try_to_bind(settings)
        except (BindMalformed, BindRefused, PublicBindRefused) as refused:
            return fail(
                "binds", str(refused), "Stop what listens there (`ss -ltnp` names it), or give another address."
            )
    whose = "held by the halo that runs" if running.is_ours else "free"
    public = [
        f"{name} {bind}"
        for name, bind in (("HALO_WS_BIND", settings.ws_bind), ("HALO_API_BIND", settings.api_bind))
        if bind.host not in {"127.0.0.1", "::1", "localhost"}
    ]
    if public:
        advice = "Put a proxy that ends TLS before them, or bind to loopback."
        return warn("binds", f"{whose}, and open to others: {', '.join(public)}", advice)
    where = f"apps at {settings.ws_bind} and {settings.api_bind}, operators at {settings.admin_bind}, all loopback"
    return ok("binds", f"{where}, {whose}")


async def _try_to_bind(settings: Settings) -> None:
    """All at once, as a start does it; nobody is let in."""
    with ExitStack() as bound:
        for name, bind in (("ADMIN", settings.admin_bind), ("WS", settings.ws_bind), ("API", settings.api_bind)):
            is_admin = name == "ADMIN"
            bound.enter_context(await open_bound(str(bind), loopback_only=is_admin, setting=f"HALO_{name}_BIND"))


async def _readiness(settings: Settings) -> dict[str, object] | None:
    if settings.admin_bind.port == 0:
        return None
    try:
        async with httpx.AsyncClient(timeout=HEALTH_SECONDS, trust_env=False) as client:
            answer = await client.get(f"http://{settings.admin_bind}/readyz")
            state = answer.json()
    except (httpx.HTTPError, ValueError):
        return None
    return state if isinstance(state, dict) and "status" in state else None
