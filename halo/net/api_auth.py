"""Signing in, refreshing, signing out: `/api/auth/…` (spec 4).

The app's backend vouches for people; halo hands out tokens. A token that is given up takes its sockets with it at once.
Read next: `halo/store/auth_sessions.py`, `halo/net/tokens.py`.
"""

from typing import Final
from uuid import UUID, uuid5

from halo.errors import ValidationFailed
from halo.net.body import uuid_or_none
from halo.net.call import Call, Handler
from halo.net.connection import CLOSE_UNAUTHENTICATED
from halo.net.desk import Desk
from halo.resources import OpenAuthSession, RefreshTokens, TokenPair
from halo.session import Party
from halo.store.auth_sessions import Opened, RefreshTokenReused, RevokedBecause

NEW_USER: Final = "user"
"""Tells the id of a user from the id of the family that is derived from the same key."""


def auth_handlers(desk: Desk) -> dict[str, Handler]:
    """The handlers of these routes, by name."""

    async def open_auth_session(call: Call) -> TokenPair:
        body: OpenAuthSession = call.body
        if body.push_token is not None and not body.push_token.strip():
            raise ValidationFailed(
                errors=[{"field": "push_token", "message": "Expected text, or no push_token at all"}]
            )
        user_id = uuid_or_none(body.user_id)
        if user_id is None and call.derived_id is not None:  # a repeat must not make a second user
            user_id = str(uuid5(UUID(call.derived_id), NEW_USER))
        opened = await desk.auth_sessions.open(
            Party(body.user_type),
            user_id,
            display_name=body.display_name,
            push_token=body.push_token,
            locale=body.locale,
            max_sessions=body.max_sessions,
            auth_session_id=call.derived_id,
        )
        if body.max_sessions is not None:
            desk.room_changed(opened.user_id)
        return pair(opened)

    async def refresh_tokens(call: Call) -> TokenPair:
        body: RefreshTokens = call.body
        try:
            return pair(await desk.auth_sessions.rotate(body.refresh_token))
        except RefreshTokenReused as stolen:
            revoke_here(stolen.auth_session_id, RevokedBecause.REUSED)
            raise

    async def close_auth_session(call: Call) -> None:
        auth_session_id = call.user.auth_session_id
        await desk.auth_sessions.revoke(auth_session_id, RevokedBecause.SIGNED_OUT)
        revoke_here(auth_session_id, RevokedBecause.SIGNED_OUT)

    def revoke_here(auth_session_id: str, because: RevokedBecause) -> None:
        """On this node at once; the others hear of it from Postgres."""
        desk.tokens.revocations.add(auth_session_id, because.refusal)
        desk.connections.close_auth_session(auth_session_id, CLOSE_UNAUTHENTICATED)

    def pair(opened: Opened) -> TokenPair:
        return TokenPair(
            user_id=opened.user_id,
            access_token=desk.tokens.issue(opened.user_type, opened.user_id, opened.auth_session_id),
            refresh_token=opened.refresh_token,
            expires_in=desk.tokens.lifetime_seconds,
        )

    return {
        "open_auth_session": open_auth_session,
        "refresh_tokens": refresh_tokens,
        "close_auth_session": close_auth_session,
    }
