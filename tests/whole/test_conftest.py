"""The guards around every test do bite: a test that logs an ERROR or leaves a task behind is red."""

from pathlib import Path

import pytest

CONFTEST = Path(__file__).parents[1] / "conftest.py"

SUITE = """
import logging

import structlog
import trio


def test_quiet():
    logging.getLogger("halo").warning("nothing to wake anybody for")


def test_stdlib_error():
    logging.getLogger("halo.a").error("of stdlib")


def test_structlog_error():
    structlog.get_logger("halo.b").error("of structlog", session_id="s1")


def test_claimed(claims_errors):
    structlog.get_logger("halo.b").error("meant")
    assert len(claims_errors) == 1


async def test_tidy():
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.lowlevel.checkpoint)


async def test_untidy():
    trio.lowlevel.spawn_system_task(trio.sleep_forever, name="forgotten")


async def test_under_a_fake_clock(autojump_clock):
    await trio.sleep(10_000)
"""


def test_an_unclaimed_error_and_a_task_left_over_fail_the_test_that_caused_them(pytester: pytest.Pytester) -> None:
    source = CONFTEST.read_text("utf-8").replace('pytest_plugins = ["tests.stores", "pytester"]', "")
    pytester.makeconftest(source)
    pytester.makepyfile(SUITE)
    pytester.makeini("[pytest]\ntrio_mode = true\npythonpath = " + str(CONFTEST.parents[1]))
    outcome = pytester.runpytest_subprocess("-p", "no:cacheprovider", timeout=60)
    outcome.assert_outcomes(passed=6, failed=1, errors=2)
    outcome.stdout.fnmatch_lines_random(
        ["*halo.a: of stdlib*", "*halo.b:*of structlog*", "*tasks left over: *forgotten*", "FAILED*test_untidy*"]
    )
