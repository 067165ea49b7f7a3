"""AdaLoRA: its schedule, when it cuts, its penalty, and ranks that add up to what was asked for."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.training.methods.stand import batches, begin, optimizer_of, spec_for, train_on
from training.methods import penalty, step_hook
from training.methods.adalora import LEAST_STEPS, allocation, schedule

SPEC = spec_for(method="adalora", target_modules=("q_proj", "v_proj"))


@pytest.mark.parametrize(("rank", "steps", "wanted"), [(8, 1000, (12, 100, 300)), (1, 10, (2, 1, 3))])
def test_the_schedule(rank: int, steps: int, wanted: tuple[int, int, int]) -> None:
    assert schedule(rank, steps) == wanted


def test_too_few_steps_are_refused() -> None:
    with pytest.raises(
        ValueError, match="adalora needs at least 10 steps to find its ranks, and the run has 9"
    ):
        schedule(8, LEAST_STEPS - 1)


def test_ranks_are_cut_to_the_budget_and_stay(base: Path) -> None:
    model = begin(base, SPEC)
    kept: list[int] = []
    hook = step_hook(model, SPEC)
    assert hook is not None
    optimizer, rows = optimizer_of(model), batches("CAUSAL_LM")
    for step in range(1, LEAST_STEPS + 1):
        model(**rows[step % 3]).loss.backward()
        optimizer.step()
        hook(step)
        optimizer.zero_grad()
        kept.append(
            sum(int(flags.sum()) for name, flags in allocation(model).items() if name.startswith("kept"))
        )
    # Six modules begin with rank 6; step 1 is before the first cut; steps 7 to 10 have the wanted rank, 4.
    assert kept[0] == 0
    assert kept[1] < 36
    assert sorted(kept[1:7], reverse=True) == kept[1:7]
    assert kept[6:] == [24] * 4
    directions = [value for name, value in model.named_parameters() if "lora_E" in name]
    assert sum(int((each != 0).sum()) for each in directions) == 24


def test_other_methods_have_no_hook_and_no_penalty(base: Path) -> None:
    spec = spec_for(target_modules=("q_proj",))
    model = begin(base, spec)
    assert step_hook(model, spec) is None
    assert penalty(model) is None


def test_the_penalty_is_what_peft_adds_to_the_loss(base: Path) -> None:
    model = begin(base, SPEC).eval()
    batch = batches("CAUSAL_LM")[0]
    with_it = model(**batch).loss
    model.peft_config["default"].orth_reg_weight = 0
    without = model(**batch).loss
    model.peft_config["default"].orth_reg_weight = 0.5
    found: Any = penalty(model)
    torch.testing.assert_close(with_it - without, found)
    found.backward()
    assert all(value.grad is not None for name, value in model.named_parameters() if "lora_A" in name)


def test_importance_decides_what_is_cut(base: Path) -> None:
    """Directions that the loss does not feel are the first to go."""
    model = begin(base, SPEC)
    names = [name for name, _ in model.base_model.model.named_parameters() if "lora_E" in name]
    dead = copy.copy(names[0]).replace("lora_E", "lora_B")
    tensors = dict(model.base_model.model.named_parameters())
    tensors[dead].requires_grad_(False)
    with torch.no_grad():
        tensors[dead].zero_()
        tensors[names[0]].zero_()
    tensors[dead].requires_grad_(True)
    for name in (names[0], dead, names[0].replace("lora_E", "lora_A")):
        tensors[name].register_hook(torch.zeros_like)
    train_on(model, SPEC, optimizer_of(model))
    flags = allocation(model)[f"kept/{names[0]}"]
    assert not flags.any()
