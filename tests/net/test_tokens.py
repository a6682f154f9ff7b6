import base64
import hashlib
import hmac
import json
from typing import Any

import jwt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from halo.errors import MitraDeactivated, Unauthenticated
from halo.net.tokens import LEEWAY_MS, TOKEN_CHARACTERS_MAX, Tokens
from halo.session import Party

NOW = 1_795_464_900_123
SECRET = "correct horse battery staple, and then some"
USER = "0c8a3f0e-3d4f-4a52-9a0b-7a0d3f6a1c11"
FAMILY = "5f2d8f4e-8f4b-4f0e-8d3e-2b1c7a9e0d22"
LIFETIME_SECONDS = 600


class SetClock:
    def __init__(self, moment: int = NOW) -> None:
        self.moment = moment

    def now(self) -> int:
        return self.moment


@pytest.fixture
def clock() -> SetClock:
    return SetClock()


@pytest.fixture
def tokens(clock: SetClock) -> Tokens:
    return Tokens(SECRET, LIFETIME_SECONDS, clock)


def claims(**changes: Any) -> dict[str, Any]:
    """What halo itself writes, with changes; None leaves a claim out."""
    now = NOW // 1000
    own = {
        "iss": "halo",
        "aud": "halo",
        "sub": USER,
        "sid": FAMILY,
        "ut": "customer",
        "jti": "one",
        "iat": now,
        "exp": now + LIFETIME_SECONDS,
    }
    return {name: value for name, value in (own | changes).items() if value is not None}


def segment(value: object) -> str:
    raw = value if isinstance(value, bytes) else json.dumps(value).encode()
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def signed(payload: object, secret: str = SECRET, **header: Any) -> str:
    """A token signed by hand, so that no library tidies up what is wrong with it."""
    first = segment({"alg": "HS256", "typ": "JWT"} | header) + "." + segment(payload)
    return first + "." + segment(hmac.digest(secret.encode(), first.encode(), hashlib.sha256))


# ---- what is ours


