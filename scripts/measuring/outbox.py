"""How fast the outbox is emptied: 10,000 pushes that are due, by the log and by something that answers like FCM.

The real lane over an embedded Postgres, in this process; FCM is a process of its own, without TLS, that answers at once or as
late as on a bad day, so this is what halo can do
and not what Google will. Read next: `halo/actors/outbox.py`.
"""

import gc
import json
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import trio
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from halo.actors.outbox import AT_ONCE, PACE_SECONDS, Courier, Lane, LanePorts
from halo.clock import SystemClock
from halo.errands import migrate_schema
from halo.net.fcm import Fcm
from halo.net.outgoing import open_outgoing, trust_nobody
from halo.net.push import PushCourier, PushLog
from halo.net.service_account import AccessTokens, load_service_account
from halo.outbox import OutboxKind, OutboxReport, OutboxStatus
from halo.push import load_texts
from halo.settings import Settings
from halo.store.embedded import open_stores
from halo.store.outbox import Outbox
from halo.store.postgres import Postgres, open_postgres
from scripts.measuring.figures import Figure, Measurement
from scripts.measuring.sweeps import Gaps
from scripts.measuring.theatre import open_theatre

ROWS: Final = 10_000
ROUNDS: Final = 3
AT_MOST_SECONDS: Final = 120.0
SLOW_MS: Final = 300
"""What Google takes on a bad day."""
SLOW: Final = f"FCM after {SLOW_MS} ms"
NODE: Final = "00000000-0000-0000-0000-000000000001"
ADD_ROWS = """
WITH people AS (
    INSERT INTO auth_sessions (auth_session_id, user_type, user_id, refresh_token_hash, push_token, expires_at)
    SELECT gen_random_uuid(), 'customer', gen_random_uuid(), decode(md5(%(round)s::text || n), 'hex'), md5(%(round)s::text || n) || 'token',
           now() + interval '1 day'
    FROM generate_series(1, %(count)s) AS n
    RETURNING user_id)
INSERT INTO outbox (kind, user_id, template, payload, collapse_key, due_at, expires_at)
SELECT 'push', user_id, 'session_started', jsonb_build_object('session_id', user_id), 'session:' || user_id, at(%(at)s),
       at(%(at)s) + interval '1 hour'
FROM people
"""


class RowsLeft(Exception):
    """Rows of the outbox were not sent."""


async def measure(say: Callable[[str], None], rounds: int = ROUNDS, rows: int = ROWS) -> Measurement:
    rates: dict[str, list[float]] = {name: [] for name in ("log", "FCM", SLOW)}
    pauses: dict[str, list[float]] = {name: [] for name in rates}
    async with open_theatre() as theatre:
        settings = Settings.read({"HALO_DATA_DIR": str(theatre.stage.data_dir)}, {})
        await migrate_schema(settings)
        async with open_stores(settings.data_dir, None, None) as urls, open_postgres(urls.database) as db:
            async with open_fcm(theatre.stage.data_dir) as fcm, open_fcm(theatre.stage.data_dir, SLOW_MS) as slow:
                couriers: dict[str, Courier] = {"log": PushLog(), "FCM": fcm, SLOW: slow}
                for number in range(1, rounds + 1):
                    for name, courier in couriers.items():
                        rate, pause = await empty(db, courier, f"{name} {number}", rows)
                        rates[name].append(rate)
                        pauses[name].append(pause)
                        say(f"outbox: {name}, round {number} of {rounds}: {rate:,.0f} rows/s, {pause:.1f} ms at once")
    return Measurement(
        title=f"Outbox with {rows:,} pushes due",
        figures=tuple(
            figure
            for name in rates
            for figure in (
                Figure(name=f"sent by {name}", unit="rows/s", rounds=tuple(rates[name])),
                Figure(name=f"by {name}, longest pause of the event loop", unit="ms", rounds=tuple(pauses[name])),
            )
        ),
        notes=(
            f"Calls begin {PACE_SECONDS * 1000:.0f} ms apart, so that nobody waits for many of them at once; lines of the log as they come.",
            f"Each row is claimed, given its user's devices, delivered, and written down, {AT_ONCE} at a time.",
            "FCM is a stand-in without TLS, in a process of its own; it, Postgres and the sender share the cores of this machine.",
        ),
    )


async def empty(db: Postgres, courier: Courier, name: str, rows: int) -> tuple[float, float]:
    """Rows a second, and the longest pause in ms."""
    clock = SystemClock()
    await db.execute(ADD_ROWS, {"round": name, "count": rows, "at": clock.now()})
    await db.execute("ANALYZE outbox, auth_sessions")
    report, gaps = OutboxReport(), Gaps()
    outbox = Outbox(db, NODE, clock)
    pace = PACE_SECONDS if name.startswith("FCM") else 0.0
    lane = Lane(
        OutboxKind.PUSH,
        courier,
        LanePorts(rows=outbox, clock=clock, report=report, acknowledged=nobody_has_heard),
        pace,
    )
    gc.collect()
    gc.freeze()  # as `halo serve` does when it is ready
    async with trio.open_nursery() as nursery:
        nursery.start_soon(gaps.watch)
        await trio.sleep(0.05)
        gaps.longest_ms, began = 0.0, time.perf_counter()
        nursery.start_soon(lane.serve)
        with trio.move_on_after(AT_MOST_SECONDS):
            while report.finished[OutboxKind.PUSH, OutboxStatus.SENT] < rows:  # noqa: ASYNC110  # the lane tells nobody
                await trio.sleep(0.005)
        took = time.perf_counter() - began
        nursery.cancel_scope.cancel()
    if report.finished != {(OutboxKind.PUSH, OutboxStatus.SENT): rows}:
        raise RowsLeft(f"{name}: {dict(report.finished)} of {rows:,}")
    return rows / took, gaps.longest_ms


def nobody_has_heard(user_id: str, receipt: str) -> bool:  # noqa: ARG001  # every push goes
    return False


@asynccontextmanager
async def open_fcm(folder: Path, delay_ms: int = 0) -> AsyncIterator[Courier]:
    """A courier to a stand-in that answers after `delay_ms`."""
    command = [sys.executable, "-m", "scripts.measuring.fcm_stand_in", str(delay_ms)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:  # noqa: ASYNC220  # nobody waits yet
        try:
            assert process.stdout is not None
            url = f"http://127.0.0.1:{int(process.stdout.readline())}"
            account = load_service_account(credentials(folder, url))
            clock = SystemClock()
            async with open_outgoing(trust_nobody()) as outgoing:
                tokens = AccessTokens(account, outgoing, clock)
                yield PushCourier(Fcm(url, account.project_id, tokens, outgoing, clock), load_texts(), clock)
        finally:
            process.kill()


def credentials(folder: Path, url: str) -> Path:
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    pem = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ).decode()
    path = folder / "service-account.json"
    path.touch(mode=0o600)
    given = {"type": "service_account", "project_id": "measured", "client_email": "measured@example.com"}
    path.write_text(json.dumps(given | {"private_key": pem, "token_uri": f"{url}/token"}))
    return path
