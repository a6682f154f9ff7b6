"""`scripts/screenshots`: the two pictures of the README, taken of a real halo after some minutes of made-up life.

The people, their money and their words go through the public API and real sockets, as they would from an app; nothing is painted in. It
must never be pointed at a halo that somebody uses: it starts its own, and takes it away. Read next: `tests/browser/page.py`.
"""

import random
import shutil
import tempfile
from pathlib import Path
from typing import Final

import click
import trio
import trio_asyncio  # noqa: F401  # before psycopg, as in halo/cli.py

from halo.client import Socket, open_api
from halo.demo.stage import open_stage
from halo.docs import REPOSITORY
from halo.errands import with_database
from halo.settings import Settings
from halo.store.postgres import Postgres
from tests.browser.chromium import ABSENT, find_chromium, open_chromium
from tests.browser.devtools import open_devtools
from tests.browser.office import search_in_vain, sign_in
from tests.browser.page import Page, open_page
from tests.net.provider import open_provider
from tests.net.status_site import PASSWORD
from tests.whole.house import SECRETS, UNLIMITED, WEBHOOK_SECRET, House, Person

IMAGES: Final = REPOSITORY / "docs" / "images"
SIZE: Final = (1280, 900)
BYTES_MAX: Final = 200_000
"""Of a picture in a repository that everybody clones."""
NAMES: Final = ("Ayu", "Bima", "Citra", "Dewi", "Eka", "Fajar", "Gita", "Hana")
TALKS: Final = 9
WORDS: Final = (
    "Hello, is somebody there?",
    "I am here.",
    "Take your time.",
    "It was a long week.",
    "Go on.",
    "Thank you.",
)
CONFIG: Final = {
    "payment_hold_seconds": 3600,
    "closure_grace_seconds": 3600,
    "extension_timeout_seconds": 3600,
}


class Town:
    """The people of the pictures. What they do is the same each time, but for the milliseconds."""

    def __init__(self, house: House, nursery: trio.Nursery) -> None:
        self._house = house
        self._nursery = nursery
        self._dice = random.Random(20)
        self._mitras: list[Person] = []

    async def settle(self) -> None:
        """Everything that happens once."""
        house = self._house
        await house.configure(**CONFIG)
        await search_in_vain(house)
        self._mitras = [await house.admit("mitra", display_name=name) for name in NAMES]
        *online, _, unwanted = self._mitras
        for mitra in online:
            await house.go_online(mitra, rooms=1 if mitra is online[-1] else 4)
            self._nursery.start_soon(self._beat, mitra)
        await house.operate("POST", f"/api/mitras/{unwanted.user_id}/deactivate")
        await search_in_vain(house)  # there are mitras now, and nobody answers
        for number in range(TALKS):
            await self._talk(self._mitras[number % 6], minutes=self._dice.choice((15, 30, 60)))
        for number in range(3):
            customer, _, session_id = await self._pair(self._mitras[number])
            await house.call(customer, "POST", f"/api/chat/{session_id}/end")
        await self._pair(self._mitras[4], minutes=1)  # is over when the picture is taken: closing
        customer, _, session_id = await self._pair(self._mitras[3], minutes=15)
        await house.ask_extension(customer, session_id, await house.pay_extension(customer, session_id, 10))

    async def _pair(self, mitra: Person, minutes: int = 15) -> tuple[Person, Person, str]:
        customer = await self._house.admit("customer")
        return customer, mitra, await self._house.pair(customer, mitra, minutes)

    async def tell_a_story(self, seconds: float) -> str:
        """The session of the second picture, which is so long: an extension is refused at its beginning, another is accepted at its end."""
        customer, mitra, session_id = await self._pair(self._mitras[0])
        async with self._house.chat(session_id, customer) as hers, self._house.chat(session_id, mitra) as theirs:
            await hers.expect("welcome")
            await theirs.expect("welcome")
            for words in WORDS[:3]:
                await hers.ask("message", body=words)
            await self._extend(customer, session_id, theirs, accepted=False)
            await trio.sleep(seconds)
            await self._extend(customer, session_id, theirs, accepted=True)
        return session_id

    async def _extend(self, customer: Person, session_id: str, theirs: Socket, *, accepted: bool) -> None:
        payment = await self._house.pay_extension(customer, session_id, minutes=10)
        await self._house.ask_extension(customer, session_id, payment)
        request = await theirs.expect("extension_request")
        await trio.sleep(4)  # to think about it, which the timeline shows
        await theirs.ask("extension_respond", extension_id=request["extension_id"], accepted=accepted)

    async def _talk(self, mitra: Person, minutes: int) -> None:
        customer, _, session_id = await self._pair(mitra, minutes)
        self._nursery.start_soon(self._chat, customer, mitra, session_id)

    async def _chat(self, customer: Person, mitra: Person, session_id: str) -> None:
        """For ever."""
        dice = random.Random(session_id)
        async with self._house.chat(session_id, customer) as hers, self._house.chat(session_id, mitra) as theirs:
            while True:
                speaker = dice.choice((hers, theirs))
                await speaker.ask("message", body=dice.choice(WORDS))
                await trio.sleep(dice.uniform(0.5, 6))

    async def _beat(self, mitra: Person) -> None:
        while True:
            await trio.sleep(20)
            await self._house.call(mitra, "POST", "/api/mitra/status/heartbeat")


