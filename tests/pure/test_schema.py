import json
import re
from collections.abc import Iterator
from http import HTTPStatus
from typing import Any, get_args

import jsonschema
import pytest

from halo import protocol
from halo.config import KEYS, LiveConfig
from halo.resources import Problem
from halo.routes import API_ROUTES, OPERATOR_ROUTES, Route, Who, refusals_of
from halo.schema import asyncapi, openapi

API = openapi(API_ROUTES, "apps")
ADMIN = openapi(OPERATOR_ROUTES, "operators")
SOCKETS = asyncapi()

SPECIFIED_API = """
POST /api/auth/sessions · POST /api/auth/refresh · DELETE /api/auth/sessions/current
POST /api/mitra/status/online · POST /api/mitra/status/offline · POST /api/mitra/status/heartbeat · GET /api/mitra/status
GET /api/customer/beacon · POST /api/payments · GET /api/payments/{} · POST /api/payments/webhook
POST /api/sandbox/payments/{}/confirm · POST /api/pairings · GET /api/pairings/{} · DELETE /api/pairings/{}
GET /api/offers · POST /api/offers/{}/accept · POST /api/offers/{}/decline · GET /api/chat · GET /api/chat/{}/info
GET /api/chat/{}/messages · POST /api/chat/{}/extensions · POST /api/chat/{}/extensions/{}/respond
DELETE /api/chat/{}/extensions/{} · POST /api/chat/{}/end · GET /openapi.json · GET /asyncapi.json · GET /docs
"""
SPECIFIED_ADMIN = """
GET /api/overview · GET /api/config · PATCH /api/config · GET /api/mitras · POST /api/mitras/{}/deactivate
POST /api/mitras/{}/activate · GET /api/sessions · GET /api/sessions/{} · POST /api/sessions/{}/end
POST /api/sessions/{}/transfer · GET /api/pairing-failures · GET /api/refunds · GET /healthz · GET /readyz · GET /metrics
"""


def walk(node: Any) -> Iterator[tuple[str, Any]]:
    """Every key with its value, however deep."""
    if isinstance(node, dict):
        for key, value in node.items():
            yield key, value
            yield from walk(value)
    elif isinstance(node, list):
        for value in node:
            yield from walk(value)


def calls(routes: tuple[Route, ...]) -> set[str]:
    return {f"{route.method} {re.sub(r'{.*?}', '{}', route.path)}" for route in routes}


def listed(text: str) -> set[str]:
    return {call.strip() for line in text.strip().splitlines() for call in line.split("·")}


def resolve(document: Any, pointer: str) -> Any:
    for part in pointer.removeprefix("#/").split("/"):
        document = document[part.replace("~1", "/").replace("~0", "~")]
    return document


@pytest.mark.parametrize(
    ("routes", "specified"), [(API_ROUTES, SPECIFIED_API), (OPERATOR_ROUTES, SPECIFIED_ADMIN)], ids=["api", "admin"]
)
def test_the_table_holds_exactly_the_calls_of_the_specification(routes: tuple[Route, ...], specified: str) -> None:
    assert calls(routes) == listed(specified)


@pytest.mark.parametrize("document", [API, ADMIN, SOCKETS], ids=["api", "admin", "sockets"])
def test_every_reference_leads_somewhere_inside_the_document(document: Any) -> None:
    references = [value for key, value in walk(document) if key == "$ref"]
    assert references
    for reference in references:
        assert resolve(document, reference) is not None


@pytest.mark.parametrize("document", [API, ADMIN, SOCKETS], ids=["api", "admin", "sockets"])
def test_every_schema_is_json_schema_2020_12_and_the_document_is_json(document: Any) -> None:
    for schema in document["components"]["schemas"].values():
        jsonschema.Draft202012Validator.check_schema(schema)
    assert json.loads(json.dumps(document)) == document


@pytest.mark.parametrize("routes", [API_ROUTES, OPERATOR_ROUTES], ids=["api", "admin"])
def test_operation_ids_are_unique(routes: tuple[Route, ...]) -> None:
    assert len({route.name for route in routes}) == len(routes)


def test_every_call_lists_every_code_that_it_may_answer_with() -> None:
    for route in API_ROUTES:
        answers = API["paths"][route.path][route.method.lower()]["responses"]
        for refusal in refusals_of(route):
            content = answers[str(refusal.status)]["content"]["application/problem+json"]
            assert refusal.code in content["schema"]["allOf"][1]["properties"]["code"]["enum"]


