from pathlib import Path

import pytest

from halo.load.target import TargetRefused, read_keys, urls_of

WEBHOOK = "whsec_c2l4dGVlbiBieXRlcyBhbmQgc29tZSBtb3Jl"
NO_FLAGS: dict[str, str | None] = {"server_key": None, "webhook_secret": None}


def test_keys_come_from_the_environment() -> None:
    keys = read_keys({"HALO_SERVER_KEY": "the key of the backend", "HALO_WEBHOOK_SECRET": WEBHOOK}, NO_FLAGS)
    assert (keys.server_key, keys.webhook_secret, keys.database_url) == ("the key of the backend", WEBHOOK, None)


def test_keys_come_from_files_and_a_flag_names_only_the_file(tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text("the key in the file\n")
    assert read_keys({"HALO_SERVER_KEY_FILE": str(file)}, NO_FLAGS).server_key == "the key in the file"
    assert read_keys({}, {**NO_FLAGS, "server_key": str(file)}).server_key == "the key in the file"


def test_without_the_server_key_nothing_begins() -> None:
    with pytest.raises(TargetRefused, match=r"HALO_SERVER_KEY .* must be given"):
        read_keys({}, NO_FLAGS)


@pytest.mark.parametrize(
    "environment",
    [
        {"HALO_SERVER_KEY": "short"},
        {"HALO_SERVER_KEY": "the key of the backend", "HALO_WEBHOOK_SECRET": "not-a-secret"},
        {"HALO_SERVER_KEY_FILE": "/nowhere/at/all"},
    ],
)
def test_a_key_that_cannot_be_one_is_refused_without_being_shown(environment: dict[str, str]) -> None:
    with pytest.raises(TargetRefused) as refused:
        read_keys(environment, NO_FLAGS)
    assert "not-a-secret" not in str(refused.value)
    assert "\n" not in str(refused.value)


def test_keys_are_not_shown() -> None:
    keys = read_keys(
        {"HALO_SERVER_KEY": "the key of the backend", "HALO_DATABASE_URL": "postgresql://u:hidden@db/x"}, NO_FLAGS
    )
    assert "backend" not in repr(keys)
    assert "hidden" not in repr(keys)


@pytest.mark.parametrize(
    ("api", "ws", "expected"),
    [
        ("http://127.0.0.1:8801", None, ("http://127.0.0.1:8801", "ws://127.0.0.1:8800")),
        ("https://api.example.test/", None, ("https://api.example.test", "wss://api.example.test")),
        ("https://example.test:444/halo", None, ("https://example.test:444/halo", "wss://example.test:444/halo")),
        ("http://[::1]:8801", None, ("http://[::1]:8801", "ws://[::1]:8800")),
        ("http://a.test:1", "ws://b.test:2/", ("http://a.test:1", "ws://b.test:2")),
    ],
)
def test_websockets_are_looked_for_beside_the_api(api: str, ws: str | None, expected: tuple[str, str]) -> None:
    assert urls_of(api, ws) == expected


@pytest.mark.parametrize(
    ("api", "ws"),
    [
        ("127.0.0.1:8801", None),
        ("ws://127.0.0.1:8800", None),
        ("http://", None),
        ("http://host:99999", None),
        ("http://user:secret@host", None),
        ("http://host?x=1", None),
        ("http://host", "http://host"),
    ],
)
def test_what_is_no_address_is_refused(api: str, ws: str | None) -> None:
    with pytest.raises(TargetRefused, match="is no address of a halo") as refused:
        urls_of(api, ws)
    assert "secret" not in str(refused.value)
