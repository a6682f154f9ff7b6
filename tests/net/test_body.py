import json
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from werkzeug.datastructures import Headers

from halo.errors import NotFound, ValidationFailed
from halo.net.body import check_media_type, decode_body, decode_object, decode_places, decode_query
from halo.resources import AskExtension, BodyMalformed, MediaTypeRefused, OpenAuthSession, RequestPayment
from halo.routes import API_ROUTES, OPERATOR_ROUTES


def fields(raw: bytes, kind: Any = RequestPayment) -> dict[str, str]:
    """The fields that are named as wrong, with what is said of each."""
    with pytest.raises(ValidationFailed) as refused:
        decode_body(kind, raw)
    return {error["field"]: error["message"] for error in refused.value.errors}


def test_every_bad_field_is_named_at_once_missing_wrong_and_unknown() -> None:
    assert fields(b'{"is_extension":"yes","session_id":7,"colour":"red"}') == {
        "duration_minutes": "This field is required",
        "is_extension": "Expected `bool`, got `str`",
        "session_id": "Expected `uuid | null`, got `int`",
        "colour": "halo knows no such field",
    }


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"{",
        b"{'a': 1}",
        b'{"duration_minutes":NaN}',
        b'{"duration_minutes":Infinity}',
        b'\xef\xbb\xbf{"duration_minutes":5}',
        b'{"duration_minutes":5} {}',
        b'{"colour":"\\ud800"}',
        b'{"colour":"\xff"}',
        b'{"colour":"\xed\xa0\x80"}',
        b'{"colour":"\x00"}',
        b'{"colour":' + b"[" * 60_000,
        b'{"colour":' + b'{"a":' * 12_000,
    ],
    ids=[
        "empty", "cut", "quotes", "nan", "infinity", "bom", "two", "surrogate", "not-utf8", "surrogate-utf8", "raw-nul",
        "deep-arrays", "deep-objects",
    ],
)  # fmt: skip
def test_what_is_not_json_is_malformed(raw: bytes) -> None:
    with pytest.raises(BodyMalformed) as refused:
        decode_body(RequestPayment, raw)
    assert (refused.value.code, refused.value.status) == ("MALFORMED", 400)


def test_nesting_too_deep_is_said_to_be_that() -> None:
    with pytest.raises(BodyMalformed, match="nested too deep"):
        decode_object(b"[" * 60_000)


def test_u0000_is_refused_by_the_field_that_holds_it() -> None:
    body = b'{"user_type":"customer","display_name":"a\\u0000b","push_token":"\\\\u0000 is only text"}'
    assert list(fields(body, OpenAuthSession)) == ["display_name"]


@pytest.mark.parametrize("raw", [b"[]", b"null", b'"text"', b"5"])
def test_a_body_that_is_no_object_is_refused(raw: bytes) -> None:
    assert fields(raw) == {}


def test_absurd_names_are_told_back_short_and_not_for_ever() -> None:
    named = fields(json.dumps({"x" * 5000 + str(n): n for n in range(100)}).encode())
    assert len(named) <= 32
    assert max(map(len, named)) <= 64


def test_a_whole_number_must_be_written_as_one() -> None:
    assert "duration_minutes" in fields(b'{"duration_minutes":5.0}')
    assert "duration_minutes" in fields(b'{"duration_minutes":"5"}')
    assert "duration_minutes" in fields(b'{"duration_minutes":1e3}')


def test_huge_numbers_are_left_to_the_rules_that_know_what_is_sane() -> None:
    body: AskExtension = decode_body(AskExtension, b'{"price":' + b"9" * 40 + b"}")
    assert body.price == int("9" * 40)


@given(st.binary(max_size=200))
def test_no_bytes_whatever_raise_anything_but_a_refusal(raw: bytes) -> None:
    for kind in (RequestPayment, OpenAuthSession):
        with suppress(BodyMalformed, ValidationFailed):
            decode_body(kind, raw)


@pytest.mark.parametrize(
    "content_type", ["application/json", "Application/JSON; charset=UTF-8", 'application/json;charset="utf-8"']
)
def test_json_in_utf8_is_taken(content_type: str) -> None:
    check_media_type(Headers({"content-type": content_type}))


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"content-type": "text/plain"},
        {"content-type": "application/x-www-form-urlencoded"},
        {"content-type": "application/json; charset=latin-1"},
        {"content-type": "application/json", "content-encoding": "gzip"},
    ],
)
def test_anything_else_is_an_unsupported_media_type(headers: dict[str, str]) -> None:
    with pytest.raises(MediaTypeRefused):
        check_media_type(Headers(headers))


MESSAGES = next(route for route in API_ROUTES if route.name == "messages")
SESSIONS = next(route for route in OPERATOR_ROUTES if route.name == "sessions")


def test_query_parameters_have_defaults_and_unknown_ones_are_passed_over() -> None:
    assert decode_query(MESSAGES, {"colour": "red"}) == {"after_seq": 0, "limit": 100}
    assert decode_query(MESSAGES, {"after_seq": "17", "limit": "500"}) == {"after_seq": 17, "limit": 500}


@pytest.mark.parametrize("text", ["-1", "1.0", "", " 1", "x", "٣", "9" * 17, "+1", "1_0"])
def test_a_number_in_a_query_is_plain_digits(text: str) -> None:
    with pytest.raises(ValidationFailed) as refused:
        decode_query(MESSAGES, {"after_seq": text, "limit": "0"})
    assert [error["field"] for error in refused.value.errors] == ["after_seq", "limit"]


def test_a_filter_is_one_of_its_values_and_a_cursor_an_id() -> None:
    assert decode_query(SESSIONS, {"status": "living"})["status"] == "living"
    with pytest.raises(ValidationFailed) as refused:
        decode_query(SESSIONS, {"status": "dead", "cursor": "'; DROP TABLE"})
    assert [error["field"] for error in refused.value.errors] == ["status", "cursor"]


def test_an_id_in_a_path_is_a_uuid_in_any_case_and_nothing_else_is_found() -> None:
    given_id = "6B29FC40-CA47-1067-B31D-00DD010662DA"
    assert decode_places({"session_id": given_id}) == {"session_id": given_id.lower()}
    for text in ("1", given_id + "0", given_id.replace("-", ""), "..", given_id[:-1] + "\n"):
        with pytest.raises(NotFound):
            decode_places({"session_id": text})


@pytest.mark.parametrize(
    ("raw", "named"),
    [
        (b'{"price_per_minute": 1, "price_per_minute": 2}', ["price_per_minute"]),
        (b'{"a": 1, "b": 2, "\\u0061": 1, "b": 2, "a": 3}', ["a", "b"]),
        (b'{"' + b"x" * 500 + b'": 1, "' + b"x" * 500 + b'": 1}', ["x" * 64]),
    ],
)
def test_an_object_that_says_a_thing_twice_is_refused_naming_it_once(raw: bytes, named: list[str]) -> None:
    """Or the last one would win in silence, whichever was meant."""
    with pytest.raises(ValidationFailed) as refused:
        decode_object(raw)
    assert [error["field"] for error in refused.value.errors] == named


def test_an_object_that_says_each_thing_once_is_decoded_as_it_is() -> None:
    raw = b'{"a": [{"b": 1}, {"b": 2}], "b": {"a": 1e3}, "c": ' + b"9" * 18 + b"}"
    found = decode_object(raw)
    assert (found["a"], found["b"]) == ([{"b": 1}, {"b": 2}], {"a": 1000.0})
