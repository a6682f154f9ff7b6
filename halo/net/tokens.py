"""Access tokens: who may speak, for ten minutes at a time, without asking Postgres.

A token is a JWT signed with HS256 and nothing else. Its age is judged by halo's own clock, and a revoked family is remembered in
memory until its last token has expired, so a request costs no statement. It must never trust a header beyond `alg` and `typ`, never
say why a token was refused, and never raise anything but `Unauthenticated` whatever the bytes (a revoked family has the refusal that
came with its revocation). Read next: `halo/store/auth_sessions.py`, where refresh tokens live.
"""

import heapq
from dataclasses import dataclass
from typing import Annotated, Any, Final, Literal
from uuid import uuid4

import jwt
import msgspec
from msgspec import Meta

from halo.clock import Clock, Moment
from halo.errors import Refusal, Unauthenticated
from halo.protocol import PartyName, Uuid
from halo.session import Party

ALGORITHM: Final = "HS256"
"""The only one: a token cannot choose how it is checked (no `none`, no public key taken for a shared secret)."""
NAME: Final = "halo"
"""Issuer and audience: halo writes these tokens for itself."""
LEEWAY_MS: Final = 30_000
"""How far the clocks of two nodes may lie apart; halo refuses to start at 2 s, so it forgives a clock that went wrong while running."""
TOKEN_CHARACTERS_MAX: Final = 4096
"""Ours have about 350; nothing longer is worth decoding."""
SECRET_BYTES_MIN: Final = 32
"""A shorter key than the hash is long can be guessed offline from a single token (RFC 7518, 3.2)."""
HEADERS: Final = frozenset({"alg", "typ"})
"""Any other header (`crit`, `jku`, `x5u`, `jwk`, `kid`, …) asks the verifier to trust something that the sender chose."""
NUMERIC_DATE_MAX: Final = 10**11
"""The year 5138: beyond it a number is no date."""

NumericDate = Annotated[int, Meta(ge=0, le=NUMERIC_DATE_MAX)]


class _Claims(msgspec.Struct, frozen=True, kw_only=True):
    """Every claim, required, with its one type; `nbf` is respected should anybody ever write it."""

    iss: Literal["halo"]
    aud: Literal["halo"]
    sub: Uuid
    sid: Uuid
    ut: PartyName
    jti: Annotated[str, Meta(min_length=1, max_length=64)]
    iat: NumericDate
    exp: NumericDate
    nbf: NumericDate = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """Who speaks: a verified access token."""

    user_id: str
    user_type: Party
    auth_session_id: str
    jti: str
    expires_at: Moment
    """When the token ends, leeway aside."""


class Revocations:
    """Families whose access tokens are refused though they have not expired; filled at start and by every revocation.

    Bounded by itself: an entry goes when the last token of its family has expired.
    """

    def __init__(self, clock: Clock, lifetime_seconds: int) -> None:
        self._clock = clock
        self._kept_ms = lifetime_seconds * 1000 + LEEWAY_MS
        self._refusals: dict[str, type[Refusal]] = {}
        self._leaving: list[tuple[Moment, str]] = []

    def add(
        self, auth_session_id: str, refusal: type[Refusal] = Unauthenticated, revoked_at: Moment | None = None
    ) -> None:
        """Answer this family with `refusal` from now on; `revoked_at` is when it was revoked, now if it is not given."""
        now = self._clock.now()
        # The leeway twice: the node that wrote the last token may have been ahead of the one that stamped the revocation.
        until = (now if revoked_at is None else revoked_at) + self._kept_ms + LEEWAY_MS
        if until > now and auth_session_id not in self._refusals:
            self._refusals[auth_session_id] = refusal
            heapq.heappush(self._leaving, (until, auth_session_id))
        while self._leaving and self._leaving[0][0] <= now:
            del self._refusals[heapq.heappop(self._leaving)[1]]

    def find(self, auth_session_id: str) -> type[Refusal] | None:
        """With what this family is refused, or None."""
        return self._refusals.get(auth_session_id)

    def __len__(self) -> int:
        return len(self._refusals)


class Tokens:
    """Issues and verifies access tokens with one secret.

    Raises:
        ValueError: the secret is shorter than `SECRET_BYTES_MIN`.
    """

    def __init__(self, secret: str, lifetime_seconds: int, clock: Clock) -> None:
        self._secret = secret.encode()
        if len(self._secret) < SECRET_BYTES_MIN:
            raise ValueError(f"The token secret must have at least {SECRET_BYTES_MIN} bytes.")
        self._clock = clock
        self.lifetime_seconds = lifetime_seconds
        self.revocations = Revocations(clock, lifetime_seconds)
        # PyJWT reads the operating system's clock, and halo has one of its own: `_check_time` judges the dates.
        self._jwt = jwt.PyJWT(
            options={
                "verify_exp": False,
                "verify_iat": False,
                "verify_nbf": False,
                "strict_aud": True,
                "require": ["iss", "aud", "sub", "sid", "ut", "jti", "iat", "exp"],
                "enforce_minimum_key_length": True,
            }
        )

    def issue(self, user_type: Party, user_id: str, auth_session_id: str) -> str:
        """A token for `lifetime_seconds` from now."""
        now_seconds = self._clock.now() // 1000
        claims: dict[str, Any] = {
            "iss": NAME,
            "aud": NAME,
            "sub": user_id,
            "sid": auth_session_id,
            "ut": user_type.value,
            "jti": str(uuid4()),
            "iat": now_seconds,
            "exp": now_seconds + self.lifetime_seconds,
        }
        return self._jwt.encode(claims, self._secret, algorithm=ALGORITHM)

    def verify(self, token: str) -> Identity:
        """Whose token this is.

        Raises:
            Unauthenticated: it is not one of ours, or has expired.
            Refusal: its family was revoked; `Unauthenticated`, or `MitraDeactivated` when that was the reason.
        """
        claims = self._decode(token)
        self._check_time(claims)
        refusal = self.revocations.find(claims.sid)
        if refusal is not None:
            raise refusal
        return Identity(
            user_id=claims.sub,
            user_type=Party(claims.ut),
            auth_session_id=claims.sid,
            jti=claims.jti,
            expires_at=claims.exp * 1000,
        )

    def _decode(self, token: str) -> _Claims:
        if len(token) > TOKEN_CHARACTERS_MAX or not token.isascii():
            raise Unauthenticated
        try:
            decoded = self._jwt.decode_complete(token, self._secret, algorithms=[ALGORITHM], audience=NAME, issuer=NAME)
            if not HEADERS.issuperset(decoded["header"]):
                raise Unauthenticated
            return msgspec.convert(decoded["payload"], _Claims, strict=True)
        except (jwt.PyJWTError, msgspec.ValidationError) as refused:
            raise Unauthenticated from refused

    def _check_time(self, claims: _Claims) -> None:
        now = self._clock.now()
        if claims.exp * 1000 + LEEWAY_MS <= now or max(claims.iat, claims.nbf) * 1000 - LEEWAY_MS > now:
            raise Unauthenticated
