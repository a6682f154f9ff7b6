"""The table of currencies: well formed, and without what nobody pays with."""

import re

import pytest

from halo.config import LiveConfig
from halo.currencies import ACTIVE


def test_every_code_is_three_capital_letters_and_the_default_is_one() -> None:
    assert all(re.fullmatch("[A-Z]{3}", code) for code in ACTIVE)
    assert LiveConfig().currency in ACTIVE


@pytest.mark.parametrize(
    "code", ["XXX", "XTS", "XAU", "XDR", "CHE", "CLF", "UYW", "USN", "BOV", "BGN", "ANG", "ZWL", "HRK"]
)
def test_what_nobody_pays_with_or_pays_with_no_more_is_none(code: str) -> None:
    assert code not in ACTIVE
