"""The lobby: who may say what, what comes of it, and what is answered; the rooms behind it are in memory."""

import json
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import pytest
import trio
from trio.testing import MockClock

from halo import protocol
from halo.actors.commands import View
from halo.availability import Beaten
from halo.clock import Clock
from halo.errors import CapacityExceeded, MitraOffline, NotFound, OfferResolved, Refusal, StoreUnavailable
from halo.net.connection import Limits
from halo.net.connections import Connections
from halo.net.handshake import OpenWebSocket
from halo.net.lobby import HEARTBEAT_SECONDS, Lobby, LobbyConnection
from halo.net.presence import Presence
from halo.net.stream import SocketStream
from halo.net.tokens import Identity, Tokens
from halo.pairing import PairingStatus, PairingView
from halo.session import Party
from tests.pure.story import NOON, Story

USER, OFFER, PAIRING, SESSION, PAYMENT = (f"00000000-0000-4000-8000-00000000000{n}" for n in range(1, 6))
OPEN = protocol.Offer(
    offer_id=OFFER, pairing_id=PAIRING, topic_sensitivity="regular", duration_minutes=5, price=5_000, currency="IDR",
    deadline_at="2026-11-24T12:00:30.000Z",
)  # fmt: skip


class NoonClock:
    def now(self) -> int:
        return NOON


@dataclass
class Rooms:
    """Everything behind the lobby: what was asked of it, and what it refuses."""

    calls: list[tuple[Any, ...]] = field(default_factory=list)
    refuses: Refusal | None = None
    is_online: bool = True
    sessions: list[View] = field(default_factory=list)
    lit: list[LobbyConnection] = field(default_factory=list)
    """Whom the beacon shines upon."""
    takes_in: bool = True
    """Whether heartbeats may be handed in."""
    handed_in: list[Callable[[Beaten], None]] = field(default_factory=list)
    """Who is to be told what has become of each."""

    async def _note(self, *call: Any) -> None:
        await trio.lowlevel.checkpoint()
        self.calls.append(call)
        if self.refuses is not None:
            raise self.refuses

    async def go_online(self, mitra_id: str, at: int) -> "Rooms":
        await self._note("go_online", mitra_id, at)
        return self

    async def go_offline(self, mitra_id: str, at: int) -> "Rooms":
        await self._note("go_offline", mitra_id, at)
        return self

    async def load_status(self, mitra_id: str) -> "Rooms":
        await trio.lowlevel.checkpoint()
        return self

    async def went_online(self, mitra_id: str, at: int) -> None:
        await self._note("went_online", mitra_id, at)

    async def went_offline(self, mitra_id: str) -> None:
        await self._note("went_offline", mitra_id)

    async def heartbeat(self, mitra_id: str, at: int) -> None:
        await self._note("heartbeat", mitra_id, at)

    def hand_in(self, mitra_id: str, at: int, settled: Callable[[Beaten], None]) -> bool:
        if self.takes_in:
            self.calls.append(("hand_in", mitra_id, at))
            self.handed_in.append(settled)
        return self.takes_in

    async def start(
        self,
        customer_id: str,
        payment_request_id: str,
        topic_sensitivity: protocol.Topic,
        pairing_id: str | None = None,
    ) -> PairingView:
        await self._note("start", customer_id, payment_request_id, topic_sensitivity)
        return a_view()

    async def cancel(self, pairing_id: str, customer_id: str) -> PairingView:
        await self._note("cancel", pairing_id, customer_id)
        return a_view()

    async def list_offers(self, mitra_id: str) -> Sequence[protocol.Offer]:
        await trio.lowlevel.checkpoint()
        return [OPEN]

    async def accept(self, offer_id: str, mitra_id: str) -> tuple[str, str]:
        await self._note("accept", offer_id, mitra_id)
        return SESSION, PAIRING

    async def decline(self, offer_id: str, mitra_id: str) -> None:
        await self._note("decline", offer_id, mitra_id)

    async def add(self, connection: LobbyConnection) -> None:
        await trio.lowlevel.checkpoint()
        self.lit.append(connection)

    def remove(self, connection: LobbyConnection) -> None:
        self.lit.remove(connection)

    async def living_of(self, user_id: str) -> list[View]:
        await trio.lowlevel.checkpoint()
        return self.sessions


