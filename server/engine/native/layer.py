"""Decoder layers with native code between their products, where that gives what the model's own code gives.

A layer of the common kind (RMS norms, rotary positions, a gated MLP with SiLU) runs some forty small torch
operations for each step; with few rows they take as long as the products. Which layers are of that kind is
told by their parts, and proved by running them: whatever else a layer does, its own code stays in use.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from adapters.batch.batched import BatchedLinear
from adapters.batch.native.build import load_library
from server.engine.attention import current_plan
from server.engine.native.norms import NativeRMSNorm

_SOURCE = Path(__file__).with_name("layer.cpp")
_LAYER = {"input_layernorm", "self_attn", "post_attention_layernorm", "mlp"}
_ATTENTION = {"q_proj", "k_proj", "v_proj", "o_proj"}
_MLP = {"gate_proj", "up_proj", "down_proj"}
_TOLERANCE = 1e-4  # of what the layer adds to its input


@functools.cache
def _library() -> ctypes.CDLL | None:
    library = load_library(_SOURCE)
    if library is not None:
        p, n, f = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float
        library.rotate.argtypes = [p, p, n, n, n, n, n, p, p, p, p, f]
        library.add_norm.argtypes = [p, p, n, n, p, f, p]
        library.silu_product.argtypes = [p, p, n]
        library.add.argtypes = [p, p, n]
        for function in (library.rotate, library.add_norm, library.silu_product, library.add):
            function.restype = None
    return library


class NativeLayer:
    """`forward` of one layer, in place of its own.

    Attributes:
        stock: the layer's own forward, for what this one does not know: other arguments, and modules with
            hooks.
        window: how many tokens a token sees, as the layer's own code says when it is tried.
    """

    def __init__(self, layer: nn.Module, library: ctypes.CDLL) -> None:
        """Raises:
        AttributeError, TypeError: the layer is of another kind.
        """
        attention: Any = layer.self_attn
        mlp: Any = layer.mlp
        self.stock: Callable[..., Tensor] = layer.forward
        self._library = library
        self._norms = _norm(layer.input_layernorm), _norm(layer.post_attention_layernorm)
        self._heads_norms = [_norm(norm) if norm else None for norm in _head_norms(attention)]
        self._qkv = [_linear(getattr(attention, name)) for name in ("q_proj", "k_proj", "v_proj")]
        self._o = _linear(attention.o_proj)
        self._gate, self._up = _linear(mlp.gate_proj), _linear(mlp.up_proj)
        self._down = _linear(mlp.down_proj)
        self._layer = int(attention.layer_idx)
        self._dim = int(attention.head_dim)
        self._scale = float(attention.scaling)
        self.window: int | None = None
        self._parts = tuple(layer.modules())
        if not _is_silu(mlp.act_fn):
            raise TypeError("its gate is not SiLU")

    def __call__(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        positions = kwargs.get("position_embeddings")
        if args or positions is None or any(m._forward_hooks or m._forward_pre_hooks for m in self._parts):
            return self.stock(hidden_states, *args, **kwargs)
        x = hidden_states.view(-1, hidden_states.shape[-1])
        summed = self._attend(x, *positions)
        y = torch.empty_like(x)
        norm, library = self._norms[1], self._library
        rows, width = x.shape
        library.add_norm(
            x.data_ptr(), summed.data_ptr(), rows, width, norm.scale_data, norm.eps, y.data_ptr()
        )
        gate, up = _apply(self._gate, y), _apply(self._up, y)
        library.silu_product(gate.data_ptr(), up.data_ptr(), gate.numel())
        down = _apply(self._down, gate)
        library.add(summed.data_ptr(), down.data_ptr(), down.numel())
        return down.view(hidden_states.shape)

    def _attend(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """The attention's output for `(rows, hidden)`, before it is added to `x`."""
        y = self._norms[0](x)
        q, k, v = (_apply(linear, y) for linear in self._qkv)
        rows, dim = x.shape[0], self._dim
        heads, kv_heads = q.shape[1] // dim, k.shape[1] // dim
        cos, sin = cos.contiguous(), sin.contiguous()
        scales = [norm.scale_data if norm else None for norm in self._heads_norms]
        eps = self._heads_norms[0].eps if self._heads_norms[0] else 0.0
        self._library.rotate(
            q.data_ptr(), k.data_ptr(), rows, heads, kv_heads, dim, cos.shape[-1],
            cos.data_ptr(), sin.data_ptr(), *scales, eps,
        )  # fmt: skip
        plan = current_plan()
        plan.calls.append((self._layer, self.window))
        out = plan.attend(
            self._layer,
            *(t.view(1, rows, -1, dim).transpose(1, 2) for t in (q, k, v)),
            scale=self._scale,
            window=self.window,
            softcap=None,
            sinks=None,
        )
        return _apply(self._o, out.view(rows, -1))


