"""Live configuration: the contract's keys and defaults, all or nothing, and what cannot be read."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from halo.config import KEYS, LiveConfig, RefusalOutcome, TimeoutAction, change, read_stored
from halo.errors import ValidationFailed

CONTRACT: dict[str, Any] = {
    "extension_timeout_seconds": 60,
    "extension_default_action_on_timeout": "auto_approve",
    "extension_refusal": "resume",
    "max_extensions_per_session": 20,
    "closure_grace_seconds": 120,
    "session_timer_interval_seconds": 60,
    "session_warning_seconds": (300, 60),
    "payment_hold_seconds": 120,
    "pairing_offer_seconds": 30,
    "pairing_blast_size": 10,
    "pairing_waves": 3,
    "reroute_after_seconds": 120,
    "reconnect_grace_seconds": 10,
    "price_per_minute": 1000,
    "currency": "IDR",
    "first_session_discount_percent": 50,
    "min_minutes": 1,
    "max_minutes": 240,
}
"""Names and defaults of the specification's fourth page."""


def test_keys_and_defaults_are_those_of_the_contract() -> None:
    assert {key: getattr(LiveConfig(), key) for key in KEYS} == CONTRACT


def test_a_change_raises_the_version_and_leaves_the_rest() -> None:
    changed = change(LiveConfig(version=4), {"extension_refusal": "close", "session_warning_seconds": [30]})
    assert (changed.version, changed.extension_refusal, changed.session_warning_seconds) == (
        5,
        RefusalOutcome.CLOSE,
        (30,),
    )
    assert changed.closure_grace_seconds == 120


BAD: list[tuple[str, Any]] = [
    ("extension_timeout_seconds", 4),
    ("extension_timeout_seconds", 3601),
    ("extension_timeout_seconds", "60"),
    ("extension_timeout_seconds", 60.5),
    ("extension_timeout_seconds", True),
    ("extension_timeout_seconds", None),
    ("extension_default_action_on_timeout", "auto_aprove"),
    ("extension_default_action_on_timeout", ""),
    ("extension_refusal", "RESUME"),
    ("max_extensions_per_session", -1),
    ("closure_grace_seconds", 0),
    ("session_warning_seconds", [0]),
    ("session_warning_seconds", 60),
    ("session_warning_seconds", [60] * 11),
    ("price_per_minute", -1),
    ("price_per_minute", 10**11 + 1),
    ("currency", "idr"),
    ("currency", "IDRX"),
    ("currency", "ZZZ"),
    ("currency", "XXX"),
    ("currency", "XAU"),
    ("session_warning_seconds", [60, 300, 60]),
    ("currency", "IDR\n"),
    ("first_session_discount_percent", 101),
    ("min_minutes", 0),
    ("version", 9),
    ("no_such_key", 1),
]


@pytest.mark.parametrize(("key", "value"), BAD)
def test_a_bad_value_is_refused_by_its_key(key: str, value: Any) -> None:
    with pytest.raises(ValidationFailed) as caught:
        change(LiveConfig(), {key: value})
    assert [error["field"] for error in caught.value.errors] == [key]


def test_all_bad_keys_are_named_at_once_and_no_good_one_is_taken() -> None:
    config = LiveConfig()
    with pytest.raises(ValidationFailed) as caught:
        change(config, {"pairing_waves": 5, "currency": "x", "nope": 1, "min_minutes": 0})
    assert [error["field"] for error in caught.value.errors] == ["currency", "nope", "min_minutes"]
    assert config == LiveConfig()


def test_the_shortest_purchase_may_not_exceed_the_longest() -> None:
    with pytest.raises(ValidationFailed) as caught:
        change(LiveConfig(max_minutes=30), {"min_minutes": 31})
    assert [error["field"] for error in caught.value.errors] == ["min_minutes"]


def test_the_longest_purchase_may_not_be_below_the_shortest() -> None:
    with pytest.raises(ValidationFailed) as caught:
        change(LiveConfig(min_minutes=30), {"max_minutes": 29})
    assert caught.value.errors == ({"field": "max_minutes", "message": "Expected at least 30, the shortest purchase"},)


@pytest.mark.parametrize("key", KEYS)
def test_a_refusal_speaks_to_people_and_of_no_type_or_pattern(key: str) -> None:
    with pytest.raises(ValidationFailed) as caught:
        change(LiveConfig(), {key: {}})
    [error] = caught.value.errors
    assert error["message"].startswith("Expected ")
    assert not set(error["message"]) & set("`$^[]{}")
    assert "None" not in error["message"]


@pytest.mark.parametrize("code", ["IDR", "USD", "EUR", "JPY", "SGD", "XOF", "ZWG"])
def test_a_currency_that_people_pay_with_is_accepted(code: str) -> None:
    assert change(LiveConfig(), {"currency": code}).currency == code


def test_what_was_accepted_once_is_read_though_it_would_be_refused_today() -> None:
    """A release that drops a currency must not turn prices into those of the default."""
    config, unreadable = read_stored({"currency": "BGN", "session_warning_seconds": [60, 60]}, 1)
    assert (config.currency, config.session_warning_seconds, unreadable) == ("BGN", (60, 60), [])


@pytest.mark.parametrize(("key", "value"), [("extension_timeout_seconds", 5), ("extension_timeout_seconds", 3600)])
def test_the_bounds_themselves_are_accepted(key: str, value: int) -> None:
    assert getattr(change(LiveConfig(), {key: value}), key) == value


def test_what_was_stored_is_read_back() -> None:
    stored = {"extension_timeout_seconds": 90, "extension_default_action_on_timeout": "auto_reject", "currency": "EUR"}
    config, unreadable = read_stored(stored, 12)
    assert (config.extension_timeout_seconds, config.currency, config.version) == (90, "EUR", 12)
    assert config.extension_default_action_on_timeout is TimeoutAction.AUTO_REJECT
    assert unreadable == []


@pytest.mark.parametrize("value", ["auto_aprove", None, 1, [], "AUTO_APPROVE"])
def test_a_policy_that_cannot_be_read_never_charges(value: object) -> None:
    config, unreadable = read_stored({"extension_default_action_on_timeout": value}, 1)
    assert config.extension_default_action_on_timeout is TimeoutAction.AUTO_REJECT
    assert unreadable == ["extension_default_action_on_timeout"]


def test_any_other_value_that_cannot_be_read_falls_back_to_its_default_and_is_named() -> None:
    config, unreadable = read_stored({"pairing_waves": "three", "gone_key": 1, "min_minutes": 2}, 3)
    assert (config.pairing_waves, config.min_minutes) == (3, 2)
    assert unreadable == ["pairing_waves", "gone_key"]


@given(
    st.dictionaries(
        st.sampled_from([*KEYS, "nope"]), st.none() | st.integers() | st.text(max_size=5) | st.lists(st.integers())
    )
)
def test_reading_never_fails_and_what_may_be_written_can_be_read(values: dict[str, Any]) -> None:
    config, unreadable = read_stored(values, 1)
    assert set(unreadable) <= set(values)
    try:
        written = change(LiveConfig(), values)
    except ValidationFailed:
        return
    assert {key: getattr(config, key) for key in values} == {key: getattr(written, key) for key in values}
