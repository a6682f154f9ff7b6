import re
from dataclasses import replace
from pathlib import Path

import pytest

import halo
from halo.outbox import Claim, Device, OutboxKind
from halo.push import LOCALES, Template, TextMissing, Texts, fcm_message, load_texts

NOW = 1_795_464_900_123
PHONE = Device("a-1", "the phone's token", "en")
CLAIM = Claim(
    outbox_id="o-1",
    kind=OutboxKind.PUSH,
    user_id="u-1",
    template="offer",
    payload={"offer_id": "of-1", "pairing_id": "p-1", "session_id": None, "price": 25_000, "display_name": "Sari"},
    collapse_key="offer:of-1",
    attempts=1,
    tries=1,
    first_attempt_at=NOW,
    expires_at=NOW + 29_500,
)


def leaves(value: object) -> list[object]:
    if isinstance(value, dict):
        return [leaf for inner in value.values() for leaf in leaves(inner)]
    return [value]


def test_every_template_has_a_text_in_every_locale() -> None:
    texts = load_texts()
    for locale in LOCALES:
        for template in Template:
            text = texts.find(template, locale)
            assert text is not None
            assert text.title.strip()
            assert text.body.strip()


def test_the_locales_speak_different_languages() -> None:
    texts = load_texts()
    for template in Template:
        assert texts.find(template, "id") != texts.find(template, "en")


def test_every_template_that_the_code_names_is_one() -> None:
    """Also those that SQL and rules write as plain words."""
    named = set[str]()
    for file in [*Path(halo.__file__).parent.rglob("*.py"), *Path(halo.__file__).parent.rglob("*.sql")]:
        source = file.read_text(encoding="utf-8")
        named |= set(re.findall(r'\btemplate="([a-z_]+)"', source))
        named |= set(re.findall(r"SELECT 'push', \w+(?:\.\w+)?, '([a-z_]+)'", source))
    assert {"offer", "extension_request", "pairing_failed"} <= named <= set(Template)


def test_no_text_holds_a_place_for_a_name_or_a_price() -> None:
    texts = load_texts()
    for locale in LOCALES:
        for template in Template:
            text = texts.find(template, locale)
            assert text is not None
            assert not re.search(r"[{}$%0-9]|Rp|IDR", f"{text.title} {text.body}")


def test_a_locale_that_we_do_not_have_is_answered_in_the_default_one() -> None:
    texts = load_texts()
    assert texts.find("offer", "fr") == texts.find("offer", "id")
    assert texts.find("written by a newer halo", "en") is None


@pytest.mark.parametrize("spoil", [lambda text: text.split("[session_ended]")[0], lambda text: text + "\n[more]\n"])
def test_a_file_with_a_text_missing_or_too_many_is_refused(spoil: object) -> None:
    assert callable(spoil)
    folder = Path(halo.__file__).parent / "push_texts"
    files = {locale: (folder / f"{locale}.toml").read_text(encoding="utf-8") for locale in LOCALES}
    Texts(files)
    with pytest.raises(TextMissing, match=r"^en: "):
        Texts(files | {"en": spoil(files["en"])})


def test_a_message_is_strings_alone_and_tells_where_to_look_and_nothing_else() -> None:
    text = load_texts().find("offer", "en")
    assert text is not None
    message = fcm_message(CLAIM, PHONE, text, NOW)["message"]
    assert message["data"] == {"offer_id": "of-1", "pairing_id": "p-1", "template": "offer", "outbox_id": "o-1"}
    assert all(isinstance(leaf, str) for leaf in leaves(message))
    assert "25000" not in str(message)
    assert "Sari" not in str(message)
    assert message["notification"] == {"title": text.title, "body": text.body}


def test_a_message_goes_at_once_lives_as_long_as_it_is_wanted_and_replaces_the_one_before() -> None:
    text = load_texts().find("offer", "en")
    assert text is not None
    message = fcm_message(CLAIM, PHONE, text, NOW)["message"]
    assert message["android"]["priority"] == "HIGH"
    assert message["android"]["ttl"] == "29s"
    assert message["android"]["collapse_key"] == message["android"]["notification"]["tag"] == "offer:of-1"
    assert message["apns"]["headers"] == {
        "apns-priority": "10",
        "apns-expiration": str(NOW // 1000 + 29),
        "apns-collapse-id": "offer:of-1",
    }
    late = fcm_message(replace(CLAIM, expires_at=NOW - 1), PHONE, text, NOW)["message"]
    assert late["android"]["ttl"] == "0s"
    forever = fcm_message(replace(CLAIM, expires_at=None), PHONE, text, NOW)["message"]
    assert forever["android"]["ttl"] == f"{28 * 86_400}s"