class Trial:
    """Runs a layer's own code and the native form side by side, and answers with what its own code gave.

    Attributes:
        proved: whether both gave the same so far, and at least once.
    """

    def __init__(self, native: NativeLayer) -> None:
        self._native = native
        self._same: list[bool] = []

    @property
    def proved(self) -> bool:
        return bool(self._same) and all(self._same)

    def __call__(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        expected = self._native.stock(hidden_states, *args, **kwargs)
        calls = current_plan().calls
        known = len(calls)
        self._native.window = calls[-1][1] if calls else None
        try:
            found = self._native(hidden_states, *args, **kwargs)
            change, error = (expected - hidden_states).norm(), (found - expected).norm()
            self._same.append(bool(error <= _TOLERANCE * change))
        except (RuntimeError, TypeError, ValueError):
            self._same.append(False)
        del calls[known:]
        return expected


@contextmanager
def trials(model: nn.Module) -> Iterator[None]:
    """In forward passes inside, layers that look common are proved; after it, those that were are native."""
    tried = [(layer, native, Trial(native)) for layer, native in native_layers(model)]
    for layer, _, trial in tried:
        layer.forward = trial
    try:
        yield
    finally:
        for layer, native, trial in tried:
            layer.forward = native if trial.proved else native.stock


def native_layers(model: nn.Module) -> list[tuple[nn.Module, NativeLayer]]:
    """The layers that look as if they were of the common kind, each with its native form.

    The model's norms and linear layers are native ones by then, where they can be.
    """
    library = _library()
    found = []
    for layer in model.modules():
        if library is None or not _looks_common(layer):
            continue
        try:
            found.append((layer, NativeLayer(layer, library)))
        except (AttributeError, TypeError):
            continue
    return found


def _looks_common(layer: nn.Module) -> bool:
    children = dict(layer.named_children())
    if children.keys() != _LAYER:
        return False
    attention = dict(children["self_attn"].named_children()).keys()
    mlp = dict(children["mlp"].named_children()).keys()
    return attention - {"q_norm", "k_norm"} == _ATTENTION and mlp - {"act_fn"} == _MLP


def _head_norms(attention: nn.Module) -> tuple[Any, Any]:
    return getattr(attention, "q_norm", None), getattr(attention, "k_norm", None)


def _norm(module: object) -> NativeRMSNorm:
    if not isinstance(module, NativeRMSNorm):
        raise TypeError(f"{type(module).__name__} is not a native RMS norm")
    return module


def _linear(module: object) -> BatchedLinear:
    if not isinstance(module, BatchedLinear):
        raise TypeError(f"{type(module).__name__} is not a batched linear layer")
    return module


def _apply(linear: BatchedLinear, x: Tensor) -> Tensor:
    return linear.batch.apply(linear, x, x)


def _is_silu(function: Callable[[Tensor], Tensor]) -> bool:
    x = torch.linspace(-4, 4, 33)
    return torch.allclose(function(x), nn.functional.silu(x), rtol=1e-6, atol=1e-7)
