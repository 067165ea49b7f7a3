"""`python -m bench MEASURE`: measure, write the raw results, and make the page of results from them."""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from bench.adapter_load import measure_adapter_load
from bench.chart import throughput_chart
from bench.dora import measure_dora
from bench.fine_tuning import measure_fine_tuning
from bench.floor import measure_floor
from bench.gpu import measure_gpu
from bench.heartbeat import measure_heartbeat
from bench.hot_swap import measure_hot_swap
from bench.joint import measure_joint
from bench.long_prompt import measure_long_prompt
from bench.lora_forms import measure_forms
from bench.reports import read_reports, write_report
from bench.rounds import Rounds, say
from bench.setting import Bench, default_tokens
from bench.shapes import SHAPES, SHIPPED
from bench.startup import measure_startup
from bench.table import results_page
from bench.throughput import measure_merged, measure_single, measure_throughput
from bench.training_beside import measure_training_beside
from bench.zipf import measure_zipf

MEASURES: dict[str, Callable[[Bench], Rounds]] = {
    "throughput": measure_throughput,
    "merged": measure_merged,
    "single": measure_single,
    "zipf": measure_zipf,
    "long-prompt": measure_long_prompt,
    "floor": measure_floor,
    "dora": measure_dora,
    "heartbeat": measure_heartbeat,
    "adapter-load": measure_adapter_load,
    "startup": measure_startup,
    "hot-swap": measure_hot_swap,
    "joint": measure_joint,
}
ASIDE: dict[str, Callable[[Bench], Rounds]] = {
    "lora-forms": measure_forms,
    "gpu": measure_gpu,
    "training-beside": measure_training_beside,
    "fine-tuning": measure_fine_tuning,
}
"""Measured when named only."""
_SHAPES = {"gpu": ["7b"], "fine-tuning": [SHIPPED]}
"""Of the measures that have shapes of their own."""
PAGE, CHART = "RESULTS.md", "throughput.svg"
_QUICK_TOKENS = 4


def main(arguments: list[str] | None = None) -> int:
    """Run what the command line names; returns the exit code, 1 if a measure failed."""
    options = build_parser().parse_args(arguments)
    if options.what == "report":
        write_page(options.output)
        return 0
    if options.what == "gpu" and not torch.cuda.is_available():
        say("python -m bench gpu: torch sees no GPU here")
        return 2
    names = [*MEASURES] if options.what == "all" else [options.what]
    with tempfile.TemporaryDirectory() as temporary:
        work = options.work or Path(temporary)
        failed = [
            f"{name} {shape}"
            for shape in options.shape or _SHAPES.get(options.what, ["135m", "0.5b"])
            for name in names
            if not run_measure(name, _bench(options, shape, work), options.output)
        ]
    write_page(options.output)
    if failed:
        say(f"failed: {', '.join(failed)}")
    return 1 if failed else 0


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("what", choices=["all", "report", *MEASURES, *ASIDE])
    parser.add_argument(
        "--shape",
        action="append",
        choices=[*SHAPES, SHIPPED],
        help="repeat for more; default: 135m and 0.5b, save for measures that have one of their own",
    )
    parser.add_argument("--dtype", choices=["auto", "bfloat16", "float32"], default="auto")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--prompt-tokens", type=int, default=64)
    parser.add_argument("--new-tokens", type=int, help="by each request; default: by shape")
    parser.add_argument("--quick", action="store_true", help="one repeat of little: only shows that all runs")
    parser.add_argument(
        "--vllm", type=Path, help="folder for vLLM's environment, made if missing; else vLLM is left out"
    )
    parser.add_argument("--work", type=Path, help="folder for models, kept for the next run")
    parser.add_argument("--output", type=Path, default=Path("docs/benchmarks"))
    return parser


def _bench(options: argparse.Namespace, shape: str, work: Path) -> Bench:
    new, wide = default_tokens(shape)
    if options.new_tokens:
        new = wide = options.new_tokens
    if options.quick:
        new = wide = _QUICK_TOKENS
    bench = Bench(
        shape,
        work.absolute(),
        options.dtype,
        prompt_tokens=options.prompt_tokens,
        new_tokens=new,
        wide_tokens=wide,
        repeats=1 if options.quick else options.repeats,
        vllm=options.vllm and options.vllm.absolute(),
        quick=options.quick,
    )
    bench.folder.mkdir(parents=True, exist_ok=True)
    return bench


def run_measure(name: str, bench: Bench, output: Path) -> bool:
    """Measure and write the report; False, with the reason on standard error, if it failed."""
    say(f"{name}, {bench.shape}")
    started = time.perf_counter()
    try:
        done = {**MEASURES, **ASIDE}[name](bench)
    except Exception as error:  # one broken measure must not cost the others their results
        say(f"{name}, {bench.shape} failed: {type(error).__name__}: {error}")
        return False
    path = write_report(name, bench, done, output)
    say(f"wrote {path} after {time.perf_counter() - started:.0f} seconds")
    return True


def write_page(output: Path) -> None:
    """Make the page and the chart from the JSON files in `output`; print the page."""
    output.mkdir(parents=True, exist_ok=True)
    reports = read_reports(output)
    chart = throughput_chart(reports)
    if chart:
        (output / CHART).write_text(chart)
    page = results_page(reports, [CHART] if chart else [])
    (output / PAGE).write_text(page)
    print(page)


if __name__ == "__main__":
    sys.exit(main())
