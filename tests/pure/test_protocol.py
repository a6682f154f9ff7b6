"""Every frame in and out: what decodes, what is refused and how, and the very bytes that apps are sent."""

import json
from contextlib import suppress
from typing import Any, get_args
from uuid import UUID

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from halo import protocol
from halo.decoding import FrameDecoder, FrameRefused
from halo.errors import FrameMalformed, Refusal, UnknownFrameType, ValidationFailed
from halo.protocol import ChatFrame, ChatServerFrame, LobbyFrame, LobbyServerFrame, encode

A = str(UUID(int=0xA))
B = str(UUID(int=0xB))
C = str(UUID(int=0xC))
D = str(UUID(int=0xD))
NOON = "2026-11-24T12:00:00.000Z"
LATER = "2026-11-24T12:10:00.000Z"

CHAT, LOBBY = FrameDecoder.CHAT, FrameDecoder.LOBBY

GOOD: list[tuple[FrameDecoder, str, dict[str, Any], type[msgspec.Struct]]] = [
    (CHAT, "message", {"id": "m1", "body": "hello"}, protocol.SendMessage),
    (CHAT, "read", {"seq": 7}, protocol.MarkRead),
    (CHAT, "typing", {"on": True}, protocol.SetTyping),
    (
        CHAT,
        "extension_request",
        {"id": "e1", "duration_minutes": 5, "price": 5000, "extension_payment_request_id": A},
        protocol.RequestExtension,
    ),
    (CHAT, "extension_respond", {"id": "e2", "extension_id": A, "accepted": False}, protocol.RespondExtension),
    (CHAT, "extension_cancel", {"id": "e3", "extension_id": A}, protocol.CancelExtension),
    (CHAT, "end_session", {"id": "x"}, protocol.EndSession),
    (CHAT, "ping", {"id": "p"}, protocol.Ping),
    (CHAT, "refresh", {"id": "r", "access_token": "abc.def.ghi"}, protocol.Refresh),
    (LOBBY, "go_online", {"id": "1"}, protocol.GoOnline),
    (LOBBY, "go_offline", {"id": "2"}, protocol.GoOffline),
    (LOBBY, "heartbeat", {"id": "3"}, protocol.Heartbeat),
    (LOBBY, "offer_accept", {"id": "4", "offer_id": A}, protocol.AcceptOffer),
    (LOBBY, "offer_decline", {"id": "5", "offer_id": A}, protocol.DeclineOffer),
    (
        LOBBY,
        "pairing_request",
        {"id": "6", "payment_request_id": A, "topic_sensitivity": "sensitive"},
        protocol.RequestPairing,
    ),
    (LOBBY, "pairing_cancel", {"id": "7", "pairing_id": A}, protocol.CancelPairing),
    (LOBBY, "ping", {"id": "p"}, protocol.Ping),
    (LOBBY, "refresh", {"id": "r", "access_token": "abc.def.ghi"}, protocol.Refresh),
]
"""Every frame that a client may send, with all its fields."""

OPTIONAL = {
    ("extension_request", "duration_minutes"),
    ("extension_request", "price"),
    ("extension_request", "extension_payment_request_id"),
    ("heartbeat", "id"),
    ("pairing_request", "topic_sensitivity"),
}
"""An extension's fields are asked for by the asking table, so that its rows answer in their order."""


def text_of(type_: str, fields: dict[str, Any]) -> str:
    return json.dumps({"type": type_} | fields)


def refused(decoder: FrameDecoder, text: str) -> tuple[type[Refusal], str | None]:
    with pytest.raises(FrameRefused) as caught:
        decoder.decode(text)
    return type(caught.value.refusal), caught.value.frame_id


# ---- in


def test_every_frame_of_both_sockets_is_tried_below() -> None:
    tried = {(decoder, struct) for decoder, _, _, struct in GOOD}
    assert tried == {(CHAT, struct) for struct in get_args(ChatFrame)} | {(LOBBY, s) for s in get_args(LobbyFrame)}


