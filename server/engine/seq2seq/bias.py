"""T5's relative position bias: what is added to an attention score for the distance of key and query.

Raffel et al. 2020 (arXiv 1910.10683), section 2.1: a learned number for each head and each bucket of
distances. All distances beyond the last bucket share it, so no length is too long.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

_LEAST = 512


class RelativeBias:
    """The bias of one attention layer by distance, as the model's own code gives it."""

    def __init__(self, attention: Any) -> None:
        """`attention`: the model's module, with `compute_bias`."""
        self._attention = attention
        self._longest = 0
        self._values = torch.empty(0)

    def between_all(self, length: int, start: int, stop: int) -> Tensor:
        """`(heads, stop - start, length)`: of queries `start:stop` to all keys of a sequence of `length`."""
        self._reach(length)
        middle = self._longest - 1
        window = self._values[:, middle - stop + 1 : middle + length - start]
        # Row w of the unfolded window has the distances from query `stop - 1 - w`.
        return window.unfold(1, length, 1).flip(1)

    def to_past(self, place: int) -> Tensor:
        """`(heads, 1, place + 1)`: of the query at `place` to itself and all keys before it."""
        self._reach(place + 1)
        middle = self._longest - 1
        return self._values[:, None, middle - place : middle + 1]

    def _reach(self, length: int) -> None:
        """Know all distances in sequences of `length`: columns of `values` are key minus query."""
        if length > self._longest:
            longest = max(_LEAST, 1 << (length - 1).bit_length())
            bias = self._attention.compute_bias(1, 2 * longest - 1, past_seen_tokens=longest - 1)
            self._values, self._longest = bias[0, :, 0].contiguous(), longest
