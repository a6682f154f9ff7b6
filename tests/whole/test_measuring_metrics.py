"""The measure of metrics measures what it says, in small: its switch works, and every figure is there."""

import os

from scripts.measuring import metrics


async def test_rounds_with_and_without_alternate_and_a_scrape_is_watched() -> None:
    said: list[str] = []
    mask = os.umask(0o077)
    os.umask(mask)
    try:
        measured = await metrics.measure(said.append, rounds=2, seconds=0.5, sessions=20)
    finally:
        os.umask(mask)  # a server narrows that of its process
    rounds = {figure.name: figure.rounds for figure in measured.figures}
    ratios = rounds["CPU of the server a message, with metrics to without"]
    with_ = rounds["CPU of the server a message, with metrics"]
    without = rounds["CPU of the server a message, without"]
    assert ratios == tuple(a / b for a, b in zip(with_, without, strict=True))
    assert all(0 < took < 1000 for took in rounds["all that is observed of a message, by itself"])
    assert len(rounds["longest pause during a scrape"]) == len(rounds["time of a scrape"]) == metrics.SCRAPES
    assert len(said) == 3
