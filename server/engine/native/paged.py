"""Paged attention on the CPU in native code: keys and values are read where they lie, once for all heads.

A sequence's result does not depend on its neighbours, on how its prompt was cut into chunks, or on the number
of threads, bit for bit (`attention.cpp` says why).
"""

from __future__ import annotations

import ctypes
import functools
from pathlib import Path

import torch
from torch import Tensor

from adapters.batch.native.build import load_library
from server.engine.attention import AttentionPlan, KVCache, StepLayout

SOURCE = Path(__file__).with_name("attention.cpp")
_POINTERS = "query key value out keys values sinks slots tables lengths starts scratch"
_STRIDES = "query_row query_head key_row key_head value_row value_head"
_SIZES = "tokens sequences heads kv_heads k_dim v_dim block_size table_row window bfloat16 threads"


class _Call(ctypes.Structure):
    """The fields of `Call` in attention.cpp."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in _POINTERS.split()),
        ("scratch_bytes", ctypes.c_int64),
        *((name, ctypes.c_int64) for name in f"{_STRIDES} {_SIZES}".split()),
        ("scale", ctypes.c_double),
        ("softcap", ctypes.c_double),
    )


@functools.cache
def _kernel() -> ctypes._NamedFuncPointer | None:
    library = load_library(SOURCE)
    if library is None:
        return None
    kernel = library.paged_attention
    kernel.argtypes, kernel.restype = [ctypes.c_void_p], ctypes.c_int64
    return kernel


def available(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether `NativePlan` can serve a model of this dtype here. Compiles the kernel at the first call."""
    return device.type == "cpu" and dtype in (torch.float32, torch.bfloat16) and _kernel() is not None


class NativePlan(AttentionPlan):
    """Attention by `attention.cpp`."""

    def __init__(self, cache: KVCache, layout: StepLayout) -> None:
        """Raises:
        RuntimeError: there is no native code here.
        ValueError: the layout lies outside the cache.
        """
        super().__init__(cache, layout)
        kernel = _kernel()
        if kernel is None:
            raise RuntimeError("the native attention kernel is not available")
        blocks = cache.slots // layout.block_size
        if layout.block_tables.min() < 0 or layout.block_tables.max() >= blocks:
            raise ValueError(f"a block table names a block that is not among the cache's {blocks}")
        self._kernel = kernel
        self._scratch = torch.empty(0, dtype=torch.uint8)
        self._call = _Call(
            slots=layout.slots.ctypes.data,
            tables=layout.block_tables.ctypes.data,
            lengths=layout.kv_lengths.ctypes.data,
            starts=layout.query_starts.ctypes.data,
            tokens=layout.tokens,
            sequences=len(layout.kv_lengths),
            block_size=layout.block_size,
            table_row=layout.block_tables.shape[1],
            threads=torch.get_num_threads(),
        )
        self._address = ctypes.addressof(self._call)
        self._form: list[tuple[torch.Size, tuple[int, ...], torch.dtype]] = []
        self._out_shape = (1, 0, 0, 0)

    def attend(
        self,
        layer: int,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        *,
        scale: float,
        window: int | None,
        softcap: float | None,
        sinks: Tensor | None,
    ) -> Tensor:
        """Raises:
        ValueError: tensors that do not fit the cache or the step.
        """
        keys, values = self.cache.layer(layer, key, value)
        query, key, value = _rows(query), _rows(key), _rows(value)
        call = self._call
        self._set_form(query, key, value, keys, values)
        out = query.new_empty(self._out_shape)
        if sinks is not None:
            sinks = sinks.float().contiguous()
        call.query, call.key, call.value = query.data_ptr(), key.data_ptr(), value.data_ptr()
        call.keys, call.values, call.out = keys.data_ptr(), values.data_ptr(), out.data_ptr()
        call.sinks = None if sinks is None else sinks.data_ptr()
        call.scale, call.softcap, call.window = scale, softcap or 0.0, window or 0
        needed = self._kernel(self._address)
        if needed:
            self._scratch = torch.empty(needed, dtype=torch.uint8)
            call.scratch, call.scratch_bytes = self._scratch.data_ptr(), needed
            self._kernel(self._address)
        return out

    def _set_form(self, query: Tensor, key: Tensor, value: Tensor, keys: Tensor, values: Tensor) -> None:
        """Tell the kernel, which trusts what it is given, of shapes and strides; layers mostly share them."""
        tensors = query, key, value, keys, values
        form = [(t.shape, t.stride(), t.dtype) for t in tensors]
        if form == self._form:
            return
        call, (_, kv_heads, k_dim), (_, _, v_dim) = self._call, keys.shape, values.shape
        _, heads, tokens, _ = query.shape
        fits = (
            query.shape == (1, heads, call.tokens, k_dim)
            and key.shape == (1, kv_heads, call.tokens, k_dim)
            and value.shape == (1, kv_heads, call.tokens, v_dim)
            and heads % kv_heads == 0
            and len({t.dtype for t in tensors}) == 1
        )
        if not fits:
            shapes = [f"{tuple(t.shape)} {t.dtype}" for t in tensors[:3]]
            raise ValueError(
                f"query, key and value {shapes} do not fit {call.tokens} tokens and the KV cache"
            )
        call.heads, call.kv_heads, call.k_dim, call.v_dim = heads, kv_heads, k_dim, v_dim
        call.bfloat16 = query.dtype == torch.bfloat16
        _, call.query_head, call.query_row, _ = query.stride()
        _, call.key_head, call.key_row, _ = key.stride()
        _, call.value_head, call.value_row, _ = value.stride()
        self._out_shape = (1, tokens, heads, v_dim)
        self._form = form


def _rows(tensor: Tensor) -> Tensor:
    """`tensor` with its last dimension contiguous, the others as they come."""
    return tensor if tensor.stride(3) == 1 else tensor.contiguous()
