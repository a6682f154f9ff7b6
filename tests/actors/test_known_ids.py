from uuid import uuid4

from hypothesis import given
from hypothesis import strategies as st

from halo.actors.known_ids import KnownIds

IDS = st.tuples(st.sampled_from(["customer", "mitra"]), st.text(max_size=8))


@given(st.lists(IDS), st.lists(IDS))
def test_what_was_added_is_always_found(added: list[tuple[str, str]], others: list[tuple[str, str]]) -> None:
    """The direction that must never fail: a retry that is not recognised would be stored twice."""
    known = KnownIds()
    for sender, client_id in added:
        known.add(sender, client_id)
    assert all(known.may_hold(sender, client_id) for sender, client_id in added)
    assert len(known) == len(added)
    assert {other for other in others if known.may_hold(*other)} <= set(added)


def test_the_same_id_of_the_other_party_is_another_id() -> None:
    known = KnownIds()
    known.add("customer", "m-1")
    assert not known.may_hold("mitra", "m-1")


def test_nothing_is_held_at_first() -> None:
    assert not KnownIds().may_hold("customer", "")


def test_an_id_costs_eight_bytes_or_hardly_more() -> None:
    known = KnownIds()
    for _ in range(10_000):
        known.add("customer", str(uuid4()))
    assert known._hashes.itemsize == 8
    assert known._hashes.buffer_info()[1] == 10_000
