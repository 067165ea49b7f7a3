"""What a step needs from the host, on the device in one copy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

_TYPES = {4: torch.int32, 8: torch.int64}  # by bytes
_WORDS = 2  # of 8 bytes: Triton compiles a kernel anew for an address that is no multiple of 16


def to_device(arrays: Sequence[NDArray[Any]], device: torch.device) -> list[Tensor]:
    """`arrays`, of integers of 4 or 8 bytes, as parts of one tensor, without waiting for the device."""
    starts = [0]
    for array in arrays:
        starts.append(starts[-1] + -(-array.nbytes // (8 * _WORDS)) * _WORDS)
    # PyTorch does not hand pinned memory out again before the copy has been made.
    host = torch.empty(starts[-1], dtype=torch.int64, pin_memory=device.type == "cuda")
    words = host.numpy()
    for start, stop, array in zip(starts, starts[1:], arrays, strict=False):
        words[start:stop].view(array.dtype)[: array.size] = array.reshape(-1)
    packed = host.to(device, non_blocking=True)
    return [
        packed[start:stop].view(_TYPES[array.itemsize])[: array.size].view(array.shape)
        for start, stop, array in zip(starts, starts[1:], arrays, strict=False)
    ]
