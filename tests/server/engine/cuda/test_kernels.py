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
from tests.triton_build import AMPERE, HOPPER, Build, Built, compile_all

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


@pytest.fixture(scope="module")
def built() -> list[tuple[Build, Built]]:
    """Every kernel for heads of width 64, 128 and 256, plain and with all that a layer may ask for."""
    builds: list[Build] = []
    for dim, heads, every in ((64, 32, False), (128, 56, True), (256, 16, True)):
        sinks = torch.zeros(heads, dtype=torch.bfloat16)
        options = AttentionOptions(0.1, 1000, 30.0, sinks) if every else AttentionOptions(0.1)
        builds += _launches(heads, 8, dim, options, torch.bfloat16)
    builds = [replace(build, arch=arch) for build in builds for arch in (AMPERE, HOPPER)]
    builds += _launches(32, 8, 64, AttentionOptions(0.1), torch.float32)
    return list(zip(builds, compile_all(builds), strict=True))


def test_every_kernel_compiles_and_fits(built: list[tuple[Build, Built]]) -> None:
    """Within the shared memory of the least device, and with next to nothing spilled from registers."""
    assert {build.kernel.partition(":")[2] for build, _ in built} == set(KERNELS)
    for build, code in built:
        assert code.shared <= SHARED[build.arch], build
        assert code.stack <= 128, build


def test_products_run_on_tensor_cores_save_in_exact_float32(built: list[tuple[Build, Built]]) -> None:
    for build, code in built:
        if build.kernel.endswith(("decode_kernel", "prefill_kernel")):
            half = build.arguments["query"] == "*bf16/16"
            assert ("mma" in code.ptx) == half, build
            if half and build.arch == HOPPER and build.kernel.endswith("prefill_kernel"):
                assert "wgmma" in code.ptx
