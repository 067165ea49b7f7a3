"""Frozen float32 linear maps that run at the speed of memory for few rows."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from operator import is_

import numpy as np
import torch
from torch import Tensor

from adapters.batch.native.panels import pack

_FIELDS = 6  # struct Linear of gemm.cpp
_OUTPUT, _TABLE = 4, 5


@dataclass(frozen=True, slots=True)
class Deltas:
    """What is added to the outputs of a group of modules, as the native products want to be told.

    Attributes:
        segments: address of the segments, and their number.
        shrinks: where the first adapter's `struct Shrink` is, and how many of them on the next one's is.
        stride: the same distance between the adapters' `struct Expand`s.
        shrunk: address of the rows' products with `A`, and how wide a row of them is.
        tables: for each module, where the first adapter's `struct Expand` is.
    """

    segments: tuple[int, int]
    shrinks: tuple[int, int]
    stride: int
    shrunk: tuple[int, int]
    tables: tuple[int, ...]


class NativeLinears:
    """Linear maps `y = W x + b` that read the same rows, in one call.

    `W` is kept in panels: bfloat16 ones where it has no more digits than that. A row's result is the same bit
    for bit whatever the batch is, from a single row to the longest prompt.
    """

    def __init__(self, library: ctypes.CDLL, members: Sequence[NativeLinear]) -> None:
        self._linears = library.linears
        self._members = tuple(members)
        self._inputs = members[0].panels.inputs
        self._outputs = [member.panels.outputs for member in members]
        self._modules = np.zeros((len(members), _FIELDS), np.int64)
        for row, member in zip(self._modules, members, strict=True):
            data, bias = member.panels.data, member.bias
            row[:4] = (
                data.data_ptr(),
                data.dtype == torch.bfloat16,
                member.panels.outputs,
                0 if bias is None else bias.data_ptr(),
            )
        self._address = self._modules.ctypes.data

    def has(self, members: Sequence[object]) -> bool:
        """Whether it is made of these."""
        return all(map(is_, self._members, members))

    def __call__(self, x: Tensor, deltas: Deltas | None = None) -> list[Tensor]:
        """`x`: `(rows, in_features)`; returns a new `(rows, out_features)` of each."""
        x = x.contiguous()
        rows = x.shape[0]
        ys = [torch.empty(rows, outputs) for outputs in self._outputs]
        self._modules[:, _OUTPUT] = [y.data_ptr() for y in ys]
        arguments = x.data_ptr(), rows, self._inputs, self._address, len(ys)
        if deltas is None:
            self._linears(*arguments, None, 0, None, 0, 0, None, 0)
        else:
            self._modules[:, _TABLE] = deltas.tables
            self._linears(*arguments, *deltas.segments, *deltas.shrinks, deltas.stride, *deltas.shrunk)
        return ys


class NativeLinear:
    """One such map by itself."""

    def __init__(self, library: ctypes.CDLL, weight: Tensor, bias: Tensor | None) -> None:
        """`weight`: `(out_features, in_features)` float32."""
        self.panels = pack(library, weight)
        self.bias = None if bias is None else bias.float().contiguous()
        self.stored = self.panels.data.dtype
        self.alone = NativeLinears(library, [self])

    def __call__(self, x: Tensor, delta: Tensor | None = None) -> Tensor:
        (y,) = self.alone(x)
        return y if delta is None else y.add_(delta)

    def weight(self) -> Tensor:
        return self.panels.unpack()
