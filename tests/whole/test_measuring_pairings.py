"""The measures of pairing measure what they say, in small: everybody is told, and the line is a line."""

import pytest

from scripts.measuring import fairness, pairings
from scripts.measuring.__main__ import find_fault
from scripts.measuring.fairness import jain
from scripts.measuring.pairings import Heard, PairingLost


async def test_every_pairing_is_timed_on_both_sides_over_both_ways() -> None:
    said: list[str] = []
    measured = await pairings.measure(said.append, pairings=4, rounds=1)
    assert len(said) == 2
    assert len(measured.figures) == 8
    assert all(figure.median > 0 for figure in measured.figures)


def test_a_pairing_of_which_somebody_has_not_heard_is_no_figure() -> None:
    heard = Heard(yes={"p": 1.0})
    with pytest.raises(PairingLost):
        heard.times_ms()
    heard.by_customer["p"] = 1.5, "s"
    with pytest.raises(PairingLost):
        heard.times_ms()
    heard.by_mitra["s"] = 1.25
    assert heard.times_ms() == {"customer": [500.0], "mitra": [250.0]}


def test_a_fault_of_the_server_is_found_inside_of_nurseries_and_an_error_of_ours_is_not_one() -> None:
    lost = PairingLost("not told")
    assert find_fault(lost) is lost
    assert find_fault(ExceptionGroup("outer", [ExceptionGroup("inner", [lost])])) is lost
    assert find_fault(ExceptionGroup("outer", [lost, KeyError("ours")])) is None


async def test_a_line_gives_everybody_a_turn_before_anybody_gets_two() -> None:
    """Fewer searches than mitras: who has had a session stands behind those who have had none."""
    measured = await fairness.measure(lambda _: None, mitras=40, searches=30)
    told = {figure.name: figure.median for figure in measured.figures}
    assert told["longest idle: sessions of the mitra with the most"] == 1
    assert told["longest idle: Jain's index of the sessions"] == pytest.approx(30 / 40)
    assert told["chance: Jain's index of the sessions"] <= told["longest idle: Jain's index of the sessions"]


@pytest.mark.parametrize(("shares", "index"), [([3, 3, 3], 1.0), ([4, 0, 0, 0], 0.25), ([1, 0], 0.5)])
def test_the_index_of_jain_is_one_for_even_shares_and_one_in_n_when_one_has_all(
    shares: list[float], index: float
) -> None:
    assert jain(shares) == pytest.approx(index)


def test_nothing_cannot_be_shared() -> None:
    with pytest.raises(ValueError, match="nothing"):
        jain([0, 0])
