"""What holds for every page of the status page, whatever it is about: names for those who do not see, and no scrolling sideways.

Names, roles and landmarks are those that the browser gives to assistive technology, not what the HTML seems to say. Read next:
`tests/browser/test_walk.py`; that each of these can fail, `tests/browser/test_page.py` proves.
"""

from collections.abc import Sequence
from typing import Final

from tests.browser.page import NARROW, WIDE, Page

USED: Final = frozenset(
    {"button", "checkbox", "combobox", "link", "listbox", "radio", "searchbox", "spinbutton", "switch", "textbox"}
)
"""Roles of what a person uses."""
LANDMARKS: Final = frozenset({"banner", "main", "contentinfo"})
LIGHT_MIN: Final = 200
DARK_MAX: Final = 60
"""Of 255, the mean of the three colours of a page's ground."""

_TWICE: Final = (
    "(() => { const ids = [...document.querySelectorAll('[id]')].map((e) => e.id);"
    " return ids.filter((id, i) => ids.indexOf(id) !== i); })()"
)
_UNLABELLED: Final = (
    "[...document.querySelectorAll('input, select, textarea')].filter((c) => c.type !== 'hidden'"
    " && c.getAttribute('aria-hidden') !== 'true' && !c.labels.length).map((c) => c.outerHTML)"
)
_NAMELESS_TABLES: Final = (
    "[...document.querySelectorAll('table')].filter((t) => !t.caption && !t.closest('[aria-label]'))"
    ".map((t) => t.outerHTML.slice(0, 120))"
)
_TOO_WIDE: Final = (
    "document.documentElement.scrollWidth <= innerWidth ? [] : [`${document.documentElement.scrollWidth} px`,"
    " ...[...document.querySelectorAll('body *')].filter((e) => e.getBoundingClientRect().right > innerWidth)"
    ".slice(0, 5).map((e) => e.outerHTML.slice(0, 120))]"
)
_GROUND: Final = "getComputedStyle(document.body).backgroundColor.match(/[0-9]+/g).slice(0, 3).map(Number).reduce((a, b) => a + b) / 3"


async def list_faults(page: Page) -> Sequence[str]:
    """What is wrong with the page as it is shown now, each in a line."""
    nodes = await page.accessible()
    roles = [node["role"] for node in nodes]
    headings = [node["name"] for node in nodes if node["role"] == "heading" and node.get("level") == 1]
    found = [f"without a name: {node}" for node in nodes if node["role"] in USED and not node["name"].strip()]
    found += [] if len(headings) == 1 and headings[0] else [f"one h1 is wanted: {headings}"]
    found += [f"no {role}" for role in sorted(LANDMARKS - set(roles))]
    found += [f"two {role}" for role in sorted(LANDMARKS) if roles.count(role) > 1]
    found += [f"without a label: {each}" for each in await page.evaluate(_UNLABELLED)]
    found += [f"an id twice: {each}" for each in await page.evaluate(_TWICE)]
    found += [f"a table without a name: {each}" for each in await page.evaluate(_NAMELESS_TABLES)]
    found += [] if await page.evaluate("document.documentElement.lang") else ["in no language"]
    return found


async def list_faults_of_looks(page: Page) -> Sequence[str]:
    """The same of how it looks: on a telephone, in the dark, and in the light."""
    found = [] if await page.evaluate(_GROUND) >= LIGHT_MIN else ["dark, though light is wished"]
    await page.resize(NARROW)
    found += [f"wider than a telephone: {each}" for each in await page.evaluate(_TOO_WIDE)]
    await page.prefer("dark")
    found += [] if await page.evaluate(_GROUND) <= DARK_MAX else ["light, though dark is wished"]
    await page.prefer("light")
    await page.resize(WIDE)
    return found
