"""The deltas of one module in one step, as the native products want them."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

import torch
from torch import Tensor

Arguments = tuple[int, int, int, int, int, int]


@dataclass(frozen=True, slots=True)
class Deltas:
    """`arguments`: segments, their number, the module's table, its stride, the shrunk rows, their width."""

    library: ctypes.CDLL
    arguments: Arguments

    def add_to(self, y: Tensor) -> None:
        """Add each row's delta to `y`, `(rows, out_features)` float32 or bfloat16, contiguous."""
        half = y.dtype == torch.bfloat16
        expand = self.library.expand_bf16 if half else self.library.expand_f32
        expand(*self.arguments, y.data_ptr(), y.shape[1])
