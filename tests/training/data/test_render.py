"""Masks of chats against transformers' own, TRL's templates with marks, and what the server renders."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import anyio
import pytest

from server.api.chat_schema import Message as Sent
from server.api.prompts import chat_prompt
from tests.training.data.tokenizers import CHATML, MARKED, chat, family, merged, of_bytes, spoken
from training.data import IGNORE, ChatExample, Message, RowError, encode
from training.data.encode import encode_example
from training.data.tokens import Tokens

ONE = chat(("user", "hi é"), ("assistant", "yo 1"))
TWO = chat(("system", "s"), ("user", "hi"), ("assistant", "yo"), ("user", "so?"), ("assistant", "well\n"))
FAMILIES = ("qwen2_5", "qwen3", "llama3", "gemma3", "phi3", "deepseekv3", "gptoss", "nemotron_3_nano", "lfm2")
NO_SYSTEM = ("gemma3", "phi3")


def rows(example: ChatExample, tokenizer: Any) -> list[Tokens]:
    return encode_example(example, tokenizer, "CAUSAL_LM")


def as_sent(example: ChatExample) -> list[dict[str, Any]]:
    return [{"role": message.role, "content": message.content} for message in example.messages]


def prompt_of_server(tokenizer: Any, example: ChatExample, count: int) -> tuple[int, ...]:
    """What the server computes for the first messages before it generates an answer."""
    context: Any = SimpleNamespace(tokenizer=tokenizer, max_prompt_chars=10**6, tokenizing=None)
    messages = [Sent(**message) for message in as_sent(example)[:count]]
    return anyio.run(chat_prompt, context, messages).token_ids


@pytest.mark.parametrize("example", [ONE, TWO])
@pytest.mark.parametrize("name", FAMILIES)
def test_marks_of_a_template_are_what_transformers_makes_of_them(name: str, example: ChatExample) -> None:
    _, marked, eos = family(name)
    tokenizer = of_bytes(marked, eos)
    wanted = tokenizer.apply_chat_template(
        as_sent(example), return_dict=True, return_assistant_tokens_mask=True
    )
    ids, mask = wanted["input_ids"], wanted["assistant_masks"]
    (row,) = rows(example, tokenizer)
    end = len(row.ids)
    assert row.ids == ids[:end]
    assert [label != IGNORE for label in row.labels] == [bool(kept) for kept in mask[:end]]
    assert not any(mask[end:])


@pytest.mark.parametrize("name", ["qwen2_5_vl", "qwen3", "llama3", "gemma3", "lfm2", "qwen3_instruct_2507"])
def test_prefixes_find_what_trl_marked_by_hand(name: str) -> None:
    """But for the white space after the end of a turn, which no server ever generates."""
    plain, marked, eos = family(name)
    with_marks, without = of_bytes(marked, eos), of_bytes(plain, eos)
    wanted = with_marks.apply_chat_template(as_sent(ONE), return_dict=True, return_assistant_tokens_mask=True)
    labels = [
        token if kept else IGNORE
        for token, kept in zip(wanted["input_ids"], wanted["assistant_masks"], strict=True)
    ]
    (row,) = rows(ONE, without)
    assert spoken(without, row.ids, row.labels) == [
        text.rstrip() for text in spoken(with_marks, list(wanted["input_ids"]), labels)
    ]


@pytest.mark.parametrize("example", [ONE, TWO])
@pytest.mark.parametrize("name", FAMILIES)
def test_an_answer_is_learned_behind_the_servers_own_prompt(name: str, example: ChatExample) -> None:
    """Each answer of each row, whatever the template does to earlier messages."""
    plain, _, eos = family(name)
    tokenizer = of_bytes(plain, eos)
    found = rows(example, tokenizer)
    asked = [index for index, message in enumerate(example.messages) if message.role == "assistant"]
    prompts = [list(prompt_of_server(tokenizer, example, index)) for index in asked]
    starts = [
        row.ids[:place]
        for row in found
        for place, label in enumerate(row.labels)
        if label != IGNORE and row.labels[place - 1] == IGNORE
    ]
    assert starts == prompts


def test_tokens_that_would_cross_into_the_answer_are_not_made() -> None:
    """Nothing is asked for in a template that ends with a space, and the merges know ` yes`."""
    template = "{% for m in messages %}{{ m.role }}: {{ m.content }}<|im_end|>{% endfor %}"
    template += "{% if add_generation_prompt %}assistant: {% endif %}"
    tokenizer = merged(template, "assistant: yes<|im_end|>assistant: yes, yes user: yes assistant: yes")
    example = chat(("user", "yes"), ("assistant", "yes"), ("user", "yes"), ("assistant", "yes"))
    whole = tokenizer("assistant: yes", add_special_tokens=False)["input_ids"]
    apart = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in ("assistant: ", "yes")]
    assert whole != apart[0] + apart[1]  # else this test shows nothing
    (row,) = rows(example, tokenizer)
    assert spoken(tokenizer, row.ids, row.labels) == ["yes<|im_end|>"] * 2
    first = next(place for place, label in enumerate(row.labels) if label != IGNORE)
    assert tuple(row.ids[:first]) == prompt_of_server(tokenizer, example, 1)


@pytest.mark.parametrize("template", [CHATML, MARKED])
@pytest.mark.parametrize(("weights", "learned"), [((1, 1), ["b", "d"]), ((0, 1), ["d"]), ((1, 0), ["b"])])
def test_weight_0_is_read_and_not_learned(
    template: str, weights: tuple[int, ...], learned: list[str]
) -> None:
    example = chat(("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d"), weights=weights)
    tokenizer = of_bytes(template)
    (row,) = rows(example, tokenizer)
    assert spoken(tokenizer, row.ids, row.labels) == [f"{text}<|im_end|>" for text in learned]


def test_the_end_of_a_turn_is_learned_where_only_the_text_is_marked() -> None:
    template = MARKED.replace("<|im_end|>{% endgeneration %}", "{% endgeneration %}<|im_end|>")
    tokenizer = of_bytes(template)
    (row,) = rows(TWO, tokenizer)
    assert spoken(tokenizer, row.ids, row.labels) == ["yo<|im_end|>", "well\n<|im_end|>"]


def test_an_answer_that_nothing_ends_gets_the_end_of_all() -> None:
    template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    template += "{% if add_generation_prompt %}assistant: {% endif %}"
    tokenizer = of_bytes(template, eos="</s>")
    (row,) = rows(ONE, tokenizer)
    assert spoken(tokenizer, row.ids, row.labels) == ["yo 1\n</s>"]


def test_a_template_that_rewrites_earlier_messages_gives_a_row_for_each_answer() -> None:
    plain, _, eos = family("qwen3")
    tokenizer = of_bytes(plain, eos)
    found = encode([ONE, TWO], tokenizer, "CAUSAL_LM", 1000)
    assert found.sources == [0, 1, 1]
    learned = [spoken(tokenizer, row.ids, row.labels) for row in found.rows[1:]]
    think = "<think>\n\n</think>\n\n"
    assert learned == [[f"{think}yo<|im_end|>"], [f"{think}well\n<|im_end|>"]]


def test_tools_and_calls_reach_the_template() -> None:
    plain, _, eos = family("qwen3")
    tokenizer = of_bytes(plain, eos)
    call = {"id": "c1", "type": "function", "function": {"name": "sun", "arguments": {"at": "Rome"}}}
    tool = {"type": "function", "function": {"name": "sun", "parameters": {"type": "object"}}}
    example = ChatExample(
        (
            Message("user", "sun in Rome?"),
            Message("assistant", "", tool_calls=(call,)),
            Message("tool", "yes", tool_call_id="c1"),
            Message("assistant", "It shines."),
        ),
        (tool,),
    )
    found = [text for row in rows(example, tokenizer) for text in spoken(tokenizer, row.ids, row.labels)]
    assert '<tool_call>\n{"name": "sun", "arguments": {"at": "Rome"}}\n</tool_call><|im_end|>' in found[0]
    assert found[1].endswith("It shines.<|im_end|>")
    prompt = tokenizer.decode(rows(example, tokenizer)[0].ids)
    assert '"name": "sun", "parameters"' in prompt


@pytest.mark.parametrize("tools", [True, False])
def test_tools_that_a_template_does_not_know_are_not_left_out(tools: bool) -> None:
    call = {"type": "function", "function": {"name": "f", "arguments": {}}}
    asked = (Message("user", "a"), Message("assistant", "b" * tools, tool_calls=(call,) * (not tools)))
    with pytest.raises(RowError, match="knows no tools") as caught:
        rows(ChatExample(asked, (call,) * tools), of_bytes(CHATML))
    assert [fault.kind for fault in caught.value.faults] == ["template_without_tools"]


def test_the_developer_is_the_system_where_a_template_does_not_know_it() -> None:
    tokenizer = of_bytes(CHATML)
    (row,) = rows(chat(("developer", "d"), ("user", "a"), ("assistant", "b")), tokenizer)
    assert str(tokenizer.decode(row.ids)).startswith("<|im_start|>system\nd<|im_end|>")


@pytest.mark.parametrize(
    ("template", "kind", "says"),
    [
        (None, "no_chat_template", "no chat template"),
        ("{{ raise_exception('no such role') }}", "template_refused", "no such role"),
        ("{{ messages[0].content.nothing.at.all }}", "template_refused", "refused it"),
        (
            "{{ messages | length }}{% for m in messages %}{{ m.content }}{% endfor %}",
            "template_refused",
            "rewrites",
        ),
        ("{% generation %}x{% endgeneration %}", "template_refused", "weight 0"),
    ],
)
def test_what_can_not_be_rendered_has_its_reason(template: str | None, kind: str, says: str) -> None:
    tokenizer = of_bytes(CHATML)
    tokenizer.chat_template = template
    example = chat(("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d"), weights=(0, 1))
    with pytest.raises(RowError, match=says) as caught:
        rows(example, tokenizer)
    assert [fault.kind for fault in caught.value.faults] == [kind]


def test_a_chat_that_begins_with_the_answer_is_refused() -> None:
    with pytest.raises(RowError, match="begin with the assistant"):
        rows(chat(("assistant", "b")), of_bytes(CHATML))
