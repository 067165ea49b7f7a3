"""The kernels compile to machine code for Ampere and Hopper, with wide loads and without spilling."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch

from adapters.batch.cuda.lora import expand_constants, shrink_constants
from adapters.batch.cuda.table import ROW_COLUMNS, TILE_COLUMNS
from adapters.batch.cuda.tiles import Tiles
from tests.triton_build import AMPERE, HOPPER, Build, Built, compile_all

SHRINK = "in_features x_stride entries_stride width"
EXPAND = "y_first y_stride entries_stride width"
NAMES = {torch.bfloat16: "bf16", torch.float32: "fp32"}
Case = tuple[str, torch.dtype, int | None, int]
CASES: list[Case] = [
    (verb, dtype, tile, arch)
    for dtype, tile, arch in (
        (torch.bfloat16, 64, AMPERE),
        (torch.bfloat16, None, HOPPER),
        (torch.bfloat16, 64, HOPPER),
        (torch.float32, 64, HOPPER),
    )
    for verb in ("shrink", "expand")
]


def _build(verb: str, dtype: torch.dtype, tile: int | None, arch: int) -> Build:
    """As `lora.py` launches it for a hidden size of 4096, as the compiler sees its arguments then."""
    rows = Tiles(1, tile, torch.device("cpu")) if tile else torch.zeros(1, dtype=torch.int32)
    values = f"*{NAMES[dtype]}/16"
    arguments = {"entries": "*i64/16", "shrunk": "*fp32/16", "tiles" if tile else "slots": "*i32/16"}
    constants: dict[str, Any]
    if verb == "shrink":
        constants = {**shrink_constants(4096, dtype, rows), "A_BY_RANKS": dtype != torch.float32}
        arguments |= {"x": values, **dict.fromkeys(SHRINK.split(), "i32/16")}
    else:
        columns = TILE_COLUMNS if tile else ROW_COLUMNS
        constants = {**expand_constants(4096, dtype, rows), "BLOCK_N": columns, "ALIGNED": True}
        arguments |= {"y": values, "blocks": "*i32/16", **dict.fromkeys(EXPAND.split(), "i32/16")}
    kernel = f"adapters.batch.cuda.kernels:{verb}_{'tiles' if tile else 'rows'}_kernel"
    return Build(kernel, arguments, constants, arch, num_stages=3 if verb == "shrink" else 1)


@pytest.fixture(scope="module")
def built() -> dict[Case, Built]:
    return dict(zip(CASES, compile_all([_build(*case) for case in CASES]), strict=True))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_it_compiles_without_spilling(built: dict[Case, Built], case: Case) -> None:
    result = built[case]
    print(case, result.registers, "registers", result.stack, "bytes of stack", result.shared, "shared")
    assert result.stack == 0
    assert 0 < result.registers <= 255
    assert result.shared <= 99 * 1024  # what sm_86 and sm_89, the smallest of their kind, have


@pytest.mark.parametrize("case", [case for case in CASES if case[1] == torch.bfloat16], ids=str)
def test_matrices_are_read_16_bytes_at_a_time(built: dict[Case, Built], case: Case) -> None:
    assert re.search(r"ld\.global\S*\.v4\.b32|cp\.async\.cg\.shared\.global", built[case].ptx)


@pytest.mark.parametrize("case", [c for c in CASES if c[1] == torch.bfloat16 and c[2]], ids=str)
def test_tiles_use_tensor_cores(built: dict[Case, Built], case: Case) -> None:
    wide = case[2] == 64 and case[3] == HOPPER
    assert ("wgmma.mma_async" if wide else "mma.sync.aligned.m16n8k16") in built[case].ptx
