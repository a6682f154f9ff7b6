"""The browser of these tests finds what it looks for: on a page where all of it is wrong."""

import pytest

from tests.browser.devtools import DevTools
from tests.browser.page import open_page
from tests.browser.strange_site import open_strange_site
from tests.browser.well_made import list_faults, list_faults_of_looks

pytestmark = pytest.mark.timeout(120)

BAD = """<!doctype html><html><head><title>Bad</title><link rel="icon" href="/static/icon.svg"></head>
<body style="background: rgb(120, 120, 120)"><h1>One</h1><h1 id="a">Two</h1><p id="a">
<input name="unlabelled"><button></button><table><tr><td>cell</td></tr></table><div style="width: 900px">wide</div>
<script>console.error("said"); undefinedFunction()</script></p></body></html>"""


async def test_what_is_wrong_with_a_page_is_found(devtools: DevTools) -> None:
    async with open_strange_site(BAD) as address, open_page(devtools, address) as page:
        await page.open(address)
        faults = await list_faults(page)
        for beginning in (
            "without a name: {'role': 'button'",
            "one h1 is wanted: ['One', 'Two']",
            "no banner",
            "no contentinfo",
            "no main",
            "without a label: <input",
            "an id twice: a",
            "a table without a name",
            "in no language",
        ):
            assert any(fault.startswith(beginning) for fault in faults), (beginning, faults)
        looks = await list_faults_of_looks(page)
        assert looks[0] == "dark, though light is wished"
        assert looks[-1] == "light, though dark is wished"
        assert looks[1].startswith("wider than a telephone: 9")
        assert any(fault.startswith("wider than a telephone: <div") for fault in looks)
        assert [said.partition(":")[0] for said in page.complaints] == ["console", "exception"]


async def test_a_script_that_the_policy_forbids_is_complained_of(devtools: DevTools) -> None:
    policy = "Content-Security-Policy: default-src 'none'"
    async with open_strange_site(BAD, policy) as address, open_page(devtools, address) as page:
        await page.open(address)
        assert any("Content Security Policy" in said for said in page.complaints), page.complaints
        assert any(said.startswith("policy: ") for said in page.complaints), page.complaints


async def test_what_is_covered_cannot_be_clicked(devtools: DevTools) -> None:
    covered = '<!doctype html><button id="b">B</button><div style="position: fixed; inset: 0"></div>'
    async with open_strange_site(covered) as address, open_page(devtools, address) as page:
        await page.open(address)
        with pytest.raises(AssertionError, match="covered"):
            await page.click("#b")
        with pytest.raises(AssertionError, match="nothing to click"):
            await page.click("#c")


async def test_tabs_share_no_cookies(devtools: DevTools) -> None:
    async with open_strange_site("<!doctype html>", "Set-Cookie: seen=1; Path=/") as address:
        async with open_page(devtools, address) as page:
            await page.open(address)
            assert await page.evaluate("document.cookie") == "seen=1"
    async with open_strange_site("<!doctype html>") as address, open_page(devtools, address) as page:
        await page.open(address)
        assert await page.evaluate("document.cookie") == ""
