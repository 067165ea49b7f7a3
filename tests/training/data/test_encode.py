"""Encoding: the loss sees answers and nothing else."""

from __future__ import annotations

import pytest

from training.base.tokenizer import BOS_ID, EOS_ID, build_tokenizer, encode
from training.data import IGNORE, ChatExample, Message, TextExample, tokenize


def chat(*turns: tuple[str, str]) -> ChatExample:
    return ChatExample(tuple(Message(role, content) for role, content in turns))


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
    with pytest.raises(ValueError, match="otherwise than it asks"):
        tokenize(turns, tokenizer)
