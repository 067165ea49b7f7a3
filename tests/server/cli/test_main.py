"""The command line as a whole: commands, exit codes, one clear line."""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from server.cli import main as cli
from server.cli import serve
from server.cli.exits import MEANINGS, Exit
from tests.server.cli.conftest import Run
from tests.server.cli.scripted import Answer, Scripted

COMMAND = [sys.executable, "-m", "server.cli.main"]
HEAVY = ("torch", "transformers", "pydantic", "sqlalchemy", "fastapi", "huggingface_hub", "tqdm")
CLIENTS = [verb for verb in cli.VERBS if verb not in ("serve", "check", "merge", "combine")]


def test_no_command_is_exit_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main([])
    assert caught.value.code == 2
    assert "COMMAND" in capsys.readouterr().err


def test_help_lists_the_commands_and_the_exit_codes(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(["--help"])
    assert caught.value.code == 0
    shown = capsys.readouterr().out
    for verb in cli.VERBS:
        assert f"    {verb} " in shown or f"    {verb}\n" in shown
    for code, meaning in MEANINGS.items():
        assert re.search(rf"^  {code.value} +{re.escape(meaning)}$", shown, re.MULTILINE)


@pytest.mark.parametrize("verb", cli.VERBS)
def test_each_command_has_help(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main([verb, "--help"])
    assert caught.value.code == 0
    assert f"usage: multilora {verb}" in capsys.readouterr().out


@pytest.mark.parametrize("verb", [None, *CLIENTS])
def test_clients_start_without_what_is_heavy(verb: str | None) -> None:
    full = [] if verb is None else [verb]
    code = f"import sys; from server.cli.main import build_parser; build_parser({full!r}); "
    code += f"print([name for name in {(*HEAVY, 'httpx')!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_a_client_asks_without_what_is_heavy(server: Scripted) -> None:
    server.answers = [Answer(body={"object": "list", "data": [], "has_more": False})]
    code = "import sys; from server.cli.main import main; main(['ls']); "
    code += f"print([name for name in {HEAVY!r} if name in sys.modules])"
    environment = {**os.environ, "MULTILORA_SERVER": server.url}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "[]"


def big(server: Scripted) -> dict[str, str]:
    """A log that fits no pipe; returns the environment to ask for it."""
    entry = {"time": 0, "tenant": "t", "actor": "a", "action": "x", "subject": "s" * 100, "before": None}
    page = [{**entry, "after": None, "id": number} for number in range(5000)]
    server.answers = [Answer(body={"object": "list", "data": page, "has_more": False})]
    return {**os.environ, "MULTILORA_SERVER": server.url}


@pytest.mark.parametrize("more", [[], ["--json"]])
def test_a_reader_that_leaves_is_no_noise(server: Scripted, more: list[str]) -> None:
    process = subprocess.Popen(
        [*COMMAND, "logs", *more], env=big(server), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.read(10)
    process.stdout.close()
    assert process.stderr.read() == b""
    process.stderr.close()
    assert process.wait() == Exit.BROKEN_PIPE


def test_nothing_is_lost_of_huge_output(server: Scripted) -> None:
    done = subprocess.run([*COMMAND, "logs"], env=big(server), capture_output=True, text=True, check=True)
    assert len(done.stdout.splitlines()) == 5000


def test_a_terminal_without_unicode_is_no_failure(server: Scripted, tmp_path: Path) -> None:
    message = {"error": {"message": "ü 漢字", "code": None}}
    server.answers = [Answer(409, message)]
    environment = {**os.environ, "MULTILORA_SERVER": server.url, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run([*COMMAND, "ls"], env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (Exit.CONFLICT, "multilora: \\xfc \\u6f22\\u5b57\n")


def test_an_error_is_one_line_that_can_not_steer_the_terminal(run: Run, server: Scripted) -> None:
    server.answers = [Answer(409, {"error": {"message": "a\x1b[2J\r\nb", "code": None}})]
    assert run("ls").err == "multilora: a\\x1b[2J b\n"


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
