"""Trains the adapters that are shipped with the base, one for each of the demo's tenants but the live one.

python -m training.base.shipped
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

from training.base import ADAPTERS_DIR, MODEL_DIR
from training.data import TextExample
from training.evaluate import exact_match
from training.events import Report
from training.run import RunResult, TrainingData, ignore, train
from training.spec import TrainSpec
from training.tasks import LIVE_TASK, TASKS, make_examples

EXAMPLES = 2000
SPEC = TrainSpec(steps=160, learning_rate=1e-2)
"""What every task of the demo is trained with, the shipped ones and the live one."""


def train_task(task: str, folder: Path, base: Path = MODEL_DIR, report: Report = ignore) -> RunResult:
    """Train the adapter of one of the demo's tasks."""
    rows = [TextExample(item.prompt, item.completion) for item in make_examples(task, EXAMPLES)]
    return train(SPEC, base, TrainingData(rows), folder, report=report)


def held_out_match(task: str, adapter: Path, base: Path = MODEL_DIR, cases: int = 100) -> float:
    """Exact match of a task's adapter on held-out words, by plain PEFT and transformers."""
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter).eval()
    pairs = [(item.prompt, item.completion) for item in make_examples(task, cases, split="held-out")]
    return exact_match(model, AutoTokenizer.from_pretrained(base), pairs)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m training.base.shipped", description=__doc__)
    parser.add_argument("--base", type=Path, default=MODEL_DIR)
    parser.add_argument("--output", type=Path, default=ADAPTERS_DIR)
    parser.add_argument(
        "--tasks", nargs="*", choices=TASKS, default=[name for name in TASKS if name != LIVE_TASK]
    )
    args = parser.parse_args()
    torch.set_num_threads(1)
    logging.disable_progress_bar()
    for task in args.tasks:
        with TemporaryDirectory() as folder:
            result = train_task(task, Path(folder), args.base)
            (args.output / task).mkdir(parents=True, exist_ok=True)
            for name in ("adapter_config.json", "adapter_model.safetensors"):
                shutil.copyfile(Path(folder) / name, args.output / task / name)
        score = held_out_match(task, args.output / task, args.base)
        print(
            f"{task}: {score:.2f} on held-out words, loss {result.loss:.3f}, {result.seconds:.0f} s",
            flush=True,
        )


if __name__ == "__main__":
    main()
