"""The prompts of the proof: the same for every adapter, plus what makes an adapter act at all."""

from __future__ import annotations

import random
from typing import Any

from adapters.delta import AdapterWeights

POSITIONS = 4
"""Last tokens of each prompt whose logits are compared."""
MAX_TOKENS = 24
_RANDOM = 2  # prompts of random tokens
_SEED = 20240607
_TEXTS = (
    "The quick brown fox jumps over the lazy dog. Question: what is 12 + 30? Answer:",
    "def area(width, height):\n    return width * height\n\n# La mer est calme ce matin,",
)


def probe_prompts(
    tokenizer: Any, vocabulary: int, adapter: AdapterWeights, longest: int
) -> tuple[tuple[int, ...], ...]:
    """Token ids of each prompt.

    Tokens whose embeddings the adapter trained are among the random ones, and every prompt has the adapter's
    invocation tokens, if it has any, before those that are compared.

    Args:
        vocabulary: ids are below it. `longest`: most tokens of a prompt.
    """
    chance = random.Random(_SEED)
    tables = [record.ids for record in adapter.embeddings.values() if record.ids is not None]
    trained = sorted({int(token) for ids in tables for token in ids})
    prompts = [[chance.randrange(vocabulary) for _ in range(MAX_TOKENS)] for _ in range(_RANDOM)]
    for place, token in enumerate(trained[: MAX_TOKENS // 2]):
        prompts[0][-1 - 2 * place] = token
    for text in _TEXTS:
        ids = [token for token in tokenizer.encode(text, add_special_tokens=False) if token < vocabulary]
        if ids:
            prompts.append(ids[:MAX_TOKENS])
    invocation = list(adapter.invocation)
    room = max(longest - len(invocation), POSITIONS)
    cut = [prompt[-room:] for prompt in prompts]
    return tuple((*prompt[: -POSITIONS + 1], *invocation, *prompt[-POSITIONS + 1 :]) for prompt in cut)
