"""What a browser may carry from an action to its page."""

from halo.net.status.seals import Seals


def test_only_what_was_sealed_here_for_this_operator_is_opened() -> None:
    seals = Seals()
    sealed = seals.sealed("ani", "end_session")
    assert seals.opened("ani", sealed) == "end_session"
    assert seals.opened("budi", sealed) is None
    assert Seals().opened("ani", sealed) is None
    for carried in (None, "", ".", "end_session", sealed + "0", sealed.replace("end", "ext"), "end_session.\ud800"):
        assert seals.opened("ani", carried) is None
