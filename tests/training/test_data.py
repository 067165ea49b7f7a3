"""Data: every bad line is named at once; the loss sees answers and nothing else."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from training.base.tokenizer import BOS_ID, EOS_ID, build_tokenizer, encode
from training.data import (
    IGNORE,
    ChatExample,
    DataError,
    Message,
    Problem,
    TextExample,
    parse_lines,
    read_jsonl,
    tokenize,
)


def chat(*turns: tuple[str, str]) -> ChatExample:
    return ChatExample(tuple(Message(role, content) for role, content in turns))


def test_reads_both_forms_and_skips_blank_lines(tmp_path: Path) -> None:
    rows = [
        {"prompt": "do: cat\n", "completion": "tac"},
        {"messages": [{"role": "user", "content": "do: cat"}, {"role": "assistant", "content": "tac"}]},
    ]
    file = tmp_path / "data.jsonl"
    file.write_text("\n\n".join(json.dumps(row) for row in rows) + "\n", encoding="utf-8")
    assert read_jsonl(file) == [
        TextExample("do: cat\n", "tac"),
        chat(("user", "do: cat"), ("assistant", "tac")),
    ]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("{", "not JSON"),
        ("[1]", "expected a JSON object, not list"),
        ("{}", "found nothing"),
        ('{"prompt": "a"}', "found prompt"),
        ('{"prompt": "a", "completion": "b", "weight": 1}', "found completion, prompt, weight"),
        ('{"prompt": 1, "completion": "b"}', "prompt must be a string, not int"),
        ('{"prompt": "a", "completion": ""}', "completion is empty"),
        ('{"messages": []}', "at least one message"),
        ('{"messages": [{"role": "user", "content": "a"}]}', "the last message must be the assistant's"),
        ('{"messages": [{"role": "robot", "content": "a"}]}', "messages[0].role must be one of"),
        ('{"messages": [{"role": "user", "content": 3}]}', "messages[0].content must be a string"),
        ('{"messages": [{"role": "user"}]}', "messages[0] must be an object with role and content"),
    ],
)
def test_a_bad_line_gives_its_reason(line: str, reason: str) -> None:
    with pytest.raises(DataError) as caught:
        parse_lines(['{"prompt": "a", "completion": "b"}', line])
    assert [problem.line for problem in caught.value.problems] == [2]
    assert reason in caught.value.problems[0].reason


def test_all_bad_lines_are_named_in_one_error() -> None:
    lines = ["{", '{"prompt": "a", "completion": "b"}', "[]", '{"messages": 1}']
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
    assert caught.value.problems == (Problem(1, "there is no example in this file"),)


def test_only_the_completion_and_its_end_have_labels() -> None:
    row = tokenize(TextExample("do: cat\n", "tac"), build_tokenizer())
    asked, given = [BOS_ID, *encode("do: cat\n")], [*encode("tac"), EOS_ID]
    assert row.ids == asked + given
    assert row.labels == [IGNORE] * len(asked) + given


def test_a_chat_gives_the_same_tokens_as_the_prompt_form() -> None:
    tokenizer = build_tokenizer()
    as_chat = tokenize(chat(("user", "do: cat"), ("assistant", "tac")), tokenizer)
    assert as_chat == tokenize(TextExample("do: cat\n", "tac"), tokenizer)


def test_every_assistant_message_of_a_chat_is_learned() -> None:
    turns = chat(("system", "s"), ("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d"))
    row = tokenize(turns, build_tokenizer())
    assert [label for label in row.labels if label != IGNORE] == [*encode("b"), EOS_ID, *encode("d"), EOS_ID]


def test_chats_need_a_chat_template() -> None:
    tokenizer = build_tokenizer()
    tokenizer.chat_template = None
    with pytest.raises(ValueError, match="no chat template"):
        tokenize(chat(("user", "a"), ("assistant", "b")), tokenizer)


def test_a_template_that_rewrites_history_is_refused() -> None:
    tokenizer = build_tokenizer()
    tokenizer.chat_template = "{{ messages | length }}{% for m in messages %}{{ m['content'] }}{% endfor %}"
    turns = chat(("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d"))
    with pytest.raises(ValueError, match="rewrites earlier messages"):
        tokenize(turns, tokenizer)
