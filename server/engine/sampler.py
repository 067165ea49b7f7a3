"""From logits to the next token of each row. A row's choice depends on nothing but its own request."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence as Rows

import torch
from torch import Tensor

from server.engine.request import SamplingParams, TokenLogprob
from server.engine.sequence import Sequence

_CANDIDATES = 1024  # most likely tokens to look at before a whole vocabulary is sorted for top_p


def sample(logits: Tensor, sequences: Rows[Sequence], end_tokens: frozenset[int]) -> list[int]:
    """The next token of each sequence. `logits`: `(sequences, vocabulary)`."""
    if any(_shapes_logits(s) for s in sequences):
        logits = logits.to(torch.float32, copy=True)
        for row, sequence in enumerate(sequences):
            if _shapes_logits(sequence):
                _shape(logits[row], sequence, end_tokens)
    chosen: list[int] = logits.argmax(-1).tolist()
    drawn = [row for row, s in enumerate(sequences) if s.request.sampling.temperature > 0]
    if drawn:
        temperatures = torch.tensor([sequences[row].request.sampling.temperature for row in drawn])
        rows = logits[drawn].float()
        # From the largest down, so that no temperature, however small, makes an infinity of it.
        temperatures = temperatures.clamp(min=torch.finfo(torch.float32).tiny).to(rows.device)
        scaled = (rows - rows.amax(-1, keepdim=True)) / temperatures[:, None]
        for row, probabilities in zip(drawn, scaled.softmax(-1), strict=True):
            chosen[row] = _draw(probabilities, sequences[row])
    return chosen


def logprobs(logits: Tensor, chosen: Rows[int], top: int) -> list[TokenLogprob]:
    """Log probabilities of `chosen` and of the `top` most likely tokens. `logits`: `(rows, vocabulary)`."""
    logs = logits.float().log_softmax(-1)
    own: list[float] = logs.gather(1, torch.tensor(chosen, device=logs.device)[:, None])[:, 0].tolist()
    values, ids = logs.topk(min(top, logs.shape[-1]), dim=-1)
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


def _draw(probabilities: Tensor, sequence: Sequence) -> int:
    """One token by inverse transform of one uniform number from the sequence's own generator."""
    p = sequence.request.sampling
    uniform = sequence.random.random()
    if not (p.top_k or p.top_p < 1 or p.min_p):
        return _inverse(probabilities, uniform)
    values, ids = _candidates(probabilities, p)
    return int(ids[_inverse(values, uniform)])


def _candidates(probabilities: Tensor, p: SamplingParams) -> tuple[Tensor, Tensor]:
    """The probabilities and ids that top_k, top_p and min_p leave, most likely first; at least one."""
    size = probabilities.shape[0]
    count = min(p.top_k or _CANDIDATES, size)
    values, ids = probabilities.topk(count)
    enough = (
        p.top_k or (p.top_p < 1 and float(values.sum()) >= p.top_p) or float(values[-1]) < p.min_p * values[0]
    )
    if not enough:
        values, ids = probabilities.sort(descending=True)
    keep = values >= p.min_p * values[0]
    if p.top_p < 1:
        # top_p works on what top_k left, renormalised; the token that crosses the threshold stays.
        share = values / values.sum() if p.top_k else values
        keep &= share.cumsum(0) - share < p.top_p
    kept = max(1, int(keep.sum()))
    return values[:kept], ids[:kept]


def _inverse(values: Tensor, uniform: float) -> int:
    """The index at which the cumulative sum of unnormalised `values` passes the share `uniform`."""
    cumulative = values.double().cumsum(0)
    index = int(torch.searchsorted(cumulative, uniform * cumulative[-1], right=True))
    return min(index, values.shape[0] - 1)
