"""Decoding on a GPU against its roofline, and what adapters and the support for them cost there.

Nothing here has run on a GPU yet.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bench.child import run_child
from bench.floor import case_name, floor_seconds, time_decode
from bench.load import median
from bench.lora_kernels import kernel_cases
from bench.rounds import Case, Figures, Rounds, run_rounds
from bench.setting import Bench
from server.engine.decode import choose_decode
from server.engine.native.layer import NativeLayer

BATCHES = (1, 8, 32, 128)
ADAPTERS = 32
_COPY_BYTES = 1 << 30
_MATRIX = 8192
_TRIES = 10
_KV_GIB = 6  # two engines share the GPU


def measure_gpu(bench: Bench) -> Rounds:
    """The engine's steps, and the LoRA kernels alone.

    Cases: `machine`; `N requests` against the roofline; `32 requests, 32 adapters`; `32 requests, no LoRA
    support` on a second engine over the same model; `kernels, ...` as in `lora_kernels.py`.
    """
    job = {
        "model": str(bench.base),
        "data_dir": str(bench.folder / "data-gpu"),
        "adapters": [str(folder) for folder in bench.adapters(ADAPTERS).values()],
        "shape": bench.shape,
        "rank": bench.rank,
        "prompt_tokens": bench.prompt_tokens,
        "vocabulary": bench.vocabulary,
        "repeats": bench.repeats,
    }
    return Rounds(**run_child("gpu", job, bench.folder))


def inside(job: dict[str, Any]) -> dict[str, Any]:
    """The rounds, as a dictionary; runs in the child."""
    core, digests = _load(job, "lora", job["adapters"])
    bare, _ = _load(job, "bare", [])
    strip(bare)
    recapture(bare)
    dtype = core.model.dtype
    rates: Figures = {}

    def machine(number: int) -> Figures:
        rates.update(gpu_rates(dtype))
        return dict(rates)

    def decode(engine: Any, batch: int, adapters: list[str | None]) -> Case:
        def run(number: int) -> Figures:
            figures = time_decode(engine, batch, job["prompt_tokens"], job["vocabulary"], number, adapters)
            width = dtype.itemsize
            floor = floor_seconds(job["shape"], batch, figures["context"], width, width, **rates)
            return {**figures, "floor": floor, "times_floor": figures["step"] / floor}

        return run

    cases: dict[str, Case] = {"machine": machine}
    cases |= {case_name(batch): decode(core, batch, [None]) for batch in BATCHES}
    cases["32 requests, 32 adapters"] = decode(core, ADAPTERS, list(digests))
    cases["32 requests, no LoRA support"] = decode(bare, ADAPTERS, [None])
    cases |= kernel_cases(job["shape"], job["rank"], dtype, core.model.device, rates)
    done = run_rounds(cases, job["repeats"])
    done.notes.append(f"{torch.cuda.get_device_name()}, {dtype}".replace("torch.", ""))
    return asdict(done)


def _load(job: dict[str, Any], name: str, adapters: list[str]) -> tuple[Any, list[str]]:
    """An engine on the GPU with these adapters on their way into memory, and their digests."""
    from server.launch import load
    from server.settings import Settings

    settings = Settings(
        model=job["model"],
        device="cuda",
        data_dir=Path(job["data_dir"]) / name,
        adapter=tuple(f"a{index}={folder}" for index, folder in enumerate(adapters)),
        adapter_memory_gb=4,
        parity="off",
        max_running=max(BATCHES),
        kv_cache_gb=_KV_GIB,
    )
    loaded = load(settings)
    return loaded.core, [version.digest for version in loaded.registry.list()]


def strip(core: Any) -> None:
    """Put plain linear layers in the place of those that know adapters, before the engine's first step."""
    for name, layer in core.model.linears.items():
        weight = layer.weight
        plain = nn.Linear(weight.shape[1], weight.shape[0], bias=layer.bias is not None, device="meta")
        plain.weight = nn.Parameter(weight, requires_grad=False)
        if layer.bias is not None:
            plain.bias = nn.Parameter(layer.bias, requires_grad=False)
        core.model.model.set_submodule(name, plain)
    for module in core.model.model.modules():
        if isinstance(module.forward, NativeLayer):  # on a CPU: it holds the layers that were replaced
            module.forward = module.forward.stock


def recapture(core: Any) -> None:
    """Make the graphs of decode steps anew: those there are hold the layers that ran when they were made."""
    config = core.config
    core.runner.decode = choose_decode(
        core.model,
        core.runner.cache,
        block_size=config.block_size,
        max_rows=config.max_running,
        max_length=config.max_model_len,
    )


def gpu_rates(dtype: torch.dtype) -> Figures:
    """Bytes per second of a large copy, read and written ones together, and flops per second of a product."""
    source = torch.ones(_COPY_BYTES, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    matrix = torch.randn(_MATRIX, _MATRIX, device="cuda").to(dtype)
    with torch.inference_mode():
        copy = gpu_seconds(lambda: target.copy_(source))
        product = gpu_seconds(lambda: matrix @ matrix)
    return {"read_bandwidth": 2 * _COPY_BYTES / copy, "matrix_rate": 2 * _MATRIX**3 / product}


def gpu_seconds(run: Callable[[], Any]) -> float:
    """Median seconds of what `run` launches, once it has been warmed up."""
    times = []
    for number in range(-2, _TRIES):
        torch.cuda.synchronize()
        started = time.perf_counter()
        run()
        torch.cuda.synchronize()
        if number >= 0:
            times.append(time.perf_counter() - started)
    return median(times)
