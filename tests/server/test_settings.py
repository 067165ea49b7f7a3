"""Settings from the environment and from arguments."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from server.settings import ENV_PREFIX, Settings, default_data_dir, unknown_variables


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in Settings.model_fields:
        monkeypatch.delenv(f"{ENV_PREFIX}{name.upper()}", raising=False)


def test_every_setting_has_a_default_and_a_description() -> None:
    Settings()
    assert all(field.description for field in Settings.model_fields.values())


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("model", "org/base", "org/base"),
        ("port", "9000", 9000),
        ("dtype", "float32", "float32"),
        ("quantization", "nf4", "nf4"),
        ("kv_cache_gb", "1.5", 1.5),
        ("prefix_cache", "false", False),
        ("data_dir", "/data", Path("/data")),
        ("adapter", "a=/x,b=/y", ("a=/x", "b=/y")),
        ("adapter", "a=/x", ("a=/x",)),
        ("allow_host", "Shop.example,[::1]", ("shop.example", "[::1]")),
    ],
)
def test_the_environment_sets_them(
    monkeypatch: pytest.MonkeyPatch, name: str, text: str, value: object
) -> None:
    monkeypatch.setenv(f"{ENV_PREFIX}{name.upper()}", text)
    assert getattr(Settings(), name) == value


def test_an_argument_wins_over_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MULTILORA_PORT", "9000")
    monkeypatch.setenv("MULTILORA_ADAPTER", "a=/x")
    settings = Settings(port=7000, adapter=("b=/y",))
    assert (settings.port, settings.adapter) == (7000, ("b=/y",))


def test_an_empty_variable_is_not_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in Settings.model_fields:
        monkeypatch.setenv(f"{ENV_PREFIX}{name.upper()}", "")
    assert Settings() == Settings.model_construct(data_dir=default_data_dir())


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("port", "many"),
        ("port", "65536"),
        ("device", "tpu"),
        ("dtype", "int8"),
        ("quantization", "gptq"),
        ("max_model_len", "1"),
        ("kv_cache_gb", "0"),
        ("adapter_memory_gb", "-1"),
        ("max_running", "0"),
        ("prefix_cache", "perhaps"),
        ("drain_seconds", "-1"),
        ("allow_host", "https://shop.example"),
        ("allow_host", "shop.example:80"),
        ("adapter", "no-path"),
        ("adapter", "=path"),
        ("adapter", "name="),
    ],
)
def test_wrong_values_name_the_setting(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(f"{ENV_PREFIX}{name.upper()}", value)
    with pytest.raises(ValidationError) as caught:
        Settings()
    assert [error["loc"][0] for error in caught.value.errors()] == [name]


def test_a_path_may_hold_an_equals_sign() -> None:
    assert Settings(adapter=("a=/x=y",)).adapter == ("a=/x=y",)


def test_unknown_arguments_are_errors_and_unknown_variables_are_told() -> None:
    unknown: dict[str, object] = {"kv_cache": 1}
    with pytest.raises(ValidationError):
        Settings(**unknown)  # type: ignore[arg-type]
    assert unknown_variables(["MULTILORA_KV_CACHE", "MULTILORA_PORT", "PATH", "MULTILORA_host"]) == [
        "MULTILORA_KV_CACHE"
    ]


def test_settings_do_not_change() -> None:
    with pytest.raises(ValidationError):
        Settings().port = 1  # type: ignore[misc]


def test_the_data_directory_follows_the_desktop_standard(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", "/share")
    assert default_data_dir() == Path("/share/multilora")
    monkeypatch.delenv("XDG_DATA_HOME")
    assert default_data_dir() == Path.home() / ".local" / "share" / "multilora"
