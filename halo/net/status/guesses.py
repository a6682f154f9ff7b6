"""A password that somebody shows, at the door or to change it: the one way in which it is judged, and what that costs.

A try is taken before the password is looked at, so that many at once find no gap, and given back when it was right or when nobody had
time to look at it. It must never tell an unknown name from a wrong password, by the answer or by the time it takes. Read next:
`halo/store/sign_in_tries.py`, `halo/net/status/passwords.py`.
"""

from halo.errors import Busy
from halo.net.status.passwords import Passwords
from halo.net.status.ports import Gatehouse
from halo.operator_account import PASSWORD_CHARACTERS


class Guesses:
    """See the module."""

    def __init__(self, gatehouse: Gatehouse, passwords: Passwords) -> None:
        self._gatehouse = gatehouse
        self._passwords = passwords

    async def judge(self, name: str, password: str, address: str) -> str | None:
        """The stored hash when this is the password of `name`, otherwise None, and a try less.

        Raises:
            RateLimited: no try is left, of the name or of the address.
            Busy: nobody looked at it, and it cost no try.
            StoreUnavailable
        """
        taken = await self._gatehouse.tries.take(name, address)
        stored = await self._gatehouse.accounts.find_password(name)
        shown = (
            password if len(password) <= PASSWORD_CHARACTERS[1] else ""
        )  # nobody has a longer one, and hashing it takes longer
        try:
            is_right = await self._passwords.verify(shown, stored)
        except Busy:
            await self._gatehouse.tries.give_back(taken)
            raise
        if not is_right or stored is None:
            return None
        await self._gatehouse.tries.give_back(taken)
        return stored
