"""The base's RMS norms in one native call each, where that gives what the model's own code gives."""

from __future__ import annotations

import ctypes
import functools
from pathlib import Path

import torch
from torch import Tensor, nn

from adapters.batch.native.build import load_library

_SOURCE = Path(__file__).with_name("norm.cpp")
_PROBE_ROWS = 3
_TOLERANCE = 1e-5


@functools.cache
def _library() -> ctypes.CDLL | None:
    library = load_library(_SOURCE)
    if library is not None:
        pointer, integer = ctypes.c_void_p, ctypes.c_int64
        library.rms_norm.argtypes = [pointer, integer, integer, pointer, ctypes.c_float, pointer]
        library.rms_norm.restype = None
    return library


class NativeRMSNorm(nn.Module):
    """`x / sqrt(mean(x^2) + eps) * scale` over the last dimension, float32. `scale_data`: its address."""

    def __init__(self, library: ctypes.CDLL, weight: nn.Parameter, scale: Tensor, eps: float) -> None:
        """`weight`: the base's own parameter; `scale`: `(width,)`, the factor that it stands for."""
        super().__init__()
        self.weight = weight
        self._scale = scale.contiguous()
        self.scale_data = self._scale.data_ptr()
        self._width = scale.shape[0]
        self.eps = eps
        self._norm = library.rms_norm

    def forward(self, x: Tensor) -> Tensor:
        x = x.contiguous()
        y = torch.empty_like(x)
        rows = x.numel() // self._width
        self._norm(x.data_ptr(), rows, self._width, self.scale_data, self.eps, y.data_ptr())
        return y


def use_native_norms(model: nn.Module) -> int:
    """Replace the RMS norms of a float32 model on the CPU; returns how many.

    Which modules are RMS norms is not told by their names but by what they compute: on a probe each must give
    the formula's result, with its weight `w` as the factor, or with `1 + w` as Gemma has it. Others stay.
    """
    library = _library()
    found = [
        (name, replacement)
        for name, module in model.named_modules()
        if library is not None and (replacement := _replacement(library, module)) is not None
    ]
    for name, replacement in found:
        model.set_submodule(name, replacement)
    return len(found)


@torch.inference_mode()
def _replacement(library: ctypes.CDLL, module: nn.Module) -> NativeRMSNorm | None:
    weight = getattr(module, "weight", None)
    eps = getattr(module, "variance_epsilon", getattr(module, "eps", None))
    if not isinstance(weight, nn.Parameter) or not isinstance(eps, float) or weight.dim() != 1:
        return None
    if weight.dtype != torch.float32 or weight.device.type != "cpu" or len(list(module.parameters())) != 1:
        return None
    generator = torch.Generator().manual_seed(0)
    x = 1 + torch.randn(_PROBE_ROWS, weight.shape[0], generator=generator)
    expected = module(x)
    for scale in (weight.detach().clone(), 1 + weight.detach()):
        candidate = NativeRMSNorm(library, weight, scale, eps)
        if torch.allclose(candidate(x), expected, rtol=_TOLERANCE, atol=_TOLERANCE):
            return candidate
    return None
