"""One's own account: who one is here, and changing one's password, which a viewer may, too.

A new password ends every session of its owner, this one as well: whoever else had signed in with the old one is out. It must never let
the old one be guessed faster than at the sign-in. Read next: `halo/net/status/guesses.py`.
"""

from typing import Final

from quart import request

from halo.errors import ValidationFailed
from halo.net.desk import Desk
from halo.net.status.guesses import Guesses
from halo.net.status.passwords import Passwords
from halo.net.status.section import Context, Done, Section, Shown, Visit
from halo.net.trail import Trail
from halo.operator_account import PASSWORD_CHARACTERS, check_password

PATH: Final = "/account"
TEMPLATE: Final = "account.html"
TITLE: Final = "Your account"


def account_section(desk: Desk, passwords: Passwords) -> Section:
    """The page `/account`."""
    section, gatehouse = Section(), desk.gatehouse
    guesses, trail = Guesses(gatehouse, passwords), Trail(desk.operators)

    @section.page(PATH, title=TITLE, template=TEMPLATE)
    async def account(visit: Visit) -> Context:  # noqa: ARG001  # the frame tells every page who looks at it
        return {"refusal": None, "characters": PASSWORD_CHARACTERS}

    @section.action("/account/password", name="change_password", done="Your password is changed.", own=True)
    async def change_password(visit: Visit) -> Done | Shown:
        try:
            async with trail.refusals(visit.operator, "change_password", visit.operator):
                await change(visit)
        except ValidationFailed as refusal:
            context = {"refusal": refusal, "characters": PASSWORD_CHARACTERS}
            return Shown(TEMPLATE, context, TITLE, refusal.status)
        return Done(PATH)

    async def change(visit: Visit) -> None:
        old, new = visit.form.get("old", ""), visit.form.get("password", "")
        check_password(new)
        if new != visit.form.get("again", ""):
            raise ValidationFailed("The two new passwords differ.")
        if await guesses.judge(visit.operator, old, request.remote_addr or "") is None:
            raise ValidationFailed("The old password is another one.")
        await gatehouse.accounts.change_password(visit.operator, await passwords.hash(new))

    return section
