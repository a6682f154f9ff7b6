"""The pictures of the README: there, told in words, and not too large for everybody's clone."""

import os
import re
import struct
import subprocess

from halo.docs import REPOSITORY
from tests.browser.screenshots import BYTES_MAX, IMAGES, SIZE

README = (REPOSITORY / "README.md").read_text("utf-8")


def test_each_picture_is_on_the_readme_with_a_sentence_for_those_who_do_not_see_it() -> None:
    shown = dict(reversed(found) for found in re.findall(r"!\[([^\]]*)\]\(docs/images/([^)]*)\)", README))
    assert sorted(shown) == sorted(path.name for path in IMAGES.glob("*.png")) == ["overview.png", "session.png"]
    assert all(len(words) > 60 for words in shown.values())


def test_each_picture_is_a_png_of_the_size_that_was_asked_for() -> None:
    for path in IMAGES.glob("*.png"):
        picture = path.read_bytes()
        assert len(picture) <= BYTES_MAX
        assert (picture[:8], struct.unpack(">II", picture[16:24])) == (b"\x89PNG\r\n\x1a\n", SIZE)


def test_the_script_that_takes_them_tells_what_it_does_before_it_does_anything() -> None:
    told = subprocess.run(
        ["/bin/bash", str(REPOSITORY / "scripts" / "screenshots"), "--help"],
        env={"PATH": os.defpath, "HOME": os.devnull},
        capture_output=True,
        text=True,
        timeout=10,
        check=False,
    )
    assert (told.returncode, told.stderr) == (0, "")
    assert told.stdout.startswith("Usage: scripts/screenshots")
    assert "docs/images/overview.png" in told.stdout
