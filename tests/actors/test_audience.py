"""Who hears a session: both, one, all but one; each frame encoded once, and for nobody not at all."""

from halo import protocol
from halo.actors.audience import Audience
from halo.session import Party
from tests.actors.fakes import FakeEar

CUSTOMER, MITRA = Party.CUSTOMER, Party.MITRA
TYPING = protocol.Typing(sender="customer", on=True)


def an_audience(*parties: Party) -> tuple[Audience, list[FakeEar]]:
    audience, ears = Audience(), [FakeEar(party) for party in parties]
    for ear in ears:
        audience.join(ear)
    for ear in ears:
        ear.forget()
    return audience, ears


async def test_the_first_socket_of_a_party_is_announced_to_the_others_but_not_to_itself() -> None:
    audience, (customer,) = an_audience(CUSTOMER)
    mitra = FakeEar(MITRA)
    audience.join(mitra)
    assert customer.of("presence") == [{"type": "presence", "party": "mitra", "connected": True}]
    assert mitra.heard == []


async def test_a_second_socket_of_a_party_is_no_news() -> None:
    audience, (customer, first) = an_audience(CUSTOMER, MITRA)
    audience.join(FakeEar(MITRA))
    assert (customer.heard, first.heard) == ([], [])


async def test_only_the_last_socket_of_a_party_that_leaves_is_news() -> None:
    audience, (customer, first, second) = an_audience(CUSTOMER, MITRA, MITRA)
    audience.leave(first)
    assert audience.parties() == {CUSTOMER, MITRA}
    assert customer.heard == []
    audience.leave(second)
    assert customer.of("presence") == [{"type": "presence", "party": "mitra", "connected": False}]
    assert audience.parties() == {CUSTOMER}
    assert not audience.hears(MITRA)
    assert len(audience) == 1


async def test_a_frame_goes_to_both_to_one_party_or_to_all_but_one_socket() -> None:
    audience, ears = an_audience(CUSTOMER, MITRA, MITRA)
    audience.send(TYPING)
    assert [len(ear.heard) for ear in ears] == [1, 1, 1]
    audience.send(TYPING, to=MITRA)
    assert [len(ear.heard) for ear in ears] == [1, 2, 2]
    audience.send(TYPING, beside=ears[1])
    assert [len(ear.heard) for ear in ears] == [2, 2, 3]


async def test_all_hear_the_same_bytes_and_a_frame_for_nobody_is_not_encoded() -> None:
    class Counted(FakeEar):
        def __init__(self, party: Party) -> None:
            super().__init__(party)
            self.bytes: list[int] = []

        def send(self, frame: bytes) -> None:
            self.bytes.append(id(frame))

    audience, first, second = Audience(), Counted(CUSTOMER), Counted(CUSTOMER)
    audience.join(first)
    audience.join(second)
    audience.send(TYPING)
    assert first.bytes == second.bytes
    not_encodable = protocol.Typing(sender=object(), on=True)  # type: ignore[arg-type]
    audience.send(not_encodable, to=MITRA)


async def test_an_ear_that_leaves_because_of_what_it_hears_takes_nothing_from_the_others() -> None:
    audience = Audience()

    class Leaving(FakeEar):
        def send(self, frame: bytes) -> None:
            super().send(frame)
            audience.leave(self)

    leaving, staying = Leaving(CUSTOMER), FakeEar(CUSTOMER)
    audience.join(leaving)
    audience.join(staying)
    audience.send(TYPING)
    assert (leaving.types(), staying.types()) == (["typing"], ["typing"])


async def test_closing_closes_every_socket_with_the_code() -> None:
    audience, ears = an_audience(CUSTOMER, MITRA)
    audience.close(4000)
    assert [ear.closed for ear in ears] == [[4000], [4000]]


async def test_who_has_no_part_in_it_any_more_is_shown_the_door_and_the_others_hear_that_she_is_gone() -> None:
    audience = Audience()
    customer, old, tablet = FakeEar(CUSTOMER, "c"), FakeEar(MITRA, "old"), FakeEar(MITRA, "old")
    for ear in (customer, old, tablet):
        audience.join(ear)
    for ear in (customer, old, tablet):
        ear.forget()
    audience.expel({"c", "new"}, 4404)
    assert (old.closed, tablet.closed, customer.closed) == ([4404], [4404], [])
    assert (old.heard, tablet.heard) == ([], [])
    assert customer.heard == [{"type": "presence", "party": "mitra", "connected": False}]
    audience.leave(old)  # as its socket does when it is gone
    assert len(audience) == 1


async def test_whether_others_listen_does_not_count_one_who_has_left() -> None:
    audience, speaker, other = Audience(), FakeEar(MITRA), FakeEar(CUSTOMER)
    assert not audience.has_others(None)
    audience.join(speaker)
    assert not audience.has_others(speaker)
    audience.join(other)
    audience.leave(speaker)
    assert audience.has_others(speaker)
