from scripts.measuring import messages


async def test_a_second_of_talk_ends_with_as_many_rows_as_acks_and_gives_every_figure() -> None:
    said: list[str] = []
    measured = await messages.measure(said.append, rounds=1, seconds=1.0)
    figures = {figure.name: figure.median for figure in measured.figures}
    assert figures["messages acknowledged"] > 100
    assert figures["CPU of the server a message"] > 0
    assert figures["CPU of Postgres a message"] > 0
    assert figures["rows in one commit"] >= 1
    assert len(said) == 1
