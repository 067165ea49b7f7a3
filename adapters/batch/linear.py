"""The base's own linear maps: one interface, and the forms that are fastest for a type and a device.

`native/linear.py` has the one for float32 on a CPU with a compiler. oneDNN wants weights in a blocked layout:
packing once at load, instead of in every call, makes a bfloat16 product 1.3 to 2.1 times faster, and its rows
come out bit for bit the same whatever the batch size.
"""

from __future__ import annotations

from typing import Protocol, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from adapters.batch.native.gemm import library
from adapters.batch.native.linear import NativeLinear


class LinearMap(Protocol):
    """`y = W x + b`, frozen. `stored`: the type that holds every value of `W`, maybe narrower than `y`'s."""

    stored: torch.dtype

    def __call__(self, x: Tensor, delta: Tensor | None = None) -> Tensor:
        """`x`: `(rows, in_features)`. Returns `(rows, out_features)`, with `delta` of that shape added."""
        ...

    def weight(self) -> Tensor:
        """`W` as a plain `(out_features, in_features)` tensor; a copy if it is stored otherwise."""
        ...


class PlainLinear:
    """A weight as torch holds it, on any device."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self._weight = weight
        self._bias = bias
        self.stored = weight.dtype

    def __call__(self, x: Tensor, delta: Tensor | None = None) -> Tensor:
        y = F.linear(x, self._weight, self._bias)
        return y if delta is None else y.add_(delta)

    def weight(self) -> Tensor:
        return self._weight


class PackedLinear:
    """A weight in oneDNN's blocked layout. Adding `delta` is fused into the product."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self._packed = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), None)
        self._bias = bias
        self.stored = weight.dtype

    def __call__(self, x: Tensor, delta: Tensor | None = None) -> Tensor:
        if delta is None:
            y = torch.ops.mkldnn._linear_pointwise(x, self._packed, self._bias, "none", [], "")
        else:
            y = torch.ops.mkldnn._linear_pointwise.binary(x, delta, self._packed, self._bias, "add")
        return cast(Tensor, y)

    def weight(self) -> Tensor:
        return cast(Tensor, self._packed.to_dense())


def has_fast_bfloat16() -> bool:
    """Whether this CPU multiplies bfloat16 itself. Where it must emulate, float32 is up to 5 times faster."""
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def can_pack(weight: Tensor) -> bool:
    """Whether packing pays for this weight: on a CPU, float32 or (with hardware support) bfloat16."""
    if weight.device.type != "cpu" or not torch._C._has_mkldnn:
        return False
    return weight.dtype == torch.float32 or (weight.dtype == torch.bfloat16 and has_fast_bfloat16())


def make_linear(weight: Tensor, bias: Tensor | None) -> LinearMap:
    """The fastest form of `y = W x + b` on the weight's device. `weight`: `(out_features, in_features)`."""
    if weight.device.type == "cpu" and weight.dtype == torch.float32 and (native := library()):
        return NativeLinear(native, weight, bias)
    return PackedLinear(weight, bias) if can_pack(weight) else PlainLinear(weight, bias)
