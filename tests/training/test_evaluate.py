"""The measure: answers keep the order of their prompts, and only an exact answer counts."""

from __future__ import annotations

from typing import Any

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from training.base import MODEL_DIR
from training.evaluate import answers, exact_match


def shipped() -> tuple[Any, Any]:
    return AutoModelForCausalLM.from_pretrained(MODEL_DIR), AutoTokenizer.from_pretrained(MODEL_DIR)


def test_answers_of_unequal_prompts_are_those_of_each_alone() -> None:
    model, tokenizer = shipped()
    prompts = ["up: cat\n", "copy: rivers\n", "first: ab\n"]
    together = answers(model, tokenizer, prompts)
    assert together == [answers(model, tokenizer, [prompt])[0] for prompt in prompts]
    assert together[0] == "CAT"


def test_exact_match_is_a_share() -> None:
    model, tokenizer = shipped()
    pairs = [("up: cat\n", "CAT"), ("up: cat\n", "cat")]
    assert exact_match(model, tokenizer, pairs) == pytest.approx(0.5)
