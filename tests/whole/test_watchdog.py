"""The watchdog of a real server: what is broken shows on the operators' API and in the metrics, and what may be mended is."""

import logging
from typing import Any

import httpx
import trio

from tests.whole.house import PATIENCE_SECONDS, House, open_house

LEDGER = "m5_ledger_append_only"


async def alarms(house: House) -> dict[str, Any]:
    return {alarm["name"]: alarm for alarm in (await house.operate("GET", "/api/overview"))["alarms"]}


async def until_alarms_are(house: House, *names: str) -> dict[str, Any]:
    with trio.fail_after(2 * PATIENCE_SECONDS):
        while set(standing := await alarms(house)) - {"event_loop_runs"} != set(names):
            await trio.sleep(0.05)
    return standing


async def metric(house: House, line: str) -> float:
    async with httpx.AsyncClient() as client:
        text = (await client.get(house.ready["admin"] + "/metrics")).text
    [value] = [row.rpartition(" ")[2] for row in text.splitlines() if row.startswith(line + " ")]
    return float(value)


async def test_what_no_machine_may_mend_stands_as_an_alarm_until_a_person_has_mended_it(
    database_url: str, valkey_url: str, claims_errors: list[logging.LogRecord]
) -> None:
    async with open_house(database_url, valkey_url, HALO_WATCHDOG_SECONDS="0.2") as house:
        await house.open_pair()
        await house.db.execute("ALTER TABLE customer_transactions DISABLE TRIGGER customer_transactions_append_only")
        standing = await until_alarms_are(house, LEDGER)
        assert standing[LEDGER]["subjects"] == ["customer_transactions"]
        assert standing[LEDGER]["violations"] == 1
        assert "switch it on again" in standing[LEDGER]["sentence"]
        assert await metric(house, f'halo_invariant_violations{{invariant="{LEDGER}"}}') == 1
        await house.db.execute("ALTER TABLE customer_transactions ENABLE TRIGGER customer_transactions_append_only")
        await until_alarms_are(house)
        assert await metric(house, f'halo_invariant_violations{{invariant="{LEDGER}"}}') == 0
        assert await metric(house, "halo_watchdog_rounds_total") >= 2
        assert await metric(house, 'halo_event_loop_lag_seconds_bucket{le="+Inf"}') > 0
        await house.require_invariants()
    said = [record.msg["alarm"] for record in claims_errors if record.msg["event"] == "alarm_raised"]  # type: ignore[index]
    assert said.count(LEDGER) == 1


async def test_money_that_a_session_left_behind_is_given_back_and_the_alarm_is_over(
    database_url: str, valkey_url: str, claims_errors: list[logging.LogRecord]
) -> None:
    async with open_house(database_url, valkey_url, HALO_WATCHDOG_SECONDS="0.2") as house:
        customer, mitra, session_id = await house.open_pair()
        payment = await house.pay_extension(customer)
        await house.call(mitra, "POST", f"/api/chat/{session_id}/end")
        await house.db.execute(
            "UPDATE payment_requests SET session_id = %(session)s WHERE payment_request_id = %(payment)s",
            {"session": session_id, "payment": payment["id"]},
        )
        with trio.fail_after(PATIENCE_SECONDS):
            while (told := await house.call(customer, "GET", f"/api/payments/{payment['id']}"))["status"] != "failed":
                await trio.sleep(0.05)
        assert told["failure_cause"] == "session_ended"
        owed = (await house.operate("GET", "/api/refunds"))["refunds"]
        assert [refund["kind"] for refund in owed if refund["payment_request_id"] == payment["id"]] == [
            "payment_failed"
        ]
        trail = await house.db.fetch_all("SELECT action, subject FROM operator_actions WHERE action = 'fail_payment'")
        assert [tuple(row) for row in trail] == [("fail_payment", payment["id"])]
        with trio.fail_after(2 * PATIENCE_SECONDS):
            while "m7_nothing_left_undecided" in await alarms(house):
                await trio.sleep(0.05)
        await house.require_invariants()


async def test_a_configuration_that_cannot_be_read_is_an_alarm_until_somebody_saves_the_key_also_as_it_stands(
    database_url: str, valkey_url: str, claims_errors: list[logging.LogRecord]
) -> None:
    name, policy = "configuration_is_readable", "extension_default_action_on_timeout"
    async with open_house(database_url, valkey_url, HALO_WATCHDOG_SECONDS="0.2") as house:
        await house.db.execute(
            "INSERT INTO live_config (key, value) VALUES (%(key)s, '\"auto_aprove\"')", {"key": policy}
        )
        assert (await until_alarms_are(house, name))[name]["subjects"] == [policy]
        assert (await house.operate("GET", "/api/config"))[policy] == "auto_reject"
        assert await metric(house, f'halo_invariant_violations{{invariant="{name}"}}') == 1
        await house.configure(**{policy: "auto_reject"})
        await until_alarms_are(house)
        [row] = await house.db.fetch_all("SELECT value FROM live_config WHERE key = %(key)s", {"key": policy})
        assert row.value == "auto_reject"