async def take(minutes: float, program: str) -> None:
    """Start halo, let it live, and take the pictures."""
    home = Path(tempfile.mkdtemp(prefix="halo-screenshots-"))
    home.chmod(0o711)  # the embedded Postgres of a root user passes through, and sees nothing
    environment = {**SECRETS, **UNLIMITED, "HALO_ADMIN_PASSWORD": PASSWORD, "HALO_REFUND_SECRET": WEBHOOK_SECRET}
    try:
        async with (
            open_provider() as provider,
            open_stage(home / "data", {**environment, "HALO_REFUND_URL": f"{provider.url}/refunds"}) as stage,
        ):
            await stage.start()
            settings = Settings.read({"HALO_DATA_DIR": str(stage.data_dir)}, {})

            async def live(db: Postgres) -> None:
                async with open_api(stage.ready["api"]) as api, trio.open_nursery() as nursery:
                    house = House(stage.ready, db, api)
                    await house.settle()
                    town = Town(house, nursery)
                    await town.settle()
                    click.echo(f"halo: everybody has arrived; {minutes:g} minutes of life …", err=True)
                    session_id = await town.tell_a_story(minutes * 60)
                    await photograph(program, house, session_id)
                    nursery.cancel_scope.cancel()

            await with_database(settings, live)
    finally:
        shutil.rmtree(home, ignore_errors=True)


async def photograph(program: str, house: House, session_id: str) -> None:
    with open_chromium(program) as chromium:
        async with open_devtools(chromium.devtools_url) as devtools, open_page(devtools, house.ready["admin"]) as page:
            await page.open("/")
            await sign_in(page)
            await page.resize(SIZE)
            await keep(page, "overview.png")
            await page.open(f"/sessions/{session_id}")
            await keep(page, "session.png")


async def keep(page: Page, name: str) -> None:
    picture = await page.screenshot()
    if len(picture) > BYTES_MAX:
        raise click.ClickException(f"{name} has {len(picture)} bytes, more than {BYTES_MAX}")
    IMAGES.mkdir(exist_ok=True)
    (IMAGES / name).write_bytes(picture)
    click.echo(f"halo: docs/images/{name}, {len(picture) // 1000} kB", err=True)


@click.command()
@click.option(
    "--minutes", type=click.FloatRange(0, 60), default=2.0, show_default=True, help="Of life before the pictures."
)
def main(minutes: float) -> None:
    """Take the two pictures of the README anew."""
    program = find_chromium()
    if program is None:
        raise click.ClickException(ABSENT)
    trio.run(take, minutes, program)


if __name__ == "__main__":
    main()
