"""Files: every bad line is named at once."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from training.data import (
    ChatExample,
    DataError,
    Message,
    Problem,
    TextExample,
    parse_lines,
    read_jsonl,
)


def chat(*turns: tuple[str, str]) -> ChatExample:
    return ChatExample(tuple(Message(role, content) for role, content in turns))


def test_blank_lines_are_skipped(tmp_path: Path) -> None:
    rows = [
        {"messages": [{"role": "user", "content": word}, {"role": "assistant", "content": "tac"}]}
        for word in ("a", "b")
    ]
    file = tmp_path / "data.jsonl"
    file.write_text("\n\n".join(json.dumps(row) for row in rows) + "\n", encoding="utf-8")
    assert read_jsonl(file) == [chat(("user", word), ("assistant", "tac")) for word in ("a", "b")]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("{", "not JSON"),
        ("[1]", "expected a JSON object, not list"),
        ("{}", "found nothing"),
        ('{"prompt": "a"}', "completion is missing"),
        ('{"prompt": "a", "completion": "b", "weight": 1}', "weight is not a key"),
        ('{"prompt": 1, "completion": "b"}', "prompt must be a string, not int"),
        ('{"prompt": "a", "completion": ""}', "completion is empty"),
        ('{"messages": []}', "at least one message"),
        ('{"messages": [{"role": "user", "content": "a"}]}', "no message is the assistant's"),
        ('{"messages": [{"role": "robot", "content": "a"}]}', "messages[0].role must be one of"),
        ('{"messages": [{"role": "user", "content": 3}]}', "messages[0].content must be a string"),
        ('{"messages": [{"role": "user"}]}', "messages[0].content is missing"),
    ],
)
def test_a_bad_line_gives_its_reason(line: str, reason: str) -> None:
    with pytest.raises(DataError) as caught:
        parse_lines(['{"prompt": "a", "completion": "b"}', line])
    assert {problem.line for problem in caught.value.problems} == {2}
    assert reason in str(caught.value)


def test_all_bad_lines_are_named_in_one_error() -> None:
    lines = ["{", '{"prompt": "a", "completion": "b"}', "[]", '{"prompt": 1, "completion": "b"}']
    message = r"^orders.jsonl: 3 bad lines\n  line 1: .*\n  line 3: .*\n  line 4: .*$"
    with pytest.raises(DataError, match=message):
        parse_lines(lines, "orders.jsonl")


def test_only_newlines_end_a_line(tmp_path: Path) -> None:
    file = tmp_path / "data.jsonl"
    file.write_text('\ufeff{"prompt": "a\u2028b", "completion": "c"}\r\n', encoding="utf-8", newline="")
    assert read_jsonl(file) == [TextExample("a\u2028b", "c")]


def test_an_empty_file_is_an_error() -> None:
    with pytest.raises(DataError) as caught:
        parse_lines(["", "  "])
    assert caught.value.problems == (Problem(1, "there is no example in this file", "empty_file"),)
