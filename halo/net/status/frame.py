"""The frame of the status page: the same steps for every row of the sections' tables.

A page: signed in? → path, query → view → template. An action: form whole? → signed in? → own form? → operator? → path → act → redirect
or page. Nothing is reachable but what stands in a table, and no row can leave a step out. It must never show a fault's text, nor
send anybody to another site. Read next: `halo/net/status/section.py`, `halo/net/status/sign_in.py`.
"""

import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from http import HTTPStatus
from typing import Any, Final
from urllib.parse import quote, urlsplit

import msgspec
import trio
from quart import Response, g, request
from quart_trio import QuartTrio

from halo import __version__
from halo.errors import Draining, Forbidden, NotFound, StoreUnavailable, ValidationFailed
from halo.net.body import decode_places, decode_query
from halo.net.call import WRITE_SECONDS
from halo.net.desk import Desk
from halo.net.problem import MEDIA_TYPE
from halo.net.status.answers import put_headers
from halo.net.status.away import look_around
from halo.net.status.credentials import SESSION_COOKIE, TOKEN_FIELD, Cookies, form_token, require_own_form
from halo.net.status.rendering import Renderer, load_assets
from halo.net.status.seals import Seals
from halo.net.status.section import Action, Done, Page, Section, Shown, Visit
from halo.net.trail import Trail
from halo.operator_account import Role, SignedIn
from halo.resources import Problem
from halo.routes import Route, Who

SIGN_IN_PATH: Final = "/sign-in"
DONE_COOKIE: Final = "halo_done"
"""Carries what was done to the one page that tells of it; with a seal, so that no link and no other page makes halo say so."""
LIVE_HEADER: Final = "X-Halo-Live"
"""Sent by `static/status.js` when the page fetches its parts anew: a fetch that no person made."""
FORM_FIELDS_MAX: Final = 64
"""More than the form of the whole configuration has."""

_FORM_TYPE: Final = "application/x-www-form-urlencoded"
_PLACE: Final = re.compile(r"\{(\w+)\}")
_PATH_CHARACTERS_MAX: Final = 512


class Frame:
    """Holds the tables of all sections against one application."""

    def __init__(self, desk: Desk, sections: Sequence[Section]) -> None:
        self.desk = desk
        self.cookies = Cookies(always_secure=desk.settings.status_secure_cookies)
        self.pages = tuple(page for section in sections for page in section.pages)
        self.actions = tuple(action for section in sections for action in section.actions)
        self._done = {action.name: action.done for action in self.actions}
        if len(self._done) != len(self.actions):
            raise ValueError("two actions have the same name")
        self._seals = Seals()
        self._trail = Trail(desk.operators)
        self._renderer = Renderer()
        self._assets = load_assets()
        self._menu = [(page.menu, page.path) for page in self.pages if page.menu is not None]

    def install(self, app: QuartTrio) -> None:
        """Let `app` serve everything that stands in the tables, and dress its errors for browsers."""
        for page in self.pages:
            self.add(app, "GET", page.path, partial(self._show, page))
        for action in self.actions:
            self.add(app, "POST", action.path, partial(self._act, action))
        self.add(app, "GET", "/static/<path:name>", self._asset)
        app.after_request(put_headers)  # the last one runs first, so whatever the other makes has the headers too
        app.after_request(self._dress_problem)

    def add(self, app: QuartTrio, method: str, path: str, take: Callable[..., Awaitable[Response]]) -> None:
        """One route; a GET answers HEAD as well, nothing answers OPTIONS."""
        name = f"status {method} {path}"

        async def view(**places: str) -> Response:
            return await take(**places)

        rule = _PLACE.sub(r"<\1>", path)
        app.add_url_rule(rule, endpoint=name, view_func=view, methods=[method], provide_automatic_options=False)

    def render(self, template: str, context: Mapping[str, Any], *, title: str, status: int = 200) -> Response:
        """A page. What every template is given besides: `title`, `menu`, `visit` (None for those outside), `here`, `version`."""
        given: dict[str, Any] = {
            "title": title,
            "menu": self._menu,
            "here": request.path,
            "version": __version__,
            "visit": None,
        }
        html = self._renderer.render(template, given | dict(context))
        return Response(html, status=status, content_type="text/html; charset=utf-8")

    async def find_signed_in(self) -> tuple[str, SignedIn] | None:
        """Who asks, with the session's cookie. A page that refreshes itself keeps nobody signed in."""
        cookie = self.cookies.shown(SESSION_COOKIE)
        if cookie is None:
            return None
        found = await self.desk.gatehouse.sessions.find(cookie, is_live=LIVE_HEADER in request.headers)
        return None if found is None else (cookie, found)

    async def _show(self, page: Page, **places: str) -> Response:
        signed_in = await self.find_signed_in()
        if signed_in is None:
            return sign_in_first()
        cookie, who = signed_in
        g.visit = _visit(cookie, who)
        route = Route("GET", page.path, page.path, Who.OPERATOR, page.title, query=page.query)
        visit = replace(
            g.visit,
            places=decode_places(places),
            query=decode_query(route, request.args),
            done=self._just_done(who),
        )
        response = self.render(page.template, {**await page.view(visit), "visit": visit}, title=page.title)
        if visit.done is not None:
            self.cookies.take(response, DONE_COOKIE)
        return response

    def _just_done(self, who: SignedIn) -> str | None:
        """The sentence of the action that led here, once; a page that renews itself takes it from nobody."""
        if LIVE_HEADER in request.headers:
            return None
        name = self._seals.opened(who.name, self.cookies.shown(DONE_COOKIE))
        return None if name is None else self._done.get(name)

    async def _act(self, action: Action, **places: str) -> Response:
        form = await read_form()
        signed_in = await self.find_signed_in()
        if signed_in is None:
            return sign_in_first()
        (cookie, who), ids = signed_in, decode_places(places)
        tried = (who.name, action.name, next(iter(ids.values()), action.path))
        async with self._trail.refusals(*tried):
            require_own_form(cookie, form.get(TOKEN_FIELD, ""))
            g.visit = _visit(cookie, who)
            if who.role is not Role.OPERATOR and not action.own:
                raise Forbidden("You may look at everything here, and change nothing.")
            if self.desk.draining():
                raise Draining
        visit = replace(g.visit, places=ids, form=form)
        with trio.move_on_after(WRITE_SECONDS, shield=True):
            try:
                result = await action.act(visit)
            except ValidationFailed as refusal:  # of the form itself: what operations refuse, they write down
                await self._trail.refused(*tried, refusal)
                raise
            match result:
                case Done(to=to):
                    response = go_to(to)
                    self.cookies.give(response, DONE_COOKIE, self._seals.sealed(who.name, action.name))
                    return response
                case Shown() as shown:
                    context = {**shown.context, "visit": visit}
                    return self.render(shown.template, context, title=shown.title, status=shown.status)
        raise StoreUnavailable("halo took too long; whether it was done is not known, so look before you try again.")

    async def _asset(self, name: str) -> Response:
        asset = self._assets.get(name)
        if asset is None:
            raise NotFound
        return Response(asset.content, content_type=asset.content_type)

    async def _dress_problem(self, response: Response) -> Response:
        """What went wrong is a page for whoever asked for pages; the JSON API keeps its problem documents."""
        if response.mimetype != MEDIA_TYPE or not _wants_page():
            return response
        document = msgspec.json.decode(await response.get_data(as_text=False), type=Problem)
        context: dict[str, Any] = {"problem": document, "visit": g.get("visit")}
        if document.code == StoreUnavailable.code:
            context |= {"away": await look_around(self.desk), "is_renewed": request.method == "GET"}
            page = self.render("away.html", context, title="A store is away", status=document.status)
        else:
            context |= {"wait": _wait(response.headers.get("Retry-After"))}
            page = self.render(
                "problem.html", context, title=HTTPStatus(document.status).phrase, status=document.status
            )
        for name in ("Retry-After", "Allow"):
            if name in response.headers:
                page.headers[name] = response.headers[name]
        return page


