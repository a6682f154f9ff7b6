"""The form of the live configuration: what is sent on, what is refused and where that is said, and two who change at once."""

import re
from collections.abc import AsyncIterator, Mapping
from html import unescape

import httpx
import pytest

from halo import config
from halo.config import KEYS
from halo.net.status.configuration import told as as_typed
from tests.net.status_site import Browser, Site, open_site, told

PATH = "/configuration"


@pytest.fixture
async def site(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Site]:
    async with open_site(monkeypatch) as opened:
        yield opened


def form_of(page: httpx.Response) -> dict[str, str]:
    """What a browser would send if nobody touched anything."""
    text = page.text.partition('id="settings"')[2]
    inputs = dict(re.findall(r'<input[^>]* name="([^"]+)"[^>]* value="([^"]*)"', text))
    chosen = re.findall(r'<select[^>]* name="([^"]+)".*?<option value="([^"]+)" selected>', text, re.DOTALL)
    return {name: unescape(value) for name, value in {**inputs, **dict(chosen)}.items()}


async def change(browser: Browser, entered: Mapping[str, str], page: httpx.Response | None = None) -> httpx.Response:
    shown = form_of(page or await browser.get(PATH))
    return await browser.post(PATH, shown | dict(entered))


async def test_every_key_is_a_field_with_its_meaning_bounds_and_default(site: Site) -> None:
    page = await (await site.signed_in()).get(PATH)
    fields = form_of(page)
    assert {name for name in fields if not name.startswith("was-")} == {*KEYS, "version", "csrf_token"}
    assert "how long a mitra may think about an extension, in seconds (5 to 3 600)" in told(page)
    for key in KEYS:
        assert fields[key] == fields[f"was-{key}"] == as_typed(getattr(config.LiveConfig(), key))


async def test_only_what_was_changed_is_sent_on_each_in_its_type(site: Site) -> None:
    operator = await site.signed_in()
    entered = {
        "price_per_minute": " 250 ",
        "session_warning_seconds": "600, 300 60",
        "extension_refusal": "close",
        "currency": "EUR",
    }
    answer = await change(operator, entered)
    assert answer.headers["location"] == PATH
    stored = site.house.live_config.stored
    assert (stored.price_per_minute, stored.session_warning_seconds, stored.currency) == (250, (600, 300, 60), "EUR")
    assert (stored.extension_refusal.value, stored.version) == ("close", 1)
    assert site.house.live_config.current == stored
    assert site.house.live_config.changed_by == "admin"
    page = await operator.get(answer.headers["location"])
    assert "it applies at the next decision" in told(page)
    assert form_of(page)["session_warning_seconds"] == "600, 300, 60"


@pytest.mark.parametrize(
    ("key", "text", "sentence"),
    [
        ("price_per_minute", "free", "Expected a whole number"),
        ("price_per_minute", "1.5", "Expected a whole number"),
        ("price_per_minute", "-1", "Expected a whole number from 0 to 100000000000"),
        ("price_per_minute", "9" * 25, "Expected a whole number from 0 to 100000000000"),
        ("price_per_minute", "", "Expected a whole number"),
        ("extension_timeout_seconds", "4", "Expected a whole number from 5 to 3600"),
        ("extension_default_action_on_timeout", "charge", "Expected auto_approve or auto_reject"),
        ("currency", "rp1", "Expected the three capital letters of a currency that ISO 4217 lists, such as IDR"),
        ("session_warning_seconds", "60, soon", "Expected at most 10 whole numbers"),
        ("session_warning_seconds", "0", "Expected at most 10 whole numbers from 1 to 86400, none of them twice"),
        ("session_warning_seconds", "60, 300, 60", "none of them twice"),
        ("min_minutes", "999", "Expected at most 240, the longest purchase"),
        ("currency", "<b>", "a currency that ISO 4217 lists"),
        ("currency", "XXX", "a currency that ISO 4217 lists"),
    ],
)
async def test_what_is_not_acceptable_is_said_beside_its_field_and_changes_nothing(
    site: Site, key: str, text: str, sentence: str
) -> None:
    operator = await site.signed_in()
    answer = await change(operator, {key: text, "pairing_waves": "5"})
    assert answer.status_code == 422
    page = unescape(answer.text)
    assert sentence in page.partition(f'id="{key}-wrong">')[2].partition("</p>")[0]
    assert form_of(answer)["pairing_waves"] == "5"  # what was right is not lost
    assert site.house.live_config.stored == config.LiveConfig()
    assert "<b>" not in answer.text


async def test_every_bad_key_is_named_at_once(site: Site) -> None:
    answer = await change(await site.signed_in(), {"price_per_minute": "x", "max_minutes": "0", "currency": "e"})
    assert answer.text.count('class="wrong"') == answer.text.count('aria-invalid="true"') == 3


async def test_a_form_that_changes_nothing_says_so(site: Site) -> None:
    answer = await change(await site.signed_in(), {})
    assert answer.status_code == 422
    assert "Nothing was changed: every value is as it was." in told(answer)
    assert site.house.live_config.changed_by is None


async def test_who_changes_what_somebody_else_has_changed_meanwhile_is_asked_to_look_again(site: Site) -> None:
    first, second = await site.signed_in("ani"), await site.signed_in("budi")
    old = await second.get(PATH)
    await change(first, {"price_per_minute": "250"})
    answer = await change(second, {"pairing_waves": "5"}, old)
    assert answer.status_code == 409
    assert "Somebody has changed" in told(answer) or "What you entered is kept" in told(answer)
    assert site.house.live_config.stored.pairing_waves == 3
    kept = form_of(answer)
    assert (kept["pairing_waves"], kept["was-pairing_waves"], kept["price_per_minute"]) == ("5", "3", "250")
    answer = await change(second, {}, answer)
    assert answer.status_code == 303
    stored = site.house.live_config.stored
    assert (stored.pairing_waves, stored.price_per_minute, stored.version) == (5, 250, 2)


async def test_a_version_that_is_none_is_no_form_of_halos(site: Site) -> None:
    answer = await change(await site.signed_in(), {"pairing_waves": "5", "version": "latest"})
    assert answer.status_code == 422
    assert site.house.live_config.changed_by is None


POLICY = "extension_default_action_on_timeout"


async def test_a_stored_value_that_cannot_be_read_is_said_and_never_shown_as_if_somebody_had_chosen_it(
    site: Site,
) -> None:
    operator = await site.signed_in()
    assert 'id="unreadable"' not in (await operator.get(PATH)).text
    site.house.live_config.unreadable = [POLICY, "colour_of_the_moon"]
    page = await operator.get(PATH)
    assert page.status_code == 200
    assert "cannot be read: nobody chose what stands in for it" in told(page)
    assert "This version of halo knows no colour_of_the_moon" in told(page)
    assert page.text.count("What is stored cannot be read;") == 1


async def test_saving_replaces_what_cannot_be_read_also_by_the_value_that_stood_in_for_it(site: Site) -> None:
    """Nothing was touched: for every other key that is no change, and a row that is bad would stay for ever."""
    operator = await site.signed_in()
    site.house.live_config.unreadable = [POLICY]
    site.house.live_config.apply(
        config.LiveConfig(extension_default_action_on_timeout=config.TimeoutAction.AUTO_REJECT)
    )
    answer = await change(operator, {})
    assert answer.status_code == 303
    assert site.house.live_config.unreadable == []
    assert site.house.live_config.stored.extension_default_action_on_timeout is config.TimeoutAction.AUTO_REJECT
    assert "cannot be read" not in told(await operator.get(PATH))
    assert (await change(operator, {})).status_code == 422
