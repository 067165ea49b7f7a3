"""Kernels need a GPU and Triton."""

from __future__ import annotations

import sys

import pytest
import torch

from adapters.batch.cuda import available

CUDA, CPU = torch.device("cuda"), torch.device("cpu")


def test_kernels_run_on_a_gpu_alone() -> None:
    assert [available.has_kernels(device) for device in (CUDA, CPU)] == [True, False]


def test_without_triton_there_are_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "triton", None)
    available._has_triton.cache_clear()
    assert not available.has_kernels(CUDA)
    available._has_triton.cache_clear()
