"""Each test that breaks something names what must be found, and that nothing else is."""

import pytest

from halo.load.ledger import SHOWN_AT_MOST, Book, Findings, Kind, Stored

FILLER = " mmm"
CUSTOMER, MITRA = 0, 1


@pytest.fixture
def findings() -> Findings:
    return Findings()


@pytest.fixture
def book(findings: Findings) -> Book:
    """A session that begins after seq 2, in which both have said one thing, and all of it went well."""
    book = Book("s", "run", 2, findings)
    said(book, CUSTOMER, "customer", 3)
    said(book, MITRA, "mitra", 4)
    return book


def said(book: Book, side: int, sender: str, seq: int) -> None:
    number = book.intend(side, 10.0 + seq)
    assert book.acked(side, book.id_of(number), seq) == 10.0 + seq
    assert book.heard(1 - side, sender, book.id_of(number), seq) == 10.0 + seq


def history() -> list[Stored]:
    return [Stored(3, "run.0", "customer", "run.0" + FILLER), Stored(4, "run.0", "mitra", "run.0" + FILLER)]


def test_what_went_well_has_no_findings(book: Book, findings: Findings) -> None:
    assert book.is_settled
    assert book.close(history(), FILLER) == 2
    assert not findings.counts


def test_an_acknowledged_message_that_is_not_in_the_history_is_missing(book: Book, findings: Findings) -> None:
    book.close(history()[:1], FILLER)
    assert findings.counts == {Kind.MISSING: 1, Kind.ALTERED: 1}  # and the other side heard what is not there
    assert findings.examples[Kind.MISSING] == ["session s: run.0 was acknowledged as 4 and is not in the history"]


def test_an_acknowledged_message_that_the_other_never_heard_is_undelivered(book: Book, findings: Findings) -> None:
    number = book.intend(CUSTOMER, 20.0)
    book.acked(CUSTOMER, book.id_of(number), 5)
    assert not book.is_settled
    book.close([*history(), Stored(5, "run.1", "customer", "run.1" + FILLER)], FILLER)
    assert findings.counts == {Kind.UNDELIVERED: 1}


@pytest.mark.parametrize("once_more", [3, 2])
def test_a_message_that_comes_again_is_repeated(book: Book, findings: Findings, once_more: int) -> None:
    assert book.heard(MITRA, "customer", "run.0", once_more) is None
    assert findings.counts == {Kind.REPEATED: 1}


def test_a_message_that_comes_again_under_a_new_seq_is_repeated(book: Book, findings: Findings) -> None:
    assert book.heard(MITRA, "customer", "run.0", 5) is None
    assert findings.counts == {Kind.REPEATED: 1}


def test_a_second_ack_is_repeated(book: Book, findings: Findings) -> None:
    assert book.acked(CUSTOMER, "run.0", 3) is None
    assert findings.counts == {Kind.REPEATED: 1}


def test_a_message_that_is_stored_twice_is_repeated(book: Book, findings: Findings) -> None:
    book.close([*history(), Stored(5, "run.0", "mitra", "run.0" + FILLER)], FILLER)
    assert findings.counts[Kind.REPEATED] == 1


def test_a_gap_in_seq_is_disorder(book: Book, findings: Findings) -> None:
    book.heard(MITRA, "system", None, 6)
    assert findings.counts == {Kind.DISORDERED: 1}


def test_two_that_are_swapped_are_disorder_and_repetition(book: Book, findings: Findings) -> None:
    for seq in (6, 5):
        book.heard(MITRA, "system", None, seq)
    assert findings.counts == {Kind.DISORDERED: 1, Kind.REPEATED: 1}


def test_an_ack_out_of_order_is_disorder(book: Book, findings: Findings) -> None:
    number = book.intend(CUSTOMER, 20.0)
    assert book.acked(CUSTOMER, book.id_of(number), 9) == 20.0
    assert findings.counts == {Kind.DISORDERED: 1}


