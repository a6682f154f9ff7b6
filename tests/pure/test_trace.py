"""W3C's trace context: what is believed, what begins anew, and who carries it."""

import contextvars

import pytest
import trio

from halo.trace import Trace, current_trace, current_traceparent, follow, following, forget

ID = "4bf92f3577b34da6a3ce929d0e0e4736"
SPAN = "00f067aa0ba902b7"
SAMPLED = f"00-{ID}-{SPAN}-01"


def test_a_traceparent_is_read_and_written_as_it_was() -> None:
    trace = Trace.parsed(SAMPLED)
    assert trace == Trace(ID, SPAN, is_sampled=True)
    assert str(trace) == SAMPLED
    assert str(Trace.parsed(f"00-{ID}-{SPAN}-00")) == f"00-{ID}-{SPAN}-00"


@pytest.mark.parametrize(
    "header",
    [
        "",
        "hello",
        SAMPLED.upper(),
        SAMPLED + " ",
        SAMPLED + "\n",
        SAMPLED + "-more",  # version 00 ends here
        f"00-{ID}-{SPAN}",
        f"00-{ID}-{SPAN}-1",
        f"00-{ID}-{SPAN}-0g",
        f"0-{ID}-{SPAN}-01",
        f"ff-{ID}-{SPAN}-01",
        f"01-{ID}-{SPAN}-01more",
        f"00-{'0' * 32}-{SPAN}-01",
        f"00-{ID}-{'0' * 16}-01",
        f"00-{ID[:-1]}-{SPAN}-01",
        f"00-{ID[:-1]}١-{SPAN}-01",
        f"01-{ID}-{SPAN}-01-" + "a" * 300,
    ],
)
def test_what_is_not_exactly_a_traceparent_is_none(header: str) -> None:
    assert Trace.parsed(header) is None
    begun = Trace.received([header])
    assert begun.trace_id != ID
    assert Trace.parsed(str(begun)) == begun


def test_a_version_to_come_is_read_as_far_as_it_is_known() -> None:
    assert Trace.parsed(f"cc-{ID}-{SPAN}-09-what-the-future-will-be-like") == Trace(ID, SPAN, is_sampled=True)
    assert Trace.parsed(f"01-{ID}-{SPAN}-00") == Trace(ID, SPAN)


def test_a_request_is_a_new_leg_of_the_trace_that_it_came_with() -> None:
    received = Trace.received([SAMPLED])
    assert (received.trace_id, received.is_sampled) == (ID, True)
    assert received.span_id != SPAN


def test_two_headers_are_believed_as_little_as_none() -> None:
    assert Trace.received([SAMPLED, SAMPLED]).trace_id != ID
    assert Trace.received([]).trace_id != Trace.received([]).trace_id


def test_for_the_time_of_a_block_a_task_belongs_to_a_trace() -> None:
    def look() -> None:
        trace = Trace.begun()
        assert current_traceparent() is None
        with following(trace):
            assert current_trace() is trace
            assert current_traceparent() == str(trace)
            with following(None):
                assert current_trace() is None
        assert current_trace() is None

    contextvars.copy_context().run(look)


async def test_a_task_inherits_the_trace_of_its_starter_and_may_forget_it() -> None:
    seen: list[Trace | None] = []

    async def inherits() -> None:
        seen.append(current_trace())
        forget()
        seen.append(current_trace())

    async def asks(trace: Trace) -> None:
        follow(trace)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(inherits)
        assert current_trace() is trace

    trace = Trace.begun()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(asks, trace)
    assert seen == [trace, None]
    assert current_trace() is None
