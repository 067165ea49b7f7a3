"""`multilora train`: each sub-verb's module is imported when it is asked for."""

from __future__ import annotations

import subprocess
import sys

import pytest

from server.cli.train import SUBVERBS
from tests.server.cli.conftest import Run


@pytest.mark.parametrize("verb", SUBVERBS)
def test_each_sub_verb_has_help(multilora: Run, verb: str) -> None:
    ran = multilora("train", verb, "--help")
    assert ran.code == 0
    assert f"usage: multilora train {verb}" in ran.out


def test_help_lists_the_sub_verbs(multilora: Run) -> None:
    shown = multilora("train", "--help").out
    assert all(f"    {verb} " in shown for verb in SUBVERBS)


@pytest.mark.parametrize("words", [["train"], ["train", "check", "--chec", "x"]])
def test_what_is_missing_or_guessed_is_exit_code_2(multilora: Run, words: list[str]) -> None:
    assert multilora(*words).code == 2


def test_a_sub_verb_is_imported_when_it_is_asked_for() -> None:
    code = "import sys; from server.cli.main import main, build_parser; build_parser(['train']); "
    code += "print('server.cli.train.check' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