def a_view() -> PairingView:
    class Found:
        pairing_id = PAIRING
        status = PairingStatus.SEARCHING

    return cast(PairingView, Found())


class NoBeacon:
    """`tests/net/test_beacon.py` has the real one."""

    async def add(self, listener: object) -> None:
        await trio.lowlevel.checkpoint()

    def remove(self, listener: object) -> None:
        return None


class FakeStream:
    pending_frames = 0
    last_received = 0.0

    def __init__(self) -> None:
        self.written: list[bytes] = []

    def write(self, data: bytes) -> None:
        self.written.append(data)


class Visitor:
    """One person in the lobby: frames in as text, frames out as objects."""

    def __init__(self, party: Party, rooms: Rooms) -> None:
        clock = cast(Clock, NoonClock())
        self._stream = FakeStream()
        identity = Identity(user_id=USER, user_type=party, auth_session_id="f", jti="t", expires_at=NOON + 900_000)
        lobby = Lobby(
            clock=clock,
            tokens=cast(Tokens, None),
            limits=Limits(messages_per_10s=20, bytes_per_s=20_000),
            connections=Connections(clock, 5),
            presence=Presence(rooms, rooms, clock),
            heartbeats=rooms,
            pairings=rooms,
            offers=rooms,
            sessions=rooms,
            beacon=NoBeacon(),
        )
        self.connection = LobbyConnection(cast(SocketStream, self._stream), "/v1/lobby", identity, lobby)

    async def enters(self) -> list[dict[str, Any]]:
        await self.connection.welcome()
        self.connection._held = None
        return self.heard()

    async def says(self, **frame: Any) -> list[dict[str, Any]]:
        self.connection._held = None
        waiting = self.connection.hear(json.dumps(frame))
        if waiting is not None:
            await waiting
        return self.heard()

    def heard(self) -> list[dict[str, Any]]:
        written, self._stream.written = self._stream.written, []
        return [json.loads(data[data.index(b'{"') :]) for data in written]


@pytest.fixture
def rooms() -> Rooms:
    return Rooms()


async def test_a_mitra_is_welcomed_with_its_state_its_sessions_and_its_open_offers(
    autojump_clock: MockClock, rooms: Rooms
) -> None:
    rooms.sessions = [View(session=Story.paid(minutes=10).session, last_seq=7)]
    welcome, offer = await Visitor(Party.MITRA, rooms).enters()
    assert (welcome["type"], welcome["role"], welcome["is_online"]) == ("welcome", "mitra", True)
    assert welcome["heartbeat_seconds"] == HEARTBEAT_SECONDS
    assert [(session["last_seq"], session["remaining_seconds"]) for session in welcome["sessions"]] == [(7, 600)]
    assert (offer["type"], offer["offer_id"]) == ("offer", OFFER)


async def test_a_customer_is_welcomed_with_its_sessions(autojump_clock: MockClock, rooms: Rooms) -> None:
    (welcome,) = await Visitor(Party.CUSTOMER, rooms).enters()
    assert (welcome["role"], welcome["sessions"]) == ("customer", [])
    assert "is_online" not in welcome


@pytest.mark.parametrize(
    ("frame", "calls", "answer"),
    [
        ({"type": "go_online"}, [("go_online", USER, NOON), ("went_online", USER, NOON)], {}),
        ({"type": "go_offline"}, [("go_offline", USER, NOON), ("went_offline", USER)], {}),
        ({"type": "offer_accept", "offer_id": OFFER}, [("accept", OFFER, USER)], {"session_id": SESSION}),
        ({"type": "offer_decline", "offer_id": OFFER}, [("decline", OFFER, USER)], {}),
    ],
)
async def test_what_a_mitra_does_is_done_and_acknowledged(
    autojump_clock: MockClock, rooms: Rooms, frame: dict[str, str], calls: list[Any], answer: dict[str, str]
) -> None:
    (ack,) = await Visitor(Party.MITRA, rooms).says(**frame, id="r-1")
    assert rooms.calls == calls
    assert (ack["type"], ack["id"]) == ("ack", "r-1")
    assert {key: ack[key] for key in answer} == answer


