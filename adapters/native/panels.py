"""Matrices in the layout of `gemm.cpp`: panels of 16 outputs, side by side for every input."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

import torch
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


def pack(library: ctypes.CDLL, matrix: Tensor) -> Panels:
    """`matrix`: `(outputs, inputs)` on the CPU. Kept in bfloat16 where no value changes by that."""
    outputs, inputs = matrix.shape
    panels = -(-outputs // LANES)
    if matrix.dtype == torch.bfloat16:
        matrix, function = matrix.contiguous(), library.pack_bf16
    else:
        matrix, function = matrix.float().contiguous(), library.pack_halves
        if library.needs_float32(matrix.data_ptr(), matrix.numel()):
            data = torch.empty(panels, inputs, LANES)
            library.pack_f32(matrix.data_ptr(), outputs, inputs, data.data_ptr())
            return Panels(data, outputs, inputs)
    halves = torch.empty(panels, (inputs + 1) // 2, LANES, 2, dtype=torch.bfloat16)
    function(matrix.data_ptr(), outputs, inputs, halves.data_ptr())
    return Panels(halves, outputs, inputs)
