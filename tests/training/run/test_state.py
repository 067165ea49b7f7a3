"""The state of a run: what is read is what was written, and nothing is a pickle."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from safetensors import safe_open
from torch.nn import Parameter

from training.run.optimizer import make_optimizer, make_schedule
from training.run.state import load_state, save_state
from training.spec import TrainSpec


def stepped(optimizer: torch.optim.Optimizer, weights: list[Parameter], count: int, schedule: Any) -> None:
    for _ in range(count):
        for weight in weights:
            weight.grad = torch.randn_like(weight)
        optimizer.step()
        schedule.step()


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_an_optimizer_goes_on_from_it_exactly(name: Any, tmp_path: Path) -> None:
    spec = TrainSpec(optimizer=name, weight_decay=0.1)
    torch.manual_seed(0)
    weights = [Parameter(torch.randn(3, 4)), Parameter(torch.randn(4))]
    optimizer = make_optimizer(spec, weights)
    schedule = make_schedule(spec, optimizer, 10)
    stepped(optimizer, weights, 3, schedule)
    trainable = {str(index): weight for index, weight in enumerate(weights)}
    save_state(
        tmp_path / "state",
        step=3,
        trainable=trainable,
        optimizer=optimizer.state_dict(),
        schedule=schedule.state_dict(),
        progress={"worse": 1},
    )
    stepped(optimizer, weights, 4, schedule)

    saved = load_state(tmp_path / "state")
    assert (saved.step, saved.progress) == (3, {"worse": 1})
    again = [Parameter(saved.trainable[str(index)]) for index in range(2)]
    other = make_optimizer(spec, again)
    rates = make_schedule(spec, other, 10)
    other.load_state_dict(saved.optimizer)
    rates.load_state_dict(dict(saved.schedule))
    saved.restore_random()
    stepped(other, again, 4, rates)
    assert all(torch.equal(one, two) for one, two in zip(weights, again, strict=True))
    assert other.state_dict()["param_groups"] == optimizer.state_dict()["param_groups"]
    assert rates.get_last_lr() == schedule.get_last_lr()


def empty(folder: Path) -> Path:
    save_state(
        folder, step=0, trainable={}, optimizer={"state": {}, "param_groups": []}, schedule={}, progress={}
    )
    return folder


def test_all_generators_go_on(tmp_path: Path) -> None:
    random.gauss(0, 1)  # keeps a second number for the next call
    numpy.random.standard_normal()
    folder = empty(tmp_path / "state")

    def drawn() -> list[float]:
        return [random.gauss(0, 1), random.random(), numpy.random.standard_normal(), float(torch.rand(()))]

    first = drawn()
    drawn()
    load_state(folder).restore_random()
    assert drawn() == first


def test_all_of_it_is_safetensors_and_json(tmp_path: Path) -> None:
    for path in empty(tmp_path / "state").iterdir():
        if path.suffix == ".json":
            json.loads(path.read_text())
        else:
            assert path.suffix == ".safetensors"
            with safe_open(path, "pt") as file:
                assert isinstance(list(file.keys()), list)


def test_another_format_is_refused(tmp_path: Path) -> None:
    file = empty(tmp_path / "state") / "state.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "format": 99}))
    with pytest.raises(ValueError, match="a state of format 99; this version reads 1"):
        load_state(tmp_path / "state")


def test_the_generators_are_left_as_they_are_by_saving(tmp_path: Path) -> None:
    before = torch.random.get_rng_state(), random.getstate()
    empty(tmp_path / "state")
    assert torch.equal(torch.random.get_rng_state(), before[0])
    assert random.getstate() == before[1]
