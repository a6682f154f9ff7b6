"""Signing in and out, and setting a password by a one-time link: all that the status page offers to those who are not signed in.

Unknown name, wrong password and an operator without a password get the same answer after the same work. Signing in always makes a new
session, whatever cookie was shown. It must never say which names exist, and never sign anybody in by GET. Read next:
`halo/net/status/guesses.py`, `halo/net/status/credentials.py`.
"""

from collections.abc import Mapping
from functools import partial
from http import HTTPStatus
from typing import Any, Final

import structlog
from quart import Response, request
from quart_trio import QuartTrio

from halo.errors import RateLimited, Refusal, ValidationFailed
from halo.net.desk import Desk
from halo.net.status.credentials import (
    FORM_COOKIE,
    SESSION_COOKIE,
    TOKEN_FIELD,
    form_token,
    new_form_secret,
    require_own_form,
)
from halo.net.status.frame import SIGN_IN_PATH, Frame, go_to, local_path, read_form, sign_in_first
from halo.net.status.guesses import Guesses
from halo.net.status.passwords import Passwords
from halo.operator_account import PASSWORD_CHARACTERS, LinkSpent, check_password

PASSWORD_PATH: Final = "/set-password"  # noqa: S105  # a path
SIGN_OUT_PATH: Final = "/sign-out"
ACCOUNT_PATH: Final = "/account"
REFUSED: Final = "This name and this password do not belong together."

_log: structlog.typing.FilteringBoundLogger = structlog.get_logger("halo.net")


class SignIn:
    """The doors of the status page."""

    def __init__(self, desk: Desk, frame: Frame, passwords: Passwords) -> None:
        self._gatehouse = desk.gatehouse
        self._frame = frame
        self._passwords = passwords
        self._guesses = Guesses(desk.gatehouse, passwords)
        self._cookies = frame.cookies

    def install(self, app: QuartTrio) -> None:
        """Let `app` serve them."""
        add = partial(self._frame.add, app)
        add("GET", SIGN_IN_PATH, self._ask)
        add("POST", SIGN_IN_PATH, self._sign_in)
        add("POST", SIGN_OUT_PATH, self._sign_out)
        add("GET", PASSWORD_PATH, self._ask_password)
        add("POST", PASSWORD_PATH, self._set_password)

    async def _ask(self) -> Response:
        wanted = local_path(request.args.get("next"))
        if await self._frame.find_signed_in() is not None:
            return go_to(wanted)
        return self._form("sign_in.html", {"wanted": wanted, "name": "", "refused": None}, title="Sign in")

    async def _sign_in(self) -> Response:
        form = await self._own_form()
        name, password = form.get("name", "").strip().lower(), form.get("password", "")
        wanted = local_path(form.get("next"))
        address = request.remote_addr or ""
        session_token = await self._open_session(name, password, address)
        if session_token is None:
            _log.warning("sign_in_refused", peer=address)
            await self._gatehouse.tries.fail(name)
            context = {"wanted": wanted, "name": name, "refused": REFUSED}
            return self._form("sign_in.html", context, title="Sign in", status=HTTPStatus.UNAUTHORIZED)
        return await self._enter(session_token, wanted)

    async def _open_session(self, name: str, password: str, address: str) -> str | None:
        try:
            stored = await self._guesses.judge(name, password, address)
        except RateLimited:
            _log.warning("sign_in_throttled", peer=address)
            raise
        # Only if that is still the password: it may have been changed while this one was being looked at.
        return None if stored is None else await self._gatehouse.sessions.open(name, stored)

    async def _sign_out(self) -> Response:
        form = await read_form()
        cookie = self._cookies.shown(SESSION_COOKIE)
        if cookie is None:
            return sign_in_first()
        require_own_form(cookie, form.get(TOKEN_FIELD, ""))
        await self._gatehouse.sessions.close(cookie)
        response = go_to(SIGN_IN_PATH)
        self._cookies.take(response, SESSION_COOKIE)
        return response

    async def _ask_password(self) -> Response:
        """Looking at a link does not use it up: mail programs and browsers fetch addresses that nobody has opened."""
        link_token = request.args.get("link", "")
        name = await self._gatehouse.accounts.find_invited(link_token)
        if name is None:
            raise LinkSpent
        return self._password_form(link_token, name)

    async def _set_password(self) -> Response:
        form = await self._own_form()
        link_token, password = form.get("link", ""), form.get("password", "")
        name = await self._gatehouse.accounts.find_invited(link_token)
        if name is None:
            raise LinkSpent
        try:
            check_password(password)
            if password != form.get("again", ""):
                raise ValidationFailed("The two passwords differ.")
        except ValidationFailed as refusal:
            return self._password_form(link_token, name, refusal)
        stored = await self._passwords.hash(password)
        await self._gatehouse.accounts.accept(link_token, stored)
        session_token = await self._gatehouse.sessions.open(name, stored)
        return go_to(SIGN_IN_PATH) if session_token is None else await self._enter(session_token, "/")

    async def _enter(self, session_token: str, wanted: str) -> Response:
        """With the new session; one that this browser had before ends, and so does the secret of its form."""
        before = self._cookies.shown(SESSION_COOKIE)
        if before is not None:
            await self._gatehouse.sessions.close(before)
        response = go_to(wanted)
        self._cookies.take(response, FORM_COOKIE)
        self._cookies.give(response, SESSION_COOKIE, session_token)
        return response

    async def _own_form(self) -> Mapping[str, str]:
        form = await read_form()
        require_own_form(self._cookies.shown(FORM_COOKIE), form.get(TOKEN_FIELD, ""))
        return form

    def _password_form(self, link_token: str, name: str, refusal: Refusal | None = None) -> Response:
        context = {"link": link_token, "name": name, "refusal": refusal, "characters": PASSWORD_CHARACTERS}
        status = HTTPStatus.OK if refusal is None else HTTPStatus.UNPROCESSABLE_ENTITY
        return self._form("set_password.html", context, title="Set your password", status=status)

    def _form(self, template: str, context: Mapping[str, Any], *, title: str, status: int = HTTPStatus.OK) -> Response:
        """A form for somebody who is not signed in, with a token of its own."""
        secret = self._cookies.shown(FORM_COOKIE) or new_form_secret()
        response = self._frame.render(
            template, {**context, "csrf_token": form_token(secret)}, title=title, status=status
        )
        if self._cookies.shown(FORM_COOKIE) is None:
            self._cookies.give(response, FORM_COOKIE, secret)
        return response
