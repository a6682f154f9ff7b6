"""The status page on a real server with real stores: the first link, signing in, what one does there, and the commands beside it."""

import json
import re
import subprocess
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

import click.testing
import httpx
import pytest
import trio

from halo import cli
from halo.log import configure_logging
from tests.net.status_site import ANOTHER, PASSWORD, Browser, token_of, told
from tests.whole.house import House, environment_of, open_house

pytestmark = pytest.mark.timeout(120)


def command(environment: dict[str, str], *arguments: str) -> tuple[int, list[str], str]:
    """`halo operator …`, in a thread's own event loop: status, lines of standard output, standard error."""
    done = click.testing.CliRunner().invoke(cli.main, ["operator", *arguments], env=environment)
    configure_logging("debug", "console")  # the command has made the logs of this process its own
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done.exit_code, done.stdout.splitlines(), done.stderr


async def run(environment: dict[str, str], *arguments: str) -> list[str]:
    status, lines, error = await trio.to_thread.run_sync(lambda: command(environment, *arguments))
    assert status == 0, error
    return lines


def page_of(house: House, client: httpx.AsyncClient) -> Browser:
    return Browser(client, house.ready["admin"])


async def set_password(browser: Browser, link: str, password: str = PASSWORD) -> httpx.Response:
    """By the path of the link: the command line knows the setting's port, and a test's server has a free one."""
    parts = urlsplit(link)
    page = await browser.get(f"{parts.path}?{parts.query}")
    assert page.status_code == 200, page.text
    fields = {"link": parts.query.removeprefix("link="), "password": password, "again": password}
    return await browser.post(parts.path, {**fields, "csrf_token": token_of(page)})


async def trail(house: House) -> Sequence[tuple[str, str, str]]:
    rows = await house.db.fetch_all("SELECT operator, action, subject FROM operator_actions ORDER BY action_id")
    return [(row.operator, row.action, row.subject) for row in rows]


async def test_an_operator_is_added_comes_in_by_the_link_and_is_put_out_again(
    database_url: str, valkey_url: str
) -> None:
    environment = environment_of(database_url, valkey_url)
    async with open_house(database_url, valkey_url) as house, httpx.AsyncClient(trust_env=False) as client:
        [link] = await run(environment, "add", "Vera", "--role", "viewer")
        browser = page_of(house, client)
        assert (await set_password(browser, link)).status_code == 303
        assert "vera viewer" in told(await browser.get("/"))
        [admin, vera] = await run(environment, "list", "--json")
        assert json.loads(vera) | {"signed_in_at": None} == {
            "name": "vera",
            "role": "viewer",
            "has_password": True,
            "signed_in_at": None,
        }
        assert json.loads(admin) == {"name": "admin", "role": "operator", "has_password": False, "signed_in_at": None}
        [link] = await run(environment, "reset", "vera")
        assert (await browser.get("/")).status_code == 303
        assert (await set_password(page_of(house, client), link, ANOTHER)).status_code == 303
        again = page_of(house, client)
        assert (await again.sign_in("vera", PASSWORD)).status_code == 401
        assert (await again.sign_in("vera", ANOTHER)).status_code == 303
        await run(environment, "remove", "vera")
        assert (await again.get("/")).headers["location"] == "/sign-in"
        assert (await page_of(house, client).sign_in("vera", ANOTHER)).status_code == 401


async def test_what_cannot_be_done_to_an_operator_is_one_sentence(database_url: str, valkey_url: str) -> None:
    environment = environment_of(database_url, valkey_url)
    for arguments, says in (
        (("remove", "nobody"), "There is no such operator."),
        (("reset", "nobody"), "There is no such operator."),
        (("add", "two words"), "An operator's name is"),
    ):
        status, lines, error = await trio.to_thread.run_sync(partial(command, environment, *arguments))
        assert (status, lines) == (1, [])
        assert error.startswith(f"halo: {says}")
    await run(environment, "add", "vera")
    status, _, error = await trio.to_thread.run_sync(lambda: command(environment, "add", "vera"))
    assert (status, error) == (1, "halo: There is an operator of this name already.\n")


async def test_the_password_of_the_settings_opens_the_page_and_what_is_done_there_has_a_name(
    database_url: str, valkey_url: str
) -> None:
    async with (
        open_house(database_url, valkey_url, HALO_ADMIN_PASSWORD="open sesame") as house,
        httpx.AsyncClient(trust_env=False) as client,
    ):
        customer, mitra, session_id = await house.open_pair()
        async with house.chat(session_id, customer) as socket:
            await socket.ask("message", body="<b>between the two of us</b>")
        browser = page_of(house, client)
        assert (await browser.sign_in("admin", "open sesame")).status_code == 303
        overview = told(await browser.get("/"))
        assert "admin operator" in overview
        assert "between the two" not in overview
        reason = "The mitra asked us to look at an insult."
        read = await browser.submit("/", f"/sessions/{session_id}/messages", reason=reason)
        assert "&lt;b&gt;between the two of us&lt;/b&gt;" in read.text
        assert "<b>between" not in read.text
        assert mitra.user_id not in read.text
        done = [entry for entry in await trail(house) if entry[1] == "read_messages"]
        assert done == [("admin", "read_messages", session_id)]
        details = await house.db.fetch_all("SELECT details FROM operator_actions WHERE action = 'read_messages'")
        assert reason in str(details[0].details)
        assert "between" not in str(details[0].details)


async def test_a_session_counts_on_every_node_and_after_a_restart(database_url: str, valkey_url: str) -> None:
    async with httpx.AsyncClient(trust_env=False) as client:
        async with open_house(database_url, valkey_url, HALO_ADMIN_PASSWORD="open sesame") as house:
            browser = page_of(house, client)
            await browser.sign_in("admin", "open sesame")
        async with open_house(database_url, valkey_url) as house:
            again = Browser(client, house.ready["admin"], browser.cookies)
            assert (await again.get("/")).status_code == 200


def test_the_first_start_prints_one_link_beside_the_one_line_of_json(
    database_url: str, valkey_url: str, tmp_path: Path
) -> None:
    environment = environment_of(database_url, valkey_url, HALO_DATA_DIR=str(tmp_path)) | {"PATH": "/usr/bin:/bin"}
    links = []
    for _ in range(2):
        server = subprocess.Popen(
            [sys.executable, "-m", "halo", "serve"],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[2],
        )
        assert server.stdout is not None
        ready = json.loads(server.stdout.readline())
        server.terminate()
        rest, said = server.communicate(timeout=60)
        assert (ready["event"], rest) == ("ready", "")
        [line] = [line for line in said.splitlines() if "set-password" in line]
        found = re.search(rf"{re.escape(ready['admin'])}/set-password\?link=(\S{{43}})$", line)
        assert found is not None, line
        links.append(found[1])
    assert len(set(links)) == 2
