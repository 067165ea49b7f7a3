"""What the decoder remembers of one sequence: keys and values of its source, and of its own tokens."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class MemoryShape:
    """Of the decoder. `nbytes`: what one token takes, of the source or of the target."""

    layers: int
    heads: int
    width: int
    dtype: torch.dtype
    device: torch.device

    @property
    def nbytes(self) -> int:
        return 2 * self.layers * self.heads * self.width * self.dtype.itemsize


class Memory:
    """Taken whole when a sequence starts, so that it never lacks room later.

    Attributes:
        source: `(layers, 2, source tokens, heads, width)`, keys and values for cross-attention.
        target: `(layers, 2, most target tokens, heads, width)`, of the target's first `length` tokens.
    """

    def __init__(self, shape: MemoryShape, source: int, target: int) -> None:
        def empty(tokens: int) -> Tensor:
            size = shape.layers, 2, tokens, shape.heads, shape.width
            return torch.empty(size, dtype=shape.dtype, device=shape.device)

        self.source = empty(source)
        self.target = empty(target)
        self.length = 0
