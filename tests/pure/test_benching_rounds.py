import pytest

from scripts.benching.book import Run
from scripts.benching.cells import CELLS
from scripts.benching.rounds import OWN, Order, cells_of, named, noise, plan, remaining, sentence
from scripts.measuring.figures import Figure, Measurement


def test_targets_follow_one_another_from_another_beginning_in_each_round() -> None:
    places = plan(Order(cells=("closed50", "memory"), rounds=3, seconds=1.0), with_rig=True)
    assert [(place.round, place.target) for place in places] == [
        *((0, target) for target in ("node", "asyncio", "halo", "halo")),
        *((1, target) for target in ("asyncio", "halo", "node", "halo")),
        *((2, target) for target in ("halo", "node", "asyncio", "halo")),
    ]


def test_without_a_rig_halo_runs_alone_and_beside_the_bare_ceiling() -> None:
    places = plan(Order(cells=tuple(CELLS), rounds=1, seconds=1.0), with_rig=False)
    assert [(place.cell.name, place.target) for place in places] == [
        ("ceiling", "echo"),
        ("ceiling", "relay"),
        ("ceiling", "halo"),
        ("memory", "halo"),
        ("timers", "halo"),
        ("reconnect", "halo"),
    ]


def test_a_failed_run_is_worse_than_any_noise() -> None:
    assert noise({"failed": "no"}) > noise({"others_cores": 64.0}) > noise({"others_cores": 0.1}) > noise({})


def test_what_a_part_does_not_measure_is_a_fault_of_ours_and_not_an_empty_place() -> None:
    whole = Measurement(
        title="", figures=tuple(Figure(name=name, unit="s", rounds=(1.0, 3.0)) for name in OWN["reconnect"])
    )
    assert set(named("reconnect", whole).values()) == {2.0}
    with pytest.raises(KeyError):
        named("reconnect", Measurement(title="", figures=whole.figures[1:]))


def test_names_of_cells_are_taken_with_spaces_and_a_strange_one_is_told() -> None:
    assert cells_of("closed50, timers,") == ("closed50", "timers")
    with pytest.raises(KeyError, match="closed51"):
        cells_of("closed50,closed51")


def test_progress_tells_the_figure_the_noise_and_how_long_it_will_take() -> None:
    result = {"acks_per_second": 7000.0, "server_cpu_us": 84.2, "others_cores": 0.1}
    told = sentence(Run(round=1, cell="closed50", target="node", result=result, attempts=1, at=""), 5)
    assert told == "round 2 of 5 · closed50 · node · 7,000/s · server 84 µs · others 0.10 · clean"
    assert remaining(120.0, 2, 6) == " · 2 of 6 runs, about 4 min to go"
