"""`python -m bench MEASURE`: measure, print, write the raw results."""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from bench.hot_swap import measure_hot_swap
from bench.load import median
from bench.lora_forms import measure_forms
from bench.shapes import SHAPES
from bench.throughput import measure


def main() -> None:
    """Run the benchmark that the command line names."""
    parser = argparse.ArgumentParser(prog="python -m bench")
    parser.add_argument("what", choices=["throughput", "hot-swap", "lora-forms"])
    parser.add_argument("--shape", choices=[*SHAPES], default="135m")
    parser.add_argument("--dtype", choices=["auto", "bfloat16", "float32"], default="auto")
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--prompt-tokens", type=int, default=64)
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--work", type=Path, default=None, help="folder for models, kept for the next run")
    parser.add_argument("--output", type=Path, default=Path("docs/benchmarks"))
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        work = arguments.work or Path(temporary)
        work.mkdir(parents=True, exist_ok=True)
        results = _measure(arguments, work)
    setting = {
        name: getattr(arguments, name)
        for name in ("shape", "dtype", "clients", "prompt_tokens", "new_tokens", "repeats", "rank")
    }
    report = {"setting": setting, "machine": _machine(), "date": time.strftime("%Y-%m-%d"), **results}
    arguments.output.mkdir(parents=True, exist_ok=True)
    kind = "" if arguments.dtype == "auto" else f"-{arguments.dtype}"
    path = arguments.output / f"{arguments.what}-{arguments.shape}{kind}.json"
    path.write_text(json.dumps(report, indent=1) + "\n")
    print(table(report) if arguments.what == "throughput" else json.dumps(results, indent=1))
    print(f"wrote {path}")


def _measure(arguments: argparse.Namespace, work: Path) -> dict[str, Any]:
    if arguments.what == "lora-forms":
        return {"milliseconds of a layer": measure_forms(arguments.shape, arguments.rank, arguments.repeats)}
    if arguments.what == "hot-swap":
        return measure_hot_swap(arguments.shape, work, clients=arguments.clients, rank=arguments.rank)
    return measure(
        arguments.shape,
        work,
        dtype=arguments.dtype,
        clients=arguments.clients,
        prompt_tokens=arguments.prompt_tokens,
        new_tokens=arguments.new_tokens,
        repeats=arguments.repeats,
        rank=arguments.rank,
    )


def _machine() -> dict[str, Any]:
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []:
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor()


def table(report: dict[str, Any]) -> str:
    """Medians as a Markdown table; the ratio is to the faster of PEFT's mixed batches."""
    mixed = [rates for case, rates in report["in process"].items() if case.startswith("mixed")]
    peft = max(median(rates) for rates in mixed)
    rows = [
        "| measure | tokens/s | first token, ms | between tokens, ms | x PEFT mixed |",
        "|---|---|---|---|---|",
    ]
    for case, runs in report["over HTTP"].items():
        rate = median([run["tokens_per_second"] for run in runs])
        first = 1000 * median([run["first_token"] for run in runs])
        between = 1000 * median([run["between_tokens"] for run in runs])
        rows.append(f"| {case} | {rate:.0f} | {first:.0f} | {between:.1f} | {rate / peft:.2f} |")
    for case, rates in report["in process"].items():
        rows.append(f"| PEFT in process: {case} | {median(rates):.0f} | | | {median(rates) / peft:.2f} |")
    return "\n".join(rows)


if __name__ == "__main__":
    main()
