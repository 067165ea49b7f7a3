"""What `sampler.py` does, for a whole batch on the device: one small copy there, one small copy back.

A row's uniform number still comes from its own request's generator on the host, and what happens to a row
depends on nothing else: weights are added as integers, so neither the order of an addition nor the number of
rows matters, and equal weights are ranked by token id.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from collections.abc import Sequence as Rows
from dataclasses import astuple, dataclass

import torch
from torch import Tensor

from server.engine.request import TokenLogprob
from server.engine.sampler import stop_ids
from server.engine.sequence import Sequence

_CANDIDATES = 1024  # most likely tokens to look at before a whole vocabulary is sorted
_ROWS = 64  # drawn together; a row takes about 24 bytes for each token of the vocabulary
_ONE = 2.0**43  # the largest weight as an integer: half a million of them can be added


@dataclass(frozen=True, slots=True)
class Draw:
    """How to draw the token of one row; its fields are a row of the tensor that goes to the device."""

    row: int
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    uniform: float

    @property
    def truncates(self) -> bool:
        return bool(self.top_k or self.top_p < 1 or self.min_p)


def sample(logits: Tensor, sequences: Rows[Sequence], end_tokens: frozenset[int]) -> list[int]:
    """The next token of each sequence. `logits`: `(sequences, vocabulary)`, left as they are."""
    logits = _shaped(logits, sequences, end_tokens)
    chosen = logits.argmax(-1)
    draws = [_draw(row, s) for row, s in enumerate(sequences) if s.request.sampling.temperature > 0]
    plain = [draw for draw in draws if not draw.truncates]
    few = [draw for draw in draws if draw.truncates and draw.top_k <= _CANDIDATES]
    many = [draw for draw in draws if draw.top_k > _CANDIDATES]
    table = _send(torch.tensor([astuple(d) for d in (*plain, *few, *many)], dtype=torch.float64), logits)
    start = 0
    for part, width in ((plain, None), (few, _CANDIDATES), (many, logits.shape[-1])):
        _choose(chosen, logits, table[start : start + len(part)], width)
        start += len(part)
    tokens: list[int] = chosen.tolist()
    # Rare: more tokens may be left than there were candidates.
    late = [draw for draw in few if tokens[draw.row] < 0]
    if late:
        table = torch.tensor([astuple(draw) for draw in late], dtype=torch.float64)
        _choose(chosen, logits, _send(table, logits), logits.shape[-1])
        tokens = chosen.tolist()
    return tokens


def logprobs(logits: Tensor, chosen: Rows[int], top: int) -> list[TokenLogprob]:
    """Log probabilities of `chosen` and of the `top` most likely tokens. `logits`: `(rows, vocabulary)`."""
    logs = logits.float().log_softmax(-1)
    own = logs.gather(1, _send(torch.tensor(chosen), logits)[:, None])
    values, ids = logs.topk(min(top, logs.shape[-1]), dim=-1)
    count = values.shape[1]
    result = []
    rows = torch.cat([own.double(), values.double(), ids.double()], 1).tolist()
    for token, (logprob, *best) in zip(chosen, rows, strict=True):
        pairs = zip(map(int, best[count:]), best[:count], strict=True)
        result.append(TokenLogprob(token, logprob, tuple(pairs)))
    return result


def _draw(row: int, sequence: Sequence) -> Draw:
    p = sequence.request.sampling
    return Draw(row, p.temperature, p.top_k, p.top_p, p.min_p, sequence.random.random())


def _send(host: Tensor, like: Tensor) -> Tensor:
    """To the device of `like`, without waiting for what the device still has to do."""
    return host.pin_memory().to(like.device, non_blocking=True) if like.is_cuda else host


def _shaped(logits: Tensor, sequences: Rows[Sequence], end_tokens: frozenset[int]) -> Tensor:
    """Penalties, bias and the ban on early ends, on a float32 copy where any row asks for them."""
    repeated, counted, biased, banned = ([torch.empty(3, 0, dtype=torch.float64)] for _ in range(4))
    for row, sequence in enumerate(sequences):
        p = sequence.request.sampling
        if p.repetition_penalty != 1:
            repeated.append(_edits(row, set(sequence.tokens), p.repetition_penalty))
        if p.frequency_penalty or p.presence_penalty:
            counts = Counter(sequence.tokens[sequence.prompt_length :])
            times = torch.tensor(list(counts.values()), dtype=torch.float32)
            counted.append(_edits(row, counts, p.frequency_penalty * times + p.presence_penalty))
        if p.logit_bias:
            biases = torch.tensor(list(p.logit_bias.values()), dtype=torch.float64)
            biased.append(_edits(row, p.logit_bias, biases))
        if sequence.generated < p.min_tokens:
            # A tokenizer may know more ids than the model has rows for.
            ends = [token for token in stop_ids(p, end_tokens) if token < logits.shape[-1]]
            banned.append(_edits(row, ends, float("-inf")))
    groups = [torch.cat(group, 1) for group in (repeated, counted, biased, banned)]
    edits = torch.cat(groups, 1)
    if not edits.shape[1]:
        return logits
    shaped = logits.to(torch.float32, copy=True)
    parts = torch.split(_send(edits, logits), [group.shape[1] for group in groups], 1)
    # Within a part no place occurs twice, so that the order of writing does not matter.
    for part, (rows, tokens, values) in enumerate(p.unbind() for p in parts):
        at = rows.long(), tokens.long()
        old, change = shaped[at], values.float()
        if part == 0:
            shaped[at] = torch.where(old > 0, old / change, old * change)
        elif part == 1:
            shaped[at] = old - change
        else:
            shaped[at] = old + change
    return shaped


def _edits(row: int, tokens: Collection[int], values: Tensor | float) -> Tensor:
    """`(3, tokens)` float64: row, token, value."""
    edits = torch.empty(3, len(tokens), dtype=torch.float64)
    edits[0] = row
    edits[1] = torch.tensor(list(tokens), dtype=torch.float64)
    edits[2] = values
    return edits


def _choose(chosen: Tensor, logits: Tensor, table: Tensor, width: int | None) -> None:
    """Draw for the rows of `table`, `(draws, 6)`, into `chosen`, from `width` candidates or all tokens."""
    for some in torch.split(table, _ROWS) if len(table) else ():
        rows = some[:, 0].long()
        weights = logits.index_select(0, rows).float()
        # From the largest down, so that no temperature, however small, makes an infinity of it.
        temperatures = some[:, 1:2].float().clamp(min=torch.finfo(torch.float32).tiny)
        weights = ((weights - weights.amax(-1, keepdim=True)) / temperatures).exp()
        if width is None:
            chosen[rows] = _inverse(_integers(weights), some[:, 5:])
        else:
            chosen[rows] = _truncated(weights, some, width)


def _truncated(weights: Tensor, table: Tensor, width: int) -> Tensor:
    """A token of each row among those that top_k, top_p and min_p leave, as `sampler.py` defines them.

    -1 where more than the `width` most likely tokens may be left.
    """
    vocabulary = weights.shape[1]
    values, ids = _ranked(weights, min(width, vocabulary))
    top_k, top_p, min_p, uniform = table[:, 2:].hsplit(4)
    rank = torch.arange(values.shape[1], device=values.device)
    limited = top_k > 0
    allowed = (rank < top_k) | ~limited
    values = values.where(allowed, 0.0)
    integers = _integers(values)
    # top_p is a share of what top_k left; the token that crosses the threshold stays.
    total = torch.where(limited, integers.sum(-1, keepdim=True), _integers(weights).sum(-1, keepdim=True))
    before = integers.cumsum(-1) - integers
    keep = (values >= min_p.float() * values[:, :1]) & allowed
    keep &= (before.double() < top_p * total.double()) | (top_p >= 1)
    kept = keep.sum(-1, keepdim=True).clamp(min=1)
    token = ids.gather(1, _inverse(integers.where(rank < kept, 0), uniform)[:, None])
    settled = (kept < width) | limited | (width >= vocabulary)
    return token.where(settled, -1)[:, 0]


def _ranked(weights: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """The `width` largest of each row and their ids, the lower id first where they are equal.

    The bits of floats that are not negative are ordered as the floats; below them stands the id.
    """
    vocabulary = weights.shape[1]
    backwards = torch.arange(vocabulary - 1, -1, -1, device=weights.device)
    keys = (weights.view(torch.int32).long() << 32) | backwards
    keys = keys.topk(width).values if width < vocabulary else keys.sort(descending=True).values
    return (keys >> 32).int().view(torch.float32), vocabulary - 1 - (keys & 0xFFFFFFFF)


def _integers(weights: Tensor) -> Tensor:
    """Of weights between 0 and 1, in units of 2**-43: exact down to 2**-20, and so are their sums."""
    return (weights * _ONE).long()


def _inverse(weights: Tensor, uniform: Tensor) -> Tensor:
    """The index of each row at which the sum of `weights` passes the share `uniform`, `(rows, 1)`."""
    sums = weights.cumsum(-1)
    target = (uniform * sums[:, -1:].double()).long()
    return torch.searchsorted(sums, target, right=True)[:, 0].clamp(max=weights.shape[1] - 1)
