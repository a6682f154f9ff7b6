"""The same ordeal for a session that is handed on: paired, transferred by an operator, accepted by another mitra, talked in, ended by her.

Her app numbers its messages as the first one's did. Nothing here waits for time to pass, so the minutes may be long. Read next:
`tests/whole/test_crash.py`.
"""

from typing import Any, Final

import trio

from halo.client import CallRefused
from tests.whole.house import Person
from tests.whole.ordeal import QUESTIONS, Chat, Ordeal

HAND_OVER_MINUTE_SECONDS: Final = 60
"""Five of them outlast every play: what is left at the end is refunded, and how much that is nobody compares."""


class HandOver(Ordeal):
    """One play."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._questions = HAND_OVER_QUESTIONS

    async def _live(self) -> None:
        customer = self._customer = await self._insist(self._admit, "customer")
        first = self._mitra = await self._insist(self._admit, "mitra")
        await self._insist(self._call, first, "POST", "/api/mitra/status/online")
        self._is_online = True
        await self._insist(self._beat)
        payment = await self._pay("the session", {"duration_minutes": 5})
        self.session_id = await self._pair(payment["id"])
        second = await self._insist(self._admit, "mitra", "another mitra")
        await self._insist(self._call, second, "POST", "/api/mitra/status/online")
        one, old = self._chats = (Chat(self, customer), Chat(self, first))
        await self._say("1", "hello", one, old)
        await self._say("1", "hello yourself", old, one)
        await self._hand_on(customer, second)
        await old.close()
        self._mitra = second
        new = Chat(self, second)
        self._chats = (one, new)
        await self._say("1", "hello yourself", new, one)
        await self._say("2", "good day", one, new)
        try:
            await self._insist(self._call, second, "POST", f"/api/chat/{self.session_id}/end")
        except CallRefused as refused:
            if refused.code != "SESSION_NOT_ACTIVE":  # by ourselves, before the server died
                raise
        for chat in self._chats:
            await chat.close()

    async def _say(self, name: str, body: str, speaker: Chat, listener: Chat) -> None:
        await self._insist(speaker.say, name, body)
        await self._insist(listener.hear, speaker.acked[name])

    async def _hand_on(self, customer: Person, second: Person) -> None:
        """Again and again what is still to be done: the operator hands it on, the second mitra accepts."""
        chat, transfer = f"/api/chat/{self.session_id}/info", f"/api/sessions/{self.session_id}/transfer"
        while True:
            session = (await self._insist(self._call, customer, "GET", chat))["session"]
            if session["mitra_id"] == second.user_id:
                return
            await self._insist(self._call, second, "POST", "/api/mitra/status/heartbeat")
            if session["status"] == "rerouting":
                await self._accept_offers(second)
                continue
            assert session["status"] == "active", session
            try:
                await self._insist(lambda: self.house.operate("POST", transfer))
            except CallRefused as refused:
                # It was done, or the server that came back does not see the second mitra yet.
                if refused.code not in {"SESSION_NOT_ACTIVE", "INVALID_STATE"}:
                    raise
                await trio.sleep(0.02)


HAND_OVER_QUESTIONS: Final = {
    **QUESTIONS,
    "session": """SELECT status, end_reason, cardinality(former_mitra_ids) AS handed_on, refunded_ms > 0 AS is_refunded,
                         paid_ms = served_ms + refunded_ms + forfeited_ms + remaining_ms AS is_whole FROM chat_sessions""",
    "refunds": "SELECT kind, cause, status FROM refunds ORDER BY created_at",
    "pairings": "SELECT status, cause, rerouted_session_id IS NOT NULL AS is_reroute FROM pairings ORDER BY created_at",
    "offers": "SELECT status FROM offers ORDER BY created_at",
}
"""As everywhere, without how long it was: the end is asked for, and does not come by itself."""
