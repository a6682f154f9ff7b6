from quart_trio import QuartTrio

from halo.net.call import new_app
from halo.net.http_meter import UNMATCHED, HttpMeter
from tests.net.desk_fakes import speak


def metered() -> tuple[QuartTrio, HttpMeter]:
    app, meter = new_app("halo.net.tests"), HttpMeter()
    meter.install(app, "api")

    async def view(name: str) -> str:
        if name == "boom":
            raise RuntimeError(name)
        return name

    app.add_url_rule("/things/<name>", view_func=view, methods=["GET"], provide_automatic_options=False)
    return app, meter


async def test_calls_are_kept_by_the_template_of_their_route_and_never_by_their_path() -> None:
    app, meter = metered()
    for name in ("one", "two", "three"):
        await speak(app, "GET", f"/things/{name}", None, {})
    assert dict(meter.answers) == {("api", "GET", "/things/{name}", "200"): 3}
    assert meter.seconds["api", "GET", "/things/{name}"].count == 3
    assert meter.seconds["api", "GET", "/things/{name}"].sum > 0


async def test_what_matches_no_route_is_one_line_whatever_was_asked_for() -> None:
    app, meter = metered()
    for method, path in (("GET", "/nowhere"), ("BREW", "/coffee"), ("POST", "/things/one")):
        await speak(app, method, path, None, {})
    assert set(meter.seconds) == {("api", UNMATCHED, UNMATCHED)}
    assert {status for *_, status in meter.answers} == {"404", "405"}
    assert meter.answers.total() == 3


async def test_a_fault_is_an_answer_too(claims_errors: object) -> None:
    app, meter = metered()
    await speak(app, "GET", "/things/boom", None, {})
    assert dict(meter.answers) == {("api", "GET", "/things/{name}", "500"): 1}
