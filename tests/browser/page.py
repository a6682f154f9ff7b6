"""One tab as a person uses it: addresses, labels, buttons, keys; and everything that the browser complained about meanwhile.

Clicks and keys go in as a mouse's and a keyboard's would, so what is covered, hidden or out of the window cannot be pressed. What a page
does in its own time is waited for by its condition. It must never sleep in hope. Read next: `tests/browser/test_walk.py`.
"""

import base64
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Final

import trio

from tests.browser.devtools import CommandRefused, DevTools

PATIENCE_SECONDS: Final = 40.0
"""For what takes milliseconds here, or a live interval of five seconds."""
LOOK_SECONDS: Final = 0.02
"""How often a condition is looked at."""
WIDE: Final = (1280, 900)
NARROW: Final = (400, 800)

_KEYS: Final = {"Tab": 9, "Enter": 13, "Escape": 27, " ": 32}
_SHIFT: Final = 8


@dataclass
class Page:
    """See the module."""

    devtools: DevTools
    tab: str
    base: str
    status: int = 0
    """Of the document that is shown."""
    _loads: int = 0
    _said: list[str] = field(default_factory=list)
    _not_loaded: list[tuple[str, str]] = field(default_factory=list)
    _visited: set[str] = field(default_factory=set)

    @property
    def complaints(self) -> Sequence[str]:
        """Errors of the console, exceptions of scripts, breaches of the content security policy, and resources that did not come.

        A document that is refused is one of a site's answers, and its `status` is for the test to judge.
        """
        return [*self._said, *(f"{what} ({url})" for url, what in self._not_loaded if url not in self._visited)]

    # ---- going somewhere

    async def open(self, path: str) -> None:
        """Go to `path` of this halo, or to a whole address, and wait until it is loaded."""
        async with self.arriving():
            await self._call("Page.navigate", url=path if "://" in path else self.base + path)

    async def reload(self) -> None:
        async with self.arriving():
            await self._call("Page.reload")

    @asynccontextmanager
    async def arriving(self) -> AsyncIterator[None]:
        """What the block does leads to another document; on leaving the block that is loaded."""
        before = self._loads
        yield
        with trio.fail_after(PATIENCE_SECONDS):
            while self._loads == before:
                await trio.sleep(LOOK_SECONDS)
        self.status = await self.evaluate("performance.getEntriesByType('navigation')[0].responseStatus")

    async def follow(self, name: str) -> None:
        """Click the link of that name."""
        async with self.arriving():
            await self.click(_named("a[href]", name))

    async def submit(self, name: str) -> None:
        """Press the button of that name, which sends its form."""
        async with self.arriving():
            await self.click(_named("button", name))

    @property
    async def path(self) -> str:
        """Where we are, without what was asked for."""
        return str(await self.evaluate("location.pathname"))

    # ---- looking

    async def evaluate(self, expression: str) -> Any:
        """The value of an expression of JavaScript, as JSON. Raises CommandRefused, also when it throws."""
        answer = await self._call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in answer:
            thrown = answer["exceptionDetails"]
            raise CommandRefused(f"{expression}: {thrown.get('exception', {}).get('description', thrown.get('text'))}")
        return answer["result"].get("value")

    async def wait_for(self, expression: str) -> Any:
        """Until the expression is true; its value. A page that is just going leaves no answer, and is asked again."""
        found: Any = None
        with trio.move_on_after(PATIENCE_SECONDS):
            while True:
                try:
                    found = await self.evaluate(expression)
                except CommandRefused as refused:
                    if "context" not in str(refused) and "navigated" not in str(refused):
                        raise
                if found:
                    return found
                await trio.sleep(LOOK_SECONDS)
        raise AssertionError(f"never so: {expression}; the page says: {await self.text()}")

    async def text(self, selector: str = "body") -> str:
        """What can be read there, in one line; empty when there is no such element."""
        told = await self.evaluate(f"document.querySelector({json.dumps(selector)})?.innerText ?? ''")
        return " ".join(str(told).split())

    async def has(self, expression: str) -> bool:
        """Whether there is such an element; `expression` is JavaScript, or a selector of CSS."""
        return bool(await self.evaluate(f"!!({_element(expression)})"))

    async def count(self, selector: str) -> int:
        return int(await self.evaluate(f"document.querySelectorAll({json.dumps(selector)}).length"))

    async def has_button(self, name: str) -> bool:
        return await self.has(_named("button", name))

    async def accessible(self) -> Sequence[dict[str, Any]]:
        """What assistive technology is given: role, name and properties of each node that is not ignored."""
        tree = await self._call("Accessibility.getFullAXTree")
        return [
            {
                "role": node["role"]["value"],
                "name": node.get("name", {}).get("value", ""),
                **{each["name"]: each["value"].get("value") for each in node.get("properties", ())},
            }
            for node in tree["nodes"]
            if not node.get("ignored")
        ]

    async def screenshot(self) -> bytes:
        """The window as PNG."""
        answer = await self._call("Page.captureScreenshot", format="png", optimizeForSpeed=False)
        return base64.b64decode(answer["data"])

    # ---- doing

    async def click(self, expression: str) -> None:
        """With the mouse, in the middle of the element; fails when something else is there.

        It has the focus from the first look on, as under a hand: what renews itself would else be pulled away between two of our messages.
        """
        element = _element(expression)
        place = await self.evaluate(
            f"(() => {{ const e = {element}; if (!e) return null; e.scrollIntoView({{ block: 'center' }}); e.focus();"
            " const b = e.getClientRects()[0]; if (!b) return null; const x = b.x + b.width / 2, y = b.y + b.height / 2;"
            " const top = document.elementFromPoint(x, y); return { x, y, hit: e === top || e.contains(top) }; })()"
        )
        assert place is not None, f"nothing to click: {expression}; the page says: {await self.text()}"
        assert place["hit"], f"covered by something else: {expression}"
        for kind in ("mousePressed", "mouseReleased"):
            await self._call(
                "Input.dispatchMouseEvent", type=kind, x=place["x"], y=place["y"], button="left", clickCount=1
            )

    async def fill(self, label: str, text: str) -> None:
        """Put `text` into the field of that label, in place of what is there."""
        field_of = f"{_labelled(label)}"
        assert await self.has(field_of), f"no field is labelled {label!r}; the page says: {await self.text()}"
        await self.evaluate(f"(() => {{ const f = {field_of}; f.focus(); f.select(); }})()")
        if text:
            await self._call("Input.insertText", text=text)
        else:
            await self.evaluate(f"{field_of}.value = ''")

    async def type(self, text: str) -> None:
        """Into whatever has the focus."""
        await self._call("Input.insertText", text=text)

    async def press(self, key: str, *, shift: bool = False) -> None:
        """One key down and up."""
        codes = {"key": key, "code": key, "windowsVirtualKeyCode": _KEYS[key], "modifiers": _SHIFT if shift else 0}
        typed = {"Enter": {"text": "\r"}, " ": {"text": " "}}.get(key, {})
        await self._call("Input.dispatchKeyEvent", type="keyDown" if typed else "rawKeyDown", **codes, **typed)
        await self._call("Input.dispatchKeyEvent", type="keyUp", **codes)

    # ---- how it is looked at

    async def resize(self, size: tuple[int, int]) -> None:
        width, height = size
        await self._call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False
        )

    async def prefer(self, scheme: str) -> None:
        """`light` or `dark`."""
        await self._call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])

    async def switch_scripts_off(self) -> None:
        """Those of pages; `evaluate` still works."""
        await self._call("Emulation.setScriptExecutionDisabled", value=True)

    # ---- inside

    async def _call(self, method: str, **parameters: Any) -> dict[str, Any]:
        return await self.devtools.call(method, self.tab, **parameters)

    async def prepare(self) -> None:
        """Listen to everything; called once, by `open_page`."""
        self.devtools.listen(self.tab, self._hear)
        for domain in ("Page", "Runtime", "Log", "Audits"):
            await self._call(f"{domain}.enable")
        # The empty page that it begins with must not be taken for an arrival.
        await self.wait_for("document.readyState === 'complete'")
        await self._call("Emulation.setFocusEmulationEnabled", enabled=True)  # as if each window were the one in front
        await self.resize(WIDE)
        await self.prefer("light")

    def _hear(self, event: str, told: dict[str, Any]) -> None:
        match event:
            case "Page.loadEventFired":
                self._loads += 1
            case "Page.frameNavigated":
                self._visited.add(told["frame"]["url"])
            case "Runtime.exceptionThrown":
                self._said.append(f"exception: {told['exceptionDetails']}")
            case "Runtime.consoleAPICalled" if told["type"] in ("error", "assert"):
                self._said.append(f"console: {[each.get('value') for each in told['args']]}")
            case "Log.entryAdded" if told["entry"]["source"] == "network":
                self._not_loaded.append((str(told["entry"].get("url")), told["entry"]["text"]))
            case "Log.entryAdded" if told["entry"]["level"] == "error" or told["entry"]["source"] == "security":
                self._said.append(f"{told['entry']['source']}: {told['entry']['text']} ({told['entry'].get('url')})")
            case "Audits.issueAdded" if told["issue"]["code"] == "ContentSecurityPolicyIssue":
                self._said.append(f"policy: {json.dumps(told['issue']['details'])}")


