"""`multilora train preview`: trained tokens bright on a terminal, in brackets elsewhere."""

from __future__ import annotations

import contextlib
import json
import os
import pty
from pathlib import Path
from typing import Any

import pytest

from server.cli.main import main
from server.cli.train.preview import as_text
from tests.server.cli.conftest import Run
from training.data.preview import Part, Piece, Preview

ROWS = [
    {"messages": [{"role": "user", "content": "up: é"}, {"role": "assistant", "content": "[É]"}]},
    {"messages": [{"role": "user", "content": "a\tb"}, {"role": "assistant", "content": "c d"}]},
]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "d.jsonl"
    path.write_text("\n".join(map(json.dumps, ROWS)))
    return path


def test_brackets_where_no_terminal_is(multilora: Run, file: Path) -> None:
    ran = multilora("train", "preview", file)
    assert (ran.code, ran.err) == (0, "")
    assert ran.out == (
        "line 1: 13 tokens, 5 trained, 2 special\n"
        "{<|begin|>}|u|p|:|·|é|⏎\n[\\[|É|\\]|{<|end|>}]\n\n"
        "line 2: 9 tokens, 4 trained, 2 special\n"
        "{<|begin|>}|a|→|b|⏎\n[c|·|d|{<|end|>}]\n\n"
    )


def on_a_terminal(*words: str) -> tuple[str, int]:
    mine, other = pty.openpty()
    with open(other, "w") as terminal, contextlib.redirect_stdout(terminal):
        code = main(["train", "preview", *words])
        terminal.flush()
        shown = os.read(mine, 65536)
    os.close(mine)
    return shown.decode().replace("\r\n", "\n"), code


def test_colors_on_a_terminal(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    shown, code = on_a_terminal(str(file), "--rows", "1")
    dim, bright, end = "\x1b[2m", "\x1b[1;92m", "\x1b[0m"
    masked = "".join(f"{dim}{char}{end}" for char in "up:·é⏎")
    trained = "".join(f"{bright}{char}{end}" for char in "[É]")
    assert code == 0
    assert shown == (
        "line 1: 13 tokens, 5 trained, 2 special\n"
        f"{dim}\x1b[7m<|begin|>{end}{masked}\n{trained}{bright}\x1b[7m<|end|>{end}\n\n"
    )


@pytest.mark.parametrize(("words", "variable"), [(["--no-color"], ""), ([], "1")])
def test_no_colors_where_they_are_not_wanted(
    multilora: Run, file: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], variable: str
) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("NO_COLOR", variable)
    assert "\x1b" not in multilora("train", "preview", file, *words).out


def test_rows_that_can_not_be_used_are_told_in_place(multilora: Run, tmp_path: Path) -> None:
    file = tmp_path / "d.jsonl"
    file.write_text('{"text": "a"}\n{\n\n{"text": "b"}')
    ran = multilora("train", "preview", file)
    assert ran.code == 1
    assert "line 2: not usable: not JSON: Expecting" in ran.out
    assert "line 4: 3 tokens, 2 trained" in ran.out
    assert ran.err == f"multilora: {file}: 1 of the rows shown can't be used; train check says all of them\n"


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["empty"], 1, "multilora: empty: there is no example in this file\n"),
        (["gone"], 1, "multilora: gone: No such file or directory\n"),
        (["empty", "--rows", "0"], 2, "--rows: takes a whole number from 1, not '0'"),
    ],
)
def test_what_can_not_be_shown_is_one_line(
    multilora: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], code: int, says: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").touch()
    ran = multilora("train", "preview", *words)
    assert (ran.code, ran.out) == (code, "")
    assert says in ran.err


def part(*pieces: Piece, **more: Any) -> Part:
    return Part("", pieces, **{"tokens": 3, "trained": 1, "special": 0, **more})


def test_what_a_text_has_of_marks_and_of_control_is_spelled_out() -> None:
    row = part(Piece("a|", trained=False, special=False), Piece("\x1b\\", trained=True, special=False))
    assert as_text(Preview(3, (row,)), colors=False).splitlines()[1] == "a\\|[\\\\x1b\\\\]"
    assert "\\x1b\\" in as_text(Preview(3, (row,)), colors=True)


def test_classes_and_what_is_cut_off() -> None:
    tagged = part(Piece("Bo", trained=True, special=False, label="B-PER"), cut=4)
    assert as_text(Preview(1, (tagged,)), colors=False) == (
        "line 1: 3 tokens, 1 trained, 0 special, 4 more cut off\n[Bo/B-PER]"
    )
    text = part(Piece("Bo", trained=False, special=False))
    assert as_text(Preview(1, (text,), label="good"), colors=False).startswith(
        "line 1: 3 tokens, label good,"
    )
