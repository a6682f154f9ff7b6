import logging
import re

import pytest
from quart_trio import QuartTrio

from halo.errors import RateLimited, StoreUnavailable, Unauthenticated, ValidationFailed
from halo.net.call import new_app
from halo.net.problem import problem_of
from tests.net.desk_fakes import Told, speak


def app_that_raises(error: BaseException) -> QuartTrio:
    app = new_app("halo.net.tests")

    async def view() -> str:
        raise error

    app.add_url_rule("/boom", endpoint="boom", view_func=view, methods=["POST"], provide_automatic_options=False)
    return app


async def told(error: BaseException) -> Told:
    return await speak(app_that_raises(error), "POST", "/boom", None, {})


async def test_a_refusal_tells_its_code_status_sentence_path_and_each_bad_field() -> None:
    errors = [{"field": "price", "message": "Expected `int`, got `str`"}]
    answer = await told(ValidationFailed("No.", errors=errors))
    assert answer.json == {
        "type": "about:blank",
        "title": answer.json["title"],  # 422 was renamed between Python 3.11 and 3.13
        "status": 422,
        "detail": "No.",
        "instance": "/boom",
        "code": "VALIDATION_ERROR",
        "retryable": False,
        "errors": errors,
        "trace_id": answer.json["trace_id"],
    }
    assert re.fullmatch("[0-9a-f]{32}", answer.json["trace_id"])
    assert (answer.status, answer.headers["content-type"]) == (422, "application/problem+json")


async def test_a_limit_says_when_to_come_back_in_whole_seconds_that_are_never_too_few() -> None:
    answer = await told(RateLimited(retry_after_ms=1_001))
    assert (answer.status, answer.code, answer.headers["retry-after"]) == (429, "RATE_LIMITED", "2")
    assert answer.json["retry_after_ms"] == 1_001


async def test_a_store_that_is_away_is_retryable_and_says_when() -> None:
    answer = await told(StoreUnavailable())
    assert (answer.status, answer.json["retryable"], answer.headers["retry-after"]) == (503, True, "1")


async def test_a_missing_token_names_the_scheme() -> None:
    assert (await told(Unauthenticated())).headers["www-authenticate"] == "Bearer"


async def test_a_fault_of_ours_is_logged_once_without_its_text_and_answered_without_any(
    claims_errors: list[logging.LogRecord],
) -> None:
    answer = await told(RuntimeError("the token was eyJhbGciOi"))
    assert (answer.status, answer.code, answer.json["retryable"]) == (500, "INTERNAL", False)
    assert b"eyJhbGciOi" not in answer.raw
    [record] = claims_errors
    assert "RuntimeError" in record.getMessage()
    assert "eyJhbGciOi" not in record.getMessage()


async def test_a_refusal_that_comes_out_of_a_nursery_is_still_told() -> None:
    answer = await told(ExceptionGroup("several", [StoreUnavailable()]))
    assert (answer.status, answer.code) == (503, "STORE_UNAVAILABLE")


async def test_an_unknown_path_and_a_wrong_method_are_problems_too() -> None:
    app = app_that_raises(RuntimeError())
    nowhere = await speak(app, "GET", "/nowhere", None, {})
    assert (nowhere.status, nowhere.code, nowhere.json["instance"]) == (404, "NOT_FOUND", "/nowhere")
    wrong = await speak(app, "GET", "/boom", None, {})
    assert (wrong.status, wrong.code, wrong.headers["allow"]) == (405, "METHOD_NOT_ALLOWED", "POST")


async def test_no_answer_is_kept_by_a_cache_or_guessed_at_by_a_browser() -> None:
    for answer in (await told(StoreUnavailable()), await speak(new_app("t"), "GET", "/", None, {})):
        assert answer.headers["cache-control"] == "no-store"
        assert answer.headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize("code", [400, 401, 403, 404, 409, 413, 415, 422, 429, 500, 503])
def test_every_status_of_a_refusal_has_a_title(code: int) -> None:
    refusal = Unauthenticated()
    refusal.status = code
    assert problem_of(refusal, None).title
