"""Matrices in the layout of `gemm.cpp`: panels of 16 outputs, side by side for every input."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
import torch
from torch import Tensor

LANES = 16
_ALIGNMENT = 64  # bytes of a vector register, and of a line of the cache
_FLOAT32, _UPPER_HALVES, _BFLOAT16 = range(3)


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
    return pack_all(library, [matrix])[0]


def pack_all(library: ctypes.CDLL, matrices: Sequence[Tensor]) -> list[Panels]:
    """`pack` of each, in one call and into one piece of memory."""
    if not matrices:
        return []
    sources = [_source(library, matrix) for matrix in matrices]
    sizes = [math.prod(shape) * dtype.itemsize for _, _, shape, dtype in sources]
    starts = list(accumulate((-(-size // _ALIGNMENT) * _ALIGNMENT for size in sizes), initial=0))
    memory = torch.empty(starts[-1], dtype=torch.uint8)
    packed: list[Panels] = []
    jobs = np.empty((len(sources), 5), np.int64)  # struct Matrix of gemm.cpp
    for job, (matrix, kind, shape, dtype), start, size in zip(jobs, sources, starts, sizes, strict=False):
        outputs, inputs = matrix.shape
        data = memory[start : start + size].view(dtype).view(shape)
        packed.append(Panels(data, outputs, inputs))
        job[:] = matrix.data_ptr(), outputs, inputs, kind, data.data_ptr()
    library.pack_all(jobs.ctypes.data, len(jobs))
    return packed


def _source(library: ctypes.CDLL, matrix: Tensor) -> tuple[Tensor, int, tuple[int, ...], torch.dtype]:
    """The matrix as it is read, how, and the shape and type of its panels."""
    outputs, inputs = matrix.shape
    panels = -(-outputs // LANES)
    halves = panels, (inputs + 1) // 2, LANES, 2
    if matrix.dtype == torch.bfloat16:
        return matrix.contiguous(), _BFLOAT16, halves, torch.bfloat16
    matrix = matrix.float().contiguous()
    if library.needs_float32(matrix.data_ptr(), matrix.numel()):
        return matrix, _FLOAT32, (panels, inputs, LANES), torch.float32
    return matrix, _UPPER_HALVES, halves, torch.bfloat16
