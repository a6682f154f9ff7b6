import ast
from pathlib import Path

import pytest

import halo.store
from halo.store.queries import QueriesMismatch, load_queries, parse_queries, parse_query

ROOMS = sorted(Path(halo.store.__path__[0]).rglob("*.py"))
FILES = sorted((Path(halo.store.__path__[0]) / "sql" / "queries").glob("*.sql"))


def test_placeholders_are_numbered_by_name_and_a_name_is_sent_once() -> None:
    query = parse_query("q", "SELECT %(a)s, %(b)s, %(a)s, 'x' LIKE '10%%';\n")
    assert (query.sql, query.parameters) == (b"SELECT $1, $2, $1, 'x' LIKE '10%'", ("a", "b"))
    assert query.bind({"b": 2, "a": "one", "unused": None}) == [b"one", b"2"]


def test_a_value_that_is_missing_is_named() -> None:
    with pytest.raises(KeyError, match="session_id"):
        parse_query("q", "SELECT %(session_id)s").bind({})


def test_positional_placeholders_are_refused() -> None:
    with pytest.raises(QueriesMismatch, match="named placeholder"):
        parse_query("q", "SELECT %s")


def test_blocks_are_found_by_name() -> None:
    queries = parse_queries("-- what this is for\n\n-- name: one\nSELECT 1;\n--name:two\n-- why\nSELECT 2\n", "file")
    assert {name: query.sql for name, query in queries.items()} == {"one": b"SELECT 1", "two": b"-- why\nSELECT 2"}


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("-- name: one\nSELECT 1\n-- name: one\nSELECT 2", "two queries"),
        ("SELECT 1\n-- name: one\nSELECT 1", "before the first"),
        ("SELECT 1", "before the first"),
        ("-- name: one\n-- nothing\n-- name: two\nSELECT 2", "one has no statement"),
        ("-- name: no-name\nSELECT 1", "not a name"),
        ("-- name:\nSELECT 1", "not a name"),
    ],
)
def test_a_malformed_file_is_refused(text: str, complaint: str) -> None:
    with pytest.raises(QueriesMismatch, match=complaint):
        parse_queries(text, "file")


def test_the_loaded_queries_cannot_be_changed() -> None:
    queries = parse_queries("-- name: one\nSELECT 1", "file")
    with pytest.raises(TypeError):
        queries["one"] = queries["one"]  # type: ignore[index]
    with pytest.raises(AttributeError):
        queries["one"].name = "two"  # type: ignore[misc]


def test_names_that_are_asked_for_must_be_all_there_is() -> None:
    with pytest.raises(QueriesMismatch, match="missing \\['absent'\\]"):
        load_queries(FILES[0].stem, "absent")
    with pytest.raises(FileNotFoundError):
        load_queries("absent")


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_every_file_of_queries_is_well_formed(file: Path) -> None:
    assert load_queries(file.stem)


@pytest.mark.parametrize("room", ROOMS, ids=lambda room: room.stem)
def test_every_query_that_a_room_names_is_in_its_file(room: Path) -> None:
    loaded, used = _queries_of(room)
    for variable, names in used.items():
        assert names <= set(load_queries(loaded[variable])), f"{room.name}: {variable}"


def test_every_query_is_used_by_some_room() -> None:
    used: dict[str, set[str]] = {}
    for room in ROOMS:
        loaded, names = _queries_of(room)
        for variable, file in loaded.items():
            # A room that names none of its queries goes through them all, as the housekeeping does.
            used.setdefault(file, set()).update(names.get(variable) or load_queries(file))
    for file, names_used in used.items():
        assert set(load_queries(file)) == names_used, f"{file}.sql has queries that nobody uses"


def _queries_of(room: Path) -> tuple[dict[str, str], dict[str, set[str]]]:
    """Which variable of a module holds which file, and which names are looked up in it."""
    loaded: dict[str, str] = {}
    used: dict[str, set[str]] = {}
    for node in ast.walk(ast.parse(room.read_text())):
        match node:
            case ast.Assign(
                targets=[ast.Name(id=variable)],
                value=ast.Call(func=ast.Name(id="load_queries"), args=[ast.Constant(value=str(file)), *_]),
            ):
                loaded[variable] = file
            case ast.Subscript(value=ast.Name(id=variable), slice=ast.Constant(value=str(name))):
                used.setdefault(variable, set()).add(name)
            case _:
                pass
    return loaded, {variable: names for variable, names in used.items() if variable in loaded}
