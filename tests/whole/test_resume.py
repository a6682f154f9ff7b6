"""Whoever comes back hears everything once and in order, wherever the connection was cut (C4)."""

import itertools

import pytest
import trio

from tests.whole.house import House, Person, open_house
from tests.whole.wire import HandshakeRefused, Wire, chat_path, open_wire

LINES = 24
"""Messages that the mitra says in each session; with the welcome, typing and read frames a listener gets over 30 frames."""
CUTS = 34
LONG = 1_000


async def say(wire: Wire, name: str, body: str) -> int:
    """Until it is acknowledged; its seq."""
    ack = await wire.ask("message", id=name, body=body)
    assert ack["type"] == "ack", ack
    seq: int = ack["seq"]
    return seq


class Listener:
    """An app that remembers the last seq it has seen, and nothing else."""

    def __init__(self, house: House, session_id: str, person: Person) -> None:
        self._house = house
        self._session_id = session_id
        self._person = person
        self.seqs: list[int] = []
        self.bodies: list[str] = []

    async def listen(self, frames: int, until_seq: int) -> int:
        """Connect where we were, take so many frames or all up to `until_seq`, and vanish; how many frames came."""
        after_seq = self.seqs[-1] if self.seqs else 0
        async with open_wire(self._house, chat_path(self._session_id, after_seq), self._person) as wire:
            for taken in range(1, frames + 1):
                told = await wire.receive()
                if taken == 1:
                    assert told["type"] == "welcome"
                    assert told["replay_from"] == after_seq
                    assert told["last_seq"] >= after_seq
                elif told["type"] == "message":
                    self.seqs.append(told["seq"])
                    self.bodies.append(told["body"])
                if self.seqs and self.seqs[-1] == until_seq:
                    return taken
        return frames


async def test_a_listener_cut_after_any_frame_hears_all_once_and_in_order(database_url: str, valkey_url: str) -> None:
    """One session for each place of the cut; the other side goes on talking the whole time."""
    async with open_house(database_url, valkey_url) as house:
        await house.configure(pairing_offer_seconds=600)
        mitra = await house.admit("mitra")
        await house.go_online(mitra, rooms=CUTS)
        sessions = []
        for _ in range(CUTS):
            customer = await house.admit("customer")
            sessions.append((customer, await house.pair(customer, mitra)))
        reached: list[bool] = []

        async def talk(session_id: str, joined: trio.Event) -> None:
            async with open_wire(house, chat_path(session_id), mitra) as wire:
                await wire.expect("welcome")
                await joined.wait()
                for number in range(1, LINES + 1):
                    if number % 2 == 0:
                        await wire.send("typing", on=number % 4 == 0)
                    assert await say(wire, f"line {number}", f"{session_id} {number}") == number

        async def cut(place: int, customer: Person, session_id: str) -> None:
            listener, joined = Listener(house, session_id, customer), trio.Event()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(talk, session_id, joined)
                joined.set()
                reached.append(await listener.listen(place, LINES) == place)
                await listener.listen(10_000, LINES) if listener.seqs[-1:] != [LINES] else None
            assert listener.seqs == list(range(1, LINES + 1))
            assert listener.bodies == [f"{session_id} {number}" for number in range(1, LINES + 1)]

        async with trio.open_nursery() as nursery:
            for place, (customer, session_id) in enumerate(sessions, 1):
                nursery.start_soon(cut, place, customer, session_id)
        assert reached.count(True) >= LINES, "the cuts came too late to matter"
        await house.require_invariants()


async def test_a_listener_cut_at_every_frame_still_hears_all(database_url: str, valkey_url: str) -> None:
    """Two frames a connection: the welcome, and one more."""
    async with open_house(database_url, valkey_url) as house:
        customer, mitra, session_id = await house.open_pair()
        listener = Listener(house, session_id, customer)
        async with open_wire(house, chat_path(session_id), mitra) as speaker:
            for number in itertools.count(1):
                if number <= LINES:
                    await say(speaker, f"line {number}", f"line {number}")
                await listener.listen(2, LINES)
                if listener.seqs[-1:] == [LINES]:
                    break
                assert number < 4 * LINES, listener.seqs
        assert listener.seqs == list(range(1, LINES + 1))


