"""What every answer of the admin listener carries, whatever made it: the headers that keep a browser from being used against us.

They stand on JSON and errors too, because a browser shows those as well. It must never be loosened for one page: a page that needs
more is built otherwise. One exception stands in `base.html`: its `<meta name="referrer" content="same-origin">` takes the place of the header's
`no-referrer` for pages with forms, because under `no-referrer` a browser sends `Origin: null` with its own forms, and who forged one could
not be told from who did not. No other site learns more by it: to them nothing is sent under either word. Read next: `halo/net/status/frame.py`.
"""

from typing import Final

from quart import Response

POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; form-action 'self'; "
    "base-uri 'none'; frame-ancestors 'none'"
)

HEADERS: Final = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Embedder-Policy": "require-corp",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=(), payment=(), usb=()",
}


async def put_headers(response: Response) -> Response:
    """Over whatever was there."""
    response.headers.update(HEADERS)
    return response
