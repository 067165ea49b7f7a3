"""Arrays of several types and shapes arrive as they were."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from server.engine.transfer import to_device


def test_arrays_arrive_with_their_values_types_and_shapes(gpu: torch.device) -> None:
    arrays: list[NDArray[Any]] = [
        np.arange(3, dtype=np.int64) - 2,
        np.arange(10, dtype=np.int32).reshape(2, 5),
        np.zeros((0, 2), np.int32),
        np.array([[2**40], [-1]], np.int64),
        np.array([7], np.int32),
    ]
    tensors = to_device(arrays, gpu)
    for array, tensor in zip(arrays, tensors, strict=True):
        assert tensor.device.type == gpu.type
        assert str(tensor.dtype) == f"torch.{array.dtype}"
        assert tensor.shape == array.shape
        assert tensor.tolist() == array.tolist()
    assert len({tensor.untyped_storage().data_ptr() for tensor in tensors}) == 1


def test_each_begins_where_kernels_like_it(gpu: torch.device) -> None:
    tensors = to_device([np.zeros(n, np.int32) for n in (1, 5, 3, 4)], gpu)
    first = tensors[0].data_ptr()
    assert [(tensor.data_ptr() - first) % 16 for tensor in tensors] == [0] * 4
