"""A frozen float32 linear map that runs at the speed of memory for few rows."""

from __future__ import annotations

import ctypes
import threading

import torch
import torch.nn.functional as F
from torch import Tensor

from adapters.native.deltas import Deltas
from adapters.native.panels import LANES, pack

# Rows from which unpacking the weight for one large product costs less than it gains (`bench linears`).
MANY_ROWS = 64


class _Scratch(threading.local):
    """One plain weight at a time: memory that is handed from layer to layer, not taken anew for each."""

    def __init__(self) -> None:
        self.memory = torch.empty(0)

    def take(self, rows: int, columns: int) -> Tensor:
        if self.memory.numel() < rows * columns:
            self.memory = torch.empty(rows * columns)
        return self.memory[: rows * columns].view(rows, columns)


_scratch = _Scratch()


class NativeLinear:
    """`y = W x + b` in float32, `W` in panels: bfloat16 ones where it has no more digits than that."""

    def __init__(self, library: ctypes.CDLL, weight: Tensor, bias: Tensor | None) -> None:
        """`weight`: `(out_features, in_features)` float32."""
        self._panels = pack(weight)
        self._bias = None if bias is None else bias.float().contiguous()
        half = self._panels.data.dtype == torch.bfloat16
        self._linear = library.linear_bf16 if half else library.linear_f32
        # Looked up once: a call from here costs as much as the product of a small layer.
        self._data = self._panels.data.data_ptr()
        self._bias_data = None if self._bias is None else self._bias.data_ptr()
        self._outputs, self._inputs = weight.shape

    def __call__(self, x: Tensor, delta: Tensor | None = None) -> Tensor:
        y = self.with_deltas(x, None)
        return y if delta is None else y.add_(delta)

    def with_deltas(self, x: Tensor, deltas: Deltas | None) -> Tensor:
        """`x`: `(rows, in_features)`. Each row's own delta is added while its output is at hand."""
        rows = x.shape[0]
        if rows >= MANY_ROWS:
            y = F.linear(x, self._plain(), self._bias)
            if deltas is not None:
                deltas.add_to(y)
            return y
        x = x.contiguous()
        y = torch.empty(rows, self._outputs)
        self._linear(
            x.data_ptr(),
            rows,
            self._inputs,
            self._data,
            self._outputs,
            self._bias_data,
            y.data_ptr(),
            *((None, 0, None, 0, None, 0) if deltas is None else deltas.arguments),
        )
        return y

    def _plain(self) -> Tensor:
        panels = self._panels.data.shape[0]
        return self._panels.unpack(_scratch.take(panels * LANES, self._inputs))

    def weight(self) -> Tensor:
        return self._panels.unpack()
