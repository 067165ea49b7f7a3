"""Generated tokens per second: base, 1, 8 and 32 adapters, merged, and PEFT's mixed batch beside them."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bench.load import LoadResult, run_load
from bench.shapes import SHAPES, make_adapter, make_base
from server.spawn import serving

ADAPTERS = 32


def measure(
    shape: str, work: Path, *, clients: int, prompt_tokens: int, new_tokens: int, repeats: int, rank: int
) -> dict[str, Any]:
    """All measures of one shape, interleaved over `repeats` rounds so that noise falls on all alike."""
    base = make_base(shape, work / shape / "base")
    folders = [make_adapter(base, work / shape / f"r{rank}-{i}", rank, i) for i in range(ADAPTERS)]
    names = [f"a{index}" for index in range(ADAPTERS)]
    vocabulary = SHAPES[shape][1]["vocab_size"]

    def cases(count: int) -> dict[str, list[list[str]]]:
        return {
            "base": [["base"]] * count,
            "1 adapter": [[names[0]]] * count,
            "8 adapters": [[names[i % 8]] for i in range(count)],
            "32 adapters": [[names[i]] for i in range(ADAPTERS)],
        }

    flags = ["--model", str(base), "--served-model-name", "base", "--adapter-memory-gb", "4"]
    for name, folder in zip(names, folders, strict=True):
        flags += ["--adapter", f"{name}={folder}"]

    def run(url: str, asked: list[list[str]], seed: int) -> LoadResult:
        return asyncio.run(
            run_load(
                url,
                asked,
                prompt_tokens=prompt_tokens,
                new_tokens=new_tokens,
                vocabulary=vocabulary,
                seed=seed,
            )
        )

    results: dict[str, list[LoadResult]] = {}
    with serving([*flags, "--data-dir", str(work / shape / "data")], work / "server.log") as url:
        todo = {**cases(clients), "base, 32 clients": [["base"]] * 32}
        for repeat in range(-1, repeats):  # the first round warms up
            for case, asked in todo.items():
                result = run(url, asked, repeat)
                if repeat >= 0:
                    results.setdefault(case, []).append(result)
    merged = [*flags, "--merge", names[0], "--data-dir", str(work / shape / "data")]
    with serving(merged, work / "server.log") as url:
        for repeat in range(-1, repeats):
            result = run(url, [[names[0]]] * clients, repeat)
            if repeat >= 0:
                results.setdefault("merged", []).append(result)
    job = {
        "base": str(base),
        "adapters": [str(folder) for folder in folders[:8]],
        "batch": clients,
        "prompt_tokens": prompt_tokens,
        "new_tokens": new_tokens,
        "repeats": max(2, repeats // 2),
        "threads": os.cpu_count(),
    }
    return {
        "over HTTP": {case: [asdict(result) for result in runs] for case, runs in results.items()},
        "in process": _peft(job, work / "peft-job.json"),
    }


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
