"""Ahead-of-time compilation of Triton kernels: real machine code, without a GPU.

The compiler needs a process in which Triton is not interpreted, so `compile_all` starts one:
`python -m tests.triton_build` reads builds as JSON and prints what came of them.
"""

from __future__ import annotations

import importlib
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
AMPERE, HOPPER = 80, 90


@dataclass(frozen=True)
class Build:
    """One kernel in one configuration.

    Attributes:
        kernel: `module:function`.
        arguments: Triton's type of each argument but the constexprs, such as `*bf16`, `i32`, or `i32/16`,
            `*bf16/16` for one that the launcher passes as a multiple of 16 (bytes for a pointer).
        constants: the constexprs.
    """

    kernel: str
    arguments: Mapping[str, str]
    constants: Mapping[str, Any]
    arch: int = HOPPER
    num_warps: int = 4
    num_stages: int = 3


@dataclass(frozen=True)
class Built:
    """What a build costs: for each thread `registers` and bytes of `stack` (spilled registers are there), for
    each block bytes of `shared` memory; `ptx` is the assembly."""

    registers: int
    stack: int
    shared: int
    ptx: str


def compile_all(builds: Sequence[Build]) -> list[Built]:
    """Compile in a process of its own, with a cache of its own.

    Raises:
        RuntimeError: a build failed; the text is the compiler's.
    """
    with tempfile.TemporaryDirectory() as cache:
        environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
        done = subprocess.run(
            [sys.executable, "-m", "tests.triton_build"],
            input=json.dumps([asdict(build) for build in builds]),
            env=environment | {"TRITON_CACHE_DIR": cache},
            cwd=ROOT,
            capture_output=True,
            text=True,
        )
    if done.returncode:
        raise RuntimeError(done.stdout + done.stderr)
    return [Built(**fields) for fields in json.loads(done.stdout)]


def _compile(build: Build) -> Built:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    module, _, name = build.kernel.partition(":")
    kernel = getattr(importlib.import_module(module), name)
    types = dict(build.arguments) | dict.fromkeys(build.constants, "constexpr")
    signature = {argument: types[argument].removesuffix("/16") for argument in kernel.arg_names}
    aligned = {
        (place,): [["tt.divisibility", 16]]
        for place, argument in enumerate(kernel.arg_names)
        if types[argument].endswith("/16")
    }
    compiled = triton.compile(
        ASTSource(kernel, signature, dict(build.constants), aligned),
        target=GPUTarget("cuda", build.arch, 32),
        options={"num_warps": build.num_warps, "num_stages": build.num_stages},
    )
    registers, stack = _resources(compiled.asm["cubin"])
    return Built(registers, stack, compiled.metadata.shared, compiled.asm["ptx"])


def _resources(cubin: bytes) -> tuple[int, int]:
    """Registers and stack bytes of each thread, as `cuobjdump` finds them in the machine code."""
    import triton

    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [triton.knobs.nvidia.cuobjdump.path, "--dump-resource-usage", file.name]
        text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+)", text)
    if found is None:
        raise RuntimeError(f"cuobjdump says nothing of registers: {text}")
    return int(found[1]), int(found[2])


if __name__ == "__main__":
    print(json.dumps([asdict(_compile(Build(**fields))) for fields in json.load(sys.stdin)]))
