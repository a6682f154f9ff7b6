"""Asking the HTTP API for what it holds, as often as it takes: a halo that has just been restarted may say "not now".

Read next: `halo/load/people.py`, which asks for more than facts.
"""

from typing import Any, Final

import httpx
import trio

from halo.client import ApiClient, CallRefused
from halo.load.orders import Person

TRIES: Final = 60
PAUSE_SECONDS: Final = 0.25
NOT_NOW: Final = frozenset({429, 503})


async def call_patiently(api: ApiClient, person: Person, path: str) -> Any:
    """`GET path` as this person.

    Raises:
        CallRefused: for good, or not within `TRIES`.
        httpx.TransportError: nobody answered in all of them.
    """
    for number in range(TRIES):
        try:
            return await api.call("GET", path, None, {"Authorization": f"Bearer {person.token}"})
        except CallRefused as refused:
            if refused.status not in NOT_NOW or number == TRIES - 1:
                raise
            await trio.sleep(max(PAUSE_SECONDS, float(refused.problem.get("retry_after_ms") or 0) / 1000))
        except httpx.TransportError:
            if number == TRIES - 1:
                raise
            await trio.sleep(PAUSE_SECONDS)
    raise AssertionError("the last try returns or raises")
