"""Google's service account: its key from a file, and access tokens for it (OAuth 2.0, JWT bearer).

A token is kept until shortly before its end, and fetched by one task at a time, whoever else waits. The key never leaves this room, and no
message of an error holds any of it. Read next: `halo/net/fcm.py`.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Final
from urllib.parse import urlencode

import jwt
import msgspec
import trio
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from msgspec import Meta

from halo import parsing, secrets
from halo.clock import Clock, Moment
from halo.net.outgoing import CallFailed, Outgoing

SCOPE: Final = "https://www.googleapis.com/auth/firebase.messaging"
GRANT: Final = "urn:ietf:params:oauth:grant-type:jwt-bearer"
ASSERTION_SECONDS: Final = 3600
"""The longest that Google takes."""
EARLY_MS: Final = 300_000
"""A token is replaced so long before its end: no call is under way for longer, and Google's clock may differ."""
_OTHERS_MAY: Final = 0o077


class CredentialsUnusable(Exception):
    """The file of the service account cannot be used; the message is one sentence for the operator."""


class _File(msgspec.Struct, frozen=True):
    type: str
    project_id: Annotated[str, Meta(pattern="^[a-zA-Z0-9:._-]{1,100}$")]
    client_email: str
    private_key: str
    private_key_id: str = ""
    token_uri: str = "https://oauth2.googleapis.com/token"  # noqa: S105  # an address, no secret


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceAccount:
    """Who sends pushes."""

    project_id: str
    client_email: str
    token_uri: str
    private_key: RSAPrivateKey = field(repr=False)
    """Read once: reading it takes 30 ms, in which nobody's message moves, and while Google is away every attempt asks for a token."""
    private_key_id: str = field(repr=False)

    def assertion(self, now: Moment) -> str:
        """The signed claim that is traded for an access token."""
        issued = now // 1000
        claims = {
            "iss": self.client_email,
            "scope": SCOPE,
            "aud": self.token_uri,
            "iat": issued,
            "exp": issued + ASSERTION_SECONDS,
        }
        return jwt.encode(claims, self.private_key, algorithm="RS256", headers={"kid": self.private_key_id})


def load_service_account(path: Path) -> ServiceAccount:
    """The account of this file.

    Raises:
        CredentialsUnusable
    """
    origin = f"HALO_FCM_CREDENTIALS names {path}"
    try:
        if path.stat().st_mode & _OTHERS_MAY:
            raise CredentialsUnusable(f"{origin}, which other users of this machine can read; give it mode 0600.")
        found = msgspec.json.decode(secrets.read(path), type=_File)
        parsing.outgoing_url(found.token_uri)
        private_key = load_pem_private_key(found.private_key.encode(), password=None)
        if not isinstance(private_key, RSAPrivateKey):
            raise TypeError("not an RSA key")
        account = ServiceAccount(
            project_id=found.project_id,
            client_email=found.client_email,
            token_uri=found.token_uri,
            private_key=private_key,
            private_key_id=found.private_key_id,
        )
        account.assertion(0)  # a key that cannot sign is found now, and not with the first push
    except OSError as fault:
        raise CredentialsUnusable(f"{origin}, which cannot be read: {fault.strerror}.") from None
    except (ValueError, msgspec.MsgspecError, jwt.PyJWTError, TypeError, UnsupportedAlgorithm):
        raise CredentialsUnusable(f"{origin}, which is no service account's JSON with a private RSA key.") from None
    return account


class _Token(msgspec.Struct, frozen=True):
    access_token: str
    expires_in: Annotated[int, Meta(ge=1, le=86_400)]


class AccessTokens:
    """The one access token that counts."""

    def __init__(self, account: ServiceAccount, outgoing: Outgoing, clock: Clock) -> None:
        self._account = account
        self._outgoing = outgoing
        self._clock = clock
        self._fetching = trio.Lock()
        self._token: str | None = None
        self._good_until: Moment = 0
        self._failures = 0
        self._why = ""

    async def load(self, refused: str | None = None, *, traceparent: str | None = None) -> str:
        """A token; another one than `refused`, which the provider did not take.

        If one has to be fetched, that call is a leg of the trace of `traceparent`, of whoever asks first.

        Raises:
            CallFailed
        """
        failures = self._failures
        async with self._fetching:
            if self._token is None or self._token == refused or self._clock.now() >= self._good_until:
                if (
                    self._failures != failures
                ):  # a hundred who wait for one that is away must not wait one after another
                    raise CallFailed(self._why)
                try:
                    await self._fetch(traceparent)
                except CallFailed as failed:
                    self._failures, self._why = self._failures + 1, str(failed)
                    raise
            assert self._token is not None  # fetched
            return self._token

    async def _fetch(self, traceparent: str | None) -> None:
        now = self._clock.now()
        form = urlencode({"grant_type": GRANT, "assertion": self._account.assertion(now)}).encode()
        answer = await self._outgoing.post(
            self._account.token_uri,
            form,
            {"content-type": "application/x-www-form-urlencoded"},
            traceparent=traceparent,
        )
        if answer.status != 200:
            raise CallFailed(f"no access token: {answer.status}")
        try:
            granted = msgspec.json.decode(answer.body, type=_Token)
        except (msgspec.MsgspecError, UnicodeError, RecursionError):
            raise CallFailed("no access token in the answer") from None
        if not granted.access_token.isascii() or not granted.access_token.isprintable():
            raise CallFailed("no access token in the answer")
        self._token = granted.access_token
        life_ms = granted.expires_in * 1000
        self._good_until = now + max(life_ms - EARLY_MS, life_ms // 2)