async def test_a_speaker_cut_before_its_ack_says_it_again_and_it_is_there_once(
    database_url: str, valkey_url: str
) -> None:
    async with open_house(database_url, valkey_url) as house:
        customer, mitra, session_id = await house.open_pair()
        for number in range(1, LINES + 1):
            async with open_wire(house, chat_path(session_id, number - 1), customer) as wire:
                await wire.send("message", id=f"m{number}", body=f"body {number}")
                if number % 3 == 0:  # cut while it is on its way; else once it is acknowledged
                    wire.abort()
                else:
                    await wire.expect("ack")
            async with open_wire(house, chat_path(session_id, number - 1), customer) as wire:
                assert await say(wire, f"m{number}", f"body {number}") == number
        page = await house.call(mitra, "GET", f"/api/chat/{session_id}/messages?limit=200")
        assert [(message["seq"], message["id"]) for message in page["messages"]] == [
            (n, f"m{n}") for n in range(1, LINES + 1)
        ]
        await house.require_invariants()


async def test_a_thousand_messages_are_replayed_before_anything_live(database_url: str, valkey_url: str) -> None:
    """The reader stands still in the middle of its history while the other side goes on talking."""
    live = 100
    async with open_house(database_url, valkey_url) as house:
        customer, mitra, session_id = await house.open_pair()
        async with open_wire(house, chat_path(session_id), mitra) as speaker:
            for start in range(1, LONG + 1, 200):
                for number in range(start, start + 200):
                    await speaker.send("message", id=f"m{number}", body="é" * 4000)
                for number in range(start, start + 200):
                    assert (await speaker.expect("ack"))["seq"] == number
            async with open_wire(house, chat_path(session_id), customer, receive_buffer=16_384) as wire:
                welcome = await wire.receive()
                assert (welcome["last_seq"], welcome["replay_from"]) == (LONG, 0)
                for number in range(
                    LONG + 1, LONG + live + 1
                ):  # acknowledged, so delivered as far as the server is concerned
                    await speaker.send("typing", on=True)
                    assert await say(speaker, f"m{number}", f"live {number}") == number
                seqs: list[int] = []
                while len(seqs) < LONG + live:
                    told = await wire.receive()
                    if told["type"] == "message":
                        seqs.append(told["seq"])
                    else:
                        assert told["type"] == "typing"
                        assert len(seqs) >= LONG, "live traffic overtook the history"
            assert seqs == list(range(1, LONG + live + 1))


async def test_what_is_no_whole_number_refuses_the_handshake(database_url: str, valkey_url: str) -> None:
    async with open_house(database_url, valkey_url) as house:
        customer, _, session_id = await house.open_pair()
        for after_seq in ("-1", "+1", "1.5", "x", "", "%20", "1&after_seq=2", "0x1", "1e3", "%EF%BC%91", "0" * 5000):
            with pytest.raises(HandshakeRefused) as refused:
                async with open_wire(house, chat_path(session_id, after_seq), customer):
                    pass
            assert (refused.value.status, refused.value.problem["code"]) == (400, "VALIDATION_ERROR"), after_seq


async def test_beyond_the_last_seq_counts_as_the_last(database_url: str, valkey_url: str) -> None:
    async with open_house(database_url, valkey_url) as house:
        customer, mitra, session_id = await house.open_pair()
        async with open_wire(house, chat_path(session_id), mitra) as speaker:
            await say(speaker, "1", "first")
            for after_seq in ("1", "2", "4294967296", "9" * 30):
                async with open_wire(house, chat_path(session_id, after_seq), customer) as wire:
                    welcome = await wire.receive()
                    assert (welcome["last_seq"], welcome["replay_from"]) == (1, 1)
            async with open_wire(house, chat_path(session_id, 7), customer) as wire:
                await wire.receive()
                await say(speaker, "2", "second")
                assert (await wire.expect("message"))["seq"] == 2


async def test_without_after_seq_the_history_comes_from_its_beginning(database_url: str, valkey_url: str) -> None:
    async with open_house(database_url, valkey_url) as house:
        customer, mitra, session_id = await house.open_pair()
        async with open_wire(house, chat_path(session_id), mitra) as speaker:
            await say(speaker, "1", "first")
        async with open_wire(house, f"/v1/chat/{session_id}", customer) as wire:
            assert (await wire.receive())["replay_from"] == 0
            assert (await wire.receive())["body"] == "first"