@pytest.mark.parametrize(
    ("frame", "calls", "answer"),
    [
        (
            {"type": "pairing_request", "payment_request_id": PAYMENT, "topic_sensitivity": "sensitive"},
            [("start", USER, PAYMENT, "sensitive")],
            {"pairing_id": PAIRING},
        ),
        (
            {"type": "pairing_request", "payment_request_id": PAYMENT},
            [("start", USER, PAYMENT, "regular")],
            {"pairing_id": PAIRING},
        ),
        ({"type": "pairing_cancel", "pairing_id": PAIRING}, [("cancel", PAIRING, USER)], {}),
    ],
)
async def test_what_a_customer_does_is_done_and_acknowledged(
    autojump_clock: MockClock, rooms: Rooms, frame: dict[str, str], calls: list[Any], answer: dict[str, str]
) -> None:
    (ack,) = await Visitor(Party.CUSTOMER, rooms).says(**frame, id="r-1")
    assert rooms.calls == calls
    assert (ack["type"], ack["id"]) == ("ack", "r-1")
    assert {key: ack[key] for key in answer} == answer


HANDED_IN, ASKED = ("hand_in", USER, NOON), ("heartbeat", USER, NOON)
BEATEN = {"type": "heartbeat_ack", "id": "h-1", "server_time": "2026-11-24T12:00:00.000Z"}


async def test_a_heartbeat_is_handed_in_and_answered_when_it_is_settled_and_only_when_it_has_an_id(
    autojump_clock: MockClock, rooms: Rooms
) -> None:
    mitra = Visitor(Party.MITRA, rooms)
    await mitra.enters()
    for frame, answers in (({}, []), ({"id": "h-1"}, [BEATEN])):
        assert mitra.connection.hear(json.dumps({"type": "heartbeat", **frame})) is None  # nobody waits
        assert mitra.heard() == []
        rooms.handed_in.pop()(None)
        assert mitra.heard() == answers
    assert rooms.calls == [HANDED_IN] * 2


@pytest.mark.parametrize("frame_id", [None, "h-1"])
async def test_a_heartbeat_that_is_not_taken_is_refused(
    autojump_clock: MockClock, rooms: Rooms, frame_id: str | None
) -> None:
    mitra = Visitor(Party.MITRA, rooms)
    frame = {"type": "heartbeat"} if frame_id is None else {"type": "heartbeat", "id": frame_id}
    assert await mitra.says(**frame) == []
    rooms.handed_in.pop()(MitraOffline())
    (refused,) = mitra.heard()
    assert (refused["type"], refused.get("id"), refused["code"]) == ("refused", frame_id, MitraOffline().code)


async def test_a_heartbeat_that_cannot_be_handed_in_is_waited_for(autojump_clock: MockClock, rooms: Rooms) -> None:
    mitra = Visitor(Party.MITRA, rooms)
    rooms.takes_in = False
    assert await mitra.says(type="heartbeat", id="h-1") == [BEATEN]
    assert await mitra.says(type="heartbeat") == []
    rooms.refuses = StoreUnavailable()
    (refused,) = await mitra.says(type="heartbeat", id="h-2")
    assert (refused["id"], refused["code"]) == ("h-2", StoreUnavailable().code)
    assert rooms.calls == [ASKED] * 3


async def test_who_beats_faster_than_it_is_answered_waits(autojump_clock: MockClock, rooms: Rooms) -> None:
    """Else one client could fill the batch of all."""
    mitra = Visitor(Party.MITRA, rooms)
    await mitra.says(type="heartbeat")
    assert await mitra.says(type="heartbeat", id="h-1") == [BEATEN]
    assert rooms.calls == [HANDED_IN, ASKED]
    rooms.handed_in.pop()(None)
    await mitra.says(type="heartbeat")
    assert rooms.calls == [HANDED_IN, ASKED, HANDED_IN]


class Websocket:
    """Takes work for the socket's own task."""

    def __init__(self) -> None:
        self.works: list[Callable[[], Awaitable[None]]] = []

    def do(self, work: Callable[[], Awaitable[None]]) -> None:
        self.works.append(work)


