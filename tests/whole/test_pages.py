"""What the pages name is there: settings, commands and their flags, metrics, calls, keys, daemons, alarms and errors of the log.

Files and links are looked up by `tests/whole/test_readme.py`. Lists that claim to be whole are held against the code in both
directions, so that neither goes on without the other.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from halo.cli import main
from halo.config import KEYS
from halo.docs import REPOSITORY
from halo.routes import API_ROUTES, OPERATOR_ROUTES
from halo.settings import SETTINGS
from halo.store.mirror_keys import Keys
from halo.watch import WATCHES

PAGES = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md"))]
NOT_THERE_YET = re.compile(r"^\*\*Not there yet:\*\*.*?(?:\n\n|\Z)", re.MULTILINE | re.DOTALL)
CODE = re.compile(r"^```.*?^```$|`([^`\n]+)`", re.MULTILINE | re.DOTALL)
"""A block, or what stands between backticks."""

every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


def code_of(page: Path) -> str:
    """All code of the page, a piece a line; what it says is still to come is no claim."""
    return "\n".join(found[1] or found[0] for found in CODE.finditer(NOT_THERE_YET.sub("", page.read_text("utf-8"))))


def names_in(cells: str) -> set[str]:
    return set(re.findall(r"`([a-z0-9_]+)`", cells))


def first_cells(page: str, title: str) -> str:
    """The first column of the table whose head begins with `title`."""
    lines = iter((REPOSITORY / "docs" / page).read_text("utf-8").splitlines())
    assert any(line.startswith(f"| {title} |") for line in lines), f"{page} has no table of {title}"
    rows = []
    for line in lines:
        if not line.startswith("|"):
            break
        rows.append(line.split("|")[1])
    return "\n".join(rows)


@every_page
def test_every_setting_that_a_page_names_is_one(page: Path) -> None:
    known = {name for row in SETTINGS for name in (row.name, row.source)} | {"HALO_X_Y"}  # the form of all of them
    named = set(re.findall(r"\b(?:HALO_\w*[A-Z]|FCM_[A-Z]+|(?:MITRA|HEARTBEAT|VALKEY)_\w+_SECONDS)\b", code_of(page)))
    assert named - known == set()


@every_page
def test_every_command_that_a_page_names_is_one_and_takes_the_flags_beside_it(page: Path) -> None:
    for line in re.findall(r"(?<!-U )(?<![\w-])halo ((?:[a-z]|--)[^\n#]*)", code_of(page)):
        command: click.Command = main
        for word in line.split():
            if word.startswith("--"):
                flags = {flag for parameter in command.params for flag in parameter.opts}
                assert word.partition("=")[0] in flags | {"--help"}, f"halo {line}"
            elif isinstance(command, click.Group):
                assert word in command.commands, f"halo {line}"
                command = command.commands[word]


def test_every_command_is_on_the_first_page() -> None:
    named = re.findall(r"^\| `halo (\w+)", (REPOSITORY / "README.md").read_text("utf-8"), re.MULTILINE)
    assert set(main.commands) <= set(named)


@every_page
def test_every_metric_that_a_page_names_is_on_the_dashboard(page: Path) -> None:
    """Which itself is held against a running server by `tests/whole/test_metrics.py`; `…` ends the name of a family."""
    shown = (REPOSITORY / "docs" / "grafana-dashboard.json").read_text("utf-8")
    for name, family in re.findall(r"\bhalo_([a-z_]+)(…?)", code_of(page)):
        assert re.search(rf"\bhalo_{name}" + ("" if family else r"(_bucket|_sum|_count)?\b"), shown), name


@every_page
def test_every_call_that_a_page_names_is_in_the_table_of_routes(page: Path) -> None:
    known = {(route.method, re.sub(r"\{\w+\}", "{}", route.path)) for route in (*API_ROUTES, *OPERATOR_ROUTES)}
    for method, path in re.findall(r"\b(GET|POST|PATCH|DELETE) ['\"]?(/api/[\w/<>{}$-]+)", code_of(page)):
        assert (method, re.sub(r"<\w+>|\$\w+", "{}", path)) in known, f"{method} {path}"


@every_page
def test_every_key_that_a_page_changes_is_one_of_the_live_configuration(page: Path) -> None:
    assert set(re.findall(r"PATCH /api/config '\{\"(\w+)\"", code_of(page))) <= set(KEYS)


def test_every_key_of_valkey_has_its_row() -> None:
    rows = first_cells("valkey-mirror.md", "key")
    keys = {name: getattr(Keys(), name) for name, found in vars(Keys).items() if isinstance(found, property)}
    keys |= {each.__name__: each("<id>") for each in (Keys().capacity, Keys().capacity_version, Keys().heartbeat)}
    assert {name for name, key in keys.items() if f"`{key}`" not in rows} == set()


def test_every_alarm_has_its_row_and_every_row_its_alarm() -> None:
    assert names_in(first_cells("operating.md", "alarm")) == set(WATCHES)


def test_every_error_of_the_log_has_its_row_and_every_row_its_error() -> None:
    logged = {name for path in (REPOSITORY / "halo").rglob("*.py") for name in errors_logged(path)}
    assert names_in(first_cells("operating.md", "ERROR")) == logged


def errors_logged(path: Path) -> Iterator[str]:
    """The first argument of each `log.error(…)`, and of each call of a name that may stand for `log.error`."""
    for scope in ast.walk(ast.parse(path.read_text("utf-8"))):
        if not isinstance(scope, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        aliases = {
            target.id
            for node in ast.walk(scope)
            if isinstance(node, ast.Assign) and not isinstance(node.value, ast.Call)
            if any(is_log_error(part) for part in ast.walk(node.value))
            for target in node.targets
            if isinstance(target, ast.Name)
        }
        for node in ast.walk(scope):
            if not isinstance(node, ast.Call):
                continue
            if is_log_error(node.func) or (isinstance(node.func, ast.Name) and node.func.id in aliases):
                assert isinstance(node.args[0], ast.Constant), (
                    f"{path}:{node.lineno} logs a name that nobody can look up"
                )
                yield str(node.args[0].value)


def is_log_error(node: ast.AST) -> bool:
    return (
        isinstance(node, ast.Attribute)
        and node.attr in {"error", "exception", "critical"}
        and isinstance(node.value, ast.Name)
        and node.value.id in {"log", "_log"}
    )


def test_every_daemon_has_its_row_and_every_row_its_daemon() -> None:
    server = ast.parse((REPOSITORY / "halo" / "server.py").read_text("utf-8"))
    [background] = [
        node.value
        for node in ast.walk(server)
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.target.id == "background"
    ]
    assert isinstance(background, ast.Dict)
    begun = {str(key.value) for key in background.keys if isinstance(key, ast.Constant)}
    begun |= {
        str(node.value.value).removeprefix("daemon ")
        for node in ast.walk(server)
        if isinstance(node, ast.keyword) and node.arg == "name" and isinstance(node.value, ast.Constant)
        if str(node.value.value).startswith("daemon ")
    }
    rows = set(re.findall(r"`([^`]+)`", first_cells("architecture.md", "daemon")))
    assert {row for row in rows if not row.startswith("sweep ")} == begun
    sweeps = re.findall(r'Sweep\("(\w+)"', (REPOSITORY / "halo" / "wiring.py").read_text("utf-8"))
    assert {row.removeprefix("sweep ") for row in rows if row.startswith("sweep ")} == set(sweeps)