async def read_form() -> Mapping[str, str]:
    """The fields of a POSTed form. Raises `ValidationFailed`; a field that is sent twice is not guessed at."""
    if request.mimetype != _FORM_TYPE:
        raise ValidationFailed("A form is expected here.")
    form = await request.form
    fields = form.to_dict(flat=False)
    if len(fields) > FORM_FIELDS_MAX or any(len(values) != 1 or "\0" in values[0] for values in fields.values()):
        raise ValidationFailed("This is not a form of halo's.")
    return {name: values[0] for name, values in fields.items()}


def go_to(path: str) -> Response:
    """By GET, to a page of halo's own."""
    return Response(b"", status=HTTPStatus.SEE_OTHER, headers={"Location": path}, content_type="text/plain")


def sign_in_first() -> Response:
    """To the sign-in, and back here afterwards when here is a page that can be asked for again."""
    wanted = local_path(request.full_path.removesuffix("?")) if request.method == "GET" else "/"
    return go_to(SIGN_IN_PATH if wanted == "/" else f"{SIGN_IN_PATH}?next={quote(wanted, safe='/')}")


def local_path(text: str | None) -> str:
    """`text` when it is a path on this very listener, otherwise the overview.

    A browser takes `//host`, `/\\host` and control characters in between for another site, so all of them are refused.
    """
    plain = text is not None and text.isascii() and text.isprintable() and len(text) <= _PATH_CHARACTERS_MAX
    if not plain or text is None or not text.startswith("/") or text.startswith("//") or "\\" in text:
        return "/"
    parts = urlsplit(text)
    return "/" if parts.scheme or parts.netloc else text


def _visit(cookie: str, who: SignedIn) -> Visit:
    """What is known as soon as somebody is; the menu of an error page needs no more."""
    return Visit(
        operator=who.name,
        role=who.role,
        csrf_token=form_token(cookie),
        path=request.path,
        places={},
        query={},
        form={},
        done=None,
    )


def _wait(retry_after: str | None) -> str | None:
    """`Retry-After` for people: nobody counts 900 seconds."""
    if retry_after is None:
        return None
    seconds = int(retry_after)
    number, unit = (seconds, "second") if seconds < 120 else (-(-seconds // 60), "minute")
    return f"{number} {unit}{'' if number == 1 else 's'}"


def _wants_page() -> bool:
    accepts_html = "text/html" in request.headers.get("accept", "")
    is_ours = request.endpoint is not None and request.endpoint.startswith("status ")
    return is_ours or (accepts_html and not request.path.startswith("/api/"))