async def test_a_heartbeat_that_the_mirror_cannot_decide_is_asked_again_in_the_sockets_own_task(
    autojump_clock: MockClock, rooms: Rooms
) -> None:
    mitra, websocket = Visitor(Party.MITRA, rooms), Websocket()
    mitra.connection._websocket = cast(OpenWebSocket, websocket)
    for refusal, answer in ((None, BEATEN["type"]), (MitraOffline(), "refused")):
        await mitra.says(type="heartbeat", id="h-1")
        rooms.refuses = refusal
        rooms.handed_in.pop()("undecided")
        assert mitra.heard() == []
        await websocket.works.pop()()
        (told,) = mitra.heard()
        assert (told["type"], told["id"]) == (answer, "h-1")
    assert rooms.calls == [HANDED_IN, ASKED] * 2


@pytest.mark.parametrize("outcome", [None, "undecided", MitraOffline()])
async def test_what_becomes_of_a_heartbeat_harms_nobody_after_its_socket_has_gone(
    autojump_clock: MockClock, rooms: Rooms, outcome: Beaten
) -> None:
    mitra, websocket = Visitor(Party.MITRA, rooms), Websocket()
    for gone in (False, True):
        await mitra.says(type="heartbeat")
        mitra.connection._websocket = None if gone else cast(OpenWebSocket, websocket)
        if not gone:
            mitra.connection.close(4000)
        rooms.handed_in.pop()(outcome)
        assert websocket.works == []
        mitra = Visitor(Party.MITRA, rooms)


MITRAS = ("heartbeat", "go_online", "go_offline", "offer_accept", "offer_decline")


@pytest.mark.parametrize("type_", [*MITRAS, "pairing_request", "pairing_cancel"])
async def test_what_belongs_to_the_other_party_is_forbidden_and_does_nothing(
    autojump_clock: MockClock, rooms: Rooms, type_: str
) -> None:
    party = Party.CUSTOMER if type_ in MITRAS else Party.MITRA
    fields = {"offer_accept": {"offer_id": OFFER}, "offer_decline": {"offer_id": OFFER}, "pairing_cancel": {"pairing_id": PAIRING},
              "pairing_request": {"payment_request_id": PAYMENT}}.get(type_, {})  # fmt: skip
    (refused,) = await Visitor(party, rooms).says(type=type_, id="r-1", **fields)
    assert (refused["type"], refused["id"], refused["code"], refused["status"]) == ("refused", "r-1", "FORBIDDEN", 403)
    assert rooms.calls == []


@pytest.mark.parametrize("refusal", [OfferResolved(), CapacityExceeded(), NotFound(), StoreUnavailable()])
async def test_a_refusal_of_a_room_is_told_under_the_frames_id(
    autojump_clock: MockClock, rooms: Rooms, refusal: Refusal
) -> None:
    rooms.refuses = refusal
    (refused,) = await Visitor(Party.MITRA, rooms).says(type="offer_accept", id="r-1", offer_id=OFFER)
    assert (refused["id"], refused["code"], refused["retryable"]) == ("r-1", refusal.code, refusal.retryable)


async def test_when_postgres_refuses_the_mirror_is_not_told(autojump_clock: MockClock, rooms: Rooms) -> None:
    rooms.refuses = StoreUnavailable()
    await Visitor(Party.MITRA, rooms).says(type="go_online", id="r-1")
    assert [call[0] for call in rooms.calls] == ["go_online"]


async def test_chat_frames_are_unknown_here(autojump_clock: MockClock, rooms: Rooms) -> None:
    (refused,) = await Visitor(Party.CUSTOMER, rooms).says(type="message", id="m-1", body="hello")
    assert refused["code"] == "UNKNOWN_TYPE"


async def test_a_ping_is_answered_with_the_time(autojump_clock: MockClock, rooms: Rooms) -> None:
    (pong,) = await Visitor(Party.CUSTOMER, rooms).says(type="ping", id="p-1")
    assert pong == {"type": "pong", "id": "p-1", "server_time": "2026-11-24T12:00:00.000Z"}
