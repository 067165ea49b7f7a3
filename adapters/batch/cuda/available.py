"""Whether the kernels can run."""

from __future__ import annotations

import functools

import torch


def has_kernels(device: torch.device) -> bool:
    """Whether `device` is a GPU and Triton is installed."""
    return device.type == "cuda" and _has_triton()


@functools.cache
def _has_triton() -> bool:
    try:
        import triton  # noqa: F401
    except ImportError:
        return False
    return True
