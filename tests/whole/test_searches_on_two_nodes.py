"""A search lives on one node, and whoever moves it may speak to another: mitras and customer are told within a second."""

from contextlib import AsyncExitStack

from halo.client import Socket
from tests.whole.house import House, Person
from tests.whole.test_deactivation import SECOND, ask_for, two_nodes

OFFERED_SECONDS = 600
"""No offer runs out while a test waits: whoever hears, was told."""


async def require_told(socket: Socket, type_: str, seconds: float = 5 * SECOND) -> dict[str, object]:
    """Not held to the second itself here, on whatever machine: the wait would otherwise be of ten minutes. `test_readings.py` is exact."""
    return await socket.expect(type_, seconds)


async def offered(
    node: House, mitras: int, stack: AsyncExitStack
) -> tuple[Person, Socket, list[tuple[Person, Socket]], str]:
    """A customer and so many mitras in the lobby of `node`, and a search there that asks them all."""
    customer = await node.admit("customer")
    waiting = await stack.enter_async_context(node.lobby(customer))
    asked: list[tuple[Person, Socket]] = []
    await node.configure(pairing_blast_size=5, pairing_waves=1, pairing_offer_seconds=OFFERED_SECONDS)
    for _ in range(mitras):
        mitra = await node.admit("mitra")
        await node.go_online(mitra)
        asked.append((mitra, await stack.enter_async_context(node.lobby(mitra))))
    return customer, waiting, asked, await ask_for(node, customer, waiting)


async def test_a_search_cancelled_on_another_node_is_over_for_everybody_on_its_own(
    database_url: str, valkey_url: str
) -> None:
    async with two_nodes(database_url, valkey_url) as (one, other), AsyncExitStack() as stack:
        customer, waiting, [(_, lobby)], pairing_id = await offered(one, 1, stack)
        offer = await lobby.expect("offer")
        await other.call(customer, "DELETE", f"/api/pairings/{pairing_id}")
        rescinded = await require_told(lobby, "offer_rescinded")
        assert (rescinded["offer_id"], rescinded["reason"]) == (offer["offer_id"], "cancelled")
        failed = await require_told(waiting, "pairing_failed")
        assert (failed["pairing_id"], failed["cause"]) == (pairing_id, "customer_cancelled")
        await one.require_invariants()


async def test_a_yes_said_to_another_node_is_heard_by_the_customer_and_by_those_who_were_asked_too(
    database_url: str, valkey_url: str
) -> None:
    async with two_nodes(database_url, valkey_url) as (one, other), AsyncExitStack() as stack:
        _, waiting, [(winner, lobby), (_, late)], pairing_id = await offered(one, 2, stack)
        offer, lost = await lobby.expect("offer"), await late.expect("offer")
        accepted = await other.call(winner, "POST", f"/api/offers/{offer['offer_id']}/accept")
        rescinded = await require_told(late, "offer_rescinded")
        assert (rescinded["offer_id"], rescinded["reason"]) == (lost["offer_id"], "taken")
        matched = await require_told(waiting, "pairing_matched")
        assert (matched["pairing_id"], matched["session_id"]) == (pairing_id, accepted["session_id"])
        await one.require_invariants()


async def test_a_deactivation_by_another_node_withdraws_the_offer_and_gives_up_for_want_of_others(
    database_url: str, valkey_url: str
) -> None:
    async with two_nodes(database_url, valkey_url) as (one, other), AsyncExitStack() as stack:
        _, waiting, [(mitra, _)], pairing_id = await offered(one, 1, stack)
        await other.operate("POST", f"/api/mitras/{mitra.user_id}/deactivate")
        assert (await require_told(waiting, "pairing_failed"))["pairing_id"] == pairing_id
        await one.require_invariants()
