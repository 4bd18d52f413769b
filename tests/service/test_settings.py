"""Settings are read from the environment, checked, and documented."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import SecretStr

from service.errors import SettingsError
from service.settings import Settings

README = Path(__file__).parents[2] / "README.md"


def test_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("EDGEFILL_DATA_DIR")
    assert Settings.load().model_dump() == {
        "api_keys": (),
        "bundle": None,
        "device": "auto",
        "data_dir": Path("edgefill-data"),
        "public_url": None,
        "origins": (),
        "wait_seconds": 20.0,
        "storage_url": None,
        "database_url": None,
        "queue_limit": 20,
        "queue_total": 100,
        "slots": 8,
        "retention_hours": 24.0,
        "base64_mode": "inline",
        "webhook_secret": SecretStr(""),
        "fetch_allow": (),
        "fetch_seconds": 10.0,
        "picture_limit_mb": 20,
        "picture_limit_megapixels": 25,
        "cache_mb": 256,
        "body_limit_mb": 32,
        "streams": 16,
        "streams_per_key": 4,
        "stream_idle_seconds": 300.0,
        "metrics": "loopback",
        "log_format": "text",
        "log_level": "info",
    }


def test_the_environment_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEFILL_API_KEYS", "one, two,,three ")
    monkeypatch.setenv("EDGEFILL_FETCH_ALLOW", "camera.local,10.0.0.0/8")
    monkeypatch.setenv("EDGEFILL_PUBLIC_URL", "https://fill.example/")
    monkeypatch.setenv("EDGEFILL_WAIT_SECONDS", "2.5")
    monkeypatch.setenv("EDGEFILL_BUNDLE", "")
    settings = Settings.load()
    assert [key.get_secret_value() for key in settings.api_keys] == ["one", "two", "three"]
    assert settings.address_policy.hosts == {"camera.local"}
    assert settings.public_url == "https://fill.example"
    assert settings.wait_seconds == 2.5
    assert settings.bundle is None


def test_keys_are_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEFILL_API_KEYS", "my-secret-key")
    settings = Settings.load()
    assert "my-secret-key" not in f"{settings!r} {settings} {settings.model_dump_json()}"


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("EDGEFILL_WAIT_SECONDS", "soon", "valid number"),
        ("EDGEFILL_WAIT_SECONDS", "0", "greater than 0"),
        ("EDGEFILL_FETCH_ALLOW", "10.0.0.1/8", "neither a host name"),
        ("EDGEFILL_PUBLIC_URL", "fill.example", "must start with http"),
        ("EDGEFILL_PUBLIC_URL", "http://", "is not an origin"),
        ("EDGEFILL_PUBLIC_URL", "http://a b", "without spaces"),
        ("EDGEFILL_API_KEYS", " , ", "commas only"),
        ("EDGEFILL_ORIGINS", "app.example", "'app.example' is not an origin"),
        ("EDGEFILL_PICTURE_LIMIT_MB", "0", "greater than or equal to 1"),
    ],
)
def test_bad_values_are_named(
    name: str, value: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError, match=f"^{name}: .*{words}"):
        Settings.load()


def test_misspelt_variables_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEFILL_API_KEY", "one")
    assert Settings.unknown_variables() == ("EDGEFILL_API_KEY",)


def test_each_setting_is_described_and_documented() -> None:
    assert all(field.description for field in Settings.model_fields.values())
    readme = README.read_text(encoding="utf-8")
    assert [name for name in Settings.variables() if f"`{name}`" not in readme] == []
