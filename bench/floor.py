"""The decode step in process, against the least time that this machine needs for it.

No step can be faster than reading its bytes once or doing its multiply-adds:

    floor = max(bytes / read bandwidth, flops / matrix rate)

Both rates are measured in the same rounds, in the same process, with the same threads and type.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any
from unittest import mock

from bench.child import run_child
from bench.load import median, random_prompt
from bench.rounds import Case, Figures, Rounds, run_rounds
from bench.setting import Bench
from bench.shapes import cost

BATCHES = (1, 8, 32)
_STEPS = 12
_MOST_TOKENS = 512  # more than answers get while the last prompts are computed
_READ_BYTES = 1 << 28  # far more than any cache of the processor
_MATRIX = 2048
_TRIES = 3  # of which the best counts: the floor is what the machine can do


def measure_floor(bench: Bench) -> Rounds:
    """Cases `machine` (the two rates) and `1 request`, `8 requests`, `32 requests`."""
    job = {
        "settings": {
            "model": str(bench.base),
            "dtype": bench.dtype,
            "data_dir": str(bench.folder / "data-floor"),
        },
        "shape": bench.shape,
        "prompt_tokens": bench.prompt_tokens,
        "vocabulary": bench.vocabulary,
        "repeats": bench.repeats,
    }
    return Rounds(**run_child("floor", job, bench.folder))


def case_name(batch: int) -> str:
    return "1 request" if batch == 1 else f"{batch} requests"


def inside(job: dict[str, Any]) -> dict[str, Any]:
    """The rounds, as a dictionary; runs in the child."""
    from server.launch import load
    from server.settings import Settings

    settings = {**job["settings"], "data_dir": Path(job["settings"]["data_dir"])}
    core = load(Settings(**settings)).core
    rates: Figures = {}
    # The wider, if some weights are kept in fewer bytes than others.
    stored = max(layer.linear.stored.itemsize for layer in core.model.linears.values())

    def machine(number: int) -> Figures:
        rates.update(machine_rates(core.model.dtype))
        return dict(rates)

    def decode(batch: int) -> Case:
        def run(number: int) -> Figures:
            figures = time_decode(core, batch, job["prompt_tokens"], job["vocabulary"], number)
            kv = core.model.dtype.itemsize
            floor = floor_seconds(job["shape"], batch, figures["context"], stored, kv, **rates)
            return {**figures, "floor": floor, "times_floor": figures["step"] / floor}

        return run

    cases: dict[str, Case] = {"machine": machine}
    cases |= {case_name(batch): decode(batch) for batch in BATCHES}
    done = run_rounds(cases, job["repeats"])
    done.notes.append(f"{stored} bytes a weight, {core.model.dtype.itemsize} a number of the KV")
    return asdict(done)


def floor_seconds(
    shape: str,
    batch: int,
    context: float,
    weight_bytes: int,
    kv_bytes: int,
    *,
    read_bandwidth: float,
    matrix_rate: float,
) -> float:
    """Seconds below which no decode step of `batch` sequences of `context` tokens each can come.

    Args:
        weight_bytes, kv_bytes: of one number of the weights, and of the KV.
        read_bandwidth: bytes per second. `matrix_rate`: floating-point operations per second.
    """
    needs = cost(shape)
    nbytes = weight_bytes * needs.weights + kv_bytes * batch * context * needs.kv
    flops = 2 * batch * (needs.weights + context * needs.attention)
    return max(nbytes / read_bandwidth, flops / matrix_rate)


def time_decode(
    core: Any,
    batch: int,
    prompt_tokens: int,
    vocabulary: int,
    seed: int,
    adapters: Sequence[str | None] = (None,),
) -> Figures:
    """Median seconds of a step in which `batch` requests decode, and the share outside the model.

    Args:
        core: an idle `EngineCore`.
        adapters: digests that the requests name in turn; None is the base.

    Returns:
        `step`; `context`: how many tokens each request had on average; `overhead`: the share of a step that
        is not the model's forward pass: scheduling, building its inputs, sampling, text.
    """
    from server.engine.request import GenerationRequest, SamplingParams

    generator = random.Random(seed)
    sampling = SamplingParams(max_tokens=_MOST_TOKENS, temperature=0.0, ignore_eos=True)
    for number in range(batch):
        prompt = tuple(random_prompt(generator, prompt_tokens, vocabulary))
        adapter = adapters[number % len(adapters)]
        core.submit(GenerationRequest(f"r{number}", prompt, sampling, adapter))
    tokens: dict[str, int] = {}
    while len(tokens) < batch:
        _count(tokens, core.step())
    forward = Timed(core.model.forward)
    steps, shares = [], []
    with mock.patch.object(core.model, "forward", forward):
        for _ in range(_STEPS):
            forward.seconds = 0.0
            started = time.perf_counter()
            results = core.step()
            steps.append(time.perf_counter() - started)
            shares.append(1 - forward.seconds / steps[-1])
            _count(tokens, results)
    core.abort_all()
    context = prompt_tokens + sum(tokens.values()) / batch - _STEPS / 2
    return {"step": median(steps), "overhead": median(shares), "context": context}


def _count(tokens: dict[str, int], results: Any) -> None:
    for request, output in results:
        if isinstance(output, Exception):
            raise output
        tokens[request] = tokens.get(request, 0) + len(output.token_ids)


class Timed:
    """A function that sums up how long it took."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function
        self.seconds = 0.0

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        started = time.perf_counter()
        try:
            return self.function(*args, **kwargs)
        finally:
            self.seconds += time.perf_counter() - started


def machine_rates(dtype: Any) -> Figures:
    """The best of a few tries: bytes per second of a large read, flops per second of a large product."""
    import torch

    data = torch.ones(_READ_BYTES // 4)
    matrix = torch.randn(_MATRIX, _MATRIX).to(dtype)
    with torch.inference_mode():
        read = min(_seconds(data.sum) for _ in range(_TRIES))
        vector = torch.ones(_MATRIX)
        rows = data.view(-1, _MATRIX)
        read = min(read, *(_seconds(lambda: rows @ vector) for _ in range(_TRIES)))
        product = min(_seconds(lambda: matrix @ matrix) for _ in range(_TRIES))
    return {"read_bandwidth": _READ_BYTES / read, "matrix_rate": 2 * _MATRIX**3 / product}


def _seconds(run: Callable[[], Any]) -> float:
    started = time.perf_counter()
    run()
    return time.perf_counter() - started
