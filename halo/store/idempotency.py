"""Idempotency keys: the same request again gets the same answer, and is not done again.

    begin → Fresh      do it, then finish(fresh, …) with the answer, or abandon(fresh) when it was refused
          → Repeated   give this answer

The key and the effect are two transactions, so halo may die between them. Nothing is lost by that: while the key stands unfinished a
repeat is told `Busy`, and after `TAKEOVER_MS` a repeat takes the key over and does the request again. That must not do it twice,
and therefore whoever creates something takes `derived_id` as its primary key: the second run finds the row of the first and
answers with it. What has no derived id must be guarded by its own rules (an extension by its bound payment, an accepted offer by its row). This room must never be
given an answer that holds a secret: answers are kept in the clear for a day, so tokens are opened anew instead
(`AuthSessions.open` with a derived `auth_session_id`). Read next: `halo/store/payments.py`, `create`.
"""

import json
from dataclasses import dataclass
from typing import Final
from uuid import UUID, uuid4, uuid5

from halo.clock import Moment
from halo.errors import Busy, IdempotencyMismatch, ValidationFailed
from halo.store.postgres import Postgres, Transaction
from halo.store.queries import load_queries
from halo.store.values import Value

SQL: Final = load_queries("idempotency")

TAKEOVER_MS: Final = 15_000
"""A call that writes is given up after 6 s, and its COMMIT after 5 s more: whoever took the key so long ago has died."""
RETRY_AFTER_MS: Final = 1_000
"""A request that runs is over in well under a second; one whose node died keeps its key until the takeover."""
KEY_CHARACTERS_MAX: Final = 255
NAMESPACE: Final = UUID("6a1f0c1e-6d0b-5c55-9f0e-2f4e7b1d9a37")
"""Made up once for halo; changing it would let a repeat across an upgrade be done twice."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fresh:
    """The key is ours: do the request. `held_by` is the fence, made up for each take: who was taken over can no longer finish."""

    user_id: str
    route: str
    key: str
    held_by: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Repeated:
    """It was done before, with this answer."""

    status: int
    answer: bytes


class Idempotency:
    """The rows of idempotency keys."""

    def __init__(self, db: Postgres) -> None:
        self._db = db

    async def begin(self, user_id: str, route: str, key: str, body_hash: bytes) -> Fresh | Repeated:
        """Take `key` for this user and route, or learn the answer that it got.

        Raises:
            ValidationFailed: the key is empty, longer than 255 characters, or not printable.
            IdempotencyMismatch: it was used with another body.
            Busy: the first request still runs, or died less than `TAKEOVER_MS` ago; try again.
            StoreUnavailable: at worst the key is taken by nobody, and free again after `TAKEOVER_MS`.
        """
        if not 1 <= len(key) <= KEY_CHARACTERS_MAX or not (key.isascii() and key.isprintable()):
            raise ValidationFailed(
                "The Idempotency-Key is not acceptable.",
                errors=[
                    {
                        "field": "Idempotency-Key",
                        "message": f"Expected 1 to {KEY_CHARACTERS_MAX} printable ASCII characters",
                    }
                ],
            )
        held_by = str(uuid4())
        place: dict[str, Value] = {
            "user_id": user_id,
            "route": route,
            "key": key,
            "body_hash": body_hash,
            "held_by": held_by,
            "takeover_ms": TAKEOVER_MS,
        }

        async def write(tx: Transaction) -> Fresh | Repeated:
            if await tx.execute(SQL["begin"], place) == 1:
                return Fresh(user_id=user_id, route=route, key=key, held_by=held_by)
            found = await tx.fetch_one(SQL["find"], place)
            if found is None:  # abandoned between the two statements
                raise Busy(retry_after_ms=0)
            if not found.is_same_body:
                raise IdempotencyMismatch
            if found.status is None:
                raise Busy(
                    "The first request with this Idempotency-Key is not finished yet.", retry_after_ms=RETRY_AFTER_MS
                )
            return Repeated(status=found.status, answer=found.answer)

        return await self._db.transact(write, str(uuid4()))

    async def finish(self, fresh: Fresh, status: int, answer: bytes) -> bool:
        """Keep the answer for repeats; False when the key was taken over meanwhile (the other keeps its own, equal, answer).

        Raises:
            StoreUnavailable: the request was done, so answer it all the same; a repeat finds its effect by its derived id.
        """
        values = _place(fresh) | {"status": status, "answer": answer}

        async def write(tx: Transaction) -> bool:
            return await tx.execute(SQL["finish"], values) == 1

        return await self._db.transact(write, str(uuid4()))

    async def abandon(self, fresh: Fresh) -> bool:
        """Free the key: the request was refused, and may be tried again at once; False when it was taken over meanwhile.

        Raises:
            StoreUnavailable: the key frees itself after `TAKEOVER_MS`.
        """

        async def write(tx: Transaction) -> bool:
            return await tx.execute(SQL["abandon"], _place(fresh)) == 1

        return await self._db.transact(write, str(uuid4()))

    async def delete_old(self, before: Moment) -> int:
        """Forget keys that were taken before `before`: how many. A day is what clients may count on."""

        async def write(tx: Transaction) -> int:
            return await tx.execute(SQL["delete_old"], {"before": before})

        return await self._db.transact(write, str(uuid4()))


def derived_id(user_id: str, route: str, key: str) -> str:
    """The primary key of whatever this request creates: the same for every repeat, different for everything else."""
    return str(uuid5(NAMESPACE, json.dumps([user_id, route, key])))  # JSON, so that ("a", "bc") is not ("ab", "c")


def _place(fresh: Fresh) -> dict[str, Value]:
    return {"user_id": fresh.user_id, "route": fresh.route, "key": fresh.key, "held_by": fresh.held_by}