@pytest.mark.parametrize(("decoder", "type_", "fields", "struct"), GOOD)
def test_a_good_frame_decodes_with_its_fields_in_any_order(
    decoder: FrameDecoder, type_: str, fields: dict[str, Any], struct: type[msgspec.Struct]
) -> None:
    frame = decoder.decode(text_of(type_, fields))
    assert type(frame) is struct
    assert {name: getattr(frame, name) for name in fields} == fields
    assert decoder.decode(json.dumps(dict(reversed(fields.items())) | {"type": type_})) == frame


@pytest.mark.parametrize(("decoder", "type_", "fields", "struct"), GOOD)
def test_a_field_that_is_not_known_yet_is_passed_over(
    decoder: FrameDecoder, type_: str, fields: dict[str, Any], struct: type[msgspec.Struct]
) -> None:
    """Apps may be newer than the server."""
    assert decoder.decode(text_of(type_, fields | {"invented_later": [1]})) == decoder.decode(text_of(type_, fields))


EACH_FIELD = [(decoder, type_, fields, name) for decoder, type_, fields, _ in GOOD for name in fields]


@pytest.mark.parametrize(("decoder", "type_", "fields", "name"), EACH_FIELD)
def test_a_missing_field_is_refused_naming_the_frame(
    decoder: FrameDecoder, type_: str, fields: dict[str, Any], name: str
) -> None:
    rest = {key: value for key, value in fields.items() if key != name}
    if (type_, name) in OPTIONAL:
        decoder.decode(text_of(type_, rest))
    else:
        assert refused(decoder, text_of(type_, rest)) == (ValidationFailed, rest.get("id"))


@pytest.mark.parametrize(("decoder", "type_", "fields", "name"), EACH_FIELD)
@pytest.mark.parametrize("wrong", [{}, [], 1.5, {"a": "b"}])
def test_a_field_of_the_wrong_type_is_refused_naming_the_frame(
    decoder: FrameDecoder, type_: str, fields: dict[str, Any], name: str, wrong: object
) -> None:
    frame_id = None if name == "id" else fields.get("id")
    assert refused(decoder, text_of(type_, fields | {name: wrong})) == (ValidationFailed, frame_id)


@pytest.mark.parametrize(
    ("decoder", "type_", "fields", "name"), [row for row in EACH_FIELD if (row[1], row[3]) not in OPTIONAL]
)
def test_null_is_not_a_value(decoder: FrameDecoder, type_: str, fields: dict[str, Any], name: str) -> None:
    frame_id = None if name == "id" else fields.get("id")
    assert refused(decoder, text_of(type_, fields | {name: None})) == (ValidationFailed, frame_id)


@pytest.mark.parametrize(
    ("type_", "fields"),
    [
        ("message", {"id": "m", "body": ""}),
        ("message", {"id": "m", "body": "x" * 4001}),
        ("message", {"id": "m", "body": 7}),
        ("read", {"seq": -1}),
        ("read", {"seq": 2**53 + 1}),
        ("read", {"seq": True}),
        ("read", {"seq": "7"}),
        ("read", {"seq": 10**400}),
        ("typing", {"on": 1}),
        ("typing", {"on": "true"}),
        ("extension_respond", {"id": "m", "extension_id": A, "accepted": "yes"}),
        ("extension_cancel", {"id": "m", "extension_id": "abc"}),
        ("extension_cancel", {"id": "m", "extension_id": A.upper()}),
        ("extension_cancel", {"id": "m", "extension_id": A + "\n"}),
        ("extension_cancel", {"id": "m", "extension_id": "{" + A + "}"}),
        ("extension_request", {"id": "m", "duration_minutes": 1.0}),
        ("extension_request", {"id": "m", "price": "5000"}),
        ("refresh", {"id": "m", "access_token": ""}),
        ("refresh", {"id": "m", "access_token": "x" * 4097}),
    ],
)
def test_a_value_out_of_bounds_is_refused_and_is_no_strike(type_: str, fields: dict[str, Any]) -> None:
    assert refused(CHAT, text_of(type_, fields)) == (ValidationFailed, fields.get("id"))


def test_a_topic_is_one_of_two() -> None:
    text = text_of("pairing_request", {"id": "m", "payment_request_id": A, "topic_sensitivity": "secret"})
    assert refused(LOBBY, text) == (ValidationFailed, "m")


