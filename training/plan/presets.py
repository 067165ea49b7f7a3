"""Two ways to choose: `modern`, from what has been measured since, and `tutorial`, the rules of the texts.

Each choice is a value with its reason. Where the texts give ranges, the reason names their rule;
docs/seeds.md says where they err.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, get_args

from training.data.advice import auto_epochs
from training.plan.facts import BaseFacts, RowFacts
from training.plan.trainable import count
from training.spec import LoraSpec

PresetName = Literal["modern", "tutorial"]
PRESETS: tuple[PresetName, ...] = get_args(PresetName)
TINY = 50_000_000
"""Parameters below which the learning rate follows the width without damping."""
HIGHEST_RATE = 1e-2
"""Twice as much makes the shipped base diverge (measured)."""
MODERN_ALPHA = 32.0
_FULL_RATE, _LORA_TIMES, _WIDTH = 5e-5, 10, 2000
_BILLION = 10**9


@dataclass(frozen=True, slots=True)
class Choice:
    """The value of one field of `TrainSpec` or `LoraSpec`, or the effective batch, and why."""

    value: Any
    reason: str


Choices = dict[str, Choice]


def modern(base: BaseFacts, rows: RowFacts, gpu_bytes: int | None) -> Choices:
    """All linear layers, and about ten times the rate of full training."""
    return {
        "target_modules": Choice(
            "all-linear", "all layers learn more than q and v; most of it sits in the feed-forward part"
        ),
        "rank": _rank_for(base, rows),
        "alpha": modern_alpha("lora", 1),
        "dropout": Choice(0.0, "few epochs over clean rows need none; the run advises it when it overfits"),
        "learning_rate": modern_rate(base),
        "effective_batch": small_batch(rows),
        "epochs": _epochs(rows),
        "weight_decay": Choice(0.0, "the adapter begins at zero and stays small in few steps"),
        "schedule": Choice("cosine", "falls smoothly to a fiftieth, after a twentieth of the steps going up"),
    }


def tutorial(base: BaseFacts, rows: RowFacts, gpu_bytes: int | None) -> Choices:
    """The texts' rules by the GPU's memory where it is known, else by the base's size."""
    rank, alpha = _by_memory(gpu_bytes) if gpu_bytes else _by_size(base.parameters)
    targets = Choice("default", f"the texts begin with q and v: {', '.join(base.usual)} in {base.model_type}")
    if not base.usual:
        targets = Choice("all-linear", f"the texts begin with q and v, and name none for {base.model_type}")
    return {
        "target_modules": targets,
        "rank": rank,
        "alpha": alpha,
        "dropout": Choice(0.05, "0.05 to 0.1 in the texts, more where it overfits"),
        "learning_rate": tutorial_rate(base),
        "effective_batch": Choice(16, "8 rows x 2 passes, the texts' example"),
        "epochs": Choice(3, "1 to 3 in the texts"),
        "weight_decay": Choice(
            0.01, "the texts ask for strong regularisation and give no figure: AdamW's usual"
        ),
        "schedule": Choice("cosine", "warmup and cosine, as the texts say (a schedule, not an optimizer)"),
    }


CHOOSERS: dict[PresetName, Callable[[BaseFacts, RowFacts, int | None], Choices]] = {
    "modern": modern,
    "tutorial": tutorial,
}


def modern_alpha(method: str, rank: int) -> Choice:
    """So that the strength is 32 over the rank, whatever the method divides by."""
    if method == "rslora":
        alpha = round(MODERN_ALPHA / math.sqrt(rank), 2)
        return Choice(alpha, "divided by the root of the rank, it is as strong as 32 divided by the rank")
    return Choice(
        MODERN_ALPHA, "32 at any rank: divided by the rank, it keeps the best learning rate in place"
    )


def modern_rate(base: BaseFacts) -> Choice:
    """Ten times full training's `5e-5`, which is for a width of 2000; narrower models take more.

    The exponents are tinker-cookbook's fits (0.781 for Llama, 0.0775 for Qwen). Adam moves each weight by
    about the rate, and a layer adds up as many weights as it is wide, so for one step's effect the rate goes
    as 1/width (Yang et al. 2022, arXiv 2203.03466): tiny bases, far from those fits, get just that.
    """
    rate, reason = _scaled(base, _FULL_RATE * _LORA_TIMES)
    return Choice(rate, f"10 x full training's {_FULL_RATE:g} at a width of {_WIDTH}; {reason}")


def tutorial_rate(base: BaseFacts) -> Choice:
    """Small, as the texts say without a figure."""
    rate, reason = _scaled(base, 2e-4)
    return Choice(
        rate, f"'small' in the texts, without a figure: the usual 2e-4 at a width of {_WIDTH}; {reason}"
    )


def _scaled(base: BaseFacts, rate: float) -> tuple[float, str]:
    if base.parameters < TINY:
        power, why = 1.0, "a tiny base: in proportion to 1/width"
    elif base.model_type.startswith("qwen"):
        power, why = 0.0775, "Qwen hardly depends on its width"
    else:
        power, why = 0.781, "in proportion to 1/width^0.781"
    scaled = min(HIGHEST_RATE, rate * (_WIDTH / base.hidden) ** power)
    digits = 1 - math.floor(math.log10(scaled))
    return round(scaled, digits), f"{why} (this one: {base.hidden})"


def _rank_for(base: BaseFacts, rows: RowFacts) -> Choice:
    """The smallest usual rank with as many parameters as there are tokens to learn."""
    ranks = (8, 16, 32, 64, 128)
    for rank in ranks:
        trained = count(base, LoraSpec(rank=rank)).adapter
        if trained >= rows.trained:
            return Choice(rank, f"{trained:,} parameters hold the {rows.trained:,} tokens to learn")
    return Choice(ranks[-1], f"the most; {rows.trained:,} tokens to learn would fill a larger one")


def small_batch(rows: RowFacts) -> Choice:
    """16, or less where that would leave few steps."""
    seen = rows.rows * _epochs(rows).value
    size = 16
    while size > 1 and seen // size < 100:
        size //= 2
    reason = "LoRA bears large batches less well than full training"
    return Choice(size, reason if size == 16 else f"so that there are about 100 steps; {reason}")


def _epochs(rows: RowFacts) -> Choice:
    """OpenAI's rule for `auto`."""
    epochs = auto_epochs(rows.rows)
    if epochs == 3:
        return Choice(epochs, "three passes over the rows")
    size, seen = ("few", "100") if epochs > 3 else ("many", "25,000")
    return Choice(epochs, f"{rows.rows:,} rows are {size}: about {seen} are to be seen")


def _by_memory(gpu_bytes: int) -> tuple[Choice, Choice]:
    """The texts' table by GPU: 8 GB r=4, 12 GB r=8, 24 GB r=16."""
    size = gpu_bytes / 1024**3
    rank, alpha, card = (4, 16, "8") if size < 12 else (8, 32, "12") if size < 24 else (16, 32, "24")
    said = f"the texts' row for {card} GB"
    return Choice(rank, said), Choice(float(alpha), said)


def _by_size(parameters: int) -> tuple[Choice, Choice]:
    """The texts' rule by size: about 10B r=4 or 8, 32B r=16, 64B r=24 or 32; alpha is twice the rank."""
    billions = parameters / _BILLION
    rank, band = (
        (8, "10B: 4 or 8") if billions < 20 else (16, "32B: 16") if billions < 48 else (32, "64B: 24 or 32")
    )
    return Choice(rank, f"the texts' rule for about {band}"), Choice(2.0 * rank, "twice the rank")
