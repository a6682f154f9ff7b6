"""A trace from whoever asks, over HTTP or a socket, to the line that tells of the decision; and none where nobody asked."""

import io
import json
from collections.abc import Iterator
from typing import Any

import pytest
import trio

from halo.log import configure_logging
from tests.whole.house import PATIENCE_SECONDS, open_house, refusal_of
from tests.whole.wire import HandshakeRefused, chat_path, open_wire

ID = "4bf92f3577b34da6a3ce929d0e0e4736"
OTHER = "0af7651916cd43dd8448eb211c80319c"
SPAN = "00f067aa0ba902b7"


@pytest.fixture
def logged() -> Iterator[io.StringIO]:
    stream = io.StringIO()
    configure_logging("info", "json", stream)
    yield stream
    configure_logging("debug", "console")


def steps(logged: io.StringIO) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in logged.getvalue().splitlines()]
    return [line for line in lines if line["event"] == "session_step"]


async def test_each_decision_tells_the_trace_of_whoever_asked_for_it_and_a_deadline_tells_none(
    database_url: str, valkey_url: str, logged: io.StringIO
) -> None:
    async with open_house(database_url, valkey_url, HALO_MINUTE_SECONDS="0.4") as house:
        customer, _, session_id = await house.open_pair(minutes=5)
        headers = {"traceparent": f"00-{ID}-{SPAN}-01"}
        async with open_wire(house, chat_path(session_id), customer, headers=headers) as wire:
            await wire.expect("welcome")
            payment = await house.pay_extension(customer)
            asked = await wire.ask(
                "extension_request",
                id="more",
                duration_minutes=payment["duration_minutes"],
                price=payment["amount"],
                extension_payment_request_id=payment["id"],
            )
            cancel = f"/api/chat/{session_id}/extensions/{asked['extension_id']}"
            await house.call(customer, "DELETE", cancel, traceparent=f"00-{OTHER}-{SPAN}-00")
            with trio.fail_after(PATIENCE_SECONDS):
                while len(steps(logged)) < 4:
                    await trio.sleep(0.01)
    opened, *told = [(line["step"], line.get("trace_id")) for line in steps(logged)[:4]]
    assert opened[0] == "mitra_accepted"
    assert opened[1] not in {None, ID, OTHER}  # the mitra's own call
    assert told[:2] == [("extension_requested", ID), ("extension_cancelled", OTHER)]
    assert told[2] == ("deadline_reached", None)
    assert {line["session_id"] for line in steps(logged)} == {session_id}


async def test_a_refusal_names_the_trace_of_its_request(database_url: str, valkey_url: str) -> None:
    async with open_house(database_url, valkey_url) as house:
        customer = await house.admit("customer")
        path = "/api/chat/3f0e8f5e-1111-4111-8111-111111111111/info"

        async def trace_of(traceparent: str) -> str:
            refused = await refusal_of(house.call(customer, "GET", path, traceparent=traceparent))
            assert refused.code == "NOT_FOUND"
            return str(refused.problem["trace_id"])

        assert await trace_of(f"00-{ID}-{SPAN}-01") == ID
        for malformed in (
            "",
            "nonsense",
            f"00-{ID}-{SPAN}-01-more",
            f"00-{'0' * 32}-{SPAN}-01",
            f"00-{ID.upper()}-{SPAN}-01",
        ):
            assert await trace_of(malformed) != ID
        with pytest.raises(HandshakeRefused) as refused:
            async with open_wire(
                house, chat_path(path[10:46]), customer, headers={"traceparent": f"00-{ID}-{SPAN}-01"}
            ):
                pass
        assert refused.value.problem["trace_id"] == ID