@pytest.mark.parametrize("frame_id", ["", "x" * 65, "\0", "a\0b", 5, True, None, ["m"]])
def test_an_id_that_cannot_be_carried_back_is_refused_without_it(frame_id: object) -> None:
    assert refused(CHAT, text_of("ping", {"id": frame_id})) == (ValidationFailed, None)


def test_ids_and_bodies_may_be_as_long_as_promised_counted_in_characters() -> None:
    frame = CHAT.decode(text_of("message", {"id": "é" * 64, "body": "😀" * 4000}))
    assert isinstance(frame, protocol.SendMessage)
    assert (len(frame.id), len(frame.body)) == (64, 4000)


@pytest.mark.parametrize(("decoder", "type_"), [(CHAT, "go_online"), (LOBBY, "message"), (CHAT, "welcome"), (CHAT, "")])
def test_an_unknown_type_is_named_and_the_frame_too(decoder: FrameDecoder, type_: str) -> None:
    assert refused(decoder, text_of(type_, {"id": "q", "body": "x"})) == (UnknownFrameType, "q")
    assert refused(decoder, text_of(type_, {})) == (UnknownFrameType, None)


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "hello",
        "null",
        "7",
        '"message"',
        "[]",
        '[{"type":"ping","id":"p"}]',
        "{}",
        '{"id":"p"}',
        '{"type":null,"id":"p"}',
        '{"type":5,"id":"p"}',
        '{"type":["ping"],"id":"p"}',
        '{"type":"ping","id":"p"',
        '{"type":"ping","id":"p"}}',
        '{"type":"ping","id":"p"} {"type":"ping","id":"p"}',
        "{'type':'ping','id':'p'}",
        '{"type":"ping","id":"p",}',
        '\ufeff{"type":"ping","id":"p"}',
        '{"type":"message","id":"m","body":NaN}',
        '{"type":"read","seq":NaN}',
        '{"type":"read","seq":Infinity}',
        '{"type":"read","seq":-Infinity}',
        '{"type":"read","seq":007}',
        '{"type":"message","id":"m","body":"\ud800"}',
        '{"type":"message","id":"m","body":"\\ud800"}',
        '{"type":"message","id":"m","body":"\\udc00 \\ud800"}',
        '{"type":"message","id":"m","body":"\0"}',
        '{"type":"message","id":"m","body":"line\nline"}',
        '{"type":"message","id":"m","body":"\\x41"}',
        "[" * 30_000,
        "[" * 30_000 + "]" * 30_000,
        '{"a":' * 10_000 + "1" + "}" * 10_000,
        '{"type":"message","id":"m","body":"x","z":' + "[" * 20_000 + "]" * 20_000 + "}",
    ],
    ids=lambda text: repr(text[:45]),
)
def test_what_is_not_a_json_object_with_a_type_is_malformed(text: str) -> None:
    kind, frame_id = refused(CHAT, text)
    assert kind is FrameMalformed
    assert frame_id in {None, "p"}


@pytest.mark.parametrize(
    ("decoder", "type_", "fields", "name"), [row for row in EACH_FIELD if isinstance(row[2][row[3]], str)]
)
def test_the_character_nul_is_refused_in_every_text(
    decoder: FrameDecoder, type_: str, fields: dict[str, Any], name: str
) -> None:
    """Postgres has no text with U+0000: let through, it would fail the commit of everybody in the same batch."""
    frame_id = None if name == "id" else fields.get("id")
    assert refused(decoder, text_of(type_, fields | {name: "a\0b"})) == (ValidationFailed, frame_id)


def test_a_body_that_only_spells_nul_is_text_like_any_other() -> None:
    frame = CHAT.decode(r'{"type":"message","id":"m","body":"\\u0000"}')
    assert isinstance(frame, protocol.SendMessage)
    assert frame.body == r"\u0000"


def test_surrogates_that_belong_together_are_one_character() -> None:
    frame = CHAT.decode(r'{"type":"message","id":"m","body":"\ud83d\ude00"}')
    assert isinstance(frame, protocol.SendMessage)
    assert frame.body == "😀"


