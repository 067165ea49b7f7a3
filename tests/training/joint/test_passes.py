"""One pass of several jobs: each has the loss and the gradients that PEFT and transformers give it alone."""

from __future__ import annotations

import copy
import random
import warnings
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from adapters.batch.trainable import TrainableAdapter, TrainableBatch, TrainableDelta
from tests.training.joint.stand import make_model
from training.data import IGNORE, Tokens
from training.joint.passes import Part, labels_of, plan_passes, run_pass, shares_of

BARE = TrainableAdapter({})


def rows(count: int, longest: int, seed: int = 0) -> list[Tokens]:
    """Unequal rows; the first tokens of each have no label."""
    chance = random.Random(seed)
    found = []
    for number in range(count):
        length = longest if number == 0 else chance.randint(4, longest)
        ids = [chance.randrange(3, 200) for _ in range(length)]
        found.append(Tokens(ids, [IGNORE] * 2 + ids[2:]))
    return found


def part(job: str, count: int, longest: int, adapter: TrainableAdapter = BARE) -> Part:
    found = rows(count, longest, sum(job.encode()))
    return Part(job, adapter, found, labels_of(found))


def jobs(passes: list[list[Part]]) -> list[list[str]]:
    return [[found.job for found in one] for one in passes]


def test_parts_of_like_width_go_together_up_to_the_bound() -> None:
    parts = [part("wide", 2, 30), part("narrow", 2, 10), part("other", 4, 12), part("broad", 1, 28)]
    assert jobs(plan_passes(parts, 1000)) == [["broad", "narrow", "wide", "other"]]
    assert jobs(plan_passes(parts, 90)) == [["narrow", "other"], ["broad", "wide"]]
    assert jobs(plan_passes(parts, 72)) == [["narrow", "other"], ["broad"], ["wide"]]


def test_a_part_that_is_too_large_goes_alone() -> None:
    assert jobs(plan_passes([part("a", 8, 30), part("b", 8, 30)], 1)) == [["a"], ["b"]]


def test_the_first_token_has_nothing_before_it() -> None:
    assert labels_of([Tokens([5, 6, 7], [5, 6, IGNORE]), Tokens([5], [5])]) == 1


def with_peft(base: Any, seed: int, **config: Any) -> tuple[Any, TrainableAdapter]:
    """PEFT's model on a copy of the base, B away from zero; and the same weights for a joint pass."""
    torch.manual_seed(seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT warns of fan_in_fan_out, which it then corrects itself
        model = get_peft_model(copy.deepcopy(base), LoraConfig(task_type="CAUSAL_LM", **config))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.1)
    model.to(base.dtype)
    deltas = {
        name: TrainableDelta(
            nn.Parameter(module.lora_A["default"].weight.detach().clone()),
            nn.Parameter(module.lora_B["default"].weight.detach().clone()),
            module.scaling["default"],
        )
        for name, module in model.base_model.model.named_modules()
        if hasattr(module, "lora_A")
    }
    return model, TrainableAdapter(deltas)


ADAPTERS: dict[str, list[dict[str, Any]]] = {
    "llama": [
        {"r": 4, "lora_alpha": 8, "target_modules": "all-linear"},
        {"r": 2, "lora_alpha": 3, "target_modules": ["q_proj", "v_proj"], "use_rslora": True},
        {"r": 3, "target_modules": ["down_proj"], "rank_pattern": {"layers.0.mlp.down_proj": 1}},
    ],
    "llama, head": [
        {"r": 4, "target_modules": ["q_proj", "lm_head"]},
        {"r": 4, "target_modules": ["q_proj"]},
    ],
    "gpt2": [
        {"r": 4, "lora_alpha": 8, "target_modules": "all-linear"},
        {"r": 2, "target_modules": ["c_attn", "mlp.c_proj"]},
    ],
}


@pytest.mark.parametrize("case", ADAPTERS)
def test_loss_and_gradients_are_those_of_each_job_alone(case: str) -> None:
    """In float64, to rounding. A job counts more labels than its part has: those of its whole step."""
    base = make_model(case.split(",")[0]).double().eval().requires_grad_(False)
    models, parts = [], []
    for number, config in enumerate(ADAPTERS[case]):
        model, adapter = with_peft(base, number, **config)
        own = rows(2 + number % 2, 7 + 3 * number, seed=number)
        models.append(model)
        parts.append(Part(str(number), adapter, own, labels_of(own) + number))
    batch = TrainableBatch()
    for each in parts:
        batch.attach(base, list(each.adapter.deltas))

    with batch.passing(*shares_of(parts)):
        done = run_pass(base, parts, lambda shares, width: nullcontext())
    torch.autograd.backward(torch.stack([found.loss for found in done]).sum())

    for model, found in zip(models, done, strict=True):
        expected, correct = alone(model, found.part)
        torch.testing.assert_close(found.loss, expected, rtol=1e-12, atol=1e-12)
        assert found.correct == correct
        torch.autograd.backward(expected)
        for name, delta in found.part.adapter.deltas.items():
            layer = model.base_model.model.get_submodule(name)
            for ours, peft in ((delta.a, layer.lora_A), (delta.b, layer.lora_B)):
                torch.testing.assert_close(ours.grad, peft["default"].weight.grad, rtol=1e-10, atol=1e-13)


def alone(model: Any, part: Part) -> tuple[torch.Tensor, int]:
    """Row by row without padding, with transformers' own loss."""
    total, correct = torch.zeros((), dtype=torch.float64), 0
    for row in part.rows:
        ids, labels = torch.tensor([row.ids]), torch.tensor([row.labels])
        output = model(input_ids=ids, labels=labels)
        # Transformers computes it in float32: here only which tokens count is taken from it.
        kept = labels[0, 1:] != IGNORE
        losses = nn.functional.cross_entropy(output.logits[0, :-1].double(), labels[0, 1:], reduction="none")
        mean = (losses * kept).sum() / kept.sum()
        torch.testing.assert_close(mean, output.loss.double(), rtol=1e-5, atol=1e-5)
        total = total + (losses * kept).sum()
        correct += int(((output.logits[0, :-1].argmax(-1) == labels[0, 1:]) & kept).sum())
    return total / part.labels, correct