def test_the_asking_table_is_told_in_full() -> None:
    answers = API["paths"]["/api/chat/{session_id}/extensions"]["post"]["responses"]
    told = {
        (status, code)
        for status, answer in answers.items()
        for code in re.findall("`([A-Z_]+)`", answer["description"])
    }
    assert {
        ("409", "SESSION_NOT_ACTIVE"), ("422", "VALIDATION_ERROR"), ("404", "NOT_FOUND"), ("403", "FORBIDDEN"),
        ("409", "INVALID_STATE"), ("400", "FIRST_SESSION_DISCOUNT_NOT_ALLOWED"), ("409", "PAYMENT_MISMATCH"),
        ("409", "PAYMENT_IN_USE"), ("409", "EXTENSION_LIMIT"),
    } <= told  # fmt: skip


def test_every_creating_post_takes_an_idempotency_key_and_nothing_else_does() -> None:
    keyed = {
        route.name
        for route in API_ROUTES
        for parameter in API["paths"][route.path][route.method.lower()].get("parameters", [])
        if parameter["name"] == "Idempotency-Key"
    }
    assert keyed == {"open_auth_session", "request_payment", "start_pairing", "accept_offer", "request_extension"}


def test_signing_in_may_say_that_the_id_is_somebody_elses_and_every_call_of_a_mitra_that_she_is_deactivated() -> None:
    def codes(route: Route, status: str) -> list[str]:
        answer = API["paths"][route.path][route.method.lower()]["responses"].get(status)
        if answer is None:
            return []
        found: list[str] = answer["content"]["application/problem+json"]["schema"]["allOf"][1]["properties"]["code"][
            "enum"
        ]
        return found

    [sign_in] = [route for route in API_ROUTES if route.name == "open_auth_session"]
    assert "INVALID_STATE" in codes(sign_in, "409")
    for route in API_ROUTES:
        if route.who in {Who.MITRA, Who.USER}:
            assert "MITRA_DEACTIVATED" in codes(route, "403"), route.name


def test_only_descriptions_refreshing_and_health_are_open_to_anyone() -> None:
    open_to_all = {route.name for route in API_ROUTES + OPERATOR_ROUTES if route.who is Who.ANYONE}
    assert open_to_all == {
        "refresh_tokens", "openapi_document", "asyncapi_document", "docs_page", "healthz", "readyz", "metrics",
    }  # fmt: skip


def test_a_change_of_configuration_may_name_each_key_and_must_name_none() -> None:
    schema = ADMIN["components"]["schemas"]["ConfigChange"]
    assert (
        list(schema["properties"]) == list(KEYS) == [name for name in LiveConfig.__struct_fields__ if name != "version"]
    )
    assert not schema.get("required")
    assert not any("default" in described for described in schema["properties"].values())


@pytest.mark.parametrize(
    ("channel", "incoming", "outgoing"),
    [
        ("chat", protocol.ChatFrame, protocol.ChatServerFrame),
        ("lobby", protocol.LobbyFrame, protocol.LobbyServerFrame),
    ],
)
def test_each_socket_describes_exactly_the_frames_that_decode_and_that_are_sent(
    channel: str, incoming: Any, outgoing: Any
) -> None:
    for action, union in (("take", incoming), ("tell", outgoing)):
        keys = [
            message["$ref"].rpartition("/")[2] for message in SOCKETS["operations"][f"{action}_{channel}"]["messages"]
        ]
        names = [SOCKETS["components"]["messages"][key]["name"] for key in keys]
        assert names == [frame.__struct_config__.tag for frame in get_args(union)]


def test_a_frame_of_ours_fits_its_own_description() -> None:
    frame = protocol.SessionPaused(
        session_id="0" * 8 + "-0000-0000-0000-" + "0" * 12,
        reason="extension_pending",
        extension_id="0" * 8 + "-0000-0000-0000-" + "0" * 12,
        deadline_at="2026-11-24T12:00:00.000Z",
    )
    schema = SOCKETS["components"]["schemas"]["SessionPaused"]
    jsonschema.validate(json.loads(protocol.encode(frame)), schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({"type": "session_paused"}, schema)


def test_every_status_of_the_table_has_a_phrase_and_every_problem_its_shape() -> None:
    for document in (API, ADMIN):
        for path in document["paths"].values():
            for operation in path.values():
                for status, answer in operation["responses"].items():
                    assert HTTPStatus(int(status)).phrase
                    assert ("application/problem+json" in answer.get("content", {})) == (int(status) >= 400)
    assert Problem.__name__ in API["components"]["schemas"]
