"""`python -m bench throughput`: measure, print a table, write the raw results."""

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

from bench.load import median
from bench.shapes import SHAPES
from bench.throughput import measure


def main() -> None:
    """Run the benchmarks that the command line names."""
    parser = argparse.ArgumentParser(prog="python -m bench")
    parser.add_argument("what", choices=["throughput"])
    parser.add_argument("--shape", choices=[*SHAPES], default="135m")
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
        results = measure(
            arguments.shape,
            work,
            clients=arguments.clients,
            prompt_tokens=arguments.prompt_tokens,
            new_tokens=arguments.new_tokens,
            repeats=arguments.repeats,
            rank=arguments.rank,
        )
    setting = {
        name: getattr(arguments, name)
        for name in ("shape", "clients", "prompt_tokens", "new_tokens", "repeats", "rank")
    }
    report = {"setting": setting, "machine": _machine(), "date": time.strftime("%Y-%m-%d"), **results}
    arguments.output.mkdir(parents=True, exist_ok=True)
    path = arguments.output / f"throughput-{arguments.shape}.json"
    path.write_text(json.dumps(report, indent=1) + "\n")
    print(table(report))
    print(f"wrote {path}")


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
    """Medians as a Markdown table; the ratio is to PEFT's mixed batch of 8."""
    peft = median(report["in process"]["mixed"])
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
        rows.append(f"| PEFT {case}, in process | {median(rates):.0f} | | | {median(rates) / peft:.2f} |")
    return "\n".join(rows)


if __name__ == "__main__":
    main()
