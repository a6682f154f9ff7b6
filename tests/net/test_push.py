"""Pushes through a real HTTP server that speaks as FCM does, also when it is unwell."""

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from halo.actors.outbox import DELIVERY_SECONDS
from halo.net import outgoing as outgoing_room
from halo.net import push as push_room
from halo.net import service_account as service_account_room
from halo.net.fcm import Fcm
from halo.net.outgoing import ANSWER_BYTES_MAX, open_outgoing, trust_nobody
from halo.net.push import PushCourier, PushLog
from halo.net.service_account import AccessTokens, CredentialsUnusable, load_service_account
from halo.outbox import Claim, Delivery, Device, OutboxKind
from halo.push import load_texts
from tests.net.provider import Provider, Reply, Request, claims_of, fcm_error, open_provider
from tests.store.rows import NOW, SetClock

PHONE, TABLET = Device("a-1", "token-of-the-phone", "id"), Device("a-2", "token-of-the-tablet", "en")
TEXTS = load_texts()
TRACE = f"00-{'a' * 32}-{'b' * 16}-01"


def a_claim(*devices: Device, template: str = "offer", **columns: Any) -> Claim:
    return Claim(
        outbox_id="o-1",
        kind=OutboxKind.PUSH,
        user_id="u-1",
        template=template,
        payload={"offer_id": "of-1"},
        collapse_key="offer:of-1",
        attempts=1,
        tries=1,
        first_attempt_at=NOW,
        expires_at=NOW + 30_000,
        devices=devices,
        **columns,
    )


class Google:
    """The provider, and a courier to it."""

    def __init__(self, provider: Provider, courier: PushCourier, clock: SetClock) -> None:
        self.provider = provider
        self.courier = courier
        self.clock = clock

    async def deliver(self, claim: Claim | None = None) -> Delivery:
        return await self.courier.deliver(claim or a_claim(PHONE))


@asynccontextmanager
async def open_google(folder: Path) -> AsyncIterator[Google]:
    clock = SetClock()
    async with open_provider() as provider, open_outgoing(trust_nobody()) as outgoing:
        account = load_service_account(provider.credentials(folder))
        fcm = Fcm(provider.url, account.project_id, AccessTokens(account, outgoing, clock), outgoing, clock)
        yield Google(provider, PushCourier(fcm, TEXTS, clock), clock)


@pytest.fixture
async def google(tmp_path: Path) -> AsyncIterator[Google]:
    async with open_google(tmp_path) as google:
        yield google


