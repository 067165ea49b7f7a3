"""What a model answers, by transformers' own `generate`: the measure for bases and adapters alike."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import torch
from transformers import GenerationConfig

_BATCH = 256


@torch.no_grad()  # not inference mode: what a model keeps for later, it may keep for training
def greedy(
    model: Any,
    prompts: Sequence[Sequence[int]],
    new_tokens: Sequence[int],
    *,
    stop: Collection[int],
    pad: int,
    batch_size: int = _BATCH,
) -> list[list[int]]:
    """Greedy answers to prompts of token ids, in order, each up to its end token and without it.

    Whatever the base's generation settings add to that, such as a penalty of repetitions, is left out.

    Args:
        new_tokens: how many each answer may have, its end token included.
        stop: the ids that end an answer.
    """
    positions = getattr(model.config, "max_position_embeddings", None)
    by_length = sorted(range(len(prompts)), key=lambda index: -len(prompts[index]))
    answers: list[list[int]] = [[] for _ in prompts]
    for start in range(0, len(by_length), batch_size):
        batch = by_length[start : start + batch_size]
        longest = max(len(prompts[index]) for index in batch) + max(new_tokens[index] for index in batch)
        # The batch's longest prompt with its longest answer may not fit where each with its own does.
        fits = positions is None or longest <= positions
        for group in [batch] if fits else [[index] for index in batch]:
            most = max(new_tokens[index] for index in group)
            found = _generate(model, [prompts[index] for index in group], most, sorted(stop), pad)
            for index, answer in zip(group, found, strict=True):
                answers[index] = until(answer[: new_tokens[index]], stop)
    return answers


def until(ids: Sequence[int], stop: Collection[int]) -> list[int]:
    """The ids before the first that is an end token; all, where none is."""
    end = next((place for place, token in enumerate(ids) if token in stop), len(ids))
    return list(ids[:end])


def stop_tokens(model: Any, tokenizer: Any) -> frozenset[int]:
    """The ids that end an answer, by the tokenizer and by the base's generation settings."""
    said = model.generation_config.eos_token_id
    found = said if isinstance(said, list) else [said]
    return frozenset(token for token in (*found, tokenizer.eos_token_id) if token is not None)


def pad_token(tokenizer: Any) -> int:
    """The id that fills up a batch; any will do behind a mask where the tokenizer has none."""
    for token in (tokenizer.pad_token_id, tokenizer.eos_token_id):
        if token is not None:
            return int(token)
    return 0


def answers(model: Any, tokenizer: Any, prompts: Sequence[str], max_new_tokens: int = 48) -> list[str]:
    """Greedy answers to prompts, in order."""
    ids = [tokenizer(prompt)["input_ids"] for prompt in prompts]
    stop, pad = stop_tokens(model, tokenizer), pad_token(tokenizer)
    found = greedy(model, ids, [max_new_tokens] * len(ids), stop=stop, pad=pad)
    return [tokenizer.decode(answer, skip_special_tokens=True) for answer in found]


def exact_match(model: Any, tokenizer: Any, pairs: Sequence[tuple[str, str]]) -> float:
    """The share of prompts whose greedy answer is exactly the wanted one."""
    found = answers(model, tokenizer, [prompt for prompt, _ in pairs])
    return sum(text == wanted for text, (_, wanted) in zip(found, pairs, strict=True)) / len(pairs)


def _generate(
    model: Any, prompts: Sequence[Sequence[int]], new_tokens: int, stop: list[int], pad: int
) -> list[list[int]]:
    """New ids of each prompt, with what comes behind the end token. Padded on the left."""
    width = max(len(prompt) for prompt in prompts)
    gaps = [width - len(prompt) for prompt in prompts]
    ids = torch.tensor([[pad] * gap + list(prompt) for gap, prompt in zip(gaps, prompts, strict=True)])
    mask = torch.tensor([[0] * gap + [1] * (width - gap) for gap in gaps])
    settings = GenerationConfig(
        max_new_tokens=new_tokens,
        do_sample=False,
        num_beams=1,
        repetition_penalty=1.0,
        no_repeat_ngram_size=0,
        temperature=1.0,
        top_p=1.0,
        top_k=50,
        use_cache=True,
        eos_token_id=stop or None,
        pad_token_id=pad,
    )
    device = next(model.parameters()).device
    output = model.generate(
        input_ids=ids.to(device), attention_mask=mask.to(device), generation_config=settings
    )
    # An encoder has read the prompt: what comes out is the decoder's start and the answer.
    begin = 1 if model.config.is_encoder_decoder else width
    found: list[list[int]] = output[:, begin:].tolist()
    return found
