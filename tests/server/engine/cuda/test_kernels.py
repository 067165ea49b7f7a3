"""Code generation: what the launchers launch compiles to machine code for sm_80 and sm_90, without a GPU.

What the kernels compute is in `test_paged.py`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from server.engine.cuda import kernels, paged
from server.engine.cuda.paged import AttentionOptions, PagedStep
from tests.triton_build import AMPERE, HOPPER, Build, compile_all

KERNELS = ("write_kv_kernel", "decode_kernel", "combine_kernel", "prefill_kernel")
POINTERS = {
    torch.bfloat16: "*bf16",
    torch.float32: "*fp32",
    torch.int32: "*i32",
    torch.int64: "*i64",
}
# Shared memory that a block may have: 99 KB on sm_86 and sm_89, which run code for sm_80; 227 KB on sm_90.
SHARED = {AMPERE: 99 * 1024, HOPPER: 227 * 1024}


@dataclass
class Recorder:
    """Stands in for a kernel and keeps what it is launched with."""

    name: str
    builds: list[Build] = field(default_factory=list)

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        assert math.prod(grid) > 0
        return self.launch

    def launch(self, *arguments: Any, num_warps: int = 4, num_stages: int = 3, **constants: Any) -> None:
        names = getattr(kernels, self.name).arg_names[: len(arguments)]
        types = {name: _type(name, value) for name, value in zip(names, arguments, strict=True)}
        kernel = f"server.engine.cuda.kernels:{self.name}"
        self.builds.append(Build(kernel, types, constants, HOPPER, num_warps, num_stages))


def _type(name: str, value: Any) -> str:
    if isinstance(value, Tensor):
        return POINTERS[value.dtype] + "/16"
    if isinstance(value, float):
        return "fp32"
    return "i32/16" if value % 16 == 0 and name != "table_row" else "i32"


def _launches(
    heads: int, kv_heads: int, dim: int, options: AttentionOptions, dtype: torch.dtype
) -> list[Build]:
    """What a mixed step launches with these shapes."""
    recorders = {name: Recorder(name) for name in KERNELS}
    int32 = torch.zeros(2, 2, dtype=torch.int32)
    step = PagedStep(
        torch.zeros(4, dtype=torch.int64),
        int32,
        int32[0],
        torch.zeros(3, dtype=torch.int32),
        int32,
        paged.tile_queries(heads, kv_heads, dim, dtype),
        decodes=1,
    )
    key = torch.zeros(4, kv_heads, dim, dtype=dtype)
    cache = torch.zeros(3, 16, kv_heads, dim, dtype=dtype)
    with pytest.MonkeyPatch.context() as patch:
        for name, recorder in recorders.items():
            patch.setattr(paged, name, recorder)
        paged.write_kv(step, key, key, cache, cache)
        paged.paged_attention(step, torch.zeros(4, heads, dim, dtype=dtype), cache, cache, options)
    return [build for recorder in recorders.values() for build in recorder.builds]


def _builds(dim: int, heads: int, dtype: torch.dtype, archs: tuple[int, ...], every: bool) -> list[Build]:
    sinks = torch.zeros(heads, dtype=dtype)
    options = AttentionOptions(0.1, 1000, 30.0, sinks) if every else AttentionOptions(0.1)
    launches = _launches(heads, 8, dim, options, dtype)
    return [replace(build, arch=arch) for build in launches for arch in archs]


@pytest.mark.parametrize(
    ("dim", "heads", "every"), [(64, 32, False), (128, 8, False), (128, 56, True), (256, 16, True)]
)
def test_every_kernel_compiles_in_bfloat16(dim: int, heads: int, every: bool) -> None:
    """Within the shared memory of the least device, and with next to nothing spilled from registers."""
    builds = _builds(dim, heads, torch.bfloat16, (AMPERE, HOPPER), every)
    assert {build.kernel.partition(":")[2] for build in builds} == set(KERNELS)
    for build, built in zip(builds, compile_all(builds), strict=True):
        assert built.shared <= SHARED[build.arch], build
        assert built.stack <= 128, build
        if build.kernel.endswith("prefill_kernel") and build.arch == HOPPER:
            assert "wgmma" in built.ptx


def test_exact_float32_compiles_without_tensor_cores() -> None:
    builds = _builds(64, 32, torch.float32, (HOPPER,), False)
    for build, built in zip(builds, compile_all(builds), strict=True):
        assert built.shared <= SHARED[AMPERE], build
        assert built.stack <= 128, build
        assert "mma" not in built.ptx
