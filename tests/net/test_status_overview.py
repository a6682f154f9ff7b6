"""The overview: what it shows, what it says is wrong, and what it costs the stores."""

from collections.abc import AsyncIterator
from typing import Any

import pytest
import trio

from halo.net.status.overview import KEPT_SECONDS
from halo.sweep import SweepReport
from halo.watch import Alarm
from tests.net.desk_fakes import NOON, PAYMENT
from tests.net.status_rows import fill
from tests.net.status_site import Site, open_site, told


@pytest.fixture
async def site(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Site]:
    async with open_site(monkeypatch) as opened:
        yield opened


async def test_online_and_available_stand_beside_the_reasons_why_they_differ(site: Site) -> None:
    fill(site.house)
    page = told(await (await site.signed_in()).get("/"))
    for words in ("online 9", "available 7", "online, but full 2", "online, but silent 3", "offline 4"):
        assert words in page


async def test_an_alarm_stands_on_top_with_what_to_do_and_the_first_of_its_subjects(site: Site) -> None:
    fill(site.house, text="Look at Valkey.")
    page = told(await (await site.signed_in()).get("/"))
    assert "1 alarm actors run (1, since just now ): Look at Valkey." in page
    assert "and 2 more" in page
    assert page.index("1 alarm") < page.index("living")


async def test_what_an_alarm_names_by_its_id_can_be_followed(site: Site) -> None:
    subjects = (PAYMENT, "valkey")
    site.house.alarms = [Alarm(name="m6", sentence="Look.", since=NOON, violations=2, subjects=subjects)]
    page = (await (await site.signed_in()).get("/")).text
    assert f'href="/sessions?q={PAYMENT}"' in page
    assert 'q=valkey"' not in page


async def test_the_watchdogs_last_round_is_told_with_its_alarms_and_that_it_is_late(site: Site) -> None:
    operator, watch = await site.signed_in(), site.house.inside.watch
    page = await operator.get("/")
    assert "watchdog no round yet no alarms" in told(page)
    watch.last_round_at = NOON - 42_000
    page = await operator.get("/")
    assert "watchdog last round 42 s ago no alarms" in told(page)
    assert '<div class="warn"><dt>watchdog' not in page.text
    watch.last_round_at = NOON - 181_000
    assert '<div class="warn"><dt>watchdog' in (await operator.get("/")).text


async def test_an_alarm_is_counted_beside_the_watchdog_and_leads_to_it(site: Site) -> None:
    fill(site.house)
    page = await (await site.signed_in()).get("/")
    assert '<div class="bad"><dt><a href="#alarms">watchdog</a>' in page.text
    assert "no round yet 1 alarm " in told(page)


async def test_a_sweep_that_never_ran_took_no_time(site: Site) -> None:
    site.house.sweeps = [SweepReport(name="reseed", interval_seconds=300)]
    assert "reseed every 300 s – – – 0 0 –" in told(await (await site.signed_in()).get("/"))


async def test_without_valkey_the_page_says_that_it_is_degraded_and_who_answers(site: Site) -> None:
    operator = await site.signed_in()
    assert "Degraded" not in told(await operator.get("/"))
    site.house.mirror.trusted = False
    await trio.sleep(KEPT_SECONDS)
    page = told(await operator.get("/"))
    assert "Degraded: Valkey is not believed" in page
    assert "Valkey degraded" in page


async def test_a_sweep_tells_its_rows_its_error_and_what_it_waits_for(site: Site) -> None:
    fill(site.house, text="Valkey did not answer")
    page = told(await (await site.signed_in()).get("/"))
    assert "auto offline every 30 s just now 0 ms 0 2 0 waits the mirror has only just come back" in page
    assert "reseed every 300 s just now 0 ms 3 2 1 error Valkey did not answer" in page


async def test_searches_that_failed_and_what_waits_in_the_outbox_are_counted(site: Site) -> None:
    fill(site.house, text="timed_out")
    page = told(await (await site.signed_in()).get("/"))
    assert "timed out 6" in page
    assert "push due 4, the oldest due 6 min ago" in page


async def test_the_figures_of_the_node_are_those_of_the_last_ten_seconds(site: Site) -> None:
    operator = await site.signed_in()
    assert "the first figures come ten seconds after the start" in told(await operator.get("/"))
    fill(site.house)
    page = told(await operator.get("/"))
    assert "messages 2.5 per s" in page
    assert "event-loop lag 40.0 ms" in page
    assert "Postgres away" in page
    assert "Event loop late by at most, ms, over the last hour. Now 40; least 3, greatest 40." in page


async def test_the_last_hour_is_a_table_too(site: Site) -> None:
    fill(site.house)
    page = told(await (await site.signed_in()).get("/last-hour"))
    assert "11:55:00 10 2.5 4 0.80 40 7" in page


async def test_many_who_look_at_once_ask_the_stores_once(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    operator = await site.signed_in()
    asked: list[int] = []
    load = site.house.operators.load_overview

    async def counted(*args: Any, **more: Any) -> Any:
        asked.append(1)
        return await load(*args, **more)

    monkeypatch.setattr(site.house.operators, "load_overview", counted)
    async with trio.open_nursery() as nursery:
        for _ in range(10):
            nursery.start_soon(operator.get, "/")
    assert len(asked) == len(site.house.inside.lookout.asked) == 1
    assert site.house.clock.moment == NOON