@given(st.text() | st.binary().map(lambda raw: raw.decode("utf-8", "surrogateescape")))
def test_no_text_whatever_raises_anything_but_a_refusal(text: str) -> None:
    for decoder in (CHAT, LOBBY):
        with suppress(FrameRefused):  # some text is a frame
            decoder.decode(text)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)
NAMES = sorted({name for _, _, fields, _ in GOOD for name in fields})
TYPES = sorted({type_ for _, type_, _, _ in GOOD})


@given(st.sampled_from(TYPES), st.dictionaries(st.sampled_from(NAMES), JSON | st.just(A) | st.just("m")))
def test_what_is_taken_can_be_stored_and_what_is_not_is_a_refusal(type_: str, fields: dict[str, Any]) -> None:
    for decoder in (CHAT, LOBBY):
        try:
            frame = decoder.decode(text_of(type_, fields))
        except FrameRefused:
            continue
        for value in msgspec.structs.astuple(frame):
            if isinstance(value, str):
                assert "\0" not in value
                value.encode()  # no lone surrogate


# ---- out

SESSION = protocol.SessionState(
    session_id=A,
    status="active",
    end_reason=None,
    customer_id=B,
    mitra_id=C,
    topic_sensitivity="regular",
    duration_minutes=10,
    started_at=NOON,
    expires_at=LATER,
    remaining_seconds=600,
    deadline_at=LATER,
    last_seq=4,
)
SESSION_JSON = (
    f'{{"session_id":"{A}","status":"active","end_reason":null,"customer_id":"{B}","mitra_id":"{C}","topic_sensitivity":"regular",'
    f'"duration_minutes":10,"started_at":"{NOON}","expires_at":"{LATER}","remaining_seconds":600,"deadline_at":"{LATER}","last_seq":4}}'
)
PENDING = protocol.ExtensionState(
    extension_id=D,
    session_id=A,
    status="pending",
    duration_minutes=5,
    price=5000,
    requested_at=NOON,
    deadline_at=LATER,
    payment_request_id=B,
)
PENDING_JSON = (
    f'{{"extension_id":"{D}","session_id":"{A}","status":"pending","duration_minutes":5,"price":5000,"requested_at":"{NOON}",'
    f'"deadline_at":"{LATER}","payment_request_id":"{B}"}}'
)

