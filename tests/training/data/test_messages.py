"""Chats: every fault of a row in OpenAI's words, all of them at once."""

from __future__ import annotations

from typing import Any

import pytest

from training.data import ChatExample, Message, RowError, parse_row

ASKED = {"role": "user", "content": "a"}
SAID = {"role": "assistant", "content": "b"}
CALL = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}}
RESULT = {"role": "tool", "content": "", "tool_call_id": "c1"}
TOOL = {"type": "function", "function": {"name": "f", "parameters": {}}}


def calling(**changes: Any) -> dict[str, Any]:
    return {"role": "assistant", "tool_calls": [{**CALL, **changes}]}


@pytest.mark.parametrize(
    ("messages", "kinds"),
    [
        (None, ["missing_messages_list"]),
        ([], ["missing_messages_list"]),
        ("hello", ["missing_messages_list"]),
        ([3, SAID], ["data_type"]),
        ([{"content": "a"}, SAID], ["message_missing_key"]),
        ([{"role": "user"}, SAID], ["message_missing_key"]),
        ([{**ASKED, "weigth": 0}, SAID], ["message_unrecognized_key"]),
        ([{**ASKED, "role": "robot"}, SAID], ["unrecognized_role"]),
        ([{**ASKED, "role": ["user"]}, SAID], ["unrecognized_role"]),
        ([{**ASKED, "content": ""}, SAID], ["missing_content"]),
        ([{**ASKED, "content": None}, SAID], ["missing_content"]),
        ([{**ASKED, "content": 3}, SAID], ["missing_content"]),
        ([{**ASKED, "content": [{"type": "image_url", "image_url": "x"}]}, SAID], ["missing_content"]),
        ([{**ASKED, "name": 3}, SAID], ["data_type"]),
        ([ASKED], ["example_missing_assistant_message"]),
        ([SAID, ASKED], ["last_message_not_assistant"]),
        ([ASKED, {**SAID, "weight": 0}], ["no_trainable_message"]),
        ([ASKED, {**SAID, "weight": 2}], ["invalid_weight"]),
        ([ASKED, {**SAID, "weight": True}], ["invalid_weight"]),
        ([{**ASKED, "weight": 1}, SAID], ["invalid_weight"]),
        ([ASKED, calling(type="code"), RESULT, SAID], ["invalid_tool_call", "invalid_tool_call"]),
        ([ASKED, calling(function={"name": "f", "arguments": "{"})], ["invalid_tool_call"]),
        ([ASKED, calling(function={"name": "f", "arguments": "[]"})], ["invalid_tool_call"]),
        ([ASKED, calling(function={"name": "", "arguments": "{}"})], ["invalid_tool_call"]),
        ([ASKED, calling(function={"name": "f"})], ["invalid_tool_call"]),
        ([ASKED, calling(id=3)], ["invalid_tool_call"]),
        ([ASKED, {"role": "assistant", "tool_calls": {}, "content": "b"}], ["invalid_tool_call"]),
        ([{**ASKED, "tool_calls": [CALL]}, SAID], ["invalid_tool_call"]),
        ([ASKED, {**RESULT, "tool_call_id": "c9"}, SAID], ["invalid_tool_call"]),
        ([ASKED, {"role": "tool", "content": "r"}, SAID], ["message_missing_key"]),
        ([{"role": 1, "extra": 2}, {"role": "user", "content": ""}], [
            "message_unrecognized_key", "unrecognized_role", "message_missing_key", "missing_content",
        ]),
    ],
)  # fmt: skip
def test_each_fault_has_its_kind(messages: Any, kinds: list[str]) -> None:
    with pytest.raises(RowError) as caught:
        parse_row({"messages": messages})
    assert [fault.kind for fault in caught.value.faults] == kinds


@pytest.mark.parametrize("tools", [3, [3], [{"type": "function"}], [{**TOOL, "type": "x"}]])
def test_tools_are_checked(tools: Any) -> None:
    with pytest.raises(RowError) as caught:
        parse_row({"messages": [ASKED, SAID], "tools": tools})
    assert {fault.kind for fault in caught.value.faults} == {"invalid_tools"}


def test_a_reason_names_the_place() -> None:
    with pytest.raises(RowError, match=r"messages\[1\]\.tool_calls\[0\]\.function\.arguments is not JSON"):
        parse_row({"messages": [ASKED, calling(function={"name": "f", "arguments": "{"})]})


def test_a_whole_conversation_with_tools_is_read() -> None:
    row = {
        "messages": [
            {"role": "developer", "content": "d", "name": "n"},
            {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
            {**calling(), "content": None, "refusal": None, "weight": 0},
            RESULT,
            {**SAID, "audio": None, "annotations": []},
        ],
        "tools": [TOOL],
        "parallel_tool_calls": False,
    }
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": {"x": 1}}}
    assert parse_row(row) == ChatExample(
        (
            Message("developer", "d", name="n"),
            Message("user", "a\nb"),
            Message("assistant", "", tool_calls=(call,), weight=0),
            Message("tool", "", tool_call_id="c1"),
            Message("assistant", "b"),
        ),
        (TOOL,),
    )


def test_the_older_functions_become_tools() -> None:
    row = {
        "messages": [
            ASKED,
            {"role": "assistant", "function_call": {"name": "f", "arguments": ""}},
            {"role": "function", "name": "f", "content": "r"},
            SAID,
        ],
        "functions": [TOOL["function"]],
    }
    call = {"type": "function", "function": {"name": "f", "arguments": {}}}
    example = parse_row(row)
    assert isinstance(example, ChatExample)
    assert example.messages[1:3] == (
        Message("assistant", "", tool_calls=(call,)),
        Message("tool", "r", name="f"),
    )
    assert example.tools == (TOOL,)