def test_a_history_with_a_hole_is_disorder(book: Book, findings: Findings) -> None:
    book.close([*history(), Stored(6, "x", "system", "")], FILLER)
    assert findings.counts == {Kind.DISORDERED: 1}


def test_another_body_is_altered(book: Book, findings: Findings) -> None:
    first, second = history()
    book.close([Stored(3, first.id, first.sender, "run.9" + FILLER), second], FILLER)
    assert findings.counts == {Kind.ALTERED: 1}


def test_another_seq_in_the_history_is_altered(book: Book, findings: Findings) -> None:
    first, second = history()
    book.close(
        [Stored(3, second.id, second.sender, second.body), Stored(4, first.id, first.sender, first.body)], FILLER
    )
    assert findings.counts == {Kind.ALTERED: 4}  # of both, to who said it and to who heard it


@pytest.mark.parametrize("strange", ["run.7", "run.x", "run", "other.0", None])
def test_an_ack_for_what_nobody_sent_is_altered(book: Book, findings: Findings, strange: str | None) -> None:
    assert book.acked(CUSTOMER, strange, 5) is None
    assert findings.counts == {Kind.ALTERED: 1}


def test_a_message_of_this_run_that_nobody_said_is_altered(book: Book, findings: Findings) -> None:
    assert book.heard(MITRA, "customer", "run.7", 5) is None
    assert findings.counts == {Kind.ALTERED: 1}


def test_messages_of_other_runs_are_nobodys_business(book: Book, findings: Findings) -> None:
    assert book.heard(MITRA, "customer", "earlier.0", 5) is None
    assert book.close([*history(), Stored(5, "earlier.0", "customer", "hello")], FILLER) == 2
    assert not findings.counts


def test_what_was_sent_again_may_be_acknowledged_again_with_its_first_seq(book: Book, findings: Findings) -> None:
    number = book.intend(CUSTOMER, 20.0)
    assert book.unanswered(CUSTOMER) == [number]
    book.resent(CUSTOMER, number)
    assert book.heard(CUSTOMER, "customer", book.id_of(number), 5) is None  # its own, in the replay
    assert book.last_seq(CUSTOMER) == 5
    assert book.acked(CUSTOMER, book.id_of(number), 5) == 20.0
    assert book.acked(CUSTOMER, book.id_of(number), 5) is None
    assert not findings.counts
    assert book.acked(CUSTOMER, book.id_of(number), 6) is None
    assert findings.counts == {Kind.REPEATED: 1}


def test_what_was_refused_is_owed_by_nobody(book: Book, findings: Findings) -> None:
    number = book.intend(CUSTOMER, 20.0)
    assert book.waiting_since() == [20.0]
    book.refused(CUSTOMER, book.id_of(number))
    assert (book.unanswered(CUSTOMER), book.waiting_since(), book.is_settled) == ([], [], True)
    book.close(history(), FILLER)
    assert not findings.counts


def test_a_refusal_does_not_take_back_an_ack(book: Book) -> None:
    book.refused(CUSTOMER, "run.0")
    assert book.close(history(), FILLER) == 2


def test_only_some_examples_are_kept_but_all_are_counted() -> None:
    findings = Findings()
    for number in range(9):
        findings.note(Kind.MISSING, str(number))
    findings.add({Kind.MISSING: 3}, {Kind.MISSING: ["another"]})
    assert findings.counts == {Kind.MISSING: 12}
    assert findings.examples == {Kind.MISSING: ["0", "1", "2", "3", "4"]}
    assert len(findings.examples[Kind.MISSING]) == SHOWN_AT_MOST


def test_only_what_waits_for_its_answer_is_found(book: Book) -> None:
    number = book.intend(CUSTOMER, 20.0)
    assert book.find_unanswered(CUSTOMER, book.id_of(number)) == number
    assert book.find_unanswered(CUSTOMER, "run.0") is None  # it was acknowledged
    assert book.find_unanswered(CUSTOMER, "other.0") is None
