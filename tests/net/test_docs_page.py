import re

from halo.net.docs_page import docs_page
from halo.routes import API_ROUTES
from halo.schema import asyncapi, openapi
from tests.net.desk_fakes import House


async def test_the_page_lists_every_call_and_every_frame() -> None:
    page = (await House().call("GET", "/docs", by=None)).raw.decode()
    for route in API_ROUTES:
        assert f"<code>{route.method} {route.path}</code>" in page
    for name in ("session_timer", "extension_response", "offer_rescinded"):
        assert f"<code>{name}</code>" in page


async def test_the_page_fetches_nothing_and_its_policy_allows_nothing_but_its_own_style() -> None:
    answer = await House().call("GET", "/docs", by=None)
    page, policy = answer.raw.decode(), answer.headers["content-security-policy"]
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert not re.search(r"<script|<link|<img|src=|style=| on\w+=|https?://", page)
    assert re.fullmatch(
        r"default-src 'none'; style-src 'sha256-[\w+/=]+'; base-uri 'none'; form-action 'none'; .*", policy
    )
    assert page.count("<style>") == 1


async def test_every_link_of_the_page_leads_to_a_type_on_it() -> None:
    page = (await House().call("GET", "/docs", by=None)).raw.decode()
    wanted = set(re.findall(r"href='#(\w+)'", page))
    assert wanted
    assert wanted <= set(re.findall(r"id='(\w+)'", page))


def test_nothing_of_the_documents_is_taken_for_markup() -> None:
    document = openapi(API_ROUTES, "<script>alert(1)</script>")
    assert b"<script>" not in docs_page(document, asyncapi()).html
