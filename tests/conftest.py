"""What holds for every test: real stores on demand, no unclaimed ERROR in the logs, no task left over, the same dice every time.

An ERROR is a person's night: a test in which one is logged fails unless it asked for `claims_errors` and so says that it means to
cause it. Hypothesis plays the same histories each time, so that what is red here is red everywhere;
`HYPOTHESIS_PROFILE=explore` throws the dice anew, for as long as one likes to wait.
"""

import inspect
import logging
import os
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Any

import hypothesis
import pytest
import trio
from trio.abc import Clock, Instrument
from trio.lowlevel import Task

from halo.log import configure_logging

pytest_plugins = ["tests.stores", "pytester"]
pytest.register_assert_rewrite("tests.pure.story", "tests.pure.books")

hypothesis.settings.register_profile("steady", derandomize=True, database=None, deadline=None, print_blob=True)
hypothesis.settings.register_profile("explore", max_examples=5_000, deadline=None, print_blob=True)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "steady"))


class ErrorRecorder(logging.Handler):
    """Keeps what is logged as ERROR or worse, from wherever it comes."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)


@pytest.fixture(autouse=True)
def _structlog_through_logging() -> None:
    """structlog left alone prints past logging, where nobody would see its errors; anew for each test, since a command configures it too."""
    configure_logging("debug", "console")


@pytest.fixture(autouse=True)
def _error_recorder(request: pytest.FixtureRequest, _structlog_through_logging: None) -> Iterator[ErrorRecorder]:
    """Fails the test for any ERROR that it did not claim."""
    recorder = ErrorRecorder()
    root = logging.getLogger()
    root.addHandler(recorder)
    try:
        yield recorder
    finally:
        root.removeHandler(recorder)
    if recorder.records and "claims_errors" not in request.fixturenames:
        said = "\n".join(f"{record.name}: {record.getMessage()}" for record in recorder.records)
        pytest.fail(f"logged as ERROR, and not claimed:\n{said}", pytrace=False)


@pytest.fixture
def claims_errors(_error_recorder: ErrorRecorder) -> list[logging.LogRecord]:
    """This test means to cause errors: what was logged so far, for it to look at."""
    return _error_recorder.records


@pytest.fixture(autouse=True)
def _valkey_may_take_its_time(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a busy machine a healthy Valkey may answer later than production waits for it; what a test means by away is a dead one.

    A test that hangs its Valkey, or proves the budgets themselves, asks for `valkey_is_given_up_soon`.
    """
    if "valkey_is_given_up_soon" not in request.fixturenames:
        monkeypatch.setattr("halo.store.valkey.CALL_SECONDS", 20.0)
        monkeypatch.setattr("halo.store.valkey.ROUND_TRIP_SECONDS", 15.0)


@pytest.fixture
def valkey_is_given_up_soon() -> None:
    """This test waits for Valkey as production does."""


TRIOS_OWN = "<TrioToken.run_sync_soon task>"
"""The one task that Trio itself keeps beside the test."""


class SystemTasks(Instrument):
    """Notes which tasks outlive the test: only system tasks can, since a nursery waits for its children."""

    def __init__(self) -> None:
        self._beside_main: list[Task] = []
        """The children of Trio's root task: first the test itself, then system tasks."""
        self.left_over: list[str] = []

    def task_spawned(self, task: Task) -> None:
        if task.parent_nursery is not None and task.parent_nursery.parent_task.parent_nursery is None:
            self._beside_main.append(task)

    def task_exited(self, task: Task) -> None:
        if task not in self._beside_main:
            return
        if task is self._beside_main[0]:
            self.left_over = [other.name for other in self._beside_main[1:] if other.name != TRIOS_OWN]
        else:
            self._beside_main.remove(task)


def run_watched(
    test: Callable[[], Awaitable[Any]], clock: Clock | None = None, instruments: Sequence[Instrument] = ()
) -> Any:
    """`trio.run` that fails when the test leaves a task behind."""
    watch = SystemTasks()
    outcome = trio.run(test, clock=clock, instruments=[*instruments, watch])
    assert not watch.left_over, f"tasks left over: {watch.left_over}"
    return outcome


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Every Trio test runs watched."""
    for item in items:
        if isinstance(item, pytest.Function) and inspect.iscoroutinefunction(inspect.unwrap(item.obj)):
            item.add_marker(pytest.mark.trio(run=run_watched), append=False)
