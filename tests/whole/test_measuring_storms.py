"""The measures of storms measure what they say, in small: everybody comes back, and no deadline is forgotten."""

from scripts.measuring import reconnect, timers


async def test_everybody_who_was_there_at_the_kill_is_back_with_a_message_acknowledged() -> None:
    said: list[str] = []
    measured = await reconnect.measure(said.append, rounds=1, sockets=8)
    figures = {figure.name: figure.median for figure in measured.figures}
    welcomed, resumed = figures["ready to the last welcome"], figures["ready to the last socket resumed"]
    assert welcomed > 0
    assert figures["ready to half of the sockets resumed"] <= resumed
    assert said[0].startswith("reconnect: round 1 of 1: 8 sockets back")


async def test_every_session_ends_twice_nobody_early_and_who_listens_hears_of_it() -> None:
    said: list[str] = []
    measured = await timers.measure(said.append, sessions=12, sockets=4, lead_seconds=10.0, span_seconds=1.0)
    figures = {figure.name: figure.median for figure in measured.figures}
    assert figures["early"] == 0
    assert 0 <= figures["late, median"] <= figures["late, 99 of 100 deadlines"] <= figures["late, the worst"]
    assert figures["heard of at a socket, median"] >= 0
    assert measured.notes[0].startswith("24 deadlines")
    assert len(said) == 2
