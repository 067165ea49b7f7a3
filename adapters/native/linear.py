"""A frozen float32 linear map that runs at the speed of memory for few rows."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from adapters.native.deltas import Deltas
from adapters.native.panels import pack

_NO_DELTAS = (None, 0, None, 0, None, 0)


class NativeLinear:
    """`y = W x + b` in float32, `W` in panels: bfloat16 ones where it has no more digits than that.

    A row's result is the same bit for bit whatever the batch is, from a single row to the longest prompt.
    """

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
        x = x.contiguous()
        rows = x.shape[0]
        y = torch.empty(rows, self._outputs)
        self._linear(
            x.data_ptr(),
            rows,
            self._inputs,
            self._data,
            self._outputs,
            self._bias_data,
            y.data_ptr(),
            *(_NO_DELTAS if deltas is None else deltas.arguments),
        )
        return y

    def weight(self) -> Tensor:
        return self._panels.unpack()
