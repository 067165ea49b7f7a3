"""Prompts out of validation rows: what comes before the last trained part, and answers compared as text."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.training.report.kit import tokenizer, translator
from training.base import MODEL_DIR
from training.data import IGNORE, ChatExample, Message, TextExample, Tokens, tokenize
from training.report.questions import NEW_TOKENS, ask, continuations, evenly, questions

STOP = {2}


@pytest.fixture(scope="module")
def base() -> Any:
    return AutoModelForCausalLM.from_pretrained(MODEL_DIR, dtype=torch.float32).eval()


def test_a_chat_is_asked_with_the_template_s_generation_prompt() -> None:
    tokens = tokenizer()
    chat = [("user", "up: cat"), ("assistant", "CAT"), ("user", "up: dog"), ("assistant", "DOG")]
    row = tokenize(ChatExample(tuple(Message(*message) for message in chat)), tokens)
    (question,) = questions([row], "CAUSAL_LM", tokens.all_special_ids, 5)
    asked = [{"role": role, "content": content} for role, content in chat[:3]]
    prompt = tokens.apply_chat_template(asked, tokenize=True, add_generation_prompt=True)["input_ids"]
    assert question.prompt == list(prompt)
    assert tokens.decode(question.wanted, skip_special_tokens=True) == "DOG"


def test_long_answers_and_rows_without_a_prompt_are_not_asked() -> None:
    long = Tokens([5] * 300, [IGNORE] * 5 + [5] * 295)
    fits = Tokens([5] * (5 + NEW_TOKENS), [IGNORE] * 5 + [5] * NEW_TOKENS)
    plain = Tokens([1, 5, 6, 7], [IGNORE, 5, 6, 7])
    nothing = Tokens([5, 6], [IGNORE, IGNORE])
    found = questions([long, plain, fits, nothing], "CAUSAL_LM", {0, 1, 2}, 10)
    assert [each.wanted for each in found] == [[5] * NEW_TOKENS]
    (half,) = continuations([plain], 3)
    assert (half.prompt, half.wanted) == ([1, 5], [6, 7])


def test_rows_are_taken_from_all_over_and_always_the_same() -> None:
    assert evenly(range(10), 4) == [0, 2, 5, 7]
    assert evenly(range(3), 10) == [0, 1, 2]


def test_a_row_that_was_cut_off_is_right_when_its_beginning_is(base: Any) -> None:
    tokens = tokenizer()
    row = tokenize(TextExample("up: river\n", "RIVER"), tokens)
    cut = Tokens(row.ids[:-3], row.labels[:-3])  # without "ER" and the end
    short = tokenize(TextExample("up: river\n", "RIV"), tokens)
    asked = questions([row, cut, short], "CAUSAL_LM", tokens.all_special_ids, 9)
    found = ask(base, tokens, asked, STOP, 0, 4)
    assert [(sample.answer, same) for sample, same in found] == [
        ("RIVER", True),
        ("RIV", True),
        ("RIVER", False),  # it did not end where it should have
    ]


def test_answers_in_one_batch_are_those_of_each_alone(base: Any) -> None:
    tokens = tokenizer()
    texts = [("up: cat\n", "CAT"), ("copy: rivers\n", "rivers"), ("rev: ab\n", "ba"), ("do: longer\n", "x")]
    rows = [tokenize(TextExample(*text), tokens) for text in texts]
    asked = questions(rows, "CAUSAL_LM", tokens.all_special_ids, 9)
    together = ask(base, tokens, asked, STOP, 0, 4)
    assert together == [ask(base, tokens, [each], STOP, 0, 1)[0] for each in asked]


def test_an_encoder_decoder_answers_without_its_start_token() -> None:
    model, tokens = translator(), tokenizer()
    (question,) = questions([Tokens([5, 6, 7], [8, 9, 10, 2])], "SEQ_2_SEQ_LM", (), 1)
    ((sample, _),) = ask(model, tokens, [question], STOP, 0, 1)
    expected, said = [0], []
    with torch.no_grad():
        for _ in range(len(question.wanted) + 8):
            logits = model(
                input_ids=torch.tensor([[5, 6, 7]]), decoder_input_ids=torch.tensor([expected])
            ).logits
            expected.append(int(logits[0, -1].argmax()))
            said.append(expected[-1])
    assert 2 not in said
    assert sample.answer == tokens.decode(said, skip_special_tokens=True)
