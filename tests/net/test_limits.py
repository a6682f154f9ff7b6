"""`halo.net.limits` and `halo.net.admission`: how often, and how many."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from halo.net.admission import Gate, NotAdmitted, address_key, connections_affordable
from halo.net.limits import Buckets, Rate, TokenBucket


class HandClock:
    """A clock that goes where it is put."""

    def __init__(self, at: int = 1_000_000) -> None:
        self.at = at

    def now(self) -> int:
        return self.at


def test_a_bucket_gives_its_burst_and_then_its_rate() -> None:
    bucket = TokenBucket(Rate(20, 1000, 100), 0)
    assert [bucket.take(0) for _ in range(100)] == [0] * 100
    assert bucket.take(0) == 50
    assert bucket.take(49) == 1
    assert bucket.take(50) == 0
    assert bucket.take(50) == 50


def test_what_it_says_to_wait_is_exactly_enough() -> None:
    bucket = TokenBucket(Rate(30, 60_000, 30), 0)
    bucket.take(0, 30)
    wait = bucket.take(0)
    assert bucket.take(wait - 1) == 1
    assert bucket.take(wait) == 0


def test_asking_takes_nothing() -> None:
    bucket = TokenBucket(Rate(1, 1000, 1), 0)
    assert [bucket.wait_ms(0) for _ in range(5)] == [0] * 5
    assert bucket.take(0) == 0


def test_a_bucket_never_holds_more_than_its_burst() -> None:
    bucket = TokenBucket(Rate(10, 1000, 5), 0)
    assert [bucket.take(10_000_000) == 0 for _ in range(6)] == [True] * 5 + [False]


def test_a_clock_set_back_neither_refills_nor_freezes_a_bucket() -> None:
    bucket = TokenBucket(Rate(1, 1000, 1), 3_600_000)
    assert bucket.take(3_600_000) == 0
    assert bucket.take(0) == 1000
    assert bucket.take(1000) == 0


def test_a_rate_of_zero_lifts_the_limit() -> None:
    bucket = TokenBucket(Rate(0, 1000, 0), 0)
    assert [bucket.take(0) for _ in range(1000)] == [0] * 1000
    buckets = Buckets(Rate(0, 1000, 0), HandClock())
    assert [buckets.take("a") for _ in range(1000)] == [0] * 1000
    assert len(buckets) == 0


@pytest.mark.parametrize(("tokens", "per_ms", "burst"), [(-1, 1000, 1), (1, 0, 1), (1, 1000, 0)])
def test_a_rate_that_makes_no_sense_is_refused(tokens: int, per_ms: int, burst: int) -> None:
    with pytest.raises(ValueError, match="a rate needs"):
        Rate(tokens, per_ms, burst)


@given(
    rate=st.builds(Rate, tokens=st.integers(1, 50), per_ms=st.integers(1, 60_000), burst=st.integers(1, 50)),
    steps=st.lists(st.tuples(st.integers(0, 5_000), st.integers(1, 5)), max_size=50),
)
def test_no_history_of_takes_exceeds_burst_plus_rate(rate: Rate, steps: list[tuple[int, int]]) -> None:
    bucket, now, taken = TokenBucket(rate, 0), 0, 0
    for elapsed, amount in steps:
        now += elapsed
        if bucket.take(now, amount) == 0:
            taken += amount
        assert taken * rate.per_ms <= rate.burst * rate.per_ms + now * rate.tokens


def test_each_key_has_a_bucket_of_its_own() -> None:
    clock = HandClock()
    buckets = Buckets(Rate(10, 60_000, 10), clock)
    assert [buckets.take("attacker") for _ in range(10)] == [0] * 10
    assert buckets.wait_ms("attacker") == 6000
    assert buckets.wait_ms("somebody else") == 0
    clock.at += 6000
    assert buckets.take("attacker") == 0


def test_buckets_are_bounded_and_forget_whom_nobody_has_seen_for_longest() -> None:
    buckets = Buckets(Rate(1, 60_000, 1), HandClock(), keys_at_most=2)
    buckets.take("a")
    buckets.take("b")
    buckets.take("a")
    buckets.take("c")
    assert len(buckets) == 2
    assert buckets.wait_ms("a") > 0
    assert buckets.wait_ms("b") == 0


def gate(clock: HandClock | None = None, **limits: int) -> Gate:
    none = {"total_at_most": 0, "per_address_at_most": 0, "handshakes_per_s": 0, "unauthenticated_at_most": 0}
    return Gate(clock or HandClock(), **(none | limits))


def test_a_household_counts_as_one_address() -> None:
    assert address_key("2001:db8:1:2:3::4") == address_key("2001:db8:1:2:ffff::1") != address_key("2001:db8:1:3::1")
    assert address_key("::ffff:10.0.0.1") == address_key("10.0.0.1") != address_key("10.0.0.2")
    assert address_key("fe80::1%eth0") == address_key("fe80::2%eth0")
    assert address_key("unix") == "unix"


def test_an_address_has_so_many_connections_and_no_more() -> None:
    door = gate(per_address_at_most=2)
    first, _ = door.admit("10.0.0.1"), door.admit("10.0.0.1")
    with pytest.raises(NotAdmitted) as no:
        door.admit("10.0.0.1")
    assert (no.value.status, no.value.cause) == (429, "address_full")
    door.admit("10.0.0.2")
    first.leave()
    first.leave()
    door.admit("10.0.0.1")
    with pytest.raises(NotAdmitted):
        door.admit("10.0.0.1")


def test_an_address_has_so_many_handshakes_a_second_and_twice_that_at_once() -> None:
    clock = HandClock()
    door = gate(clock, handshakes_per_s=20)
    for _ in range(40):
        door.admit("10.0.0.1").leave()
    with pytest.raises(NotAdmitted) as no:
        door.admit("10.0.0.1")
    assert (no.value.status, no.value.cause, no.value.retry_after_ms) == (429, "address_rate", 50)
    door.admit("10.0.0.2")
    clock.at += 50
    door.admit("10.0.0.1")
    assert door.refused == {"address_rate": 1}


def test_only_so_many_may_be_unknown_at_once() -> None:
    door = gate(unauthenticated_at_most=2)
    known, gone = door.admit("10.0.0.1"), door.admit("10.0.0.2")
    with pytest.raises(NotAdmitted) as no:
        door.admit("10.0.0.3")
    assert (no.value.status, no.value.cause) == (503, "handshakes_full")
    known.authenticated()
    known.authenticated()
    door.admit("10.0.0.3")
    with pytest.raises(NotAdmitted):
        door.admit("10.0.0.4")
    gone.leave()
    known.leave()
    door.admit("10.0.0.4")
    assert (door.total, door.unauthenticated) == (2, 2)


def test_the_node_is_full_at_its_total_cap() -> None:
    door = gate(total_at_most=1)
    only = door.admit("10.0.0.1")
    with pytest.raises(NotAdmitted) as no:
        door.admit("10.0.0.2")
    assert (no.value.status, no.value.cause) == (503, "node_full")
    only.leave()
    door.admit("10.0.0.2")


def test_the_total_cap_follows_memory_and_the_file_limit() -> None:
    assert connections_affordable(memory_bytes=64 * 1024 * 2 * 100) == 100
    assert connections_affordable(memory_bytes=0) == 64
    assert connections_affordable() >= 64
