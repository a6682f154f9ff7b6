"""How searches stand, many at once: what the look of another node's doings is held against."""

from collections.abc import AsyncIterator

import pytest

from halo.pairing import PairingStatus
from halo.payment import PaymentStatus
from halo.session import FailureCause
from halo.store.postgres import Postgres, open_postgres
from halo.store.searches import FailedSearch, SearchState, SearchStates
from tests.store.rows import add_customer, add_mitra, add_offer, add_pairing, add_payment, add_session, new_id


@pytest.fixture
async def db(database_url: str) -> AsyncIterator[Postgres]:
    async with open_postgres(database_url) as postgres:
        yield postgres


async def add_search(db: Postgres, paid: str, *offers: str) -> str:
    customer_id = await add_customer(db)
    pairing_id = await add_pairing(db, customer_id, await add_payment(db, customer_id, paid, is_extension=False))
    for status in offers:
        await add_offer(db, pairing_id, await add_mitra(db), status)
    return pairing_id


async def test_each_search_is_told_with_its_open_offers_and_its_payment_in_one_statement(db: Postgres) -> None:
    young = await add_search(db, "pending")
    asking = await add_search(db, "confirmed", "open", "open", "declined")
    over = await add_search(db, "failed", "cancelled")
    await db.execute(
        "UPDATE pairings SET status = 'cancelled', cause = 'customer_cancelled', wave = 1 WHERE pairing_id = %(id)s",
        {"id": over},
    )
    await add_search(db, "confirmed", "open")  # nobody asks for this one
    before = db.statements
    found = await SearchStates(db).list_states({young, asking, over, new_id()})
    assert db.statements - before == 1
    assert {state.pairing_id: state for state in found} == {
        young: SearchState(young, PairingStatus.SEARCHING, 0, 0, PaymentStatus.PENDING),
        asking: SearchState(asking, PairingStatus.SEARCHING, 0, 2, PaymentStatus.CONFIRMED),
        over: SearchState(over, PairingStatus.CANCELLED, 1, 0, PaymentStatus.FAILED),
    }


async def test_a_session_hears_of_the_search_that_failed_it_and_of_no_other(db: Postgres) -> None:
    """Matched ones lie behind it, and where somebody has opened another search nothing is over."""

    async def rerouted(*statuses: str) -> tuple[str, list[str]]:
        customer_id, mitra_id = await add_customer(db), await add_mitra(db)
        payment = await add_payment(db, customer_id, "consumed", is_extension=False)
        session_id = await add_session(db, customer_id, mitra_id, "rerouting", payment)
        pairing_ids = []
        for status in statuses:
            pairing_ids.append(
                await add_pairing(db, customer_id, await add_payment(db, customer_id, "consumed", is_extension=False))
            )
            await db.execute(
                """UPDATE pairings SET rerouted_session_id = %(session_id)s::uuid, status = %(status)s, cause = %(cause)s,
                                       session_id = %(matched_with)s::uuid
                   WHERE pairing_id = %(id)s""",
                {
                    "id": pairing_ids[-1],
                    "status": status,
                    "cause": "all_declined" if status == "failed" else None,
                    "session_id": session_id,
                    "matched_with": session_id if status == "matched" else None,
                },
            )
        return session_id, pairing_ids

    searching, _ = await rerouted("searching")
    failed, (_, pairing_id) = await rerouted("matched", "failed")
    reopened, _ = await rerouted("failed", "searching")
    await rerouted("failed")  # nobody asks for this one
    before = db.statements
    found = await SearchStates(db).list_failed([searching, failed, reopened, new_id()])
    assert db.statements - before == 1
    assert found == [FailedSearch(failed, pairing_id, FailureCause.ALL_DECLINED)]
