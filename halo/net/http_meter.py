"""How long HTTP calls take, by the template of their route, and how they end.

Templates come from our own table, so there are as many as there are routes; what matches none is one word, whatever path or method a
stranger made up. It must never hold a raw path. Read next: `halo/net/call.py`, where a call is taken; `halo/figures.py`.
"""

from collections import Counter
from time import perf_counter
from typing import Final

from quart import Response, g, request
from quart_trio import QuartTrio

from halo.histogram import Histogram

UNMATCHED: Final = "unmatched"


class HttpMeter:
    """Of all applications of a node."""

    def __init__(self) -> None:
        self.seconds: dict[tuple[str, str, str], Histogram] = {}
        """By listener, method and route."""
        self.answers: Counter[tuple[str, str, str, str]] = Counter()
        """By listener, method, route and status."""

    def install(self, app: QuartTrio, listener: str) -> None:
        """Observe `app`, whose own steps are to be installed after this."""

        async def begin() -> None:  # async, or Quart would run it in a thread
            g.began = perf_counter()

        async def observe(response: Response) -> Response:
            method, route = _place()
            key = (listener, method, route)
            if key not in self.seconds:
                self.seconds[key] = Histogram()
            self.seconds[key].observe(perf_counter() - g.began)
            self.answers[*key, str(response.status_code)] += 1
            return response

        app.before_request(begin)
        app.after_request(observe)


def _place() -> tuple[str, str]:
    if request.url_rule is None:
        return UNMATCHED, UNMATCHED
    return request.method, request.url_rule.rule.replace("<", "{").replace(">", "}")
