"""What the status page asks of the store about operators themselves, each as narrow as it is needed here.

`halo/wiring.py` lays the real stores on it, tests may lay fakes. It must never hold state of its own. Read next:
`halo/store/operator_accounts.py`, `halo/store/operator_sessions.py`, `halo/store/sign_in_tries.py`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from halo.operator_account import SignedIn


class OperatorAccounts(Protocol):
    """Who may sign in."""

    async def find_password(self, name: str) -> str | None: ...

    async def find_invited(self, link_token: str) -> str | None: ...

    async def accept(self, link_token: str, password_hash: str) -> str: ...

    async def change_password(self, name: str, password_hash: str) -> None: ...


class OperatorSessions(Protocol):
    """Who has signed in."""

    async def open(self, name: str, password_hash: str) -> str | None: ...

    async def find(self, session_token: str, *, is_live: bool) -> SignedIn | None: ...

    async def close(self, session_token: str) -> None: ...


class SignInTries(Protocol):
    """How often somebody has tried."""

    async def take(self, name: str, address: str) -> Sequence[int]: ...

    async def give_back(self, taken: Sequence[int]) -> None: ...

    async def fail(self, name: str) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Gatehouse:
    """The three together."""

    accounts: OperatorAccounts
    sessions: OperatorSessions
    tries: SignInTries
