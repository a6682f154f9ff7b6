"""What a running server shows to Prometheus, whether it keeps Prometheus' conventions, and whether the dashboard asks for nothing else."""

import re
from collections.abc import Iterator

import httpx
import pytest
import trio
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

from halo.dashboard import ROWS, dashboard
from tests.whole.house import House, open_house, refusal_of

UNITS = ("seconds", "bytes", "items", "rows", "info")
TYPES = {"counter", "gauge", "histogram"}
LABELS = {
    "cause", "code", "fault", "for", "invariant", "kind", "le", "listener", "method", "of", "outcome", "repair", "route", "status", "sweep",
    "timer", "version",
}  # fmt: skip
"""A label's values must come from a closed set; whoever adds one here has made sure."""


async def scrape(house: House) -> str:
    async with httpx.AsyncClient(trust_env=False) as client:
        answer = await client.get(house.ready["admin"] + "/metrics")
    answer.raise_for_status()
    assert answer.headers["content-type"].startswith("text/plain; version=")
    return answer.text


async def live(house: House) -> str:
    """A session from its payment to its end, with what is refused on the way; its id."""
    customer, mitra, session_id = await house.open_pair()
    async with house.chat(session_id, customer) as asking, house.chat(session_id, mitra) as answering:
        await asking.expect("welcome")
        await answering.expect("welcome")
        await asking.send("message", id="one", body="Selamat malam")
        await asking.expect("ack")
        await asking.send("read", id="two", seq=999)
        await asking.expect("refused")
        payment = await house.pay_extension(customer)
        asked = await house.ask_extension(customer, session_id, payment)
        respond = f"/api/chat/{session_id}/extensions/{asked['extension_id']}/respond"
        await house.call(mitra, "POST", respond, {"accepted": True})
        await asking.send("end_session", id="three")
        await answering.expect("session_ended")
        with trio.fail_after(10):
            while house.own.parts.connections:
                await trio.sleep(0.005)
    await refusal_of(house.call(customer, "GET", "/api/nowhere/at/all"))
    return session_id


def families(page: str) -> dict[str, Metric]:
    return {family.name: family for family in text_string_to_metric_families(page)}


def series_of(family: Metric) -> Iterator[tuple[tuple[tuple[str, str], ...], list[float]]]:
    """The buckets of each series of a histogram, in the order shown."""
    found: dict[tuple[tuple[str, str], ...], list[float]] = {}
    for sample in family.samples:
        if sample.name.endswith("_bucket"):
            key = tuple(sorted((name, value) for name, value in sample.labels.items() if name != "le"))
            found.setdefault(key, []).append(sample.value)
    yield from found.items()


async def test_all_that_is_shown_parses_and_keeps_the_conventions_and_nothing_names_a_session_or_a_person(
    database_url: str, valkey_url: str
) -> None:
    async with open_house(database_url, valkey_url) as house:
        session_id = await live(house)
        page = await scrape(house)
    assert session_id not in page
    shown = families(page)
    assert len(shown) > 60
    for name, family in shown.items():
        assert family.documentation.endswith((".", "(due: to be tried again).")) or name.startswith("process_"), name
        assert family.type in TYPES, name
        if name.startswith("process_"):
            continue
        assert re.fullmatch(r"halo(_[a-z0-9]+)+", name), name
        assert not name.endswith(("_ms", "_milliseconds", "_count", "_sum", "_bucket", "_minutes")), name
        if family.type == "counter":
            assert all(sample.name == f"{name}_total" for sample in family.samples), name
        if family.type == "histogram":
            assert name.endswith(UNITS), name
            for _, buckets in series_of(family):
                assert buckets == sorted(buckets), name
        assert {label for sample in family.samples for label in sample.labels} <= LABELS, name
    counts = {
        (sample.name, *sorted(sample.labels.values())): sample.value
        for family in shown.values()
        for sample in family.samples
    }
    for expected in (
        ("halo_ack_latency_seconds_count",),
        ("halo_journal_commit_rows_count",),
        ("halo_journal_commit_duration_seconds_count",),
        ("halo_mailbox_taken_items_count",),
        ("halo_step_commit_duration_seconds_count",),
        ("halo_pairing_time_to_match_seconds_count",),
        ("halo_valkey_round_trip_duration_seconds_count",),
        ("halo_event_loop_lag_seconds_count",),
        ("halo_pairings_total", "matched"),
        ("halo_frames_refused_total", "VALIDATION_ERROR"),
        ("halo_sockets_closed_total", "1000"),
        ("halo_http_responses_total", "202", "POST", "/api/pairings", "api"),
        ("halo_http_responses_total", "404", "api", "unmatched", "unmatched"),
    ):
        assert counts[(expected[0], *sorted(expected[1:]))] >= 1, expected


async def test_the_dashboard_asks_for_what_is_shown_and_shows_all_that_can_be_asked(
    database_url: str, valkey_url: str
) -> None:
    async with open_house(database_url, valkey_url) as house:
        page = await scrape(house)
    shown = {
        f"{name}_total" if family.type == "counter" else name: family.type for name, family in families(page).items()
    }
    asked = set()
    for expression in expressions():
        for name in re.findall(r"\b(?:halo|process)_[a-z0-9_]+", expression):
            base = re.sub(r"_(bucket|sum|count)$", "", name)
            asked.add(base if shown.get(base) == "histogram" else name)
    assert asked - set(shown) == set()
    assert {name for name in shown if name.startswith("halo_")} - asked == set()


def expressions() -> list[str]:
    return [query.expression for row in ROWS for panel in row.panels for query in panel.queries]


@pytest.mark.parametrize("expression", expressions())
def test_every_expression_of_the_dashboard_is_about_the_chosen_nodes_and_closes_what_it_opens(expression: str) -> None:
    assert len(re.findall(r"\b(?:halo|process)_[a-z0-9_]+", expression)) == expression.count('instance=~"$instance"')
    for opened, closed in ("()", "{}", "[]"):
        assert expression.count(opened) == expression.count(closed)


def test_no_two_panels_of_the_dashboard_lie_on_one_another_and_all_ask_the_chosen_data_source() -> None:
    panels = dashboard()["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        assert max(x for x, _ in cells) < 24
        taken |= cells
        if panel["type"] != "row":
            assert {target["datasource"]["uid"] for target in panel["targets"]} == {"${datasource}"}
