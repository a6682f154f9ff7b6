"""Sessions on the status page: the search, what was decided and why, and ending or handing on with a question before."""

from collections.abc import AsyncIterator
from itertools import pairwise

import pytest

from halo.net.status.sessions import BAR_WIDTH, slices
from halo.net.status.wording import unit_of
from halo.oversight import Accounts
from halo.store.lookout import OperatorAction, SessionFilter
from halo.watch import WATCHES
from tests.net.desk_fakes import MITRA, NOON, PAYMENT, SESSION
from tests.net.status_rows import an_id, fill, record
from tests.net.status_site import Site, open_site, told


@pytest.fixture
async def site(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Site]:
    async with open_site(monkeypatch) as opened:
        yield opened


async def test_every_filter_reaches_the_rows_and_stays_in_the_form(site: Site) -> None:
    operator = await site.signed_in()
    path = "/sessions?q=%20AB12-cd%20&status=ended&end_reason=no_mitra&topic=sensitive&within=day"
    page = (await operator.get(path)).text
    wanted = SessionFilter(
        status="ended", end_reason="no_mitra", topic="sensitive", since=NOON - 86_400_000, beginning="ab12-cd"
    )
    assert site.house.inside.lookout.asked == [("sessions", wanted, 50, None), ("things", "ab12-cd", 5)]
    for chosen in ("ended", "no_mitra", "sensitive", "day"):
        assert f'<option value="{chosen}" selected>' in page
    assert 'value="ab12-cd"' in page


async def test_a_decision_is_told_with_its_cause_and_its_evidence_in_words(site: Site) -> None:
    fill(site.house)
    page = told(await (await site.signed_in()).get(f"/sessions/{SESSION}"))
    assert "because nobody answered in time, and the policy approves while the mitra is there" in page
    assert (
        "Evidence: the mitra was online; her last heartbeat was 4.2 s old; which counted as fresh; new: word." in page
    )


async def test_what_the_watchdog_mended_stands_on_the_timeline_with_why_and_on_what_evidence(site: Site) -> None:
    fill(site.house)
    because, details = "m6_refused_means_refunded", {"session_id": SESSION, "refund_id": an_id(7), "was": "confirmed"}
    site.house.inside.lookout.mended = [
        OperatorAction(action_id=9, operator="watchdog", action="add_refund", subject=PAYMENT,
            details={"because": because, **details}, at=NOON + 1_000),
        OperatorAction(action_id=8, operator="watchdog", action="nudge", subject=SESSION, details={}, at=NOON - 60_000),
    ]  # fmt: skip
    page = told(await (await site.signed_in()).get(f"/sessions/{SESSION}"))
    added = f"watchdog : a refund that was missing was written, because of {because.replace('_', ' ')}: {WATCHES[because].sentence}"
    assert added in page
    assert f"Evidence: was: confirmed. 2026-11-24 12:00:01 UTC in 1 s , of {PAYMENT} , refund {an_id(7)}" in page
    nudged = (
        "watchdog : the session's actor was told to look at what is due, because of what it found was not written down"
    )
    assert page.index(added) < page.index("because nobody answered in time") < page.index(nudged)  # the newest first


async def test_time_and_money_are_told_whole(site: Site) -> None:
    fill(site.house)
    answer = await (await site.signed_in()).get(f"/sessions/{SESSION}")
    page = told(answer)
    assert "15 min 00 s paid = 5 min 00 s served + 0 ms refunded + 0 ms forfeited + 10 min 00 s remaining" in page
    assert "IDR 10 000" in page
    assert 'data-until="2026-11-24T12:10:00.000Z" data-now="2026-11-24T12:00:00.000Z"' in answer.text
    assert "2026-11-24 12:10:00 UTC" in page


def test_the_accounts_fill_the_bar_whatever_they_are() -> None:
    drawn = slices(Accounts(paid_ms=7, served_ms=1, refunded_ms=2, forfeited_ms=0, remaining_ms=4))
    assert [name for name, *_ in drawn] == ["served", "refunded", "forfeited", "remaining"]
    assert sum(width for *_, width in drawn) == pytest.approx(BAR_WIDTH, abs=0.05)
    assert all(before[2] + before[3] == pytest.approx(after[2], abs=0.02) for before, after in pairwise(drawn))
    nothing = Accounts(paid_ms=0, served_ms=0, refunded_ms=0, forfeited_ms=0, remaining_ms=0)
    assert {width for *_, width in slices(nothing)} == {0.0}


