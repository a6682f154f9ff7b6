"""What minutes cost: the server prices, and rounds in the customer's favour."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from halo.config import LiveConfig
from halo.errors import DiscountNotForExtensions, ValidationFailed
from halo.extension import PRICE_SANE
from halo.payment import price


def cost(config: LiveConfig, minutes: int, *, is_extension: bool = False, discount: bool = False) -> int:
    return price(config, minutes, is_extension=is_extension, is_first_session_discount=discount)


def test_minutes_cost_their_price_for_sessions_and_extensions_alike() -> None:
    config = LiveConfig(price_per_minute=1_000)
    assert cost(config, 10) == 10_000
    assert cost(config, 10, is_extension=True) == 10_000


def test_the_first_session_discount_is_a_percentage_off() -> None:
    assert cost(LiveConfig(price_per_minute=1_000, first_session_discount_percent=30), 10, discount=True) == 7_000


@pytest.mark.parametrize(("percent", "amount"), [(0, 99), (50, 49), (99, 0), (100, 0)])
def test_a_discount_rounds_in_the_customers_favour(percent: int, amount: int) -> None:
    config = LiveConfig(price_per_minute=33, first_session_discount_percent=percent)
    assert cost(config, 3, discount=True) == amount


@pytest.mark.parametrize("minutes", [0, 4, 61, -5])
def test_minutes_outside_the_bounds_are_refused_naming_them(minutes: int) -> None:
    with pytest.raises(ValidationFailed) as caught:
        cost(LiveConfig(min_minutes=5, max_minutes=60), minutes)
    assert caught.value.errors == ({"field": "duration_minutes", "message": "Expected 5 to 60"},)


def test_the_bounds_themselves_can_be_bought() -> None:
    config = LiveConfig(min_minutes=5, max_minutes=60, price_per_minute=1)
    assert (cost(config, 5), cost(config, 60)) == (5, 60)


def test_an_extension_is_never_a_first_session() -> None:
    with pytest.raises(DiscountNotForExtensions):
        cost(LiveConfig(), 10, is_extension=True, discount=True)


@given(
    minutes=st.integers(1, 1440),
    per_minute=st.integers(0, 10**11),
    percent=st.integers(0, 100),
)
def test_a_discount_never_costs_more_and_never_goes_below_nothing(minutes: int, per_minute: int, percent: int) -> None:
    config = LiveConfig(price_per_minute=per_minute, first_session_discount_percent=percent, max_minutes=1440)
    assert 0 <= cost(config, minutes, discount=True) <= cost(config, minutes)


def test_the_dearest_purchase_that_can_be_configured_can_be_asked_for_as_an_extension() -> None:
    assert cost(LiveConfig(price_per_minute=10**11, max_minutes=1440), 1440) in PRICE_SANE