GOLDEN: list[tuple[protocol.Frame, str]] = [
    (
        protocol.Welcome(
            role="customer",
            session=SESSION,
            pending_extension=PENDING,
            last_seq=4,
            replay_from=2,
            server_time=NOON,
            keepalive_seconds=20,
            limits={"frame_bytes": 65536},
        ),
        (
            f'{{"type":"welcome","role":"customer","session":{SESSION_JSON},"pending_extension":{PENDING_JSON},"last_seq":4,'
            f'"replay_from":2,"server_time":"{NOON}","keepalive_seconds":20,"limits":{{"frame_bytes":65536}}}}'
        ),
    ),
    (
        protocol.LobbyWelcomeMitra(
            role="mitra", is_online=True, heartbeat_seconds=30, sessions=(SESSION,), server_time=NOON
        ),
        f'{{"type":"welcome","role":"mitra","is_online":true,"heartbeat_seconds":30,"sessions":[{SESSION_JSON}],"server_time":"{NOON}"}}',
    ),
    (
        protocol.LobbyWelcomeCustomer(role="customer", sessions=(), server_time=NOON),
        f'{{"type":"welcome","role":"customer","sessions":[],"server_time":"{NOON}"}}',
    ),
    (
        protocol.Message(session_id=A, seq=5, id="m1", sender="mitra", body='"é" \u2028', at=NOON),
        f'{{"type":"message","session_id":"{A}","seq":5,"id":"m1","sender":"mitra","body":"\\"é\\" \u2028","at":"{NOON}"}}',
    ),
    (protocol.Ack(id="m1", seq=5, at=NOON), f'{{"type":"ack","id":"m1","seq":5,"at":"{NOON}"}}'),
    (protocol.Ack(id="e1", extension_id=D), f'{{"type":"ack","id":"e1","extension_id":"{D}"}}'),
    (protocol.Ack(id="r", expires_at=LATER), f'{{"type":"ack","id":"r","expires_at":"{LATER}"}}'),
    (protocol.Ack(id="x"), '{"type":"ack","id":"x"}'),
    (
        protocol.Refused(id="m1", code="SESSION_PAUSED", status=409, message="The chat is paused.", retryable=True),
        '{"type":"refused","id":"m1","code":"SESSION_PAUSED","status":409,"message":"The chat is paused.","retryable":true}',
    ),
    (
        protocol.Refused(id=None, code="RATE_LIMITED", status=429, message="Wait.", retryable=True, retry_after_ms=250),
        '{"type":"refused","id":null,"code":"RATE_LIMITED","status":429,"message":"Wait.","retryable":true,"retry_after_ms":250}',
    ),
    (protocol.Typing(sender="customer", on=True), '{"type":"typing","sender":"customer","on":true}'),
    (protocol.Read(sender="mitra", seq=3), '{"type":"read","sender":"mitra","seq":3}'),
    (protocol.Presence(party="mitra", connected=False), '{"type":"presence","party":"mitra","connected":false}'),
    (protocol.Pong(id="p", server_time=NOON), f'{{"type":"pong","id":"p","server_time":"{NOON}"}}'),
    (
        protocol.SessionTimer(session_id=A, remaining_seconds=60, expires_at=LATER, server_time=NOON),
        f'{{"type":"session_timer","session_id":"{A}","remaining_seconds":60,"expires_at":"{LATER}","server_time":"{NOON}"}}',
    ),
    (
        protocol.ExtensionRequest(
            extension_id=D,
            session_id=A,
            duration_minutes=5,
            price=5000,
            currency="IDR",
            topic_sensitivity="sensitive",
            timeout_seconds=60,
            deadline_at=LATER,
        ),
        (
            f'{{"type":"extension_request","extension_id":"{D}","session_id":"{A}","duration_minutes":5,"price":5000,"currency":"IDR",'
            f'"topic_sensitivity":"sensitive","timeout_seconds":60,"deadline_at":"{LATER}"}}'
        ),
    ),
    (
        protocol.SessionPaused(session_id=A, reason="extension_pending", extension_id=D, deadline_at=LATER),
        f'{{"type":"session_paused","session_id":"{A}","reason":"extension_pending","extension_id":"{D}","deadline_at":"{LATER}"}}',
    ),
    (
        protocol.ExtensionResponse(
            extension_id=D,
            session_id=A,
            accepted=True,
            duration_minutes=5,
            expires_at=LATER,
            reason="timeout",
            via_timeout=True,
        ),
        (
            f'{{"type":"extension_response","extension_id":"{D}","session_id":"{A}","accepted":true,"duration_minutes":5,'
            f'"expires_at":"{LATER}","reason":"timeout","via_timeout":true}}'
        ),
    ),
    (
        protocol.SessionResumed(session_id=A, expires_at=LATER, remaining_seconds=600),
        f'{{"type":"session_resumed","session_id":"{A}","expires_at":"{LATER}","remaining_seconds":600}}',
    ),
    (
        protocol.SessionClosing(session_id=A, reason="time_up", closes_at=LATER, grace_seconds=120),
        f'{{"type":"session_closing","session_id":"{A}","reason":"time_up","closes_at":"{LATER}","grace_seconds":120}}',
    ),
    (protocol.SessionRerouting(session_id=A), f'{{"type":"session_rerouting","session_id":"{A}"}}'),
    (
        protocol.SessionStarted(session_id=A, mitra_id=C, expires_at=LATER),
        f'{{"type":"session_started","session_id":"{A}","mitra_id":"{C}","expires_at":"{LATER}"}}',
    ),
    (
        protocol.PaymentPending(session_id=A, payment_request_id=B, deadline_at=LATER),
        f'{{"type":"payment_pending","session_id":"{A}","payment_request_id":"{B}","deadline_at":"{LATER}"}}',
    ),
    (
        protocol.SessionEnded(session_id=A, end_reason="completed"),
        f'{{"type":"session_ended","session_id":"{A}","end_reason":"completed"}}',
    ),
    (protocol.Reconnect(after_ms=1200, reason="drain"), '{"type":"reconnect","after_ms":1200,"reason":"drain"}'),
    (protocol.HeartbeatAck(id="h", server_time=NOON), f'{{"type":"heartbeat_ack","id":"h","server_time":"{NOON}"}}'),
    (
        protocol.Offer(
            offer_id=A,
            pairing_id=B,
            topic_sensitivity="regular",
            duration_minutes=10,
            price=10000,
            currency="IDR",
            deadline_at=LATER,
        ),
        (
            f'{{"type":"offer","offer_id":"{A}","pairing_id":"{B}","topic_sensitivity":"regular","duration_minutes":10,"price":10000,'
            f'"currency":"IDR","deadline_at":"{LATER}"}}'
        ),
    ),
    (
        protocol.OfferRescinded(offer_id=A, reason="taken"),
        f'{{"type":"offer_rescinded","offer_id":"{A}","reason":"taken"}}',
    ),
    (protocol.Beacon(available_mitras=3, as_of=NOON), f'{{"type":"beacon","available_mitras":3,"as_of":"{NOON}"}}'),
    (
        protocol.PairingProgress(pairing_id=B, wave=1, offered=10),
        f'{{"type":"pairing_progress","pairing_id":"{B}","wave":1,"offered":10}}',
    ),
    (
        protocol.PairingMatched(pairing_id=B, session_id=A),
        f'{{"type":"pairing_matched","pairing_id":"{B}","session_id":"{A}"}}',
    ),
    (
        protocol.PairingFailed(pairing_id=B, cause="all_declined"),
        f'{{"type":"pairing_failed","pairing_id":"{B}","cause":"all_declined"}}',
    ),
]
"""Every frame that the server sends, byte for byte: an app in a phone cannot be changed with the server."""


