"""Generated tokens per second: base, 1, 8 and 32 adapters, merged, and PEFT's mixed batch beside them."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bench.load import run_load
from bench.shapes import SHAPES, make_adapter, make_base
from server.spawn import serving

ADAPTERS = 32


@dataclass(frozen=True, slots=True)
class Workload:
    """What each request of a load asks, and how often it is all repeated."""

    prompt_tokens: int
    new_tokens: int
    vocabulary: int
    repeats: int


def measure(
    shape: str,
    work: Path,
    *,
    dtype: str,
    clients: int,
    prompt_tokens: int,
    new_tokens: int,
    repeats: int,
    rank: int,
) -> dict[str, Any]:
    """All measures of one shape, interleaved over `repeats` rounds so that noise falls on all alike."""
    base = make_base(shape, work / shape / "base")
    folders = [make_adapter(base, work / shape / f"r{rank}-{i}", rank, i) for i in range(ADAPTERS)]
    names = [f"a{index}" for index in range(ADAPTERS)]
    load = Workload(prompt_tokens, new_tokens, SHAPES[shape][1]["vocab_size"], repeats)
    flags = ["--dtype", dtype, "--model", str(base), "--served-model-name", "base"]
    flags += ["--adapter-memory-gb", "4", "--data-dir", str(work / shape / "data")]
    for name, folder in zip(names, folders, strict=True):
        flags += ["--adapter", f"{name}={folder}"]
    mixed = {
        "base": ["base"] * clients,
        "1 adapter": names[:1] * clients,
        "8 adapters": [names[i % 8] for i in range(clients)],
        "base, 32 clients": ["base"] * 32,
        "32 adapters, 32 clients": names,
    }
    merged = {"base, beside merged": ["base"] * clients, "merged": names[:1] * clients}
    over_http = _serve_and_ask(flags, mixed, load, work / "server.log")
    over_http |= _serve_and_ask([*flags, "--merge", names[0]], merged, load, work / "server.log")
    job = {
        "base": str(base),
        "adapters": [str(folder) for folder in folders[:8]],
        "batch": clients,
        "prompt_tokens": prompt_tokens,
        "new_tokens": new_tokens,
        "repeats": repeats,
        "threads": os.cpu_count(),
    }
    in_process = {
        f"{case}, {peer_dtype}": rates
        for peer_dtype in ("bfloat16", "float32")
        if dtype in ("auto", peer_dtype)
        for case, rates in _peft({**job, "dtype": peer_dtype}, work / "peft-job.json").items()
    }
    return {"over HTTP": over_http, "in process": in_process}


def _serve_and_ask(
    flags: list[str], cases: dict[str, list[str]], load: Workload, log: Path
) -> dict[str, list[dict[str, float]]]:
    """One server; every case once in each round, the first round unrecorded."""
    results: dict[str, list[dict[str, float]]] = {case: [] for case in cases}
    with serving(flags, log) as url:
        for repeat in range(-1, load.repeats):
            for case, models in cases.items():
                result = asyncio.run(
                    run_load(
                        url,
                        [[model] for model in models],
                        prompt_tokens=load.prompt_tokens,
                        new_tokens=load.new_tokens,
                        vocabulary=load.vocabulary,
                        seed=repeat,
                    )
                )
                if repeat >= 0:
                    results[case].append(asdict(result))
    return results


def _peft(job: dict[str, Any], path: Path) -> dict[str, list[float]]:
    path.write_text(json.dumps(job))
    done = subprocess.run(
        [sys.executable, "-m", "bench.peers.peft_generate", str(path)],
        capture_output=True,
        text=True,
        check=True,
        timeout=1800,
    )
    result: dict[str, list[float]] = json.loads(done.stdout.splitlines()[-1])
    return result