@asynccontextmanager
async def open_page(devtools: DevTools, base: str) -> AsyncIterator[Page]:
    """A tab with cookies, stores and caches of its own, for the time of the block."""
    context = (await devtools.call("Target.createBrowserContext", disposeOnDetach=True))["browserContextId"]
    try:
        target = await devtools.call("Target.createTarget", url="about:blank", browserContextId=context)
        attached = await devtools.call("Target.attachToTarget", targetId=target["targetId"], flatten=True)
        page = Page(devtools, attached["sessionId"], base)
        await page.prepare()
        yield page
    finally:
        with trio.CancelScope(shield=True):
            await devtools.call("Target.disposeBrowserContext", browserContextId=context)


def _named(selector: str, name: str) -> str:
    """The first element that is seen and whose text, without what is around it, is `name`."""
    return (
        f"[...document.querySelectorAll({json.dumps(selector)})].find((e) =>"
        f" e.innerText.replace(/\\s+/g, ' ').trim() === {json.dumps(name)})"
    )


def _labelled(label: str) -> str:
    """The field whose label begins so; what follows is a hint."""
    return (
        "[...document.querySelectorAll('label')].find((l) =>"
        f" l.control && l.innerText.trim().startsWith({json.dumps(label)}))?.control"
    )


def _element(expression: str) -> str:
    """A selector of CSS stands for its first element."""
    return expression if "document" in expression else f"document.querySelector({json.dumps(expression)})"
