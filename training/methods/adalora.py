"""AdaLoRA's schedule, its step, and what it remembers of importance.

It begins with half as many directions again as are wanted and takes away the least important ones, after a
tenth of the steps, each step some, until the last three tenths, in which what is left trains on.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from peft import AdaLoraModel
from torch import Tensor

from training.spec import TrainSpec, require

LEAST_STEPS = 10
_TABLES = ("ipt", "exp_avg_ipt", "exp_avg_unc")


def schedule(rank: int, total_steps: int) -> tuple[int, int, int]:
    """The rank to begin with, the steps before the first cut, and those after the last.

    Raises:
        ValueError: there are too few steps for all three parts.
    """
    require(
        total_steps >= LEAST_STEPS,
        f"adalora needs at least {LEAST_STEPS} steps to find its ranks, and the run has {total_steps}: "
        "train more epochs, or take lora",
    )
    return max(rank + 1, round(1.5 * rank)), round(0.1 * total_steps), round(0.3 * total_steps)


def step_hook(model: Any, spec: TrainSpec) -> Callable[[int], None] | None:
    """What to call after each optimizer step with its number, from 1, while gradients are there; or None."""
    tuner = model.base_model
    if not isinstance(tuner, AdaLoraModel) or not schedules(model):
        return None

    def cut(step: int) -> None:
        tuner.update_and_allocate(step)

    return cut


def penalty(model: Any) -> Tensor | None:
    """What AdaLoRA adds to the loss of a step: how far A's rows and B's columns are from orthogonal; or None.

    PEFT adds it to the loss that a model computes by itself, which a run does not ask for.
    """
    tuner = model.base_model
    if not isinstance(tuner, AdaLoraModel):
        return None
    norms = []
    for name, factor in tuner.model.named_parameters():
        if "lora_A.default" in name or "lora_B.default" in name:
            product = factor @ factor.T if "lora_A" in name else factor.T @ factor
            norms.append(torch.linalg.matrix_norm(product - torch.eye(len(product), device=product.device)))
    mean: Tensor = torch.stack(norms).mean()
    weight: float = model.peft_config["default"].orth_reg_weight
    return weight * mean


def schedules(model: Any) -> bool:
    """Whether ranks are still being found: those of an adapter that a run goes on from are."""
    return not getattr(model, "fixed_ranks", False)


def allocation(model: Any) -> dict[str, Tensor]:
    """What the next step needs beside the weights: importance, and which directions were kept."""
    if not isinstance(model.base_model, AdaLoraModel):
        return {}
    allocator: Any = model.base_model.rankallocator
    found = {
        f"{table}/{name}": value for table in _TABLES for name, value in getattr(allocator, table).items()
    }
    pattern = model.peft_config["default"].rank_pattern or {}
    return found | {f"kept/{_full(name)}": torch.tensor(flags) for name, flags in pattern.items()}


def load_allocation(model: Any, tensors: dict[str, Tensor]) -> None:
    """What `allocation` gave, in its place."""
    if not isinstance(model.base_model, AdaLoraModel):
        return
    allocator: Any = model.base_model.rankallocator
    for table in _TABLES:
        places = {name: parameter.device for name, parameter in model.base_model.model.named_parameters()}
        prefix = f"{table}/"
        setattr(
            allocator,
            table,
            {
                name.removeprefix(prefix): value.to(places[name.removeprefix(prefix)])
                for name, value in tensors.items()
                if name.startswith(prefix)
            },
        )
    kept = {
        name.removeprefix("kept/"): flags.tolist()
        for name, flags in tensors.items()
        if name.startswith("kept/")
    }
    model.peft_config["default"].rank_pattern = kept or None


def _full(name: str) -> str:
    """PEFT drops the adapter's name from the pattern when it saves."""
    return name if name.endswith(".default") else f"{name}.default"
