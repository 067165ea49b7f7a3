"""`multilora serve`: flags, environment, and what reaches the server."""

from __future__ import annotations

from typing import Any

import pytest

from server.cli.main import build_parser, main
from server.cli.serve import choices
from server.settings import Settings, flags


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> list[Settings]:
    """The settings of each server that was started, none of which really was."""
    from server import launch

    started: list[Settings] = []
    monkeypatch.setattr(launch, "serve", started.append)
    monkeypatch.setattr("server.cli.serve.set_threads", lambda threads: None)
    return started


def test_help_lists_every_setting(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["serve", "--help"])
    shown = " ".join(capsys.readouterr().out.split())
    for name, field in flags().items():
        assert f"--{name.replace('_', '-')}" in shown
        assert (field.description or "?").split()[-1] in shown


def test_a_secret_is_no_flag(served: list[Settings], monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SystemExit):
        main(["serve", "--admin-key", "0123456789abcdef"])
    monkeypatch.setenv("MULTILORA_ADMIN_KEY", "0123456789abcdef")
    assert main(["serve"]) == 0
    assert served[0].admin_key is not None
    assert "0123456789abcdef" not in f"{served[0]!r} {served[0]} {served[0].model_dump()}"


@pytest.mark.parametrize(
    "secret", ["fifteen letters", "15-letters-here", "x" * 257, "ünprintable-in-a-header"]
)
def test_a_secret_that_is_refused_is_not_shown(
    secret: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MULTILORA_ADMIN_KEY", secret)
    assert main(["serve"]) == 2
    shown = capsys.readouterr().err
    assert shown.startswith("multilora: MULTILORA_ADMIN_KEY: takes 16 to 256 printable")
    assert secret not in shown


def test_words_to_choose_from_are_shown() -> None:
    assert choices("device") == "auto|cpu|cuda"
    assert choices("port") == ""


def test_flags_become_settings(served: list[Settings]) -> None:
    flags = ["--port", "0", "--adapter", "a=/x", "--adapter", "b=/y", "--no-prefix-cache"]
    assert main(["serve", *flags]) == 0
    assert served[0].port == 0
    assert served[0].adapter == ("a=/x", "b=/y")
    assert served[0].prefix_cache is False


def test_a_flag_wins_over_the_environment(served: list[Settings], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MULTILORA_PORT", "9000")
    monkeypatch.setenv("MULTILORA_MAX_N", "3")
    assert main(["serve", "--port", "7000"]) == 0
    assert (served[0].port, served[0].max_n) == (7000, 3)


def test_a_variable_that_is_no_setting_is_told(
    served: list[Settings], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MULTILORA_KV_CACHE", "4")
    assert main(["serve"]) == 0
    assert "MULTILORA_KV_CACHE is ignored" in capsys.readouterr().err


def test_what_can_not_start_is_one_line_and_exit_code_1(
    served: list[Settings], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from server import launch

    def refuse(settings: Settings) -> Any:
        raise launch.StartError("no such folder")

    monkeypatch.setattr(launch, "serve", refuse)
    assert main(["serve"]) == 1
    assert capsys.readouterr().err == "multilora: no such folder\n"


def test_unknown_flags_are_exit_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        build_parser().parse_args(["serve", "--kv-cache-size", "4"])
    assert caught.value.code == 2
    assert "--kv-cache-size" in capsys.readouterr().err
