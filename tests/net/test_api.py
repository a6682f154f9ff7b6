import json
import re

from halo.routes import API_ROUTES, OPERATOR_ROUTES
from tests.net.desk_fakes import House


async def test_both_applications_answer_exactly_the_routes_of_their_table() -> None:
    house = House()
    for app, routes in ((house.api, API_ROUTES), (house.admin, OPERATOR_ROUTES)):
        served = {
            (method, rule.rule)
            for rule in app.url_map.iter_rules()
            if not rule.endpoint.startswith("status ")  # the operators' pages, which have a table of their own
            for method in (rule.methods or set()) - {"HEAD"}
        }
        assert served == {(route.method, re.sub(r"{(\w+)}", r"<\1>", route.path)) for route in routes}


async def test_the_descriptions_are_open_to_anyone_and_are_what_they_say() -> None:
    house = House()
    openapi = await house.call("GET", "/openapi.json", by=None)
    assert openapi.headers["content-type"] == "application/json"
    assert openapi.json["openapi"].startswith("3.1")
    asyncapi = await house.call("GET", "/asyncapi.json", by=None)
    assert asyncapi.json["asyncapi"].startswith("3.0")


async def test_answers_have_the_fields_that_the_description_promises() -> None:
    house = House()
    document = (await house.call("GET", "/openapi.json", by=None)).json
    answer = await house.call("GET", "/api/chat")
    schema = document["components"]["schemas"]["OwnSessions"]
    assert set(answer.json) == set(schema["properties"])
    assert set(answer.json["sessions"][0]) == set(document["components"]["schemas"]["SessionState"]["properties"])
    assert json.dumps(document)
