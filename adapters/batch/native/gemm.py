"""The calls into `gemm.cpp`. Shapes and types are checked by the callers; every call gives up the GIL."""

from __future__ import annotations

import ctypes
import functools
from pathlib import Path

from adapters.batch.native.build import load_library

_SOURCE = Path(__file__).with_name("gemm.cpp")
_P, _I = ctypes.c_void_p, ctypes.c_int64
_ARGUMENTS = {
    # x, rows, inputs, modules, their number; segments, n; shrink table, its stride, the stride of the
    # expand tables, shrunk, its width
    "linears": [_P, _I, _I, _P, _I, _P, _I, _P, _I, _I, _P, _I],
    # x, inputs, segments, n, table, stride, shrunk, its width
    "shrink": [_P, _I, _P, _I, _P, _I, _P, _I],
    # segments, n, table, stride, shrunk, its width, y, outputs
    "expand_f32": [_P, _I, _P, _I, _P, _I, _P, _I],
    "expand_bf16": [_P, _I, _P, _I, _P, _I, _P, _I],
    # numbers, how many
    "needs_float32": [_P, _I],
    # matrices, how many
    "pack_all": [_P, _I],
}


@functools.cache
def library() -> ctypes.CDLL | None:
    """The compiled products, or None where they can't be had."""
    loaded = load_library(_SOURCE)
    if loaded is not None:
        for name, arguments in _ARGUMENTS.items():
            function = getattr(loaded, name)
            function.argtypes, function.restype = arguments, ctypes.c_int if name == "needs_float32" else None
    return loaded
