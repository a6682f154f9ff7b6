"""Rewrites what is generated in the documentation: `python -m halo.docs`, or `--check` to be told what is out of date.

In the README the parts between `<!-- generated: NAME -->` and `<!-- /generated -->` belong to this program, the rest to people;
`docs/openapi.json`, `docs/asyncapi.json` and `docs/grafana-dashboard.json` are written whole. It must never touch anything else. The
sources: `halo/diagram.py`, `halo/settings.py`, `halo/config.py`, `halo/dashboard.py`, and `halo/routes.py` and `halo/protocol.py` by way
of `halo/schema.py`.
"""

import argparse
import json
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec
from msgspec import inspect

from halo import diagram, schema
from halo.config import LiveConfig
from halo.dashboard import dashboard
from halo.net.api import DESCRIPTION
from halo.routes import API_ROUTES
from halo.setting import Setting
from halo.settings import SETTINGS

REPOSITORY: Final = Path(__file__).resolve().parent.parent

_BLOCK: Final = re.compile(r"(<!-- generated: (?P<name>[\w-]+) -->\n).*?(<!-- /generated -->)", re.DOTALL)


class BlockUnknown(Exception):
    """The README has a generated block of a name that nothing generates."""


class BlockMissing(Exception):
    """The README lacks the block of something that is generated for it."""


def settings_table() -> str:
    """Every setting with its default, unit and reason."""
    lines = ["| setting | default | unit | what it decides |", "| --- | --- | --- | --- |"]
    lines += [f"| `{row.name}` | {_default(row)} | {_cell(row.unit)} | {_cell(row.help)} |" for row in SETTINGS]
    return "\n".join(lines)


def _default(row: Setting) -> str:
    if row.secret:
        return "made up when a store is embedded" + (", else required" if row.demanded else "")
    return "–" if row.default in {None, ""} else f"`{row.default}`"


def config_table() -> str:
    """Every key of the live configuration with its default, what is accepted and what it means."""
    lines = ["| key | default | accepted | what it decides |", "| --- | --- | --- | --- |"]
    described = inspect.type_info(LiveConfig)
    assert isinstance(described, inspect.StructType)  # a struct describes itself as one
    for key in described.fields:
        if not isinstance(key.type, inspect.Metadata):
            continue  # `version` is no key of the operators'
        meaning = (key.type.extra_json_schema or {})["description"]
        default = json.dumps(msgspec.to_builtins(key.default))
        lines.append(f"| `{key.name}` | `{default}` | {_cell(_accepted(key.type.type))} | {_cell(meaning)} |")
    return "\n".join(lines)


def _accepted(kind: inspect.Type) -> str:
    match kind:
        case inspect.IntType(ge=low, le=high):
            return f"{low} to {high}"
        case inspect.EnumType(cls=values):
            return " or ".join(f"`{member.value}`" for member in values)
        case inspect.VarTupleType(item_type=item, max_length=most):
            return f"at most {most} numbers, each {_accepted(item)}"
        case inspect.StrType(pattern=pattern):
            return f"`{pattern}`"
        case _:
            raise NotImplementedError(f"no words for a key of type {kind}")


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


BLOCKS: Final[Mapping[str, Callable[[], str]]] = {
    "diagram": lambda: f"```mermaid\n{diagram.mermaid()}\n```",
    "rules": diagram.table,
    "settings": settings_table,
    "configuration": config_table,
}
"""What is generated for the README, by the name of its block."""


def rewritten(readme: str) -> str:
    """The README with every generated block as it should be.

    Raises:
        BlockUnknown, BlockMissing: its markers are not those of `BLOCKS`.
    """
    named = {found["name"] for found in _BLOCK.finditer(readme)}
    if unknown := named - set(BLOCKS):
        raise BlockUnknown(f"README.md: nothing generates {', '.join(sorted(unknown))}")
    if missing := set(BLOCKS) - named:
        raise BlockMissing(f"README.md: no block for {', '.join(sorted(missing))}")
    return _BLOCK.sub(lambda found: f"{found[1]}{BLOCKS[found['name']]()}\n{found[3]}", readme)


def generated(repository: Path) -> dict[Path, str]:
    """Every generated file as it should be.

    Raises:
        BlockUnknown, BlockMissing, FileNotFoundError: of the README.
    """
    return {
        repository / "README.md": rewritten((repository / "README.md").read_text("utf-8")),
        repository / "docs" / "openapi.json": _json(schema.openapi(API_ROUTES, DESCRIPTION)),
        repository / "docs" / "asyncapi.json": _json(schema.asyncapi()),
        repository / "docs" / "grafana-dashboard.json": _json(dashboard()),
    }


def _json(document: Mapping[str, Any]) -> str:
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"


def main(arguments: Sequence[str], repository: Path = REPOSITORY) -> int:
    """Write what has changed, or with `--check` name it and return 1; 2 when the README's markers are wrong."""
    parser = argparse.ArgumentParser(prog="python -m halo.docs", description="Regenerate the generated documentation.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 naming what is out of date")
    check = parser.parse_args(arguments).check
    try:
        files = generated(repository)
    except (BlockUnknown, BlockMissing, FileNotFoundError) as fault:
        print(fault, file=sys.stderr)
        return 2
    stale = [path for path, text in files.items() if not path.exists() or path.read_text("utf-8") != text]
    for path in stale:
        print(f"{path.relative_to(repository)}: {'out of date' if check else 'written'}")
        if not check:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(files[path], "utf-8")
    if stale and check:
        print("run: python -m halo.docs", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
