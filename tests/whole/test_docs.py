"""What is generated is regenerated, what people wrote is left alone."""

import json
from pathlib import Path

import pytest

from halo.config import KEYS
from halo.docs import BLOCKS, main
from halo.settings import SETTINGS

BY_HAND = "# halo\n\nWritten by people.\n\n"


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    blocks = "".join(
        f"## {name}\n\n<!-- generated: {name} -->\nold\n<!-- /generated -->\n\nMore.\n\n" for name in BLOCKS
    )
    (tmp_path / "README.md").write_text(BY_HAND + blocks, "utf-8")
    return tmp_path


def test_a_check_names_what_is_out_of_date_and_writes_nothing(
    repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (repository / "README.md").read_text("utf-8")
    assert main(["--check"], repository) == 1
    said = capsys.readouterr().out.splitlines()
    files = ("README.md", "docs/openapi.json", "docs/asyncapi.json", "docs/grafana-dashboard.json")
    assert said == [f"{file}: out of date" for file in files]
    assert (repository / "README.md").read_text("utf-8") == before
    assert not (repository / "docs").exists()


def test_once_written_everything_is_up_to_date(repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([], repository) == 0
    capsys.readouterr()
    assert main(["--check"], repository) == 0
    assert main([], repository) == 0
    assert capsys.readouterr().out == ""


def test_only_the_blocks_are_rewritten(repository: Path) -> None:
    main([], repository)
    readme = (repository / "README.md").read_text("utf-8")
    assert readme.startswith(BY_HAND)
    assert readme.count("\nMore.\n") == len(BLOCKS)
    assert "\nold\n" not in readme
    assert all(f"`{row.name}`" in readme for row in SETTINGS)
    assert all(f"`{key}`" in readme for key in KEYS)


def test_one_stale_file_is_named_alone(repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main([], repository)
    (repository / "docs" / "asyncapi.json").write_text("{}", "utf-8")
    capsys.readouterr()
    assert main(["--check"], repository) == 1
    assert capsys.readouterr().out == "docs/asyncapi.json: out of date\n"


def test_the_documents_are_json_of_their_kind(repository: Path) -> None:
    main([], repository)
    assert json.loads((repository / "docs" / "openapi.json").read_text("utf-8"))["openapi"] == "3.1.0"
    assert json.loads((repository / "docs" / "asyncapi.json").read_text("utf-8"))["asyncapi"] == "3.0.0"


@pytest.mark.parametrize("arguments", [[], ["--check"]])
def test_a_block_that_nothing_generates_or_that_is_missing_stops_everything(
    repository: Path, arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    readme = repository / "README.md"
    whole = readme.read_text("utf-8")
    readme.write_text(whole + "<!-- generated: nonsense -->\n<!-- /generated -->\n", "utf-8")
    assert main(arguments, repository) == 2
    assert "nonsense" in capsys.readouterr().err
    readme.write_text(whole.replace("generated: settings", "was: settings"), "utf-8")
    assert main(arguments, repository) == 2
    assert "settings" in capsys.readouterr().err
    readme.unlink()
    assert main(arguments, repository) == 2
    assert not (repository / "docs").exists()