@pytest.mark.parametrize("party", list(Party))
def test_an_issued_token_names_its_user_and_its_family(tokens: Tokens, party: Party) -> None:
    identity = tokens.verify(tokens.issue(party, USER, FAMILY))
    assert (identity.user_type, identity.user_id, identity.auth_session_id) == (party, USER, FAMILY)
    assert identity.expires_at == (NOW // 1000 + LIFETIME_SECONDS) * 1000


def test_a_token_carries_exactly_the_claims_of_the_contract(tokens: Tokens) -> None:
    token = tokens.issue(Party.MITRA, USER, FAMILY)
    read = jwt.decode_complete(token, options={"verify_signature": False})
    assert read["header"] == {"alg": "HS256", "typ": "JWT"}
    assert set(read["payload"]) == {"iss", "aud", "sub", "sid", "ut", "jti", "iat", "exp"}


def test_two_tokens_of_one_moment_have_two_ids(tokens: Tokens) -> None:
    first, second = (tokens.verify(tokens.issue(Party.CUSTOMER, USER, FAMILY)) for _ in range(2))
    assert first.jti != second.jti


def test_a_token_signed_by_hand_with_our_secret_is_accepted(tokens: Tokens) -> None:
    """What the refusals below are measured against: only the named change makes them fail."""
    assert tokens.verify(signed(claims())).user_id == USER


def test_a_secret_shorter_than_the_hash_is_refused_at_start(clock: SetClock) -> None:
    with pytest.raises(ValueError, match="at least 32 bytes"):
        Tokens("x" * 31, LIFETIME_SECONDS, clock)


# ---- time, by halo's clock


def test_a_token_is_good_until_the_leeway_after_its_end_is_over(tokens: Tokens, clock: SetClock) -> None:
    token = tokens.issue(Party.CUSTOMER, USER, FAMILY)
    ends = tokens.verify(token).expires_at
    clock.moment = ends + LEEWAY_MS - 1
    assert tokens.verify(token).user_id == USER
    clock.moment = ends + LEEWAY_MS
    with pytest.raises(Unauthenticated):
        tokens.verify(token)


@pytest.mark.parametrize("claim", ["iat", "nbf"])
def test_a_token_from_further_ahead_than_the_leeway_is_refused(tokens: Tokens, claim: str) -> None:
    near, far = (NOW + LEEWAY_MS) // 1000, (NOW + LEEWAY_MS) // 1000 + 1
    assert tokens.verify(signed(claims(**{claim: near}))).user_id == USER
    with pytest.raises(Unauthenticated):
        tokens.verify(signed(claims(**{claim: far})))


# ---- what is not ours


@pytest.mark.parametrize("claim", ["iss", "aud", "sub", "sid", "ut", "jti", "iat", "exp"])
def test_a_token_without_one_of_its_claims_is_refused(tokens: Tokens, claim: str) -> None:
    with pytest.raises(Unauthenticated):
        tokens.verify(signed(claims(**{claim: None})))


@pytest.mark.parametrize(
    "changes",
    [
        {"iss": "else"},
        {"iss": ["halo"]},
        {"aud": "else"},
        {"aud": ["halo"]},
        {"sub": "nobody"},
        {"sub": 7},
        {"sid": "x"},
        {"ut": "operator"},
        {"jti": 7},
        {"jti": "x" * 65},
        {"iat": "now"},
        {"exp": "9999999999"},
        {"exp": 9999999999.5},
        {"exp": True},
        {"exp": 1e400},
        {"exp": 10**400},
        {"exp": -1},
        {"nbf": "never"},
    ],
    ids=str,
)
def test_a_claim_of_another_value_or_type_is_refused(tokens: Tokens, changes: dict[str, Any]) -> None:
    with pytest.raises(Unauthenticated):
        tokens.verify(signed(claims(**changes)))


@pytest.mark.parametrize(
    "header",
    [
        {"kid": "../../etc/passwd"},
        {"kid": 7},
        {"jku": "https://example.org/keys"},
        {"x5u": "https://example.org/cert"},
        {"jwk": {"kty": "oct", "k": "AAAA"}},
        {"x5c": ["AAAA"]},
        {"crit": ["exp"], "exp": 1},
        {"crit": []},
        {"crit": ["b64"], "b64": True},
        {"crit": ["b64"], "b64": False},
        {"b64": False},
        {"zip": "DEF"},
    ],
    ids=str,
)
def test_a_header_that_asks_the_verifier_for_more_is_refused_though_the_signature_is_right(
    tokens: Tokens, header: dict[str, Any]
) -> None:
    with pytest.raises(Unauthenticated):
        tokens.verify(signed(claims(), **header))


@pytest.mark.parametrize(
    "algorithm", ["none", "None", "NONE", "HS384", "HS512", "RS256", "ES256", "", None, ["HS256"], 7], ids=str
)
def test_only_hs256_is_ever_checked(tokens: Tokens, algorithm: Any) -> None:
    with pytest.raises(Unauthenticated):
        tokens.verify(signed(claims(), alg=algorithm))


def test_a_token_without_a_signature_is_refused(tokens: Tokens) -> None:
    with pytest.raises(Unauthenticated):
        tokens.verify(jwt.encode(claims(), key="", algorithm="none"))
    with pytest.raises(Unauthenticated):
        tokens.verify(signed(claims()).rsplit(".", 1)[0] + ".")


def test_an_honest_signature_by_a_longer_hash_is_refused(tokens: Tokens) -> None:
    with pytest.raises(Unauthenticated):
        tokens.verify(jwt.encode(claims(), SECRET * 2, algorithm="HS512"))


def test_a_token_of_another_secret_is_refused(tokens: Tokens) -> None:
    with pytest.raises(Unauthenticated):
        tokens.verify(signed(claims(), secret=SECRET + "!"))


def test_a_token_with_any_character_changed_is_refused(tokens: Tokens) -> None:
    token = tokens.issue(Party.CUSTOMER, USER, FAMILY)
    for at in range(len(token)):
        changed = token[:at] + ("A" if token[at] != "A" else "B") + token[at + 1 :]
        with pytest.raises(Unauthenticated):
            tokens.verify(changed)


def test_a_token_longer_than_4_kib_is_not_even_decoded(tokens: Tokens) -> None:
    padded = signed(claims(padding="x" * TOKEN_CHARACTERS_MAX))
    with pytest.raises(Unauthenticated):
        tokens.verify(padded)


@pytest.mark.parametrize(
    "payload",
    [[], "halo", None, 7, b"\xff\xfe", b"{", b"[" * 3000, b'{"a":' * 500, b'{"exp":NaN}', b"\xef\xbb\xbf{}"],
    ids=lambda value: repr(value)[:20],
)
def test_a_payload_that_is_no_object_is_refused_though_the_signature_is_right(tokens: Tokens, payload: object) -> None:
    with pytest.raises(Unauthenticated):
        tokens.verify(signed(payload))


@pytest.mark.parametrize("header", [b"\xff", b"{", b"[]", b"null", b"[" * 3000, b'{"alg":"HS256","alg":"none"}'])
def test_a_header_that_is_no_object_or_says_two_things_is_refused(tokens: Tokens, header: bytes) -> None:
    first = segment(header) + "." + segment(claims())
    token = first + "." + segment(hmac.digest(SECRET.encode(), first.encode(), hashlib.sha256))
    with pytest.raises(Unauthenticated):
        tokens.verify(token)


@given(st.text(max_size=300) | st.text(alphabet="abcXYZ019-_.=", max_size=300))
def test_no_text_raises_anything_but_unauthenticated(text: str) -> None:
    with pytest.raises(Unauthenticated):
        Tokens(SECRET, LIFETIME_SECONDS, SetClock()).verify(text)


@given(st.lists(st.binary(max_size=120), min_size=1, max_size=4))
def test_no_bytes_in_the_segments_raise_anything_but_unauthenticated(parts: list[bytes]) -> None:
    with pytest.raises(Unauthenticated):
        Tokens(SECRET, LIFETIME_SECONDS, SetClock()).verify(".".join(map(segment, parts)))


@given(
    st.dictionaries(st.sampled_from(["alg", "typ", "kid", "crit", "b64", "jwk"]), st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
        max_leaves=6,
    )),
    st.dictionaries(st.sampled_from(["iss", "aud", "sub", "sid", "ut", "jti", "iat", "exp", "nbf"]), st.none() | st.booleans()
        | st.integers() | st.floats() | st.text(max_size=9) | st.lists(st.integers(), max_size=2), min_size=1),
)  # fmt: skip
def test_no_json_under_a_right_signature_raises_anything_but_unauthenticated(
    header: dict[str, Any], changes: dict[str, Any]
) -> None:
    tokens = Tokens(SECRET, LIFETIME_SECONDS, SetClock())
    token = signed(claims(**changes), **header)
    try:
        assert tokens.verify(token).user_id == USER
    except Unauthenticated:
        return


