"""What a model answers, by transformers' own `generate`: the measure for bases and adapters alike."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

_BATCH = 256


@torch.inference_mode()
def answers(model: Any, tokenizer: Any, prompts: Sequence[str], max_new_tokens: int = 48) -> list[str]:
    """Greedy answers to prompts, in order. The tokenizer must pad on the left."""
    texts: list[str] = []
    for start in range(0, len(prompts), _BATCH):
        batch = tokenizer(list(prompts[start : start + _BATCH]), return_tensors="pt", padding=True)
        batch = {key: batch[key] for key in ("input_ids", "attention_mask")}
        output = model.generate(**batch, max_new_tokens=max_new_tokens, do_sample=False)
        new = output[:, batch["input_ids"].shape[1] :]
        texts += tokenizer.batch_decode(new, skip_special_tokens=True)
    return texts


def exact_match(model: Any, tokenizer: Any, pairs: Sequence[tuple[str, str]]) -> float:
    """The share of prompts whose greedy answer is exactly the wanted one."""
    found = answers(model, tokenizer, [prompt for prompt, _ in pairs])
    return sum(text == wanted for text, (_, wanted) in zip(found, pairs, strict=True)) / len(pairs)
