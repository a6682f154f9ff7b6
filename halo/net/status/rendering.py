"""Templates and assets of the status page: read from the package once, at the start, and never from anywhere else.

Everything that a template prints is escaped, and a name that it was not given is a fault, not an empty place. It must never mark
anything as safe. Read next: `halo/net/status/templates/base.html`.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import PurePosixPath
from typing import Any, Final

from jinja2 import DictLoader, Environment, StrictUndefined

from halo.net.status import telling, wording

PACKAGE: Final = "halo.net.status"
_TYPES: Final = {
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
    ".txt": "text/plain; charset=utf-8",
}
"""Written down, because the system's own table differs from machine to machine. A file of another kind stops the start."""


@dataclass(frozen=True, slots=True)
class Asset:
    """One file of `static/`."""

    content: bytes
    content_type: str


def load_assets() -> Mapping[str, Asset]:
    """Every file of `static/` by its path below it. Only these are ever served, so no path can lead elsewhere."""
    found = _files(resources.files(PACKAGE) / "static")
    return {name: Asset(file.read_bytes(), _type_of(name)) for name, file in found}


class Renderer:
    """Makes HTML of a template and what it is given."""

    def __init__(self) -> None:
        self._environment = _compiled()

    def render(self, template: str, context: Mapping[str, Any]) -> str:
        """Raises what a faulty template raises; no value can make it fail but one that is missing."""
        return self._environment.get_template(template).render(context)


@cache
def _compiled() -> Environment:
    """Every template, compiled once a process, at the start: it takes 10 to 25 ms each, for which no session should wait at a first look."""
    found = _files(resources.files(PACKAGE) / "templates")
    environment = Environment(
        loader=DictLoader({name: file.read_text(encoding="utf-8") for name, file in found}),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        auto_reload=False,
        cache_size=-1,
    )
    environment.filters.update({**wording.FILTERS, **telling.FILTERS})
    for name in environment.list_templates():
        environment.get_template(name)
    return environment


def _files(directory: Traversable, prefix: str = "") -> Iterator[tuple[str, Traversable]]:
    for entry in directory.iterdir():
        if entry.is_dir():
            yield from _files(entry, f"{prefix}{entry.name}/")
        elif not entry.name.startswith("."):
            yield f"{prefix}{entry.name}", entry


def _type_of(name: str) -> str:
    return _TYPES[PurePosixPath(name).suffix]
