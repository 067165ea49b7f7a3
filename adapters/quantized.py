"""Linear maps whose weights stay quantised by bitsandbytes, in memory as in a product.

    nf4, fp4   4-bit codes times the scale of their block of 64 (Dettmers et al. 2023, arXiv 2305.14314)
    int8       codes times the scale of their output row (Dettmers et al. 2022, arXiv 2208.07339)

Each product is with the weights that the codes stand for, in the type of its rows. bitsandbytes' own int8
product rounds the rows to 8 bits too, all but those columns in which any row of the batch is large: there a
row's answer depends on its neighbours, and here it must not.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_PIECE = 2**18  # weights that a CPU's cache holds in float32
Quantization = Literal["nf4", "fp4", "int8"]


class QuantizedMap(ABC):
    """`y = W x + b` where `W` is codes and scales; a `LinearMap`.

    Attributes:
        kind: how `W` is quantised.
        codes: as bitsandbytes packs them.
        shape: `(out_features, in_features)` of `W`.
        stored: the type that `weight()` has, which is the model's.
    """

    kind: Quantization
    codes: Tensor
    shape: tuple[int, int]
    stored: torch.dtype

    def __init__(self, bias: Tensor | None) -> None:
        self.bias = bias

    def __call__(self, x: Tensor, delta: Tensor | None = None) -> Tensor:
        """`x`: `(rows, in_features)`. Returns `(rows, out_features)`, with `delta` of that shape added."""
        y = self._product(x)
        return y if delta is None else y.add_(delta)

    def _product(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight().to(x.dtype), self.bias)

    @abstractmethod
    def weight(self) -> Tensor:
        """A new `(out_features, in_features)` tensor: what the codes stand for."""

    @property
    @abstractmethod
    def nbytes(self) -> int:
        """Bytes of codes and scales."""


class FourBitMap(QuantizedMap):
    """Blocks of 4-bit codes; their scales may be quantised in turn (double quantisation)."""

    def __init__(self, layer: Any, dtype: torch.dtype) -> None:
        """`layer`: a `bitsandbytes.nn.Linear4bit` that has not run yet: some CPUs repack its codes then."""
        import bitsandbytes

        super().__init__(_bias(layer, dtype))
        self.state = layer.weight.quant_state
        self.state.dtype = dtype
        self.codes = layer.weight.data
        self.kind = self.state.quant_type
        self.shape = int(self.state.shape[0]), int(self.state.shape[1])
        self.stored = dtype
        self._dequantize = bitsandbytes.functional.dequantize_4bit
        self._multiply = bitsandbytes.matmul_4bit
        # Blocks run on from row to row. bitsandbytes 0.50 takes each row for a beginning on a CPU, and gives
        # other weights than the codes stand for where rows do not end with a block: there it gets one row.
        self._by_rows = self.shape[1] % self.state.blocksize == 0
        self._layout = copy.copy(self.state)
        if not self._by_rows:
            self._layout.shape = torch.Size((1, self.shape[0] * self.shape[1]))

    def _product(self, x: Tensor) -> Tensor:
        if x.is_cuda and self._by_rows:
            # Few rows meet the codes themselves; for many it dequantises, as `weight` does.
            return cast(Tensor, self._multiply(x, self.codes, self.state, bias=self.bias))
        return super()._product(x)

    def weight(self) -> Tensor:
        return cast(Tensor, self._dequantize(self.codes, self._layout)).view(self.shape)

    @property
    def nbytes(self) -> int:
        nested = [self.state.state2.absmax, self.state.state2.code] if self.state.nested else []
        return sum(int(tensor.nbytes) for tensor in (self.codes, self.state.absmax, self.state.code, *nested))


class Int8Map(QuantizedMap):
    """8-bit codes; `scales`, `(out_features,)` float32, is what a code of 1 stands for in each row."""

    kind = "int8"

    def __init__(self, layer: Any, dtype: torch.dtype) -> None:
        """`layer`: a `bitsandbytes.nn.Linear8bitLt` that has not run yet."""
        super().__init__(_bias(layer, dtype))
        self.codes: Tensor = layer.weight.data
        self.scales: Tensor = layer.weight.SCB.float() / 127
        self.shape = int(self.codes.shape[0]), int(self.codes.shape[1])
        self.stored = dtype

    def _product(self, x: Tensor) -> Tensor:
        if x.is_cuda:
            return super()._product(x)
        # By pieces that are still in the cache when they are multiplied: two to three times faster.
        y = x.new_empty(x.shape[0], self.shape[0])
        rows = max(1, _PIECE // self.shape[1])
        for start in range(0, self.shape[0], rows):
            piece = slice(start, start + rows)
            y[:, piece] = F.linear(x, self._rows(piece).to(x.dtype))
        return y if self.bias is None else y.add_(self.bias)

    def weight(self) -> Tensor:
        return self._rows(slice(None))

    def _rows(self, rows: slice) -> Tensor:
        return self.codes[rows].float().mul_(self.scales[rows, None]).to(self.stored)

    @property
    def nbytes(self) -> int:
        return self.codes.nbytes + self.scales.nbytes


class QuantizedLinear(nn.Linear):
    """The module that has such a map, in the place of bitsandbytes' own.

    Its parameter `weight` is the codes, which have another shape than `W`.
    """

    def __init__(self, linear: QuantizedMap) -> None:
        nn.Module.__init__(self)  # that of nn.Linear makes a weight of full size
        self.linear = linear
        self.out_features, self.in_features = linear.shape
        self.weight = nn.Parameter(linear.codes, requires_grad=False)
        bias = linear.bias
        self.register_parameter("bias", None if bias is None else nn.Parameter(bias, requires_grad=False))

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x.reshape(-1, self.in_features)).view(*x.shape[:-1], self.out_features)


def hold_quantized(model: nn.Module, dtype: torch.dtype) -> None:
    """Put a `QuantizedLinear` in the place of every quantised layer of bitsandbytes, before any has run.

    `dtype`: what the model computes in.
    """
    import bitsandbytes

    maps: dict[type, type[FourBitMap | Int8Map]] = {
        bitsandbytes.nn.Linear4bit: FourBitMap,
        bitsandbytes.nn.Linear8bitLt: Int8Map,
    }
    for name, module in list(model.named_modules()):
        made = maps.get(type(module))
        if made is not None:
            model.set_submodule(name, QuantizedLinear(made(module, dtype)))


def quantization_of(model: nn.Module) -> Quantization | None:
    """How the linear layers of a model are quantised; None if they are not."""
    found = (module.linear.kind for module in model.modules() if isinstance(module, QuantizedLinear))
    return next(found, None)


def full_parameter(model: nn.Module, name: str) -> Tensor:
    """A parameter of a model by its name; `W` itself where codes stand for it."""
    linear = _map_of(model, name)
    return model.get_parameter(name) if linear is None else linear.weight()


def full_shape(model: nn.Module, name: str) -> tuple[int, ...]:
    """The shape of `full_parameter`."""
    linear = _map_of(model, name)
    return tuple(model.get_parameter(name).shape) if linear is None else linear.shape


def _map_of(model: nn.Module, parameter: str) -> QuantizedMap | None:
    module, _, own = parameter.rpartition(".")
    layer = model.get_submodule(module)
    return layer.linear if own == "weight" and isinstance(layer, QuantizedLinear) else None


def _bias(layer: Any, dtype: torch.dtype) -> Tensor | None:
    return None if layer.bias is None else layer.bias.detach().to(dtype)
