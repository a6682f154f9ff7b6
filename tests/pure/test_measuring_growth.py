"""Growth is told by what each further session costs, and drawn so that it can be read without colours, on white and on black."""

import xml.etree.ElementTree as ET
from itertools import pairwise

import pytest

from scripts.measuring.drawing import LABEL_PIXELS, Line, draw
from scripts.measuring.figures import Drawing, Figure, Measurement
from scripts.measuring.growth import Cost, growth, picture
from scripts.measuring.page import page

SVG = "{http://www.w3.org/2000/svg}"


def test_linear_growth_is_one_whatever_the_server_takes_without_anybody() -> None:
    assert growth([(n, 50 + 3 * n) for n in (10, 100, 1_000, 10_000)]) == pytest.approx(1)


def test_what_grows_faster_is_above_one_and_what_grows_slower_below() -> None:
    assert growth([(n, float(n * n)) for n in (100, 1_000, 10_000)]) > 9
    assert growth([(n, n**0.5) for n in (100, 1_000, 10_000)]) < 0.5


def test_two_points_have_no_growth() -> None:
    with pytest.raises(ValueError, match="two steps"):
        growth([(10, 1.0), (100, 10.0)])


def test_a_drawing_is_whole_names_each_line_and_knows_the_dark() -> None:
    svg = draw(
        "Title & more", "sessions", [Line("one <line>", ((10, 1), (100, 5))), Line("another", ((10, 2), (100, 6)))]
    )
    tree = ET.fromstring(svg)  # noqa: S314 - ours
    assert {"Title & more", "sessions (dotted: linear growth)", "one <line>", "another", "10", "100"} <= {
        text.text for text in tree.iter(f"{SVG}text")
    }
    assert len(list(tree.iter(f"{SVG}path"))) == 2
    assert len(list(tree.iter(f"{SVG}circle"))) == 4
    assert "prefers-color-scheme:dark" in svg


def test_higher_is_above_and_equal_ratios_are_equal_distances() -> None:
    svg = draw("t", "x", [Line("line", ((1, 1), (10, 10), (100, 100)))])
    circles = list(ET.fromstring(svg).iter(f"{SVG}circle"))  # noqa: S314 - ours
    (x0, y0), (x1, y1), (x2, y2) = [(float(c.attrib["cx"]), float(c.attrib["cy"])) for c in circles]
    assert y0 > y1 > y2
    assert x1 - x0 == pytest.approx(x2 - x1, abs=0.2)
    assert y0 - y1 == pytest.approx(y1 - y2, abs=0.2)


def test_names_of_lines_that_end_at_one_place_do_not_lie_on_each_other() -> None:
    svg = draw("t", "x", [Line(name, ((1, 1), (10, 9))) for name in ("one", "two", "three")])
    texts = ET.fromstring(svg).iter(f"{SVG}text")  # noqa: S314 - ours
    places = sorted(float(text.attrib["y"]) for text in texts if text.text in {"one", "two", "three"})
    assert all(below - above >= LABEL_PIXELS for above, below in pairwise(places))


def test_what_is_not_above_zero_is_left_out_and_nothing_at_all_is_no_drawing() -> None:
    svg = draw("t", "x", [Line("line", ((1, 0), (10, 9)))])
    assert svg.count("<circle") == 1
    with pytest.raises(ValueError, match="nothing"):
        draw("t", "x", [Line("line", ((1, 0),))])


def test_the_picture_of_growth_has_a_line_for_each_cost() -> None:
    costs = [
        Cost(sessions=n, idle_ms=n * 0.03, timers_ms=n * 0.01, message_us=70.0, memory_kb=8e4 + n * 40)
        for n in (10, 100)
    ]
    drawn = picture(costs)
    assert drawn.name == "growth"
    assert all(name in drawn.svg for name in ("idle", "timers", "message", "memory"))


def test_a_page_shows_the_drawings_of_a_part_under_its_figures() -> None:
    drawing = Drawing(name="growth", shows="what grows", svg="<svg/>")
    part = Measurement(title="Growth", figures=(Figure(name="a", unit="s", rounds=(1.0,)),), drawings=(drawing,))
    assert "![what grows](images/growth.svg)" in page([part], {})
