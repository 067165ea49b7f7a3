"""From logits to the next token of each row. A row's choice depends on nothing but its own request."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence as Rows

import torch
from torch import Tensor

from server.engine import search
from server.engine.request import SamplingParams, TokenLogprob
from server.engine.sequence import Sequence


def sample(logits: Tensor, sequences: Rows[Sequence], end_tokens: frozenset[int]) -> list[int]:
    """The next token of each sequence. `logits`: `(sequences, vocabulary)`."""
    if any(_shapes_logits(s) for s in sequences):
        logits = logits.to(torch.float32, copy=True)
        for row, sequence in enumerate(sequences):
            if _shapes_logits(sequence):
                _shape(logits[row], sequence, end_tokens)
    chosen = search.argmax(logits)
    for row, sequence in enumerate(sequences):
        if sequence.request.sampling.temperature > 0:
            chosen[row] = _draw(_weights(logits[row], chosen[row], sequence), sequence)
    return chosen


def logprobs(logits: Tensor, chosen: Rows[int], top: int) -> list[TokenLogprob]:
    """Log probabilities of `chosen` and of the `top` most likely tokens. `logits`: `(rows, vocabulary)`."""
    logs = logits.float().log_softmax(-1)
    own: list[float] = logs.gather(1, torch.tensor(chosen, device=logs.device)[:, None])[:, 0].tolist()
    values, ids = search.topk(logs, top)
    best = [tuple(zip(i, v, strict=True)) for i, v in zip(ids.tolist(), values.tolist(), strict=True)]
    return [TokenLogprob(*entry) for entry in zip(chosen, own, best, strict=True)]


def _shapes_logits(sequence: Sequence) -> bool:
    """Whether anything but temperature and truncation changes its distribution."""
    p = sequence.request.sampling
    return bool(
        p.logit_bias
        or p.frequency_penalty
        or p.presence_penalty
        or p.repetition_penalty != 1
        or sequence.generated < p.min_tokens
    )


def _shape(row: Tensor, sequence: Sequence, end_tokens: frozenset[int]) -> None:
    """Penalties, bias and the ban on early ends, in place. `row`: `(vocabulary,)` float32."""
    p = sequence.request.sampling
    if p.repetition_penalty != 1:
        ids = torch.tensor(sorted(set(sequence.tokens)), device=row.device)
        values = row[ids]
        row[ids] = torch.where(values > 0, values / p.repetition_penalty, values * p.repetition_penalty)
    if p.frequency_penalty or p.presence_penalty:
        counts = Counter(sequence.tokens[sequence.prompt_length :])
        ids = torch.tensor(list(counts), dtype=torch.int64, device=row.device)
        times = torch.tensor(list(counts.values()), dtype=row.dtype, device=row.device)
        row[ids] -= p.frequency_penalty * times + p.presence_penalty
    for token, bias in p.logit_bias.items():
        row[token] += bias
    if sequence.generated < p.min_tokens:
        for token in stop_ids(p, end_tokens):
            if token < row.shape[0]:  # a tokenizer may know more ids than the model has rows for
                row[token] = float("-inf")


def stop_ids(p: SamplingParams, end_tokens: frozenset[int]) -> frozenset[int]:
    """The token ids that end an answer with these parameters."""
    return p.stop_token_ids if p.ignore_eos else p.stop_token_ids | end_tokens


def _weights(row: Tensor, best: int, sequence: Sequence) -> Tensor:
    """Probabilities as multiples of the largest one, `(vocabulary,)` float32."""
    weights = row.to(torch.float32, copy=True)
    # From the largest down, so that no temperature, however small, makes an infinity of it.
    weights -= weights[best].clone()
    temperature = max(sequence.request.sampling.temperature, torch.finfo(torch.float32).tiny)
    if temperature != 1:
        weights /= temperature
    return weights.exp_()


def _draw(weights: Tensor, sequence: Sequence) -> int:
    """One token by inverse transform of one uniform number from the sequence's own generator."""
    p = sequence.request.sampling
    uniform = sequence.random.random()
    if not (p.top_k or p.top_p < 1 or p.min_p):
        return search.inverse(weights, uniform)
    values, ids = _candidates(weights, p)
    return int(ids[search.inverse(values, uniform)])


def _candidates(weights: Tensor, p: SamplingParams) -> tuple[Tensor, Tensor]:
    """The weights and ids that top_k, top_p and min_p leave, most likely first; at least one."""
    if not weights[0] >= 0:  # NaN, as all the others: whatever is drawn
        return weights[:1], torch.zeros(1, dtype=torch.int64)
    values, ids = search.nucleus(weights, min(p.top_k, weights.shape[0]), p.top_p, p.min_p)
    if p.top_k:
        values, ids = values[: p.top_k], ids[: p.top_k]
    keep = values >= p.min_p * values[0]
    if p.top_p < 1:
        # top_p works on what top_k left, renormalised; the token that crosses the threshold stays.
        total = values.double().sum() if p.top_k else search.block_sums(weights).sum()
        keep &= values.double().cumsum(0) - values < p.top_p * total
    kept = max(1, int(keep.sum()))
    return values[:kept], ids[:kept]
