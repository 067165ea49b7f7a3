"""The optimizer of a spec."""

from __future__ import annotations

import pytest
import torch
from torch.nn import Parameter

from training.run.optimizer import make_optimizer, make_schedule
from training.spec import TrainSpec


def parameters() -> list[Parameter]:
    frozen = Parameter(torch.ones(2, 2), requires_grad=False)
    return [Parameter(torch.ones(2, 3)), Parameter(torch.ones(3)), frozen]


def test_matrices_decay_and_vectors_and_what_is_frozen_do_not() -> None:
    given = parameters()
    optimizer = make_optimizer(TrainSpec(weight_decay=0.5, learning_rate=0.1), given)
    assert [(len(group["params"]), group["weight_decay"]) for group in optimizer.param_groups] == [
        (1, 0.5),
        (1, 0.0),
    ]
    for parameter in given:
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    assert given[0][0, 0].item() == pytest.approx(1 - 0.1 * 0.5)
    assert given[1][0].item() == given[2][0, 0].item() == 1


def test_each_name_is_its_optimizer() -> None:
    assert isinstance(make_optimizer(TrainSpec(), parameters()), torch.optim.AdamW)
    assert isinstance(make_optimizer(TrainSpec(optimizer="sgd"), parameters()), torch.optim.SGD)


def test_the_schedule_is_the_spec_s() -> None:
    spec = TrainSpec(schedule="linear", warmup=0.2, learning_rate=1.0)
    optimizer = make_optimizer(spec, parameters())
    schedule = make_schedule(spec, optimizer, 10)
    seen = []
    for _ in range(10):
        seen.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    assert seen.index(max(seen)) == 2
    assert seen == pytest.approx(
        [min(1, (step + 1) / 3) * (0.02 + 0.98 * (1 - step / 10)) for step in range(10)]
    )
