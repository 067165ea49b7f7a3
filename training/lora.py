"""Trains one LoRA adapter with PEFT and writes it as a standard PEFT folder.

    python -m training.lora --data FILE.jsonl --output DIR

The base is loaded afresh, frozen, and thrown away: its files are never written.
"""

from __future__ import annotations

import argparse
import math
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, TaskType, get_peft_model
from torch import Tensor
from tqdm import tqdm
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

from training.base import BASE_NAME, MODEL_DIR
from training.data import IGNORE, Example, Tokens, read_jsonl, tokenize
from training.rates import warmup_cosine
from training.spec import LoraSpec, TrainSpec, require
from training.targets import resolve_targets


class TrainingError(RuntimeError):
    """A run that can't go on, with its reason."""


@dataclass(frozen=True, slots=True)
class TrainResult:
    """What a run gave; `losses` has one value for each step."""

    output_dir: Path
    losses: tuple[float, ...]
    steps: int
    seconds: float
    trained_tokens: int
    trainable_parameters: int
    total_parameters: int

    @property
    def loss(self) -> float:
        """Mean loss of the last tenth of the steps."""
        tail = self.losses[-max(1, self.steps // 10) :]
        return sum(tail) / len(tail)


def train_adapter(
    spec: TrainSpec,
    base_path: str | Path,
    examples: Sequence[Example],
    output_dir: Path,
    progress: bool = True,
) -> TrainResult:
    """Train an adapter on examples and write it to `output_dir`.

    The same spec, base, examples and thread count give the same adapter.

    Raises:
        ValueError: no examples, or some do not fit the base's chat template or `max_length`; target modules
            that the base does not have.
        TrainingError: the loss stopped being a number.
    """
    tokens = prepare(examples, AutoTokenizer.from_pretrained(base_path), spec.max_length)
    with torch.random.fork_rng():
        torch.manual_seed(spec.seed)
        base = AutoModelForCausalLM.from_pretrained(base_path, dtype=torch.float32)
        targets = resolve_targets(base, base.config.model_type, spec.lora.target_modules)
        model = get_peft_model(base, _peft_config(spec.lora, targets))
        started = time.monotonic()
        losses, trained = _run(model, tokens, spec, progress)
        seconds = time.monotonic() - started
    _save(model, _base_name(base_path), output_dir)
    trainable, total = model.get_nb_trainable_parameters()
    return TrainResult(output_dir, tuple(losses), len(losses), seconds, trained, trainable, total)


def prepare(examples: Sequence[Example], tokenizer: Any, max_length: int) -> list[Tokens]:
    """Tokenize all examples; every one that can't be used is named in one error."""
    require(bool(examples), "there are no examples to train on")
    tokens: list[Tokens] = []
    problems: list[str] = []
    for number, example in enumerate(examples, start=1):
        try:
            row = tokenize(example, tokenizer)
        except ValueError as error:
            problems.append(f"example {number}: {error}")
            continue
        if len(row.ids) > max_length:
            problems.append(f"example {number}: {len(row.ids)} tokens, more than max_length={max_length}")
        tokens.append(row)
    require(not problems, "\n".join(problems))
    return tokens


def collate(rows: Sequence[Tokens], pad_id: int) -> dict[str, Tensor]:
    """A batch padded on the right, with a mask and labels that leave the padding out."""
    width = max(len(row.ids) for row in rows)
    pads = [width - len(row.ids) for row in rows]
    return {
        "input_ids": torch.tensor([row.ids + [pad_id] * pad for row, pad in zip(rows, pads, strict=True)]),
        "attention_mask": torch.tensor([[1] * (width - pad) + [0] * pad for pad in pads]),
        "labels": torch.tensor([row.labels + [IGNORE] * pad for row, pad in zip(rows, pads, strict=True)]),
    }


def _run(model: PeftModel, tokens: list[Tokens], spec: TrainSpec, progress: bool) -> tuple[list[float], int]:
    steps = spec.total_steps(len(tokens))
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=spec.learning_rate, weight_decay=spec.weight_decay)
    rate = warmup_cosine(steps, round(spec.warmup * steps))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
    batches = _batches(tokens, spec)
    losses: list[float] = []
    trained = 0
    model.train()
    with tqdm(range(steps), desc="train", unit="step", disable=not progress) as bar:
        for step in bar:
            batch = collate(next(batches), pad_id=0)
            trained += int((batch["labels"] != IGNORE).sum())
            loss = model(**batch).loss
            losses.append(float(loss.detach()))
            if not math.isfinite(losses[-1]):
                raise TrainingError(f"the loss is {losses[-1]} at step {step + 1}: lower the learning rate")
            loss.backward()
            torch.nn.utils.clip_grad_norm_(weights, 1.0)
            bar.set_postfix(loss=f"{losses[-1]:.3f}", lr=f"{schedule.get_last_lr()[0]:.1e}", refresh=False)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
    return losses, trained


def _batches(tokens: list[Tokens], spec: TrainSpec) -> Iterator[list[Tokens]]:
    """Batches without end; each epoch has every example once, in its own order."""
    rng = random.Random(spec.seed)
    while True:
        order = rng.sample(tokens, len(tokens))
        for start in range(0, len(order), spec.batch_size):
            yield order[start : start + spec.batch_size]


def _peft_config(lora: LoraSpec, targets: str | list[str]) -> LoraConfig:
    return LoraConfig(
        task_type=TaskType.CAUSAL_LM,
        r=lora.rank,
        lora_alpha=lora.alpha,
        target_modules=targets,
        use_rslora=lora.method == "rslora",
        lora_dropout=lora.dropout,
    )


def _base_name(base_path: str | Path) -> str:
    """The shipped base is named the same wherever it is installed."""
    return BASE_NAME if Path(base_path).resolve() == MODEL_DIR else str(base_path)


def _save(model: PeftModel, base_name: str, output_dir: Path) -> None:
    """PEFT's two files, the same bytes each time; without its card, a form with every field left open."""
    config = model.peft_config["default"]
    config.base_model_name_or_path = base_name
    if not isinstance(config.target_modules, str):
        config.target_modules = sorted(config.target_modules)
    if config.target_parameters:  # PEFT's name for layers of experts that are one parameter
        config.target_parameters = sorted(config.target_parameters)
    card = output_dir / "README.md"
    kept = card.read_bytes() if card.exists() else None
    model.save_pretrained(output_dir, save_embedding_layers=False)
    if kept is None:
        card.unlink(missing_ok=True)
    else:
        card.write_bytes(kept)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m training.lora", description="Train one LoRA adapter.")
    parser.add_argument(
        "--data", type=Path, required=True, help="JSONL with prompt and completion, or messages"
    )
    parser.add_argument("--output", type=Path, required=True, help="folder for the adapter")
    parser.add_argument("--base", default=str(MODEL_DIR), help="folder or hub id (default: the shipped base)")
    parser.add_argument("--rank", type=int, default=LoraSpec.rank)
    parser.add_argument("--alpha", type=float, default=LoraSpec.alpha)
    parser.add_argument("--epochs", type=int, default=TrainSpec.epochs)
    parser.add_argument("--learning-rate", type=float, default=TrainSpec.learning_rate)
    parser.add_argument("--seed", type=int, default=TrainSpec.seed)
    args = parser.parse_args()
    logging.disable_progress_bar()  # transformers' own: ours says what matters
    try:
        lora = LoraSpec(rank=args.rank, alpha=args.alpha)
        spec = TrainSpec(lora, epochs=args.epochs, learning_rate=args.learning_rate, seed=args.seed)
        result = train_adapter(spec, args.base, read_jsonl(args.data), args.output)
    except (OSError, ValueError, TrainingError) as error:
        raise SystemExit(f"error: {error}") from None
    print(f"{result.output_dir}: loss {result.loss:.3f} after {result.steps} steps in {result.seconds:.0f} s")


if __name__ == "__main__":
    main()
