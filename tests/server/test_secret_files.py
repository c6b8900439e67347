"""Secrets told by files: what a container engine mounts."""

from pathlib import Path

import pytest

from server.secret_files import FIELDS, SecretFileError
from server.settings import Settings


def test_every_secret_may_lie_in_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for field in FIELDS:
        (tmp_path / field).write_text(f"secret-of-{field}\n")
        monkeypatch.setenv(f"RUNG_{field.upper()}_FILE", str(tmp_path / field))
    settings = Settings()
    assert [key.get_secret_value() for key in settings.api_keys] == ["secret-of-api_keys"]
    for field in FIELDS[1:]:
        assert getattr(settings, field).get_secret_value() == f"secret-of-{field}"
    assert "secret-of" not in repr(settings)


def test_all_secret_settings_are_among_them() -> None:
    secret = {n for n, f in Settings.model_fields.items() if "SecretStr" in str(f.annotation)}
    assert secret == set(FIELDS)


def test_keys_stand_on_lines_or_between_commas(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "keys").write_text("one\ntwo, three\n\n")
    monkeypatch.setenv("RUNG_API_KEYS_FILE", str(tmp_path / "keys"))
    keys = [key.get_secret_value() for key in Settings().api_keys]
    assert keys == ["one", "two", "three"]


def test_an_option_wins_over_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "url").write_text("redis://file")
    monkeypatch.setenv("RUNG_REDIS_URL_FILE", str(tmp_path / "url"))
    told = Settings(redis_url="redis://option").redis_url
    assert told is not None
    assert told.get_secret_value() == "redis://option"


def test_an_empty_variable_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RUNG_POLICY_URL", "RUNG_REDIS_URL", "RUNG_API_KEYS", "RUNG_API_KEYS_FILE"):
        monkeypatch.setenv(name, "")
    settings = Settings()
    assert (settings.policy_url, settings.redis_url, settings.api_keys) == (None, None, ())


@pytest.mark.parametrize("other", ["RUNG_REDIS_URL", "REDIS_URL"])
def test_a_secret_told_twice_is_refused(
    other: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "url").write_text("redis://a")
    monkeypatch.setenv("RUNG_REDIS_URL_FILE", str(tmp_path / "url"))
    monkeypatch.setenv(other, "redis://b")
    with pytest.raises(SecretFileError, match=f"RUNG_REDIS_URL_FILE and {other} are both set"):
        Settings()


@pytest.mark.parametrize(
    ("content", "said"),
    [(None, "cannot be read: No such file"), (b" \n", "is empty"), (b"\xff", "not text in UTF-8")],
)
def test_a_file_that_holds_no_secret_is_named(
    content: bytes | None, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if content is not None:
        (tmp_path / "key").write_bytes(content)
    monkeypatch.setenv("RUNG_POLICY_API_KEY_FILE", str(tmp_path / "key"))
    with pytest.raises(SecretFileError, match=f"RUNG_POLICY_API_KEY_FILE .*key: .*{said}"):
        Settings()