# ---- revocation


def test_a_revoked_family_is_refused_at_once_and_others_are_not(tokens: Tokens) -> None:
    other = "7b1e6a52-1f4c-4a57-8b0d-0f8f0c9d4e33"
    revoked, untouched = tokens.issue(Party.CUSTOMER, USER, FAMILY), tokens.issue(Party.CUSTOMER, USER, other)
    tokens.revocations.add(FAMILY)
    with pytest.raises(Unauthenticated):
        tokens.verify(revoked)
    assert tokens.verify(untouched).auth_session_id == other


def test_a_deactivated_mitra_is_told_so(tokens: Tokens) -> None:
    token = tokens.issue(Party.MITRA, USER, FAMILY)
    tokens.revocations.add(FAMILY, MitraDeactivated)
    with pytest.raises(MitraDeactivated):
        tokens.verify(token)


def test_an_expired_token_of_a_revoked_family_is_unauthenticated_like_any_other(
    tokens: Tokens, clock: SetClock
) -> None:
    token = tokens.issue(Party.MITRA, USER, FAMILY)
    tokens.revocations.add(FAMILY, MitraDeactivated)
    clock.moment += LIFETIME_SECONDS * 1000 + LEEWAY_MS
    with pytest.raises(Unauthenticated):
        tokens.verify(token)


def test_a_revocation_outlives_every_token_of_its_family_and_is_forgotten_then(tokens: Tokens, clock: SetClock) -> None:
    ahead = SetClock(NOW + LEEWAY_MS)  # a node whose clock runs as fast as is forgiven
    late = Tokens(SECRET, LIFETIME_SECONDS, ahead).issue(Party.CUSTOMER, USER, FAMILY)
    tokens.revocations.add(FAMILY)
    for minute in range(14):
        with pytest.raises(Unauthenticated):
            tokens.verify(late)
        clock.moment += 55_000
        tokens.revocations.add(str(minute))  # each one sweeps out what is over
    assert tokens.revocations.find(FAMILY) is None
    assert len(tokens.revocations) < 14


def test_a_revocation_found_at_start_is_kept_only_while_tokens_can_live(tokens: Tokens, clock: SetClock) -> None:
    tokens.revocations.add(FAMILY, revoked_at=NOW - 3_600_000)
    assert tokens.revocations.find(FAMILY) is None
    tokens.revocations.add(FAMILY, revoked_at=NOW - 60_000)
    assert tokens.revocations.find(FAMILY) is Unauthenticated


def test_a_family_revoked_twice_keeps_its_first_reason(tokens: Tokens) -> None:
    tokens.revocations.add(FAMILY, MitraDeactivated)
    tokens.revocations.add(FAMILY)
    assert tokens.revocations.find(FAMILY) is MitraDeactivated
    assert len(tokens.revocations) == 1
