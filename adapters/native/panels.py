"""Matrices in the layout of `gemm.cpp`: panels of 16 outputs, side by side for every input."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

LANES = 16


@dataclass(frozen=True, slots=True)
class Panels:
    """A matrix `(outputs, inputs)`; `data` is `(panels, inputs, 16)`, float32 or bfloat16, zero-padded."""

    data: Tensor
    outputs: int

    @property
    def inputs(self) -> int:
        return self.data.shape[1]

    def unpack(self, into: Tensor | None = None) -> Tensor:
        """The matrix as `(outputs, inputs)` float32: exact. `into`: `(16 panels, inputs)`, to write to."""
        panels, inputs, _ = self.data.shape
        plain = torch.empty(panels * LANES, inputs) if into is None else into
        plain.view(panels, LANES, inputs).copy_(self.data.transpose(1, 2))
        return plain[: self.outputs]


def pack(matrix: Tensor) -> Panels:
    """`matrix`: `(outputs, inputs)` on the CPU. Kept in bfloat16 where no value changes by that."""
    matrix = matrix.float()
    outputs, inputs = matrix.shape
    if not bool((matrix.contiguous().view(torch.int32) & 0xFFFF).any()):
        matrix = matrix.bfloat16()
    data = matrix.new_zeros(-(-outputs // LANES), inputs, LANES)
    whole = outputs // LANES
    data[:whole] = matrix[: whole * LANES].reshape(whole, LANES, inputs).transpose(1, 2)
    if outputs % LANES:
        data[whole, :, : outputs % LANES] = matrix[whole * LANES :].t()
    return Panels(data, outputs)
