from dataclasses import replace
from fractions import Fraction
from math import ceil

from hypothesis import given
from hypothesis import strategies as st

from halo.accounts import Charge, Share, in_whole_units, refund_amount, spread
from tests.pure.story import a_session

PARTS = st.lists(st.integers(0, 10**10), max_size=6)
UNITS = st.sampled_from([1, 100, 1_000, 60_000])


@given(parts=PARTS, unit=UNITS)
def test_the_parts_as_told_sum_to_the_whole_as_told(parts: list[int], unit: int) -> None:
    assert sum(in_whole_units(parts, unit)) == sum(parts) // unit * unit


@given(parts=PARTS, unit=UNITS)
def test_no_part_is_a_whole_unit_off_and_each_is_told_in_whole_units(parts: list[int], unit: int) -> None:
    told = in_whole_units(parts, unit)
    assert len(told) == len(parts)
    assert all(abs(shown - part) < unit and shown % unit == 0 for shown, part in zip(told, parts, strict=True))


@given(parts=PARTS, unit=UNITS)
def test_what_is_whole_already_is_told_as_it_is(parts: list[int], unit: int) -> None:
    whole = [part * unit for part in parts]
    assert in_whole_units([*whole, 0], unit) == (*whole, 0)


def test_the_second_that_rounding_down_loses_goes_to_the_largest_remainder() -> None:
    assert in_whole_units((120_400, 0, 0, 1_379_600), 1_000) == (120_000, 0, 0, 1_380_000)
    assert in_whole_units((120_500, 0, 0, 1_379_500), 1_000) == (121_000, 0, 0, 1_379_000)


# ---- what was charged on several payments


def charges_of(*amounts: int) -> list[Charge]:
    return [Charge(f"payment-{place}", amount) for place, amount in enumerate(amounts)]


AMOUNTS = st.lists(st.integers(0, 10**9), min_size=1, max_size=8)


@given(amounts=AMOUNTS, share=st.fractions(0, 1), refunded_ms=st.integers(1, 10**10))
def test_time_left_is_laid_upon_the_payments_to_the_last_unit_and_none_bears_more_than_was_charged(
    amounts: list[int], share: Fraction, refunded_ms: int
) -> None:
    charges, amount = charges_of(*amounts), ceil(sum(amounts) * share)
    shares = spread(amount, refunded_ms, charges)
    charged = {charge.payment_request_id: charge.amount for charge in charges}
    assert sum(part.amount for part in shares) == amount
    assert sum(part.refunded_ms for part in shares) == (refunded_ms if amount else 0)
    assert all(0 < part.amount <= charged[part.payment_request_id] and part.refunded_ms >= 0 for part in shares)
    borne = [part.payment_request_id for part in shares]
    assert borne == [id_ for id_ in charged if id_ in borne], "each once, in the order of the charges"
    assert all(part.amount == charged[part.payment_request_id] for part in shares[:-1]), (
        "only the last is borne in part"
    )


@given(amounts=AMOUNTS, paid_ms=st.integers(1, 10**10), share=st.fractions(0, 1))
def test_what_a_session_owes_always_fits_on_its_payments(amounts: list[int], paid_ms: int, share: Fraction) -> None:
    refunded_ms = ceil(paid_ms * share)
    amount = refund_amount(replace(a_session(), paid_amount=sum(amounts), paid_ms=paid_ms, refunded_ms=refunded_ms))
    assert sum(part.amount for part in spread(amount, refunded_ms, charges_of(*amounts))) == amount


def test_the_time_goes_with_the_money() -> None:
    assert spread(8_000, 600_000, charges_of(2_000, 10_000)) == (
        Share("payment-0", 2_000, 150_000),
        Share("payment-1", 6_000, 450_000),
    )


def test_a_payment_of_nothing_or_given_back_already_bears_nothing() -> None:
    assert spread(100, 3, charges_of(0, -5, 30, 0, 90)) == (Share("payment-2", 30, 0), Share("payment-4", 70, 3))
    assert spread(0, 60_000, charges_of(0)) == ()


def test_what_no_charge_bears_is_left_for_an_invariant_to_tell() -> None:
    assert spread(100, 1_000, charges_of(40, 20)) == (Share("payment-0", 40, 400), Share("payment-1", 20, 200))
    assert spread(100, 1_000, ()) == ()
