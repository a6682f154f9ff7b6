import trio
from prometheus_client.exposition import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from halo.metrics import Figure, Figures, new_registry
from halo.net.metrics_page import write_page


async def test_the_page_is_what_the_library_would_write_at_once() -> None:
    figures = [Figure(f"number_{number}", "A number.", lambda number=number: number) for number in range(3)]  # type: ignore[misc]
    registry = new_registry(Figures(figures))
    page = await write_page(registry)

    def own(text: bytes) -> list[str]:
        return [line for line in text.decode().splitlines() if "halo_" in line]

    assert own(page) == own(generate_latest(registry))
    assert len(list(text_string_to_metric_families(page.decode()))) >= 3


async def test_others_have_their_turn_between_families() -> None:
    turns: list[str] = []

    def read() -> float:
        turns.append("read")
        return 1.0

    async def other() -> None:
        while True:
            turns.append("other")
            await trio.lowlevel.checkpoint()

    registry = new_registry(Figures([Figure(f"number_{number}", "A number.", read) for number in range(20)]))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(other)
        await write_page(registry)
        nursery.cancel_scope.cancel()
    told = [len(reads) for reads in "".join(turn[0] for turn in turns).split("o")]
    assert sum(told) == 20
    assert max(told) <= 2  # Trio throws dice about the order of those who are ready, and each is ready once a round
