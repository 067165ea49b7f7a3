"""Each format is recognised, and each fault of a row has its kind and its reason."""

from __future__ import annotations

from typing import Any

import pytest

from training.data import (
    ChatExample,
    Example,
    LabelledText,
    LabelledTokens,
    Message,
    PlainText,
    Preference,
    RowError,
    TextExample,
    parse_row,
)
from training.data.rows import recognise

ASKED = {"role": "user", "content": "a"}
SAID = {"role": "assistant", "content": "b"}
USER, ASSISTANT = Message("user", "a"), Message("assistant", "b")
ROWS: dict[str, tuple[dict[str, Any], Example]] = {
    "chat": ({"messages": [ASKED, SAID]}, ChatExample((USER, ASSISTANT))),
    "prompt_completion": ({"prompt": "", "completion": "b"}, TextExample("", "b")),
    "source_target": ({"source": "a", "target": "b"}, TextExample("a", "b")),
    "text": ({"text": "a"}, PlainText("a")),
    "labelled_text": ({"text": "a", "label": 3}, LabelledText("a", "3")),
    "labelled_tokens": (
        {"tokens": ["a", "b"], "labels": ["X", "O"]},
        LabelledTokens(("a", "b"), ("X", "O")),
    ),
    "preference_openai": (
        {
            "input": {"messages": [ASKED], "tools": [], "parallel_tool_calls": True},
            "preferred_output": [SAID],
            "non_preferred_output": [{"role": "assistant", "content": "c"}],
        },
        Preference((USER,), (ASSISTANT,), (Message("assistant", "c"),)),
    ),
    "preference_trl": (
        {"prompt": "a", "chosen": "b", "rejected": "c"},
        Preference("a", "b", "c"),
    ),
    "alpaca": (
        {"instruction": "add", "input": "1 2", "output": "3"},
        TextExample(
            "Below is an instruction that describes a task, paired with an input that provides further "
            "context. Write a response that appropriately completes the request.\n\n"
            "### Instruction:\nadd\n\n### Input:\n1 2\n\n### Response:\n",
            "3",
        ),
    ),
}


@pytest.mark.parametrize("name", ROWS)
def test_each_format_is_recognised_and_read(name: str) -> None:
    row, example = ROWS[name]
    assert recognise(row) == name
    assert parse_row(row) == example


def test_an_alpaca_row_without_an_input_says_so() -> None:
    example = parse_row({"instruction": "add", "input": "", "output": "3"})
    assert isinstance(example, TextExample)
    assert example.prompt.startswith("Below is an instruction that describes a task. Write")
    assert example.prompt.endswith("### Instruction:\nadd\n\n### Response:\n")


def test_preferences_of_trl_may_be_messages() -> None:
    row = {"prompt": [ASKED], "chosen": [SAID], "rejected": [{**SAID, "content": "c"}]}
    assert parse_row(row) == Preference((USER,), (ASSISTANT,), (Message("assistant", "c"),))


@pytest.mark.parametrize(
    ("row", "kinds"),
    [
        ([1], ["data_type"]),
        ({}, ["missing_messages_list"]),
        ({"conversation": []}, ["missing_messages_list"]),
        ({"prompt": 1, "completion": "b"}, ["data_type"]),
        ({"prompt": "a", "completion": ""}, ["missing_content"]),
        ({"prompt": "a", "weight": 1}, ["missing_key", "unrecognized_key"]),
        ({"instruction": "a"}, ["missing_key"]),
        ({"text": ""}, ["missing_content"]),
        ({"text": "a", "id": 4}, ["unrecognized_key"]),
        ({"text": "a", "label": 1.5}, ["invalid_label"]),
        ({"text": "a", "label": True}, ["invalid_label"]),
        ({"text": "a", "label": " "}, ["invalid_label"]),
        ({"label": "x"}, ["missing_key"]),
        ({"tokens": ["a"], "labels": ["x", "y"]}, ["length_mismatch"]),
        ({"tokens": ["a", " "], "labels": ["x", None]}, ["data_type", "invalid_label"]),
        ({"tokens": [], "labels": []}, ["missing_content"]),
        ({"tokens": "a b", "labels": ["x"]}, ["data_type"]),
        ({"tokens": ["a"]}, ["missing_key"]),
        ({"source": "a", "target": 2}, ["data_type"]),
        ({"prompt": "a", "chosen": "b", "rejected": "b"}, ["same_answers"]),
        (
            {"prompt": "a", "chosen": "b"},
            ["missing_key"],
        ),
        ({"prompt": "a", "chosen": "b", "rejected": "c", "tools": []}, ["unrecognized_key"]),
        ({"prompt": "a", "chosen": [SAID], "rejected": [SAID]}, ["data_type"]),
        ({"prompt": [ASKED], "chosen": [SAID], "rejected": [ASKED]}, ["last_message_not_assistant"]),
        ({"prompt": [ASKED], "chosen": [SAID], "rejected": []}, ["missing_content"]),
        (
            {"input": {"messages": []}, "preferred_output": [SAID], "non_preferred_output": [ASKED, SAID]},
            ["missing_messages_list"],
        ),
        ({"input": 3, "preferred_output": [SAID]}, ["missing_key", "data_type", "missing_messages_list"]),
        (
            {**ROWS["preference_openai"][0], "input": {"messages": [ASKED], "x": 1}},
            ["unrecognized_key"],
        ),
    ],
)
def test_each_fault_has_its_kind(row: Any, kinds: list[str]) -> None:
    with pytest.raises(RowError) as caught:
        parse_row(row)
    assert [fault.kind for fault in caught.value.faults] == kinds


def test_a_format_that_is_named_is_what_rows_are_read_as() -> None:
    with pytest.raises(RowError, match="target is missing: source_target rows have source and target"):
        parse_row({"source": "a", "text": "b"}, "source_target")
    with pytest.raises(RowError, match="messages is missing"):
        parse_row({"prompt": "a", "completion": "b"}, "chat")


def test_reasons_are_short_whatever_the_keys_are() -> None:
    with pytest.raises(RowError) as caught:
        parse_row({"x" * 10_000 + " ": 1, "text": "a"})
    assert len(str(caught.value)) < 200
