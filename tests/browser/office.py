"""A whole halo with its status page open in browsers: the operators of these tests, and what they have in front of them.

What a page complained about in its console fails the test that looked at it, whatever that test is about. Read next:
`tests/browser/page.py`.
"""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field

import trio

from halo.operator_account import Role
from tests.browser.devtools import DevTools
from tests.browser.page import Page, open_page
from tests.net.status_site import PASSWORD, stored
from tests.whole.house import PATIENCE_SECONDS, House, Person, open_house


@dataclass
class Office:
    """The house, and tabs that show its status page."""

    house: House
    devtools: DevTools
    stack: AsyncExitStack
    pages: list[Page] = field(default_factory=list)

    @property
    def base(self) -> str:
        return str(self.house.ready["admin"])

    async def tab(self) -> Page:
        """Somebody's browser, with nothing in it."""
        page = await self.stack.enter_async_context(open_page(self.devtools, self.base))
        self.pages.append(page)
        return page

    async def sign_in(self, name: str = "admin", role: Role = Role.OPERATOR) -> Page:
        """Somebody who is signed in, through the door, and sees the overview."""
        if name != "admin":
            accounts = self.house.own.parts.operator_accounts
            await accounts.add(name, role, "a test")
            await accounts.accept(await accounts.invite(name, "a test"), await stored(PASSWORD))
        page = await self.tab()
        await page.open("/")
        await sign_in(page, name)
        assert (await page.path, page.status) == ("/", 200), await page.text()
        return page

    async def audited(self, action: str, outcome: str = "done") -> list[tuple[str, str]]:
        """Who did that, or tried to, and to what."""
        rows = await self.house.db.fetch_all(
            "SELECT operator, subject FROM operator_actions"
            " WHERE action = %(action)s AND outcome = %(outcome)s ORDER BY action_id",
            {"action": action, "outcome": outcome},
        )
        return [(row.operator, row.subject) for row in rows]


async def sign_in(page: Page, name: str = "admin", password: str = PASSWORD) -> None:
    """On the page that asks for it."""
    await page.fill("Name", name)
    await page.fill("Password", password)
    await page.submit("Sign in")


@asynccontextmanager
async def open_office(database_url: str, valkey_url: str, devtools: DevTools) -> AsyncIterator[Office]:
    """A server in this process whose first operator has a password, and tabs on demand."""
    async with (
        open_house(database_url, valkey_url, HALO_ADMIN_PASSWORD=PASSWORD) as house,
        AsyncExitStack() as stack,
    ):
        office = Office(house, devtools, stack)
        yield office
        complaints = [complaint for page in office.pages for complaint in page.complaints]
        assert not complaints, complaints


async def live_a_little(house: House) -> tuple[Person, Person, str, str]:
    """A customer, her mitra, a living session with an extension, and one that has ended with a refund; words were said in both."""
    customer, mitra, living = await house.open_pair(minutes=5)
    async with house.chat(living, customer) as hers, house.chat(living, mitra) as theirs:
        await hers.expect("welcome")
        await theirs.expect("welcome")
        await hers.ask("message", body="Hello, is somebody there?")
        await theirs.ask("message", body="Here I am.")
        payment = await house.pay_extension(customer, living)
        await house.ask_extension(customer, living, payment)
        request = await theirs.expect("extension_request")
        answered = await theirs.ask("extension_respond", extension_id=request["extension_id"], accepted=False)
        assert answered["type"] == "ack"
    _, _, ended = await house.open_pair(minutes=5)
    await house.operate("POST", f"/api/sessions/{ended}/end")
    return customer, mitra, living, ended


async def search_in_vain(house: House) -> None:
    """A customer pays, and nobody is found: over before this returns, or the next mitra who comes would be asked for her."""
    await house.configure(pairing_offer_seconds=1, pairing_waves=1)
    customer = await house.admit("customer")
    payment = await house.pay(customer)
    asked = await house.call(customer, "POST", "/api/pairings", {"payment_request_id": payment["id"]})
    with trio.fail_after(PATIENCE_SECONDS):
        while (await house.call(customer, "GET", f"/api/pairings/{asked['pairing_id']}"))["status"] == "searching":
            await trio.sleep(0.02)
    await house.configure(pairing_offer_seconds=30, pairing_waves=3)  # time enough for everybody else on a slow machine
