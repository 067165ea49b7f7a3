"""What the README tells a newcomer to do is there to be done."""

from __future__ import annotations

import re

import pytest

from tests.pages import ROOT, blocks, commands
from training.tasks import TASKS

README = (ROOT / "README.md").read_text()


def test_the_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = {words[1] for words in commands(README) if words[0] == "make"}

    assert {"demo", "demo-stop", "test"} <= targets
    for target in targets | set(re.findall(r"`make (\S+)`", README)):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_the_demo_shown_is_the_demo_there_is() -> None:
    (shown,) = blocks(README, "text")
    rows = re.findall(r"^   (\S+) +.* (\d+)% \(base: \d+%\)$", shown, re.MULTILINE)

    assert [task for task, _ in rows] == list(TASKS)
    assert set(re.findall(r"^   (?:.* created: )?(\S+)@1(?: |$)", shown, re.MULTILINE)) == set(TASKS)
    for task, answer in re.findall(r"^   (\S+) +(.*?) +\d+% ", shown, re.MULTILINE):
        assert answer == TASKS[task].answer("harbour")


def test_python_in_the_readme_is_python() -> None:
    for block in blocks(README, "python"):
        compile(block, "README.md", "exec")


@pytest.mark.parametrize("marker", ["begin", "end"])
def test_the_figures_have_their_place(marker: str) -> None:
    assert README.count(f"<!-- figures:{marker} -->") == 1


def test_files_to_install_from_exist() -> None:
    assert "-c constraints.txt" in README
    assert (ROOT / "constraints.txt").is_file()
    assert "Apache License" in (ROOT / "LICENSE").read_text()
