"""`multilora train check`: what people and programs read, and the exit code."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.server.cli.conftest import Run


def write(path: Path, *rows: Any) -> Path:
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows))
    return path


def test_a_file_that_is_right(multilora: Run, tmp_path: Path) -> None:
    file = write(tmp_path / "d.jsonl", *({"prompt": f"{n}\n", "completion": "x" * n} for n in range(1, 12)))
    ran = multilora("train", "check", file)
    assert (ran.code, ran.err) == (0, "")
    lines = ran.out.splitlines()
    assert lines[:4] == ["d.jsonl: prompt_completion rows for CAUSAL_LM", "", "errors: none", ""]
    assert "d.jsonl: 11 rows  total  mean  median  p5   p95   max" in lines
    # The token for the beginning, a digit or two, the line's end, 1 to 11 letters, the token for the end.
    assert f"  tokens          {11 + 9 + 2 * 2 + 11 + 66 + 11}    10.2" in ran.out
    assert f"  trained tokens  {66 + 11}     7.0" in ran.out
    assert "seed texts advise" in ran.out


def test_every_error_is_shown_with_its_line(multilora: Run, tmp_path: Path) -> None:
    file = write(
        tmp_path / "d.jsonl", {"prompt": "a", "completion": ""}, "{", {"prompt": "a", "completion": "b"}
    )
    ran = multilora("train", "check", file)
    assert ran.code == 1
    assert (
        "  missing_content, 1 in d.jsonl\n    line 1: completion is empty: there is nothing to learn\n"
        in ran.out
    )
    assert "  invalid_json, 1 in d.jsonl\n    line 2: not JSON: Expecting" in ran.out
    assert ran.err == f"multilora: {file}: 2 errors; mend them before you train\n"
    assert "advice" not in ran.out


def test_output_is_bounded_and_lines_are_put_together(multilora: Run, tmp_path: Path) -> None:
    file = write(tmp_path / "d.jsonl", *["{"] * 5000)
    ran = multilora("train", "check", file)
    assert "  invalid_json, 5000 in d.jsonl\n    lines 1-10: not JSON" in ran.out
    assert "    and 4990 more\n" in ran.out
    assert len(ran.out) < 1000


def test_programs_get_one_object(multilora: Run, tmp_path: Path) -> None:
    train = write(tmp_path / "d.jsonl", {"text": "a", "label": "x"}, {"text": "b", "label": "y"})
    other = write(tmp_path / "v.jsonl", {"text": "a", "label": "x"}, {"text": "c", "label": "z"})
    ran = multilora("train", "check", train, "--validation", other, "--json")
    assert ran.code == 1
    assert (ran.json["ok"], ran.json["task"], ran.json["statistics"]["labels"]) == (
        False,
        "SEQ_CLS",
        {"x": 1, "y": 1},
    )
    (error,) = ran.json["errors"]
    assert (error["file"], error["kind"], error["problems"][0]["line"]) == ("v.jsonl", "unknown_label", 2)
    assert [warning["kind"] for warning in ran.json["warnings"]] == ["rare_label", "leakage"]
    assert ran.json["validation"]["rows"] == 2


def test_lengths_and_tasks_can_be_named(multilora: Run, tmp_path: Path) -> None:
    file = write(tmp_path / "d.jsonl", {"prompt": "abcdef", "completion": "g"})
    assert "no_trainable_tokens" in multilora("train", "check", file, "--max-length", "5").out
    assert "wrong_task" in multilora("train", "check", file, "--task", "SEQ_CLS").out
    assert "missing_messages_list" in multilora("train", "check", file, "--format", "chat").out


def test_rows_are_cut_where_a_run_cuts_them(multilora: Run, tmp_path: Path) -> None:
    """The shipped base reads 1024 tokens."""
    file = write(tmp_path / "d.jsonl", *({"prompt": "a" * n, "completion": "b"} for n in (700, 1100)))
    out = multilora("train", "check", file).out
    assert "line 2: all 2 trained tokens of 1103 are beyond max_length=1024" in out
    assert "line 1:" not in out
    ran = multilora("train", "preview", file, "--rows", "1")
    assert (ran.code, ran.out.splitlines()[0]) == (0, "line 1: 703 tokens, 2 trained, 2 special")


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["nothing.jsonl"], 1, "multilora: nothing.jsonl: No such file or directory\n"),
        (["."], 1, "multilora: .: Is a directory\n"),
        (["d.jsonl", "--model", "."], 1, "multilora: --model: . holds no tokenizer\n"),
        (["d.jsonl", "--model", "bad"], 1, "multilora: --model: no tokenizer could be loaded from bad: "),
        (["d.jsonl", "--max-length", "1"], 2, "--max-length: takes a whole number from 2, not '1'"),
        (["d.jsonl", "--format", "csv"], 2, "invalid choice: 'csv'"),
        (["d.jsonl", "--validation", "gone"], 1, "multilora: gone: No such file or directory\n"),
    ],
)
def test_what_can_not_be_done_is_one_line(
    multilora: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], code: int, says: str
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "d.jsonl", {"text": "a"})
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "config.json").write_text('{"model_type": "llama"}')
    (tmp_path / "bad" / "tokenizer.json").write_text("{")
    ran = multilora("train", "check", *words)
    assert (ran.code, ran.out) == (code, "")
    assert says in ran.err
    assert "Traceback" not in ran.err


def test_a_file_can_not_steer_the_terminal(multilora: Run, tmp_path: Path) -> None:
    rows = {"text": "a", "label": "\x1b[2J\u202e"}, {"te\x1b[2Jxt": 1}
    ran = multilora("train", "check", write(tmp_path / "d.jsonl", *rows))
    assert "\\x1b[2J" in ran.out
    assert not {"\x1b", "\u202e"} & set(ran.out)
