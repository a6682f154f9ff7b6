import json
from typing import Any
from uuid import UUID

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from halo import errors, resources
from halo.errors import Refusal
from halo.resources import AskExtension, OpenAuthSession, PaymentWebhook, Problem, RequestPayment, StartPairing

BODIES = [kind for kind in vars(resources).values() if isinstance(kind, type) and issubclass(kind, resources.Body)]
ID = "6B29FC40-CA47-1067-B31D-00DD010662DA"


def decoded(kind: Any, body: object) -> Any:
    return msgspec.json.decode(json.dumps(body), type=kind)


def test_a_misspelt_field_of_a_payment_is_refused_by_name_instead_of_selling_something_else() -> None:
    with pytest.raises(msgspec.ValidationError, match="is_extention"):
        decoded(RequestPayment, {"duration_minutes": 5, "is_extention": True})


@pytest.mark.parametrize("kind", BODIES, ids=lambda kind: kind.__name__)
def test_every_body_of_ours_refuses_fields_that_it_does_not_know(kind: type[msgspec.Struct]) -> None:
    assert kind.__struct_config__.forbid_unknown_fields


def test_the_webhook_passes_over_fields_that_the_provider_adds() -> None:
    report = {"type": "payment.failed", "payment_request_id": ID, "provider_ref": "r", "amount": 0, "currency": "IDR"}
    assert decoded(PaymentWebhook, report | {"fee": 12}).amount == 0


def test_ids_are_taken_in_upper_case_and_given_on_in_lower_case() -> None:
    assert str(decoded(StartPairing, {"payment_request_id": ID}).payment_request_id) == ID.lower()


def test_nothing_is_required_to_ask_for_an_extension_so_that_the_session_is_judged_first() -> None:
    assert decoded(AskExtension, {}) == AskExtension()


@pytest.mark.parametrize(
    "body",
    [
        {"user_type": "admin"},
        {"user_type": "customer", "user_id": "me"},
        {"user_type": "customer", "display_name": "x" * 201},
        {"user_type": "mitra", "push_token": "x" * 4097},
        {"user_type": "mitra", "user_id": 1},
    ],
)
def test_whoever_signs_in_has_a_known_type_an_id_that_is_one_and_a_name_of_bounded_length(body: object) -> None:
    with pytest.raises(msgspec.ValidationError):
        decoded(OpenAuthSession, body)


@given(st.text(max_size=200), st.uuids())
def test_a_body_survives_its_own_encoding(name: str, user_id: UUID) -> None:
    body = OpenAuthSession(user_type="customer", user_id=user_id, display_name=name)
    assert msgspec.json.decode(msgspec.json.encode(body), type=OpenAuthSession) == body


def test_a_problem_says_its_errors_even_when_there_are_none_and_a_wait_only_when_there_is_one() -> None:
    document = Problem(type="about:blank", title="t", status=400, detail="d", instance=None, code="C", retryable=False)
    assert json.loads(msgspec.json.encode(document))["errors"] == []
    assert "retry_after_ms" not in json.loads(msgspec.json.encode(document))


def test_the_refusals_that_only_http_knows_have_codes_of_their_own() -> None:
    def codes(room: object) -> set[str]:
        return {kind.code for kind in vars(room).values() if isinstance(kind, type) and issubclass(kind, Refusal)}

    only_http = {"METHOD_NOT_ALLOWED", "BODY_TOO_LARGE", "UNSUPPORTED_MEDIA_TYPE"}
    assert only_http == codes(resources) - codes(errors)