@pytest.mark.parametrize(
    ("frame", "text"), GOLDEN, ids=lambda value: value.split(",")[0] if isinstance(value, str) else ""
)
def test_the_bytes_of_a_frame_are_the_contract(frame: protocol.Frame, text: str) -> None:
    assert encode(frame).decode() == text


def test_every_frame_that_the_server_sends_has_its_bytes_pinned() -> None:
    assert {type(frame) for frame, _ in GOLDEN} == {*get_args(ChatServerFrame), *get_args(LobbyServerFrame)}


@pytest.mark.parametrize(
    ("frame", "text"), GOLDEN, ids=lambda value: value.split(",")[0] if isinstance(value, str) else ""
)
def test_what_is_encoded_is_a_value_of_its_own_schema(frame: protocol.Frame, text: str) -> None:
    """A fixture with a field out of bounds would pin bytes that no server sends."""
    assert msgspec.json.decode(text, type=type(frame), strict=True) == frame


CLIENT_IDS = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=64)
BODIES = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=200)
UUIDS = st.uuids().map(str)
CLIENT_FRAMES = st.one_of(
    st.builds(protocol.SendMessage, id=CLIENT_IDS, body=BODIES),
    st.builds(protocol.MarkRead, seq=st.integers(0, 2**53)),
    st.builds(protocol.SetTyping, on=st.booleans()),
    st.builds(
        protocol.RequestExtension,
        id=CLIENT_IDS,
        duration_minutes=st.none() | st.integers(-5, 2000),
        price=st.none() | st.integers(-5, 10**18),
        extension_payment_request_id=st.none() | UUIDS,
    ),
    st.builds(protocol.RespondExtension, id=CLIENT_IDS, extension_id=UUIDS, accepted=st.booleans()),
    st.builds(protocol.CancelExtension, id=CLIENT_IDS, extension_id=UUIDS),
    st.builds(protocol.EndSession, id=CLIENT_IDS),
    st.builds(protocol.Ping, id=CLIENT_IDS),
    st.builds(protocol.Refresh, id=CLIENT_IDS, access_token=st.text("abc.-_", min_size=1)),
)


@given(CLIENT_FRAMES)
def test_what_a_client_encodes_the_server_decodes_to_the_same(frame: protocol.ChatFrame) -> None:
    text = encode(frame).decode()
    assert text.startswith('{"type":"')
    assert CHAT.decode(text) == frame
