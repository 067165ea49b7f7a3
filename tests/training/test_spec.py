"""Specs refuse what can't be run, in one line that names the value."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable

import pytest

from training.spec import LoraSpec, TrainSpec, spec_from_json, spec_to_json


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LoraSpec(rank=0), "rank must be at least 1, not 0"),
        (lambda: LoraSpec(alpha=0), "alpha must be above 0, not 0"),
        (lambda: LoraSpec(alpha=math.inf), "alpha must be above 0, not inf"),
        (lambda: LoraSpec(alpha_pattern={"q_proj": math.nan}), "the alpha of q_proj must be above 0"),
        (lambda: TrainSpec(weight_decay=math.inf), "weight_decay must be at least 0, not inf"),
        (lambda: LoraSpec(dropout=1), "dropout must be from 0 to below 1, not 1"),
        (lambda: LoraSpec(target_modules=()), "target_modules is empty"),
        (lambda: TrainSpec(epochs=0), "epochs must be at least 1, not 0"),
        (lambda: TrainSpec(steps=0), "steps must be at least 1, not 0"),
        (lambda: TrainSpec(batch_size=0), "batch_size must be at least 1, not 0"),
        (lambda: TrainSpec(learning_rate=-1), "learning_rate must be above 0, not -1"),
        (lambda: TrainSpec(warmup=1), "warmup must be from 0 to below 1, not 1"),
        (lambda: TrainSpec(weight_decay=-1), "weight_decay must be at least 0, not -1"),
        (lambda: TrainSpec(max_length=1), "max_length must be at least 2, not 1"),
    ],
)
def test_bad_values_are_named(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_steps_win_over_epochs() -> None:
    assert TrainSpec(epochs=2, batch_size=8).total_steps(17) == 6
    assert TrainSpec(epochs=2, batch_size=8, steps=5).total_steps(17) == 5


def test_a_spec_survives_json() -> None:
    lora = LoraSpec(method="dora", rank_pattern={"q_proj": 4}, layers=(0, 1), target_modules=("q_proj",))
    spec = TrainSpec(lora, task="SEQ_CLS", patience=2)
    assert spec_from_json(json.loads(json.dumps(spec_to_json(spec)))) == spec
    assert spec_from_json({}) == TrainSpec()


@pytest.mark.parametrize(
    ("found", "message"),
    [
        ({"epoch": 1}, "epoch: "),
        ({"epochs": "3"}, "epochs: "),
        ({"epochs": True}, "epochs: "),
        ({"epochs": 0}, "epochs must be at least 1, not 0"),
        ({"learning_rate": None}, "learning_rate: "),
        ({"learning_rate": float("nan")}, "learning_rate"),
        ({"lora": []}, "lora: "),
        ({"lora": {"rank": 1.5}}, "lora.rank: "),
        ({"lora": {"rank": 0}}, "rank must be at least 1, not 0"),
        ({"lora": {"layers": ["a"]}}, "lora.layers.0: "),
        ({"lora": {"method": "lora+"}}, "lora.method: "),
        ({"task": 5}, "task: "),
        ({"objective": "dpo", "task": "SEQ_CLS"}, "objective dpo is for CAUSAL_LM"),
    ],
)
def test_bad_json_is_named(found: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        spec_from_json(found)
