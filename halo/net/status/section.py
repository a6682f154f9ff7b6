"""The words in which a part of the status page is declared: `Section`, its pages and actions, the `Visit` that each is told of.

A section is a table of routes and nothing more: what may be seen and done stands in it, so the frame can hold every row to the same
rules and a test can walk through all of them. It must never decide who may do what. Read next: `halo/net/status/frame.py`.
"""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from halo.net.body import QueryValues
from halo.net.status.reason import reason_of
from halo.operator_account import Role
from halo.routes import Query


@dataclass(frozen=True, slots=True, kw_only=True)
class Visit:
    """One request of somebody who is signed in, checked."""

    operator: str
    """The name that is written down for whatever is done."""
    role: Role
    csrf_token: str
    """What every form must send back as `csrf_token`."""
    path: str
    places: Mapping[str, str]
    """The ids in the path, by name, in lower case."""
    query: QueryValues
    """The parameters that the page declared, with their defaults."""
    form: Mapping[str, str]
    """What was sent by POST, each field once; empty for a page."""
    done: str | None
    """What the action before this page has done, as one sentence of that action's own."""

    @property
    def may_change(self) -> bool:
        """Whether to offer actions at all; that a viewer's POST is refused does not depend on it."""
        return self.role is Role.OPERATOR

    def reason(self) -> str:
        """The field `reason`, which some actions demand.

        Raises:
            ValidationFailed
        """
        return reason_of(self.form.get("reason", ""))


Context: TypeAlias = Mapping[str, Any]
"""What a template is given; `visit`, `menu`, `title` and the filters are there by themselves."""


@dataclass(frozen=True, slots=True)
class Done:
    """It is done: go to the page `to`, where the action's own sentence is shown."""

    to: str


@dataclass(frozen=True, slots=True)
class Shown:
    """A page for this one answer; with 422, usually the form again with what is wrong with it."""

    template: str
    context: Context
    title: str
    status: int = 200


View: TypeAlias = Callable[[Visit], Awaitable[Context]]
Act: TypeAlias = Callable[[Visit], Awaitable[Done | Shown]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """Something to see, by GET."""

    path: str
    """`{name}` in it is a UUID."""
    title: str
    template: str
    menu: str | None
    """Its name in the menu; None for pages that one comes to from others."""
    query: tuple[Query, ...]
    view: View

    @property
    def methods(self) -> tuple[str, ...]:
        return ("GET",)


@dataclass(frozen=True, slots=True, kw_only=True)
class Action:
    """Something to do, by POST, for those whose role is to."""

    path: str
    name: str
    done: str
    """The sentence on the page that follows it."""
    own: bool = False
    """It concerns nobody but whoever asks, so a viewer may do it, too."""
    act: Act

    @property
    def methods(self) -> tuple[str, ...]:
        return ("POST",)


@dataclass(slots=True)
class Section:
    """What one room adds to the status page."""

    pages: list[Page] = field(default_factory=list)
    actions: list[Action] = field(default_factory=list)

    def page(
        self, path: str, *, title: str, template: str, menu: str | None = None, query: tuple[Query, ...] = ()
    ) -> Callable[[View], View]:
        """Declare what a GET of `path` shows: the template with what the decorated function gives."""

        def declare(view: View) -> View:
            self.pages.append(Page(path=path, title=title, template=template, menu=menu, query=query, view=view))
            return view

        return declare

    def action(self, path: str, *, name: str, done: str, own: bool = False) -> Callable[[Act], Act]:
        """Declare what a POST to `path` does; `name` is unique on the whole page, `done` the sentence that tells of it."""

        def declare(act: Act) -> Act:
            self.actions.append(Action(path=path, name=name, done=done, own=own, act=act))
            return act

        return declare