@pytest.mark.parametrize("paid_ms", [1_500_000, 61_999, 59_950, 999])
def test_the_told_accounts_add_up_to_the_told_whole(paid_ms: int) -> None:
    """Each rounded down by itself, 2 min 00.5 s and 22 min 59.5 s would be a second short of 25 minutes."""
    served_ms = paid_ms // 12 + 1
    accounts = Accounts(
        paid_ms=paid_ms, served_ms=served_ms, refunded_ms=0, forfeited_ms=0, remaining_ms=paid_ms - served_ms
    )
    unit = unit_of(paid_ms)
    told_ms = [length_ms for _, length_ms, *_ in slices(accounts)]
    assert sum(told_ms) == paid_ms - paid_ms % unit
    assert all(length_ms % unit == 0 for length_ms in told_ms)


async def test_ending_is_asked_about_and_then_done_under_the_operators_name(site: Site) -> None:
    fill(site.house)
    operator = await site.signed_in()
    question = told(await operator.get(f"/sessions/{SESSION}/end"))
    assert "This cannot be undone." in question
    assert site.house.sessions.asked == []
    answer = await operator.submit(f"/sessions/{SESSION}/end", f"/sessions/{SESSION}/end")
    assert answer.headers["location"] == f"/sessions/{SESSION}"
    assert site.house.operators.recorded == [("admin", "end_session", SESSION, {"status": "active"})]
    assert [asked[0] for asked in site.house.sessions.asked] == ["end"]
    assert site.house.operators.outcomes == ["done"]
    again = await operator.submit("/", f"/sessions/{SESSION}/end")
    assert (again.status_code, site.house.operators.outcomes) == (409, ["done", "SESSION_NOT_ACTIVE"])


async def test_an_end_whose_outcome_could_not_be_written_down_is_told_as_done(site: Site) -> None:
    operator = await site.signed_in()
    site.house.operators.is_away = True
    assert (await operator.submit("/", f"/sessions/{SESSION}/end")).status_code == 303
    assert site.house.operators.outcomes == ["attempted"]


async def test_what_else_has_the_id_is_listed_beside_the_sessions(site: Site) -> None:
    fill(site.house)
    page = await (await site.signed_in()).get(f"/sessions?q={PAYMENT}")
    assert ("things", PAYMENT, 5) in site.house.inside.lookout.asked
    assert "What else has such an id" in told(page)
    assert f'href="/mitras/{MITRA}"' in page.text


async def test_handing_on_is_asked_about_and_then_done(site: Site) -> None:
    fill(site.house)
    operator = await site.signed_in()
    answer = await operator.submit(f"/sessions/{SESSION}/transfer", f"/sessions/{SESSION}/transfer")
    assert answer.headers["location"] == f"/sessions/{SESSION}"
    assert site.house.sessions.asked == [("transfer", SESSION)]
    again = await operator.submit("/", f"/sessions/{SESSION}/transfer")
    assert again.status_code == 409
    assert site.house.operators.outcomes == ["done", "SESSION_NOT_ACTIVE"]


async def test_a_handing_on_that_nobody_could_take_is_on_the_trail_as_refused(site: Site) -> None:
    site.house.availability.others = ()
    operator = await site.signed_in()
    assert (await operator.submit("/", f"/sessions/{SESSION}/transfer")).status_code == 409
    assert [entry[1] for entry in site.house.operators.recorded] == ["transfer_session"]
    assert site.house.operators.outcomes == ["INVALID_STATE"]


async def test_a_session_that_has_ended_offers_nothing_to_do_and_does_not_tick(site: Site) -> None:
    site.house.operators.sessions[SESSION] = record(
        status="ended", end_reason="completed", deadline_at=None, ended_at="2026-11-24T12:00:00.000Z"
    )
    operator = await site.signed_in()
    page = (await operator.get(f"/sessions/{SESSION}")).text
    for absent in ('id="end"', 'id="transfer"', "data-until", "data-live"):
        assert absent not in page
    for path in ("end", "transfer"):
        assert f'action="/sessions/{SESSION}/{path}"' not in (await operator.get(f"/sessions/{SESSION}/{path}")).text
