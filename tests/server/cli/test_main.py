"""The command line as a whole: commands, exit codes, one clear line."""

from __future__ import annotations

import argparse
import re

import pytest

from server.cli import main as cli
from server.cli import serve


def test_no_command_is_exit_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main([])
    assert caught.value.code == 2
    assert "COMMAND" in capsys.readouterr().err


def test_help_lists_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(["--help"])
    assert caught.value.code == 0
    shown = capsys.readouterr().out
    assert "serve" in shown
    assert "merge" in shown


def test_version_is_that_of_the_project(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(["--version"])
    assert caught.value.code == 0
    assert re.fullmatch(r"multilora \d+\.\d+\.\d+\n", capsys.readouterr().out)


@pytest.mark.parametrize("arguments", [["--vers"], ["serve", "--mod", "x"], ["merge", "--mod", "x"]])
def test_flags_are_not_guessed(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> None:
    """Else a flag of a later version would change what a script of today means."""
    with pytest.raises(SystemExit) as caught:
        cli.main(arguments)
    assert caught.value.code == 2


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--port", "many"], "multilora: --port: "),
        (["--max-model-len", "1"], "multilora: --max-model-len: "),
        (["--device", "tpu"], "multilora: --device: "),
        (["--adapter", "shop"], "multilora: --adapter: takes NAME=PATH, not 'shop'"),
    ],
)
def test_wrong_settings_name_the_flag(
    capsys: pytest.CaptureFixture[str], arguments: list[str], says: str
) -> None:
    assert cli.main(["serve", *arguments]) == 2
    assert capsys.readouterr().err.startswith(says)


def test_wrong_variables_name_the_flag(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MULTILORA_KV_CACHE_GB", "much")
    assert cli.main(["serve"]) == 2
    assert "multilora: --kv-cache-gb: " in capsys.readouterr().err


def test_an_interrupt_is_130(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(arguments: argparse.Namespace) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(serve, "run", interrupted)
    assert cli.main(["serve"]) == 130
