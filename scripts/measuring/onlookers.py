"""Browsers that only look: each loads one page again and again, as its own script does. A process of its own, so that it costs the server nothing.

`python -m scripts.measuring.onlookers URL COOKIE NUMBER EVERY_SECONDS SECONDS` prints how long each load took, in ms, as a JSON list. It must
never measure a page that was refused. Read next: `scripts/measuring/status.py`.
"""

import json
import sys

import httpx
import trio


class PageRefused(Exception):
    """The page was not shown."""


async def look(url: str, cookie: str, number: int, every_seconds: float, seconds: float) -> list[float]:
    """Milliseconds of every load. Raises PageRefused."""
    times: list[float] = []

    async def browser(first_seconds: float) -> None:
        headers = {"Cookie": cookie, "Accept": "text/html", "X-Halo-Live": "1"}
        async with httpx.AsyncClient(trust_env=False, timeout=30, headers=headers) as client:
            await trio.sleep(first_seconds)
            while True:
                began = trio.current_time()
                answer = await client.get(url)
                if answer.status_code != 200:
                    raise PageRefused(f"{url}: {answer.status_code}")
                times.append((trio.current_time() - began) * 1000)
                await trio.sleep(max(0.0, began + every_seconds - trio.current_time()))

    with trio.move_on_after(seconds):
        async with trio.open_nursery() as nursery:
            for place in range(number):
                nursery.start_soon(browser, every_seconds * place / number)
    return times


if __name__ == "__main__":
    url, cookie, number, every_seconds, seconds = sys.argv[1:]
    sys.stdout.write(json.dumps(trio.run(look, url, cookie, int(number), float(every_seconds), float(seconds))))
