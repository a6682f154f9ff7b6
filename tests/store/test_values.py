from enum import Enum, IntEnum, StrEnum
from uuid import UUID

import psycopg
import pytest
import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from psycopg.types.json import Jsonb

from halo.store.arrays import bigint_array, id_array, moment_array, text_array
from halo.store.dial import dial
from halo.store.values import dump

TEXTS = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]))


class Colour(StrEnum):
    RED = "red"


class Shade(Enum):
    DARK = "dark"


class Size(IntEnum):
    BIG = 3


@pytest.mark.parametrize(
    ("value", "form"),
    [
        ("text", b"text"),
        (12, b"12"),
        (True, b"t"),
        (False, b"f"),
        (1.5, b"1.5"),
        (None, None),
        (b"\x00\xff", b"\\x00ff"),
        (UUID(int=1), b"00000000-0000-0000-0000-000000000001"),
        (Colour.RED, b"red"),
        (Shade.DARK, b"dark"),
        (Size.BIG, b"3"),
        (["a", None, 'q"\\'], b'{"a",NULL,"q\\"\\\\"}'),
        ([[1, 2], [3, 4]], b'{{"1","2"},{"3","4"}}'),
        ((), b"{}"),
        (Jsonb({"a": 1}), b'{"a": 1}'),
    ],
)
def test_each_kind_of_value_has_its_form(value: object, form: bytes | None) -> None:
    assert dump(value) == form  # type: ignore[arg-type]


@pytest.mark.parametrize("text", ["a\0b", ["a", "b\0"]])
def test_nul_is_refused_because_libpq_would_cut_there(text: str | list[str]) -> None:
    with pytest.raises(psycopg.DataError):
        dump(text)


def test_what_has_no_form_is_refused() -> None:
    with pytest.raises(psycopg.ProgrammingError):
        dump({"a": 1})  # type: ignore[arg-type]


def test_an_id_of_another_length_is_refused_before_it_shifts_the_rest() -> None:
    with pytest.raises(ValueError, match="hexadecimal"):
        id_array(["00000000-0000-0000-0000-00000000000011"])


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    texts=st.lists(TEXTS),
    numbers=st.lists(st.integers(-(2**63), 2**63 - 1)),
    ids=st.lists(st.uuids().map(str)),
    moments=st.lists(st.integers(-62_000_000_000_000, 250_000_000_000_000)),
)
def test_text_and_binary_arrays_come_back_as_they_went(
    postgres_url: str, texts: list[str], numbers: list[int], ids: list[str], moments: list[int]
) -> None:
    async def there_and_back() -> None:
        connection = await dial(postgres_url)
        sql = "SELECT %(texts)s::text[] AS texts, %(numbers)s::bigint[] AS numbers, %(ids)s::uuid[] AS ids"
        row = (await connection.run(sql, {"texts": texts, "numbers": numbers, "ids": ids})).rows[0]
        assert (row.texts, row.numbers, row.ids) == (texts, numbers, ids)
        connection.pgconn.send_query_params(
            b"SELECT $1::text[], $2::bigint[], $3::uuid[], $4::timestamptz[]",
            [text_array(texts), bigint_array(numbers), id_array(ids), moment_array(moments)],
            param_formats=[1, 1, 1, 1],
            result_format=1,
        )
        assert tuple(connection._read(None, await connection._answer()).rows[0]) == (texts, numbers, ids, moments)
        connection.close_now()

    trio.run(there_and_back)
