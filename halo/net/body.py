"""What a request brings, decoded: its JSON body, its query string, the ids in its path.

Bodies decode in one pass straight into their struct; only one that fails is read a second time, field by field, so that the answer
names everything that is wrong with it at once. Never raises anything but a `Refusal`, whatever the bytes. Read next:
`halo/resources.py`, `halo/net/call.py`.
"""

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any, Final, TypeAlias, get_type_hints
from uuid import UUID

import msgspec
from werkzeug.datastructures import Headers

from halo.errors import NotFound, ValidationFailed
from halo.resources import BodyMalformed, MediaTypeRefused
from halo.routes import Query, Route

QueryValues: TypeAlias = Mapping[str, Any]

ERRORS_MAX: Final = 32
"""More mistakes than our largest body has fields are not worth listing."""
NAME_CHARACTERS_MAX: Final = 64
"""How much of a field's name is told back, when the name is the client's own."""

_MEDIA_TYPE: Final = re.compile(r'application/json\s*(;\s*charset\s*=\s*"?utf-8"?\s*)?', re.IGNORECASE)
_WHOLE: Final = re.compile(r"[0-9]{1,16}", re.ASCII)
_UUID: Final = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}", re.ASCII)
_NUL_ESCAPE: Final = b"\\u0000"
"""JSON text can carry U+0000 only as this escape."""


def check_media_type(headers: Headers) -> None:
    """The body claims to be plain JSON in UTF-8.

    Raises:
        MediaTypeRefused
    """
    coding = headers.get("content-encoding", "identity").strip().lower()
    if not _MEDIA_TYPE.fullmatch(headers.get("content-type", "").strip()) or coding not in {"", "identity"}:
        raise MediaTypeRefused


def decode_body(kind: Any, raw: bytes) -> Any:
    """The body as a `kind`, a msgspec struct.

    Raises:
        BodyMalformed: it is not JSON, not UTF-8, or nested too deep.
        ValidationFailed: with one entry in `errors` for each field that is missing, unknown or wrong.
    """
    try:
        body = _decoder(kind).decode(raw)
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        raise _explain(kind, raw, error) from None
    if _NUL_ESCAPE in raw:  # Postgres text has no U+0000
        named = [name for name in kind.__struct_fields__ if "\0" in str(getattr(body, name))]
        if named:
            raise _invalid(dict.fromkeys(named, "The character U+0000 is not accepted"))
    return body


def decode_object(raw: bytes) -> dict[str, Any]:
    """The body as a JSON object of anything, for those who check it key by key; one that says a thing twice leaves open which is meant.

    Raises:
        BodyMalformed, ValidationFailed
    """
    try:
        found = msgspec.json.decode(raw)
        twice = _said_twice(raw) if isinstance(found, dict) else {}
    except RecursionError:
        raise BodyMalformed("The body is nested too deep.") from None
    except UnicodeError:
        raise BodyMalformed("The body is not UTF-8.") from None
    except msgspec.MsgspecError as error:
        raise BodyMalformed(f"The body is not JSON that halo takes: {error}.") from None
    if not isinstance(found, dict):
        raise ValidationFailed("The body must be a JSON object.")
    if twice:
        raise _invalid(twice)
    return found


def decode_query(route: Route, given: Mapping[str, str]) -> QueryValues:
    """The parameters that the route knows, with defaults; others are passed over.

    Raises:
        ValidationFailed: naming each bad one.
    """
    values: dict[str, Any] = {}
    wrong: dict[str, str] = {}
    for query in route.query:
        text = given.get(query.name)
        if text is None:
            values[query.name] = query.default
        elif (sentence := _wrong_with(query, text)) is not None:
            wrong[query.name] = sentence
        else:
            values[query.name] = text if query.range is None else int(text)
    if wrong:
        raise _invalid(wrong)
    return values


def decode_places(given: Mapping[str, str]) -> dict[str, str]:
    """The ids in a path, in lower case. What is no UUID names nothing.

    Raises:
        NotFound
    """
    if not all(map(_UUID.fullmatch, given.values())):
        raise NotFound
    return {name: text.lower() for name, text in given.items()}


def _said_twice(raw: bytes) -> dict[str, str]:
    """Names that the outermost object has more than once. msgspec keeps the last of them and says nothing."""
    outermost: list[tuple[str, Any]] = []

    def seen(pairs: list[tuple[str, Any]]) -> None:
        outermost[:] = pairs  # objects are done from the inside out, so the last one is the outermost

    # Numbers stay text: Python refuses to read those of thousands of digits.
    json.loads(raw, object_pairs_hook=seen, parse_int=str, parse_float=str)
    counted = Counter(name for name, _ in outermost)
    return {name: "This field is given more than once" for name, times in counted.items() if times > 1}


def _wrong_with(query: Query, text: str) -> str | None:
    if query.range is not None:
        lowest, highest = query.range
        good = _WHOLE.fullmatch(text) is not None and lowest <= int(text) <= highest
        return None if good else f"Expected a whole number from {lowest} to {highest}"
    if query.values:
        return None if text in query.values else f"Expected one of {', '.join(query.values)}"
    return None if _UUID.fullmatch(text) else "Expected a UUID"


def _explain(kind: Any, raw: bytes, error: Exception) -> BodyMalformed | ValidationFailed:
    try:
        found = decode_object(raw)
    except (BodyMalformed, ValidationFailed) as refusal:
        return refusal
    hints = _hints(kind)
    wrong: dict[str, str] = {}
    for field in msgspec.structs.fields(kind):
        if field.encode_name in found:
            try:
                msgspec.convert(found[field.encode_name], hints[field.name], strict=True)
            except msgspec.ValidationError as refused:
                wrong[field.encode_name] = str(refused)
        elif field.required:
            wrong[field.encode_name] = "This field is required"
    if kind.__struct_config__.forbid_unknown_fields:
        known = {field.encode_name for field in msgspec.structs.fields(kind)}
        wrong |= {name: "halo knows no such field" for name in found if name not in known}
    return _invalid(wrong) if wrong else ValidationFailed(f"{error}.")


def _invalid(wrong: Mapping[str, str]) -> ValidationFailed:
    errors: Iterable[tuple[str, str]] = list(wrong.items())[:ERRORS_MAX]
    return ValidationFailed(
        errors=[{"field": name[:NAME_CHARACTERS_MAX], "message": sentence} for name, sentence in errors]
    )


@lru_cache(maxsize=64)  # one for each kind of body, of which there are a dozen
def _decoder(kind: Any) -> msgspec.json.Decoder[Any]:
    return msgspec.json.Decoder(kind, strict=True)


@lru_cache(maxsize=64)
def _hints(kind: Any) -> dict[str, Any]:
    return get_type_hints(kind, include_extras=True)


def uuid_or_none(value: UUID | None) -> str | None:
    """An optional id as the string that the rest of halo uses."""
    return None if value is None else str(value)