class TestSending:
    async def test_a_message_arrives_with_a_token_of_the_service_account(self, google: Google) -> None:
        assert await google.deliver(a_claim(PHONE, traceparent=TRACE)) == Delivery(reached=("a-1",))
        [request] = google.provider.requests
        assert (request.method, request.path) == ("POST", "/v1/projects/halo-test/messages:send")
        assert request.headers["authorization"] == "Bearer access-1"
        assert request.headers["traceparent"].startswith(TRACE[:35])
        assert request.token == PHONE.token
        [assertion] = google.provider.assertions
        claims = claims_of(assertion, google.provider.url, NOW // 1000)
        assert claims["iss"] == "halo@halo-test.iam.gserviceaccount.com"
        assert claims["scope"].endswith("/firebase.messaging")

    async def test_the_call_for_an_access_token_is_a_leg_of_the_trace_of_the_push_that_needs_it(
        self, google: Google
    ) -> None:
        await google.deliver(a_claim(PHONE, traceparent=TRACE))
        google.provider.answers = lambda request: (
            Reply(401) if request.headers["authorization"] == "Bearer access-1" else Reply()
        )
        other = TRACE.replace("a", "c")
        await google.deliver(a_claim(PHONE, traceparent=other))
        first, second = [request.headers["traceparent"] for request in google.provider.token_requests]
        assert (first[:35], second[:35]) == (TRACE[:35], other[:35])
        assert (first, second) != (TRACE, other)

    async def test_every_phone_gets_it_in_its_own_language(self, google: Google) -> None:
        delivery = await google.deliver(a_claim(PHONE, TABLET))
        assert sorted(delivery.reached) == ["a-1", "a-2"]
        titles = {
            request.token: request.json["message"]["notification"]["title"] for request in google.provider.requests
        }
        assert titles == {PHONE.token: "Permintaan sesi baru", TABLET.token: "New session request"}

    async def test_a_phone_that_has_it_is_spared_the_second_attempt(self, google: Google) -> None:
        delivery = await google.deliver(a_claim(PHONE, TABLET, reached=frozenset({"a-1"})))
        assert [request.token for request in google.provider.requests] == [TABLET.token]
        assert delivery.reached == ("a-2",)

    async def test_who_has_no_phone_is_nobody(self, google: Google) -> None:
        assert await google.deliver(a_claim()) == Delivery(nobody="no device")
        assert google.provider.requests == []

    async def test_a_template_of_another_version_is_refused_here(self, google: Google) -> None:
        assert (await google.deliver(a_claim(PHONE, template="horoscope"))).refusal == "no such template"

    async def test_a_phone_that_was_reached_is_remembered_when_another_ones_answer_never_comes(
        self, google: Google, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Or each retry rings at it again: the sender cuts off a courier that takes longer, and then knows nothing of either phone."""
        monkeypatch.setattr(push_room, "PHONES_SECONDS", 0.5)
        reached = trio.Event()

        def answers(request: Request) -> Reply:
            if request.token == TABLET.token:
                return Reply(hangs=True)
            reached.set()
            return Reply()

        google.provider.answers = answers
        delivery = Delivery()
        while not delivery.reached:  # a machine that is busy for half a second tries again, as the sender does
            delivery = await google.deliver(a_claim(PHONE, TABLET))
        assert reached.is_set()
        assert delivery == Delivery(reached=("a-1",), failure="no answer in time", retry_after_ms=0)

    def test_a_courier_is_back_before_the_sender_gives_it_up(self) -> None:
        assert push_room.PHONES_SECONDS < DELIVERY_SECONDS


class TestAnswers:
    @pytest.mark.parametrize(
        "reply",
        [
            fcm_error(404, "NOT_FOUND", "UNREGISTERED"),
            fcm_error(400, "INVALID_ARGUMENT", "UNREGISTERED"),
            Reply(400, b'{"error": {"status": "INVALID_ARGUMENT", "message": "The registration token is not a valid FCM'
                       b' registration token"}}'),
            Reply(400, b'{"error": {"status": "INVALID_ARGUMENT", "message": "Request contains an invalid argument.", "details":'
                       b' [{"fieldViolations": [{"field": "message.token", "description": "Invalid registration token"}]}]}}'),
        ],
    )  # fmt: skip
    async def test_a_token_that_no_phone_has_is_dropped(self, google: Google, reply: Reply) -> None:
        google.provider.answers = lambda _: reply
        assert await google.deliver() == Delivery(dropped=(PHONE.token,), nobody="no device any more")

    @pytest.mark.parametrize(
        "reply",
        [
            fcm_error(400, "INVALID_ARGUMENT", "INVALID_ARGUMENT"),
            fcm_error(403, "PERMISSION_DENIED", "SENDER_ID_MISMATCH"),
            fcm_error(404, "NOT_FOUND"),
            Reply(404, b"<html>no such page</html>"),
            Reply(302, headers={"location": "http://127.0.0.1:1/elsewhere"}),
        ],
    )
    async def test_a_mistake_of_ours_is_refused_for_good_and_no_redirect_is_followed(
        self, google: Google, reply: Reply
    ) -> None:
        google.provider.answers = lambda _: reply
        delivery = await google.deliver()
        assert delivery.refusal is not None
        assert delivery.refusal.startswith(f"FCM {reply.status}")
        assert (delivery.failure, delivery.dropped, len(google.provider.requests)) == (None, (), 1)

    @pytest.mark.parametrize(
        ("reply", "after_ms"),
        [
            (fcm_error(429, "RESOURCE_EXHAUSTED", "QUOTA_EXCEEDED", retry_after="17"), 17_000),
            (fcm_error(503, "UNAVAILABLE", "UNAVAILABLE", retry_after="Mon, 23 Nov 2026 20:16:00 GMT"), None),
            (fcm_error(503, "UNAVAILABLE", retry_after="soon"), 0),
            (fcm_error(500, "INTERNAL"), 0),
            (Reply(502, b"\xff\xfe<html>"), 0),
            (Reply(599, b"[" * 50_000), 0),
        ],
    )
    async def test_what_may_pass_is_tried_again_when_the_provider_says(
        self, google: Google, reply: Reply, after_ms: int | None
    ) -> None:
        google.clock.moment = 1_795_464_950_000  # 20:15:50
        google.provider.answers = lambda _: reply
        delivery = await google.deliver()
        assert delivery.failure is not None
        assert delivery.failure.startswith(f"FCM {reply.status}")
        assert delivery.retry_after_ms == (10_000 if after_ms is None else after_ms)

    async def test_one_phone_may_fail_while_another_is_gone_and_a_third_has_it(self, google: Google) -> None:
        third = Device("a-3", "third", "en")
        replies = {PHONE.token: Reply(), TABLET.token: fcm_error(404, "NOT_FOUND", "UNREGISTERED"), "third": Reply(503)}
        google.provider.answers = lambda request: replies[request.token]
        delivery = await google.deliver(a_claim(PHONE, TABLET, third))
        assert (delivery.reached, delivery.dropped, delivery.failure) == (("a-1",), (TABLET.token,), "FCM 503")


class TestAbsence:
    async def test_a_provider_that_hangs_is_given_up(self, google: Google, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(outgoing_room, "CALL_SECONDS", 0.2)
        await google.deliver()
        google.provider.answers = lambda _: Reply(hangs=True)
        assert (await google.deliver()).failure == "no answer in time"

    async def test_a_provider_that_is_not_there_may_come_back(self, google: Google) -> None:
        await google.deliver()  # an access token is at hand
        account_url = google.provider.url

        def close(request: Request) -> Reply:
            return Reply(raw=b"")

        google.provider.answers = close
        failure = (await google.deliver()).failure
        assert failure is not None
        assert account_url not in failure

    @pytest.mark.parametrize(
        "raw",
        [b"SSH-2.0-OpenSSH_9.6\r\n", b"HTTP/1.1 two hundred\r\n\r\n", b"HTTP/1.1 200 OK\r\ncontent-length: -1\r\n\r\n"],
    )
    async def test_garbage_is_no_answer(self, google: Google, raw: bytes) -> None:
        google.provider.answers = lambda _: Reply(raw=raw)
        assert (await google.deliver()).failure is not None

    async def test_of_a_huge_answer_only_the_beginning_is_read(self, google: Google) -> None:
        google.provider.answers = lambda _: Reply(503, b"x" * 50_000_000)
        before = ANSWER_BYTES_MAX
        assert (await google.deliver()).failure == "FCM 503"
        assert before == 64 * 1024


class TestAccessTokens:
    async def test_one_serves_many_messages_until_shortly_before_its_end(self, google: Google) -> None:
        async with trio.open_nursery() as nursery:
            for _ in range(20):
                nursery.start_soon(google.deliver)
        assert google.provider.tokens_given == 1
        google.clock.moment += (3600 - 301) * 1000
        await google.deliver()
        assert google.provider.tokens_given == 1
        google.clock.moment += 2_000
        await google.deliver()
        assert google.provider.tokens_given == 2

    async def test_one_that_is_refused_is_renewed_once(self, google: Google) -> None:
        google.provider.answers = lambda request: (
            Reply() if request.headers["authorization"] == "Bearer access-2" else fcm_error(401, "UNAUTHENTICATED")
        )
        assert (await google.deliver()).reached == ("a-1",)
        assert google.provider.tokens_given == 2
        assert (await google.deliver()).reached == ("a-1",)
        assert google.provider.tokens_given == 2, "the good one is kept"

    async def test_many_who_were_refused_at_once_renew_it_once(self, google: Google) -> None:
        google.provider.answers = lambda request: (
            Reply() if request.headers["authorization"] == "Bearer access-2" else fcm_error(401, "UNAUTHENTICATED")
        )
        async with trio.open_nursery() as nursery:
            for _ in range(10):
                nursery.start_soon(google.deliver)
        assert google.provider.tokens_given == 2

    async def test_many_who_wait_for_one_that_is_not_given_hear_so_together_and_the_next_asks_again(
        self, google: Google
    ) -> None:
        google.provider.token_reply = Reply(503)
        heard: list[Delivery] = []

        async def deliver() -> None:
            heard.append(await google.deliver())

        async with trio.open_nursery() as nursery:
            for _ in range(20):
                nursery.start_soon(deliver)
        assert {delivery.failure for delivery in heard} == {"no access token: 503"}
        assert len(google.provider.assertions) == 1
        await google.deliver()
        assert len(google.provider.assertions) == 2
        google.provider.token_reply = None
        assert (await google.deliver()).reached == ("a-1",)

    async def test_an_account_that_is_refused_for_good_is_a_failure_that_may_be_mended(self, google: Google) -> None:
        google.provider.answers = lambda _: fcm_error(401, "UNAUTHENTICATED")
        assert (await google.deliver()).failure == "FCM 401 UNAUTHENTICATED"
        assert len(google.provider.requests) == 2

    @pytest.mark.parametrize(
        "reply",
        [
            Reply(400, b'{"error": "invalid_grant"}'),
            Reply(503),
            Reply(302, headers={"location": "http://127.0.0.1:1/"}),
            Reply(200, b"<html>"),
            Reply(200, b'{"access_token": 7}'),
            Reply(200, b'{"access_token": "a\\nb", "expires_in": 3600}'),
            Reply(200, b'{"access_token": "a", "expires_in": -1}'),
        ],
    )
    async def test_without_one_nothing_is_sent(self, google: Google, reply: Reply) -> None:
        google.provider.token_reply = reply
        delivery = await google.deliver()
        assert delivery.failure is not None
        assert delivery.failure.startswith("no access token")
        assert google.provider.requests == []


class TestCredentials:
    def test_a_file_that_others_can_read_is_refused(self, tmp_path: Path) -> None:
        path = Provider(url="http://127.0.0.1:1").credentials(tmp_path)
        assert load_service_account(path).project_id == "halo-test"
        path.chmod(0o640)
        with pytest.raises(CredentialsUnusable, match="0600"):
            load_service_account(path)

    @pytest.mark.parametrize(
        "changes",
        [
            {"private_key": "-----BEGIN PRIVATE KEY-----\nnone\n-----END PRIVATE KEY-----\n"},
            {"private_key": None},
            {"project_id": "../../elsewhere"},
            {"token_uri": "http://example.com/token"},
        ],
    )
    def test_what_is_no_service_account_is_refused_in_one_sentence_without_its_key(
        self, tmp_path: Path, changes: dict[str, Any]
    ) -> None:
        path = Provider(url="http://127.0.0.1:1").credentials(tmp_path, **changes)
        with pytest.raises(CredentialsUnusable) as refused:
            load_service_account(path)
        sentence = str(refused.value)
        assert sentence.endswith(".")
        assert "BEGIN" not in sentence

    def test_a_file_that_is_not_there_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(CredentialsUnusable, match="cannot be read"):
            load_service_account(tmp_path / "none.json")

    def test_no_record_shows_the_key(self, tmp_path: Path) -> None:
        account = load_service_account(Provider(url="http://127.0.0.1:1").credentials(tmp_path))
        assert "PRIVATE" not in repr(account)
        assert "key-1" not in repr(account)

    def test_the_key_is_read_once_and_signs_from_then_on(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Reading it takes longer than anybody may hold up the event loop."""
        account = load_service_account(Provider(url="http://127.0.0.1:1").credentials(tmp_path))
        monkeypatch.delattr(service_account_room, "load_pem_private_key")
        monkeypatch.setattr("cryptography.hazmat.primitives.serialization.load_pem_private_key", None)
        claims = claims_of(account.assertion(NOW), "http://127.0.0.1:1", NOW // 1000)
        assert claims["iss"] == account.client_email


async def test_no_proxy_of_the_environment_is_used(google: Google, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    async with open_outgoing(trust_nobody()) as outgoing:
        assert (await outgoing.post(google.provider.url, b"{}", {})).status == 200


async def test_without_credentials_a_push_is_a_line_of_the_log(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="halo"):
        assert await PushLog().deliver(a_claim(PHONE, session_id="s-1")) == Delivery()
    assert "o-1" in caplog.text
    assert "s-1" in caplog.text
    assert "offer" in caplog.text
    for secret in (PHONE.token, "Permintaan", "Seseorang"):
        assert secret not in caplog.text


async def test_nothing_of_a_delivery_is_logged_that_must_not_be(
    google: Google, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG, logger="halo"):
        await google.deliver()
        google.provider.answers = lambda _: fcm_error(404, "NOT_FOUND", "UNREGISTERED")
        await google.deliver()
    said = " ".join(record.getMessage() for record in caplog.records if record.name.startswith("halo"))
    for secret in (PHONE.token, "access-1", "Permintaan"):
        assert secret not in said
