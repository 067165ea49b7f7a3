"""One side of a T5 model over a flat row of tokens, with the model's own layers called one by one.

The model's `forward` wants padded rectangles, and one cache for a batch that never changes. Here the tokens
of all sequences lie in one row, as in `runner.py`: norms and linear layers see no padding, and attention
goes sequence by sequence, so that a row's result does not depend on its neighbours.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from server.engine.seq2seq.bias import RelativeBias
from server.engine.seq2seq.memory import Memory

_QUERIES = 256  # whose scores' bias is made at once
Attend = Callable[[Tensor, Tensor, Tensor], Tensor]


class Stack:
    """The encoder or the decoder. `depth`: how many layers; `heads`: of each."""

    def __init__(self, stack: Any, heads: int) -> None:
        self.depth = len(stack.block)
        self.heads = heads
        self._stack = stack
        biases: list[RelativeBias] = []
        for block in stack.block:
            attention = block.layer[0].SelfAttention
            # T5 has it in the first layer only, for all layers; UMT5 in each.
            biases.append(RelativeBias(attention) if attention.has_relative_attention_bias else biases[-1])
        self._biases = biases

    def encode(self, tokens: Tensor, lengths: Sequence[int]) -> Tensor:
        """`tokens`: `(tokens,)`, sources of `lengths` one after another. Returns `(1, tokens, dim)`."""
        x: Tensor = self._stack.embed_tokens(tokens[None])
        for block, bias in zip(self._stack.block, self._biases, strict=True):
            x = self._self_attention(block.layer[0], x, _whole(bias, lengths))
            x = _feed_forward(block.layer[-1], x)
        final: Tensor = self._stack.final_layer_norm(x)
        return final

    def remember(self, encoded: Tensor, memories: Sequence[Memory]) -> None:
        """Keys and values of the sources for cross-attention. `encoded`: what `encode` returned."""
        edges = [0]
        for memory in memories:
            edges.append(edges[-1] + memory.source.shape[2])
        for layer, block in enumerate(self._stack.block):
            attention = block.layer[1].EncDecAttention
            for index, linear in enumerate((attention.k, attention.v)):
                rows = self._split(linear(encoded))
                for memory, start, stop in zip(memories, edges, edges[1:], strict=False):
                    memory.source[layer, index] = rows[start:stop]

    def decode(self, tokens: Tensor, memories: Sequence[Memory]) -> Tensor:
        """The next token of each sequence, whose `Memory.length` is its place. Returns `(1, rows, dim)`."""
        x: Tensor = self._stack.embed_tokens(tokens[None])
        for layer, (block, bias) in enumerate(zip(self._stack.block, self._biases, strict=True)):
            x = self._self_attention(block.layer[0], x, _next(bias, layer, memories))
            x = self._cross_attention(block.layer[1], x, layer, memories)
            x = _feed_forward(block.layer[-1], x)
        for memory in memories:
            memory.length += 1
        final: Tensor = self._stack.final_layer_norm(x)
        return final

    def _self_attention(self, part: Any, x: Tensor, attend: Attend) -> Tensor:
        normed, attention = part.layer_norm(x), part.SelfAttention
        q, k, v = (self._split(linear(normed)) for linear in (attention.q, attention.k, attention.v))
        mixed: Tensor = attention.o(attend(q, k, v).view(1, q.shape[0], -1))
        return x + mixed

    def _cross_attention(self, part: Any, x: Tensor, layer: int, memories: Sequence[Memory]) -> Tensor:
        attention = part.EncDecAttention
        q = self._split(attention.q(part.layer_norm(x)))
        out = torch.empty_like(q)
        for row, memory in enumerate(memories):
            keys, values = memory.source[layer]
            out[row : row + 1] = _attention(q[row : row + 1], keys, values, None)
        mixed: Tensor = attention.o(out.view(1, q.shape[0], -1))
        return x + mixed

    def _split(self, rows: Tensor) -> Tensor:
        """`(1, rows, heads * width)` as `(rows, heads, width)`."""
        return rows.view(rows.shape[1], self.heads, -1)


def _whole(bias: RelativeBias, lengths: Sequence[int]) -> Attend:
    """Each token attends to all of its own sequence."""

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out, first = torch.empty_like(q), 0
        for length in lengths:
            keys, values = k[first : first + length], v[first : first + length]
            for start in range(0, length, _QUERIES):
                stop = min(start + _QUERIES, length)
                rows = slice(first + start, first + stop)
                out[rows] = _attention(q[rows], keys, values, bias.between_all(length, start, stop))
            first += length
        return out

    return attend


def _next(bias: RelativeBias, layer: int, memories: Sequence[Memory]) -> Attend:
    """Each token attends to what is remembered of its target, and to itself."""

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out, new = torch.empty_like(q), torch.stack((k, v), 1)
        for row, memory in enumerate(memories):
            place = memory.length
            memory.target[layer, :, place] = new[row]
            keys, values = memory.target[layer, :, : place + 1]
            out[row : row + 1] = _attention(q[row : row + 1], keys, values, bias.to_past(place))
        return out

    return attend


def _attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
    """Of one sequence; T5 does not scale the scores. `q`: `(queries, heads, width)`, as is the result."""
    q, k, v = (t.transpose(0, 1)[None] for t in (q, k, v))
    mask = None if bias is None else bias[None]
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=1.0)[0].transpose(0, 1)


def _feed_forward(part: Any, x: Tensor) -> Tensor:
    """The model's own `forward` of this part asks for the type of a weight, which would unpack it."""
    dense, normed = part.DenseReluDense, part.layer_norm(x)
    if hasattr(dense, "wi"):
        hidden = dense.act(dense.wi(normed))
    else:
        hidden = dense.act(dense.wi_0(normed)) * dense.wi_1(normed)
    y: Tensor = dense.wo(hidden)
    return x + y
