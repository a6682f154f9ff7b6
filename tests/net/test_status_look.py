"""What a browser is given to look at: enough contrast in both palettes, nothing from elsewhere, templates and filters that hold."""

import re
from importlib import resources

import pytest

from halo.net.status import wording
from halo.net.status.rendering import PACKAGE, Renderer, load_assets

CSS = load_assets()["status.css"].content.decode()
PALETTES = {
    "light": dict(re.findall(r"--([a-z0-9-]+): (#[0-9a-f]{6});", CSS.partition("@media")[0])),
    "dark": dict(re.findall(r"--([a-z0-9-]+): (#[0-9a-f]{6});", CSS.partition("@media")[2])),
}
TEXTS = [
    *((text, ground) for text in ("text", "faint", "link", "good", "bad", "warn") for ground in ("ground", "raised")),
    ("good", "good-ground"),
    ("bad", "bad-ground"),
    ("warn", "warn-ground"),
    ("on-accent", "accent"),
    ("on-danger", "danger"),
]
EDGES = [
    ("edge", "ground"),
    ("accent", "ground"),
    ("accent", "raised"),
    *((f"series-{n}", "ground") for n in range(1, 5)),
]


def luminance(colour: str) -> float:
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: str, other: str) -> float:
    darker, lighter = sorted([luminance(one), luminance(other)])
    return (lighter + 0.05) / (darker + 0.05)


@pytest.mark.parametrize("palette", PALETTES)
@pytest.mark.parametrize(("pairs", "least"), [(TEXTS, 4.5), (EDGES, 3.0)], ids=["texts", "edges"])
def test_the_contrast_is_aa_in_both_palettes(palette: str, pairs: list[tuple[str, str]], least: float) -> None:
    colours = PALETTES[palette]
    weak = {pair: round(contrast(*(colours[name] for name in pair)), 2) for pair in pairs}
    assert {pair: ratio for pair, ratio in weak.items() if ratio < least} == {}


def test_both_palettes_name_the_same_colours() -> None:
    assert PALETTES["light"].keys() == PALETTES["dark"].keys()


def templates() -> list[str]:
    root = resources.files(PACKAGE) / "templates"
    found, waiting = [], [("", root)]
    while waiting:
        prefix, directory = waiting.pop()
        for entry in directory.iterdir():
            if entry.is_dir():
                waiting.append((f"{prefix}{entry.name}/", entry))
            else:
                found.append(prefix + entry.name)
    return sorted(found)


@pytest.mark.parametrize("name", templates())
def test_a_template_compiles_escapes_everything_and_names_nothing_of_elsewhere(name: str) -> None:
    renderer = Renderer()
    renderer._environment.get_template(name)
    source = (resources.files(PACKAGE) / "templates").joinpath(name).read_text(encoding="utf-8")
    assert not re.search(r"\|\s*safe|autoescape|Markup", source)
    assert not re.search(r"(src|href|action)=[\"']?(https?:)?//", source)
    assert not re.search(r"\sstyle=|\son[a-z]+=|<style", source)
    for tag in re.findall(r"<script[^>]*>", source):
        assert ' src="/static/' in tag
    for form in re.findall(r'<form[^>]*method="post".*?</form>', source, re.DOTALL):
        assert "csrf_token" in form or "hidden_token" in form


def test_no_template_is_left_to_be_compiled_while_sessions_run() -> None:
    compiled = Renderer()._environment.cache
    assert compiled is not None
    assert sorted(name for _, name in compiled) == templates()


@pytest.mark.parametrize("name", sorted(load_assets()))
def test_an_asset_names_nothing_of_elsewhere(name: str) -> None:
    text = load_assets()[name].content.decode()
    assert set(re.findall(r"https?://[^\s\"'<>)]+", text)) <= {"http://www.w3.org/2000/svg"}
    assert not re.search(r"\beval\(|new Function|innerHTML\s*=|@import|url\(", text)


@pytest.mark.parametrize(
    ("filtered", "shown"),
    [
        (wording.moment("2026-11-23T20:15:00.123Z"), "2026-11-23 20:15:00 UTC"),
        (wording.clock_time("2026-11-23T20:15:00.123Z"), "20:15:00"),
        (wording.duration(180), "180 ms"),
        (wording.duration(12_340), "12.3 s"),
        (wording.duration(245_000), "4 min 05 s"),
        (wording.duration(3_723_000), "1 h 02 min 03 s"),
        (wording.duration(-1_500), "−1.5 s"),
        (wording.money(10_000, "IDR"), "IDR 10\u202f000"),
        (wording.count(1_234_567), "1\u202f234\u202f567"),
        (wording.short_id("6f1d3b52-7d3c-4c4e-9a55-0d6a1f1f1b11"), "6f1d3b52"),
        (wording.words("pending_payment"), "pending payment"),
    ],
)
def test_values_are_told_to_people(filtered: str, shown: str) -> None:
    assert filtered == shown


def test_what_is_not_there_is_a_dash() -> None:
    nothing = (wording.moment, wording.clock_time, wording.duration, wording.count, wording.short_id, wording.words)
    assert {tell(None) for tell in nothing} == {"–"}
