"""Matrices in the layout of `gemm.cpp`: panels of 16 outputs, side by side for every input."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

LANES = 16


@dataclass(frozen=True, slots=True)
class Panels:
    """A matrix of `outputs` by `inputs`, padded with zeros.

    `data`: `(panels, inputs, 16)` float32, or `(panels, pairs of inputs, 16, 2)` bfloat16.
    """

    data: Tensor
    outputs: int
    inputs: int

    def unpack(self) -> Tensor:
        """The matrix as `(outputs, inputs)` float32: exact."""
        if self.data.dtype == torch.float32:
            plain = self.data.transpose(1, 2)
        else:
            plain = self.data.float().transpose(1, 2).flatten(2)
        return plain.flatten(0, 1)[: self.outputs, : self.inputs].contiguous()


def pack(matrix: Tensor) -> Panels:
    """`matrix`: `(outputs, inputs)` on the CPU. Kept in bfloat16 where no value changes by that."""
    matrix = matrix.float()
    outputs, inputs = matrix.shape
    if (matrix.contiguous().view(torch.int32) & 0xFFFF).any():
        return Panels(_lanes(matrix).transpose(1, 2).contiguous(), outputs, inputs)
    lanes = _lanes(F.pad(matrix.bfloat16(), (0, inputs % 2)))
    pairs = lanes.view(-1, LANES, (inputs + 1) // 2, 2)
    return Panels(pairs.transpose(1, 2).contiguous(), outputs, inputs)


def _lanes(matrix: Tensor) -> Tensor:
    """`(panels, 16, inputs)`."""
    return F.pad(matrix, (0, 0, 0, -matrix.shape[0] % LANES)).view(-1, LANES, matrix.shape[1])
