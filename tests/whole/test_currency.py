"""An operator changes the currency while people talk: nobody is sold what could never be used, and what was asked for before still works."""

import pytest

from halo.client import CallRefused
from tests.whole.house import open_house


async def test_a_session_goes_on_in_its_currency_and_no_time_is_sold_for_it_in_another(
    database_url: str, valkey_url: str
) -> None:
    async with open_house(database_url, valkey_url) as house:
        customer, _, session_id = await house.open_pair()
        asked = await house.call(
            customer, "POST", "/api/payments", {"duration_minutes": 2, "is_extension": True, "session_id": session_id}
        )
        await house.configure(currency="USD", price_per_minute=7)
        for named in ({"session_id": session_id}, {}):
            with pytest.raises(CallRefused) as refused:
                await house.call(
                    customer, "POST", "/api/payments", {"duration_minutes": 2, "is_extension": True, **named}
                )
            assert (refused.value.status, refused.value.code) == (409, "PAYMENT_MISMATCH")
            assert "paid in IDR, and time is sold in USD now" in str(refused.value)

        paid = await house.call(customer, "POST", f"/api/sandbox/payments/{asked['id']}/confirm")
        assert (paid["amount"], paid["currency"]) == (2_000, "IDR")
        wish = {"duration_minutes": 2, "price": 2_000, "extension_payment_request_id": paid["id"]}
        extension = await house.call(customer, "POST", f"/api/chat/{session_id}/extensions", wish)
        assert extension["status"] == "pending"

        first = await house.pay(await house.admit("customer"), 3)
        assert (first["amount"], first["currency"]) == (21, "USD")
